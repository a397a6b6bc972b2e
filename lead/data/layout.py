"""Which column of a file holds which value: by name, or by place in a TSV file without a header."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lead.data.records import bad, cells, format_of, lines, quotes, records, wrong_width

log = logging.getLogger("lead")

UNKNOWN = 20  # names of unread columns that the report lists, at most
ORDINARY = {"metadata", "url", "iteration"}  # unread columns of public collections: no warning


@dataclass(frozen=True, eq=False)
class FileKind:
    """A kind of file: the usual names of its values, and their places in a file without names."""

    names: Mapping[str, Sequence[str]]  # value -> names in lower case, with `_` for `-`; the first is ours
    places: Mapping[int, Sequence[str | None]]  # number of columns -> value of each
    header: Sequence[str]  # values that a line must name to be a header
    expected: str


ID = ("_id", "id", "docid", "doc_id", "docno", "document_id", "passage_id", "corpus_id")
TEXT = ("text", "passage", "contents", "content", "body", "document")
QID = ("_id", "id", "query_id", "queryid", "question_id", "topic_id")
CORPUS = FileKind(
    {"pid": ("pid", *ID), "title": ("title",), "text": TEXT},
    {2: ("pid", "text"), 3: ("pid", "title", "text"), 4: ("pid", None, "title", "text")},
    ("pid", "text"),
    "id, text or id, title, text or id, url, title, text",
)
QUERIES = FileKind(
    {"qid": ("qid", *QID), "text": ("text", "query", "question", "query_text", "contents", "title")},
    {2: ("qid", "text")},
    ("qid", "text"),
    "id, text",
)
QRELS = FileKind(
    {
        "qid": ("qid", "query_id", "queryid", "query", "topic", "topic_id"),
        "pid": ("pid", "corpus_id", "corpusid", "docid", "doc_id", "docno", "passage_id", "document_id"),
        "rel": ("rel", "score", "relevance", "label", "grade", "judgment", "judgement"),
    },
    {3: ("qid", "pid", "rel"), 4: ("qid", None, "pid", "rel")},
    ("qid", "pid"),
    "qid, any, pid, rel or qid, pid, rel",
)
RUN = FileKind(
    {
        "qid": QRELS.names["qid"],
        "pid": QRELS.names["pid"],
        "rank": ("rank", "position"),
        "score": ("score", "similarity"),
    },
    {},
    ("qid", "pid"),
    "qid, pid, and score or rank",
)


@dataclass
class Layout:
    """The format and columns found in a file, for the report and the log. Complete after the last row is read."""

    header: bool | None = None  # whether the first line names the columns; None: a format without header
    quotes: bool = False  # whether a TSV file quotes its cells
    columns: dict[str, str] = field(default_factory=dict)  # value -> name, or `column 2` without names
    unread: dict[str, None] = field(default_factory=dict)  # names of columns that are not read

    def note(self, columns: Mapping[str, str], names: Sequence[str]) -> None:
        """Remember where values were found, and which of the file's `names` are not read."""
        self.columns |= {value: name for value, name in columns.items() if value not in self.columns}
        for name in names:
            if len(self.unread) < UNKNOWN and name not in columns.values():
                self.unread[name] = None

    def facts(self) -> dict[str, Any]:
        """For the report: equal files give equal facts."""
        found: dict[str, Any] = {"columns": dict(sorted(self.columns.items()))}
        found |= {} if self.header is None else {"header": self.header, "quotes": self.quotes}
        return found | ({"unread": sorted(self.unread)} if self.unread else {})


def tell(files: Mapping[str, Mapping[str, Any]]) -> None:
    """Log the columns of files, from their `Layout.facts`. Warn of unread columns that are not in `ORDINARY`."""
    for key, facts in files.items():
        columns = ", ".join(f"{value} from {name}" for value, name in facts["columns"].items())
        header = {None: "", True: " (its first line is a header)", False: " (no header)"}[facts.get("header")]
        log.info("%s%s: %s%s", key, header, columns, ", quotes undone" if facts.get("quotes") else "")
        odd = [name for name in facts.get("unread", ()) if canonical(name) not in ORDINARY]
        if odd:
            log.warning("%s: these columns are not read: %s", key, ", ".join(odd)[:200])


