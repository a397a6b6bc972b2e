"""Collections on disk: MS MARCO's and DPR's TSV, CSV, BEIR's JSONL, Parquet, and TREC judgements, also compressed.

The corpus is streamed in batches. Queries and judgements of a split are read whole: 800,000 queries take about 0.5 GB
while they are read. Ids are always strings: 007 is not 7.
"""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lead.config.folders import LocatedSplit, locate
from lead.config.sources import FilesSource, OnDisk
from lead.data.collection import Collection, Split, hash64, own_queries, passage_batches
from lead.data.layout import CORPUS, QRELS, QUERIES, FileKind, Layout, rows
from lead.data.records import bad, format_of, identifier, string
from lead.errors import LeadError
from lead.store.tables import SCHEMAS

EXPECTED_NAMES = "expected .tsv, .txt, .csv, .jsonl or .parquet, or one of these with .gz or .zst"
PID, QID = CORPUS.names["pid"][:3], QUERIES.names["qid"][:3]
MOST = 10**9  # grades are smaller
Facts = dict[str, Any] | None


def collect(source: OnDisk) -> Collection:
    """Read queries and judgements, and get ready to stream the corpus. Raises LeadError for a missing file."""
    located = locate(source)
    for path in located.corpus:
        _check_file("source.corpus", path)
    facts: dict[str, Any] = {}
    splits = {name: collect_split(name, split, facts) for name, split in located.splits.items()}
    files = {name: {os.path.realpath(path) for path in split.queries} for name, split in located.splits.items()}
    if source.train is None and not isinstance(source, FilesSource):  # a folder has one file for all splits
        files["train"] = {path for paths in files.values() for path in paths}

    def titles() -> Iterator[tuple[str, str]]:
        for batch in read_corpus(located.corpus, ["title"]):
            yield from zip(batch["pid"].to_pylist(), batch["text"].to_pylist(), strict=True)

    passages = read_corpus(located.corpus, source.fields, facts)
    return Collection(passages, own_queries(splits, files), {"files": facts}, titles)


def collect_split(name: str, split: LocatedSplit, facts: dict[str, Any]) -> Split:
    """Read queries and judgements of a split. Raises LeadError for a missing or malformed file.

    The format and columns of each file are added to `facts`.
    """
    for key, paths in (("queries", split.queries), ("qrels", split.qrels)):
        for path in paths:
            _check_file(f"source.{name}.{key}", path)
    queries = read_queries(split.queries, facts, f"{name}.queries")
    return Split(queries, *read_qrels(split.qrels, facts, f"{name}.qrels"))


def _check_file(key: str, path: Path) -> None:
    if not os.path.isfile(path):  # Path.is_file raises where a name is too long
        raise LeadError(f"{key}: no file {path}; download it, or fix the path")
    if format_of(path) is None and not key.endswith("qrels"):
        raise LeadError(f"{key}: the name of {path} has no known ending; {EXPECTED_NAMES}")


def read_corpus(paths: Sequence[Path], fields: Sequence[str], facts: Facts = None) -> Iterator[pa.RecordBatch]:
    """Stream batches (pid, text); text is the chosen non-empty fields in the order given, joined by a space.

    Memory: one batch (16 Mi characters and one passage), and 8 bytes a passage to find duplicate ids.
    Raises LeadError with file and line for a malformed record, and at the end of the stream for a duplicate id.
    """
    hashes = array("Q")

    def texts() -> Iterator[tuple[str, str]]:
        for _, _, pid, parts in _passages(paths, facts):
            hashes.append(hash64(pid))
            yield pid, " ".join(part for field in fields if (part := parts[field]))

    yield from passage_batches(texts())
    values, counts = np.unique(np.frombuffer(hashes, dtype=np.uint64), return_counts=True)
    if (counts > 1).any():
        _raise_duplicate(paths, set(values[counts > 1].tolist()))


def read_queries(paths: Sequence[Path], facts: Facts = None, key: str = "queries") -> pa.Table:
    """Read queries (qid, text) in the order of the files. Raises LeadError with file and line."""
    texts: dict[str, str] = {}
    for path in paths:
        for number, row in _rows(path, QUERIES, facts, key):
            qid = identifier(path, number, row.get("qid"), QID)
            if qid in texts:
                raise bad(path, number, f"query id {qid} occurs before", "ids must be unique within a split")
            texts[qid] = string(path, number, row.get("text"), "text")
    return pa.table({"qid": list(texts), "text": list(texts.values())}, schema=SCHEMAS["queries"])


def read_qrels(paths: Sequence[Path], facts: Facts = None, key: str = "qrels") -> tuple[pa.Table, int]:
    """Read graded judgements (qid, pid, rel) in the order of the files, and count rows that repeat another.

    Raises LeadError with file and line, also if two judgements of the same pair disagree.
    """
    judged: dict[tuple[str, str], int] = {}
    n = 0
    for path in paths:
        for number, row in _rows(path, QRELS, facts, key):
            qid, pid = (identifier(path, number, row.get(id_), QRELS.names[id_][:2]) for id_ in ("qid", "pid"))
            rel = _grade(path, number, row.get("rel"))
            before = judged.setdefault((qid, pid), rel)
            if before != rel:
                what = f"query {qid} and passage {pid} were judged {before} before"
                raise bad(path, number, what, "keep one of the two")
            n += 1
    columns = [[qid for qid, _ in judged], [pid for _, pid in judged], list(judged.values())]
    return pa.table(columns, schema=SCHEMAS["qrels"]), n - len(judged)


def _grade(path: Path, number: int, value: object) -> int:
    """A grade: a whole number, also written as a float (1.0)."""
    text = str(value).strip(" ")
    if re.fullmatch(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]{1,3})?", text):
        grade = float(text)
        if grade.is_integer() and abs(grade) < MOST:
            return int(grade)
    raise bad(path, number, f"relevance '{text[:60]}' is not a whole number", f"expected {QRELS.expected}")


def _rows(path: Path, kind: FileKind, facts: Facts, key: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a file. After the last row, `facts[key]` holds the format and columns of the (first) file."""
    layout = Layout()
    yield from rows(path, kind, layout)
    if facts is not None and key not in facts:
        facts[key] = layout.facts()


def _passages(paths: Sequence[Path], facts: Facts) -> Iterator[tuple[Path, int, str, dict[str, str]]]:
    """File, line number, id, and title and text of each passage."""
    for path in paths:
        for number, row in _rows(path, CORPUS, facts, "corpus"):
            pid = identifier(path, number, row.get("pid"), PID)
            title = string(path, number, row.get("title"), "title", default="")
            default = "" if "text" in row else None  # a null text is empty, a missing one is an error
            yield path, number, pid, {"title": title, "text": string(path, number, row.get("text"), "text", default)}


def _raise_duplicate(paths: Sequence[Path], suspects: set[int]) -> None:
    """Read again the ids whose hash occurred twice, and raise LeadError for a duplicate, not for a chance collision."""
    first: dict[str, tuple[Path, int]] = {}
    for path, number, pid, _ in _passages(paths, None):
        if hash64(pid) in suspects and first.setdefault(pid, (path, number)) != (path, number):
            other, line = first[pid]
            where = f"in line {line}" if other == path else f"in {other}:{line}"
            raise bad(path, number, f"passage id {pid} occurs before, {where}", "ids must be unique")
