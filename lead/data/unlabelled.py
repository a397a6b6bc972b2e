"""Texts without judgements, from files of the user's own."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from lead.data.collection import passage_batches
from lead.data.files import read_corpus
from lead.data.records import format_of, lines
from lead.errors import LeadError


def read_texts(paths: Sequence[Path]) -> Iterator[pa.RecordBatch]:
    """The texts of files as batches (pid, text); pid counts them. Memory: one batch. Raises LeadError for a bad file.

    A file named .txt (.txt.gz, .txt.zst) holds a text a line; any other is read as a corpus is, without its ids.
    """
    yield from passage_batches((f"t{n}", text) for n, text in enumerate(_texts(paths)))


def _texts(paths: Sequence[Path]) -> Iterator[str]:
    for path in paths:
        if not os.path.isfile(path):
            raise LeadError(f"align.texts: no file {path}; fix the path")
        if format_of(path) is None:
            raise LeadError(f"align.texts: the name of {path} tells no format; expected .txt, .tsv, .csv, .jsonl, ..")
        if ".txt" in path.suffixes[-2:]:
            yield from (text for _, line in lines(path) if (text := line.strip()))
        else:
            for batch in read_corpus([path], ["title", "text"]):
                yield from (text for text in batch["text"].to_pylist() if text)
