"""Passages and their vectors, ready for one query at a time."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from lead.data.texts import mapped, take_texts
from lead.errors import LeadError
from lead.lists import Floats, Ints, alphabetical
from lead.retrieval.engine import Engine, approximate_engine, exact_engine
from lead.retrieval.search import search
from lead.store.tables import SCHEMAS
from lead.store.vectors import read_vectors


@dataclass(frozen=True)
class Hit:
    """A passage of an answer.

    rank: from 1. id: the passage's. score: higher is better, comparable within one answer. title: empty where passages
    have none of their own (a prepared corpus has its titles in `text`). text: as the model read it, without the title.
    """

    rank: int
    id: str
    score: float
    title: str
    text: str


def checked(texts: Sequence[str]) -> list[str]:
    """Texts as a list. Raises LeadError for one text, and for what holds anything else."""
    if isinstance(texts, str):
        raise LeadError("give a list of texts, not one text")
    found = texts.to_pylist() if hasattr(texts, "to_pylist") else list(texts)  # an Arrow column
    for at, text in enumerate(found):
        if not isinstance(text, str):
            raise LeadError(f"give a list of texts; number {at} is {text!r:.60}, not a text")
    return found


class Passages:
    """The texts of a corpus by row, with their ids and, if they have any, titles."""

    def __init__(self, ids: pa.Array, texts: pa.ChunkedArray, titles: pa.ChunkedArray | None = None) -> None:
        """All of n passages."""
        self.ids, self.texts, self.titles = ids, texts, titles
        self.order = alphabetical(ids)  # ties go to the first id, as in a run

    def __len__(self) -> int:
        """How many."""
        return len(self.ids)

    @classmethod
    def of_corpus(cls, corpus: Path) -> Passages:
        """Those of a prepared corpus. Texts are mapped from a temporary file. Raises LeadError for a damaged file."""
        table = mapped(corpus, Path(tempfile.gettempdir()) / f"lead-search.{os.getpid()}.arrow")
        return cls(table["pid"].combine_chunks(), table["text"])

    @classmethod
    def of_file(cls, file: Path) -> Passages:
        """Those of a corpus file: JSONL, TSV, CSV or Parquet with ids, texts and perhaps titles. Raises LeadError."""
        from lead.data.files import read_corpus
        from lead.data.records import format_of

        if not file.is_file() or format_of(file) is None:
            raise LeadError(f"{file} is no file of passages; give .jsonl, .tsv, .csv or .parquet with ids and texts")
        titles, texts = (
            pa.Table.from_batches(read_corpus([file], [field]), SCHEMAS["corpus"]) for field in ("title", "text")
        )
        if not len(texts):
            raise LeadError(f"{file} holds no passage")
        return cls(texts["pid"].combine_chunks(), texts["text"], titles["text"])

    @classmethod
    def of_texts(cls, texts: Sequence[str]) -> Passages:
        """Texts, with their positions as ids."""
        texts = checked(texts)
        ids = pa.array([str(i) for i in range(len(texts))], pa.string())
        return cls(ids, pa.chunked_array([pa.array(texts, pa.string())]))

    def read(self, rows: Sequence[int] | Ints) -> list[str]:
        """What a model reads of these rows: title and text."""
        texts = take_texts(self.texts, rows)
        if self.titles is None:
            return texts
        return [f"{a} {b}" if a and b else a or b for a, b in zip(take_texts(self.titles, rows), texts, strict=True)]

    def hits(self, rows: Ints, scores: Floats) -> list[Hit]:
        """These rows, best first, as an answer."""
        texts = take_texts(self.texts, rows)
        titles = take_texts(self.titles, rows) if self.titles is not None else [""] * len(rows)
        ids = self.ids.take(pa.array(rows)).to_pylist()
        found = zip(ids, scores.tolist(), titles, texts, strict=True)
        return [Hit(rank, *values) for rank, values in enumerate(found, 1)]


class Vectors:
    """The vectors of n passages, in the shards that they were made in, and what searches each."""

    def __init__(self, shards: Sequence[tuple[Floats, Engine | None]], order: Ints) -> None:
        """shards: vectors [n_i, d] and their engine (None: exact); order [n]: which passage wins a tie."""
        self.shards = [(vectors, engine or exact_engine(vectors)) for vectors, engine in shards]
        self.order = order

    @classmethod
    def of_files(cls, files: Sequence[Path], indexes: Sequence[Path], how: str | None, passages: Passages) -> Vectors:
        """Those that a run made of `passages`, with its approximate `indexes` if there are any. Raises LeadError.

        Memory: all vectors.
        """
        read = [read_vectors(file) for file in files]
        if passages.ids.to_pylist() != [name for names, _ in read for name in names]:
            raise LeadError(f"{files[0]} does not hold the vectors of these passages; encode them again")
        engines = [approximate_engine(i, file, how)[0] for i, file in zip(indexes, files, strict=False)]
        padded: list[Engine | None] = [*engines, *[None] * (len(files) - len(engines))]
        return cls([(vectors, engine) for (_, vectors), engine in zip(read, padded, strict=True)], passages.order)

    def search(self, query: Floats, k: int) -> tuple[Ints, Floats]:
        """Rows and inner products of the best k passages for a query's vector [d], best first."""
        rows, scores, start = [np.empty(0, np.int64)], [np.empty(0, np.float32)], 0
        for vectors, engine in self.shards:
            order = self.order[start : start + len(vectors)]
            for _, found, values in search(query[None], vectors, k, order, engine):
                real = found[0] >= 0
                rows.append(found[0][real] + start)
                scores.append(values[0][real])
            start += len(vectors)
        all_rows, all_scores = np.concatenate(rows), np.concatenate(scores)
        best = np.lexsort((self.order[all_rows], -all_scores))[:k]
        return all_rows[best], all_scores[best]