def canonical(name: object) -> str:
    """A name without case and without a leading `#`, and with `_` for `-` and spaces.

    >>> canonical("#Query-ID")
    'query_id'
    """
    return re.sub(r"[-\s]+", "_", str(name).strip().removeprefix("#").lower())


@functools.lru_cache(4096)
def find(kind: FileKind, names: tuple[str, ...]) -> dict[str, str]:
    """Value -> its name among `names`. If several fit: the most usual one, in its usual spelling if possible."""
    found = {}
    for value, aliases in kind.names.items():
        for alias in aliases:
            fitting = sorted((name for name in names if canonical(name) == alias), key=lambda name: name != alias)
            if fitting:
                found[value] = fitting[0]
                break
    return found


def rows(path: Path, kind: FileKind, layout: Layout) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and values of each row, in any format. Raises LeadError with file and line.

    A value that a record lacks is missing in the dictionary.
    """
    if format_of(path) not in ("parquet", "jsonl"):
        yield from _rows_of_text(path, kind, layout)
        return
    known = {alias for aliases in kind.names.values() for alias in aliases}
    seen: list[str] = []

    def wanted(column: str) -> bool:
        seen.append(column)
        return canonical(column) in known

    last: tuple[str, ...] | None = None
    for number, record in records(path, wanted):
        names = tuple(record)
        columns = find(kind, names)
        if names != last:
            layout.note(columns, seen or names)
            last = names
        yield number, {value: record[name] for value, name in columns.items()}


def _rows_of_text(path: Path, kind: FileKind, layout: Layout) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a TSV, CSV or TREC file. The first line is a header if it names `kind.header`."""
    layout.quotes = format_of(path) == "csv" or quotes(path)
    spaced = kind is QRELS and not layout.quotes
    places: Sequence[str | None] = ()
    for number, row in _spaced(path) if spaced else cells(path, layout.quotes):
        if not places:
            columns = find(kind, tuple(row))
            every = {alias for aliases in kind.names.values() for alias in aliases}
            all_known = kind.header[0] in columns and all(canonical(name) in every for name in row)
            layout.header = all_known or all(value in columns for value in kind.header)
            if layout.header:
                layout.note(columns, row)
                values = {name: value for value, name in columns.items()}
                places = [values.get(name) for name in row]
                lacking = [value for value in kind.header if value not in columns]
                if lacking or sum(map(bool, places)) > len(columns):
                    what = f"no {lacking[0]}" if lacking else "a name twice"
                    raise bad(
                        path, number, f"the header has {what}: {', '.join(row)[:100]}", f"expected {kind.expected}"
                    )
                continue
            if len(row) not in kind.places:
                raise bad(path, number, wrong_width(len(row), None), f"expected {kind.expected}, or a header")
            places = kind.places[len(row)]
            layout.note({value: f"column {i}" for i, value in enumerate(places, 1) if value}, [])
        if len(row) != len(places):
            raise bad(path, number, wrong_width(len(row), len(places)), f"expected {kind.expected}")
        yield number, {value: cell for value, cell in zip(places, row, strict=True) if value is not None}


def _spaced(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Cells of judgements, separated by tabs, spaces or both. With tabs alone, an id may hold a space."""
    for number, line in lines(path):
        row, parts = line.split("\t"), [part for part in re.split("[ \t]", line) if part]
        trec = len(parts) == 4 and len(row) == 3 and parts[1] in ("0", "Q0")  # a space beside tabs
        yield number, parts if trec or len(row) < 3 or " " in row[-1].strip(" ") else row
