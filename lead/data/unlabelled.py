"""Texts without judgements, from files of the user's own."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from lead.data.collection import passage_batches
from lead.data.layout import CORPUS, QUERIES, FileKind, Layout, rows
from lead.data.records import format_of, lines, string
from lead.errors import LeadError

# a corpus or a file of queries; ids are not read
TEXTS = FileKind(
    {
        "pid": (*CORPUS.names["pid"], *QUERIES.names["qid"]),
        "title": CORPUS.names["title"],
        "text": (*CORPUS.names["text"], "query", "question", "query_text"),
    },
    CORPUS.places,
    CORPUS.header,
    CORPUS.expected,
)


def read_texts(paths: Sequence[Path]) -> Iterator[pa.RecordBatch]:
    """The texts of files as batches (pid, text); pid counts them. Memory: one batch. Raises LeadError for a bad file.

    A file named .txt (.txt.gz, .txt.zst) holds a text a line; any other is read like a corpus or queries, without ids.
    """
    yield from passage_batches((f"t{n}", text) for n, text in enumerate(_texts(paths)))


def _texts(paths: Sequence[Path]) -> Iterator[str]:
    for path in paths:
        if not os.path.isfile(path):
            raise LeadError(f"align: no file {path}; fix the path")
        if format_of(path) is None:
            raise LeadError(f"align: the name of {path} has no known ending; expected .txt, .tsv, .jsonl, ..")
        if ".txt" in path.suffixes[-2:]:
            yield from (text for _, line in lines(path) if (text := line.strip()))
        else:
            for number, row in rows(path, TEXTS, Layout()):
                title = string(path, number, row.get("title"), "title", default="")
                text = string(path, number, row.get("text"), "text", default="" if "text" in row else None)
                if title or text:
                    yield f"{title} {text}".strip()
