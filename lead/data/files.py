"""Collections on disk: MS MARCO TSV, BEIR JSONL, Parquet, and TREC judgements, gzipped or not.

The corpus is streamed in batches. Queries and judgements of a split are read whole: 800,000 queries take about 0.5 GB
while they are read. Ids are strings everywhere, whatever they look like: 007 is not 7.
"""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from lead.config.sources import FilesSource, SplitFiles
from lead.data.collection import Collection, Split, hash64, passage_batches
from lead.data.records import bad, format_of, identifier, lines, records, string, tsv, wrong_width
from lead.errors import LeadError
from lead.store.tables import SCHEMAS

EXPECTED_NAMES = "expected .tsv, .txt, .jsonl or .parquet, or one of these with .gz"
EXPECTED_COLUMNS = "expected qid, any, pid, rel or qid, pid, rel"
BEIR_HEADER = ["query-id", "corpus-id", "score"]
PID, QID = ("pid", "_id", "id"), ("qid", "_id", "id")


def collect(source: FilesSource) -> Collection:
    """Read queries and judgements, and get ready to stream the corpus. Raises LeadError for a missing file."""
    _check_file("source.corpus", source.corpus)
    splits = {"train": source.train, "dev": source.dev, "test": source.test}
    return Collection(
        passages=read_corpus(Path(source.corpus), source.fields),
        splits={name: collect_split(name, split) for name, split in splits.items() if split is not None},
    )


def collect_split(name: str, split: SplitFiles) -> Split:
    """Read queries and judgements of a split. Raises LeadError for a missing or malformed file."""
    for key, path in split.model_dump().items():
        _check_file(f"source.{name}.{key}", path)
    return Split(read_queries(Path(split.queries)), *read_qrels(Path(split.qrels)))


def _check_file(key: str, path: str) -> None:
    if not os.path.isfile(path):  # Path.is_file raises where a name is too long
        raise LeadError(f"{key}: no file {path}; download it, or mend the path")
    if format_of(Path(path)) is None and not key.endswith("qrels"):
        raise LeadError(f"{key}: the name of {path} tells no format; {EXPECTED_NAMES}")


def read_corpus(path: Path, fields: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Stream batches (pid, text); text is the chosen non-empty fields in the order given, joined by a space.

    Memory: one batch (16 Mi characters, and one passage more) and 8 bytes a passage, by which duplicate ids are found.
    Raises LeadError with file and line for a malformed record, and at the end of the stream for a duplicate id.
    """
    hashes = array("Q")

    def texts() -> Iterator[tuple[str, str]]:
        for number, pid, title, text in _passages(path):
            if not pid:
                raise bad(path, number, "empty id", "every passage needs one")
            parts = {"title": title, "text": text}
            hashes.append(hash64(pid))
            yield pid, " ".join(part for field in fields if (part := parts[field]))

    yield from passage_batches(texts())
    values, counts = np.unique(np.frombuffer(hashes, dtype=np.uint64), return_counts=True)
    if (counts > 1).any():
        _raise_duplicate(path, set(values[counts > 1].tolist()))


def read_queries(path: Path) -> pa.Table:
    """Read queries (qid, text) in the order of the file. Raises LeadError with file and line."""
    texts: dict[str, str] = {}
    for number, qid, text in _queries(path):
        if not qid:
            raise bad(path, number, "empty id", "every query needs one")
        if qid in texts:
            raise bad(path, number, f"query id {qid} occurs before", "ids must be unique within a split")
        texts[qid] = text
    return pa.table({"qid": list(texts), "text": list(texts.values())}, schema=SCHEMAS["queries"])


def read_qrels(path: Path) -> tuple[pa.Table, int]:
    """Read graded judgements (qid, pid, rel) in the order of the file, and how many rows said the same again.

    Raises LeadError with file and line, also where two judgements of the same pair disagree.
    """
    judged: dict[tuple[str, str], int] = {}
    rows = 0
    for number, qid, pid, rel in _judgements(path):
        if not qid or not pid:
            raise bad(path, number, "empty id", "every judgement needs a query id and a passage id")
        if not re.fullmatch("[+-]?[0-9]{1,9}", rel):
            raise bad(path, number, f"relevance '{rel[:60]}' is not a whole number", EXPECTED_COLUMNS)
        before = judged.setdefault((qid, pid), int(rel))
        if before != int(rel):
            raise bad(path, number, f"query {qid} and passage {pid} were judged {before} before", "keep one of the two")
        rows += 1
    columns = [[qid for qid, _ in judged], [pid for _, pid in judged], list(judged.values())]
    return pa.table(columns, schema=SCHEMAS["qrels"]), rows - len(judged)


def _passages(path: Path) -> Iterator[tuple[int, str, str, str]]:
    """Line number, id, title and text of each passage."""
    if format_of(path) == "tsv":
        for number, cells in tsv(path, (2, 3, 4), "id, text or id, title, text or id, url, title, text"):
            yield number, cells[0], cells[-2] if len(cells) > 2 else "", cells[-1]
        return
    for number, record in records(path, (*PID, "title", "text")):
        yield (
            number,
            identifier(path, number, record, PID),
            string(path, number, record, "title", default=""),
            string(path, number, record, "text"),
        )


def _queries(path: Path) -> Iterator[tuple[int, str, str]]:
    if format_of(path) == "tsv":
        for number, (qid, text) in tsv(path, (2,), "id, text"):
            yield number, qid, text
        return
    for number, record in records(path, (*QID, "text")):
        yield number, identifier(path, number, record, QID), string(path, number, record, "text")


def _judgements(path: Path) -> Iterator[tuple[int, str, str, str]]:
    """Line number, query id, passage id and relevance, still a string, of each judgement."""
    if format_of(path) in ("parquet", "jsonl"):
        qid, pid, rel = ("qid", "query-id"), ("pid", "corpus-id"), ("rel", "score")
        for number, record in records(path, (*qid, *pid, *rel)):
            value = next((record[name] for name in rel if name in record), None)
            yield number, identifier(path, number, record, qid), identifier(path, number, record, pid), str(value)
        return
    width = None
    for number, line in lines(path):
        # TREC files are set with spaces or tabs; where there are tabs, an id may hold a space
        cells = line.split("\t") if "\t" in line else [cell for cell in line.split(" ") if cell]
        if width is None and cells == BEIR_HEADER:
            width = len(cells)
            continue
        if len(cells) not in (3, 4) or len(cells) != (width or len(cells)):
            raise bad(path, number, wrong_width(len(cells), width), EXPECTED_COLUMNS)
        width = len(cells)
        yield number, cells[0], cells[-2], cells[-1].strip(" ")


def _raise_duplicate(path: Path, suspects: set[int]) -> None:
    """Read again, keeping only ids whose hash occurred twice, to tell a duplicate's line from a chance collision."""
    first: dict[str, int] = {}
    for number, pid, _, _ in _passages(path):
        if hash64(pid) in suspects and first.setdefault(pid, number) != number:
            raise bad(path, number, f"passage id {pid} occurs before, in line {first[pid]}", "ids must be unique")
