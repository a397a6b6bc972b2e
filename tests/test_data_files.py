"""Reading collections from disk: every format and the hard cases. What is malformed: tests/malformed/data.py."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lead.config.sources import FilesSource, SplitFiles
from lead.data import collection, files
from lead.data.files import collect, read_corpus, read_qrels, read_queries
from lead.errors import LeadError

READERS: dict[str, Callable[[Path], Any]] = {
    "corpus": lambda path: list(read_corpus(path, ["title", "text"])),
    "queries": read_queries,
    "qrels": read_qrels,
}


def write(path: Path, content: bytes | dict[str, list[Any]]) -> Path:
    """Write bytes, or columns as Parquet; compressed if the name says so."""
    if isinstance(content, dict):
        buffer = io.BytesIO()
        pq.write_table(pa.table(content), buffer)
        content = buffer.getvalue()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def passages(path: Path, fields: tuple[str, ...] = ("title", "text")) -> list[tuple[str, str]]:
    """The streamed corpus as pairs."""
    return [(row["pid"], row["text"]) for batch in read_corpus(path, fields) for row in batch.to_pylist()]


def jsonl(*records: Any) -> bytes:
    """One JSON record a line."""
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


RECORD = {"_id": "007", "title": "A title", "text": "first text"}
TITLED = [("007", "A title first text"), ("b", "second")]


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("c.tsv", b"007\tfirst text\nb\tsecond\n", [("007", "first text"), ("b", "second")]),
        ("c.tsv", b"007\tA title\tfirst text\nb\t\tsecond", TITLED),
        ("c.tsv", b"007\thttp://x\tA title\tfirst text\r\nb\tu\t\tsecond\r\n", TITLED),
        ("c.txt", b"\xef\xbb\xbf007\tfirst text\n\n", [("007", "first text")]),
        ("c.jsonl", jsonl(RECORD, {"_id": "b", "text": "second"}), TITLED),
        ("c.jsonl", jsonl({"id": 7, "title": None, "text": "x", "metadata": {}}), [("7", "x")]),
        ("c.parquet", {"_id": ["007", "b"], "title": ["A title", None], "text": ["first text", "second"]}, TITLED),
        ("c.parquet", {"other": [0.5], "pid": [7], "text": ["x"]}, [("7", "x")]),
    ],
)  # fmt: skip
def test_corpus_formats(tmp_path: Path, name: str, content: Any, expected: list[tuple[str, str]], suffix: str) -> None:
    """TSV of 2, 3 and 4 columns, JSONL and Parquet, plain and gzipped."""
    assert passages(write(tmp_path / (name + suffix), content)) == expected


def test_fields_are_joined_in_the_order_given(tmp_path: Path) -> None:
    """One space between fields, none where one is empty or not chosen."""
    path = write(tmp_path / "c.tsv", b"1\tT\tx\n2\t\tx\n3\tT\t\n")
    assert [t for _, t in passages(path, ("text", "title"))] == ["x T", "x", "T"]
    assert [t for _, t in passages(path, ("text",))] == ["x", "x", ""]


HARD = {
    "quote": '"an opening quote that never closes',
    "tab": "a\ttab",
    "newline": "two\nlines",
    "breaks": "a\rb\x85c\u2028d\x0be\x1cf",
    "empty": "",
    "spaces": "  kept  ",
    "long": "x" * 100_000,
    "unicode": "naïve 検索 🙂 e\u0301",
    "nul": "a\0b",
}


@pytest.mark.parametrize("name", ["c.tsv", "c.jsonl", "c.parquet"])
def test_hard_passages_arrive_unharmed(tmp_path: Path, name: str) -> None:
    """Whatever a format can hold comes out as it went in."""
    hard = {k: v for k, v in HARD.items() if not (name == "c.tsv" and k in ("tab", "newline"))}
    content: Any = {"pid": list(hard), "text": list(hard.values())}
    if name == "c.tsv":
        content = "".join(f"{k}\t{v}\n" for k, v in hard.items()).encode()
    elif name == "c.jsonl":
        content = jsonl(*({"_id": k, "text": v} for k, v in hard.items()))
    assert dict(passages(write(tmp_path / name, content))) == hard


def test_corpus_is_streamed_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither many short nor a few long passages make a large batch."""
    path = write(tmp_path / "c.tsv", b"".join(b"%d\t%s\n" % (i, b"x" * i) for i in range(100)))
    monkeypatch.setattr(collection, "BATCH_ROWS", 30)
    assert [b.num_rows for b in read_corpus(path, ["text"])] == [30, 30, 30, 10]
    monkeypatch.setattr(collection, "BATCH_CHARACTERS", 1000)
    assert max(len("".join(b["text"].to_pylist())) for b in read_corpus(path, ["text"])) < 1100


def test_hash_collision_is_no_duplicate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Distinct ids with equal hashes pass; a true duplicate among them is found."""
    monkeypatch.setattr(files, "hash64", lambda text: 1)
    assert len(passages(write(tmp_path / "c.tsv", b"1\tx\n2\tx\n3\tx\n"))) == 3
    with pytest.raises(LeadError, match="c.tsv:3: passage id 1 occurs before, in line 1"):
        passages(write(tmp_path / "c.tsv", b"1\tx\n2\tx\n1\tx\n"))


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("q.tsv", b'01\t"quoted\n2\t two  spaces\n'),
        ("q.txt", b'01\t"quoted\r\n2\t two  spaces\r\n'),
        ("q.jsonl", jsonl({"_id": "01", "text": '"quoted', "metadata": {}}, {"_id": 2, "text": " two  spaces"})),
        ("q.parquet", {"qid": ["01", "2"], "text": ['"quoted', " two  spaces"]}),
    ],
)
def test_query_formats(tmp_path: Path, name: str, content: Any, suffix: str) -> None:
    """Ids stay strings, texts stay as they are."""
    table = read_queries(write(tmp_path / (name + suffix), content))
    assert table.to_pylist() == [{"qid": "01", "text": '"quoted'}, {"qid": "2", "text": " two  spaces"}]


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("qrels.txt", b"01 Q0 p 2\n2 0 p  -1\n"),
        ("qrels.dl19", b"01\tQ0\tp\t2\r\n2\tanything goes\tp\t-1\r\n"),
        ("qrels.tsv", b"query-id\tcorpus-id\tscore\n01\tp\t2\n2\tp\t-1\n"),
        ("qrels.tsv", b"01\tp\t2\n\n2\tp\t-1"),
        ("qrels.parquet", {"qid": ["01", "2"], "pid": ["p", "p"], "rel": [2, -1]}),
        ("qrels.jsonl", jsonl({"query-id": "01", "corpus-id": "p", "score": 2}, {"qid": 2, "pid": "p", "rel": -1})),
    ],
)
def test_qrels_formats(tmp_path: Path, name: str, content: Any, suffix: str) -> None:
    """Four columns, three columns with and without header, Parquet; graded."""
    table, repeated = read_qrels(write(tmp_path / (name + suffix), content))
    assert table.to_pylist() == [{"qid": "01", "pid": "p", "rel": 2}, {"qid": "2", "pid": "p", "rel": -1}]
    assert repeated == 0


def test_ids_with_spaces(tmp_path: Path) -> None:
    """Where columns are parted by tabs, an id may hold a space."""
    table, _ = read_qrels(write(tmp_path / "qrels.tsv", b"q 1\tp 1\t1\n"))
    assert table.to_pylist() == [{"qid": "q 1", "pid": "p 1", "rel": 1}]


def test_repeated_judgements_are_counted(tmp_path: Path) -> None:
    """Saying the same again does no harm."""
    table, repeated = read_qrels(write(tmp_path / "qrels.txt", b"1 0 p 1\n1 0 p 1\n1 0 r 1\n"))
    assert (table.num_rows, repeated) == (2, 1)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("cut", [-9, 5])
def test_truncated_gzip(tmp_path: Path, reader: str, cut: int) -> None:
    """A download that broke off is noticed, also when it breaks off in the trailer."""
    path = tmp_path / "x.tsv.gz"
    path.write_bytes(gzip.compress(b"1\t2\n" if reader != "qrels" else b"1\t2\t3\n")[:cut])
    with pytest.raises(LeadError, match=r"x.tsv.gz:\d: damaged or truncated gzip .*; download the file again"):
        READERS[reader](path)


def source(folder: Path, **changes: str) -> FilesSource:
    """A source of empty files in a folder, some of them replaced."""
    paths = {key: changes.get(key, f"{key}.tsv") for key in ("corpus", "queries", "qrels")}
    for name in ("corpus.tsv", "queries.tsv", "qrels.tsv"):
        (folder / name).touch()
    split = SplitFiles(queries=str(folder / paths["queries"]), qrels=str(folder / paths["qrels"]))
    return FilesSource(kind="files", corpus=str(folder / paths["corpus"]), train=split, test=split)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corpus": "gone.tsv"}, "source.corpus: no file .*gone.tsv; download it"),
        ({"queries": "gone.tsv"}, "source.train.queries: no file .*gone.tsv"),
        ({"qrels": "."}, "source.train.qrels: no file "),
    ],
)
def test_missing_files(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    """The key and the path are named before anything is read."""
    with pytest.raises(LeadError, match=message):
        collect(source(tmp_path, **changes))


def test_name_without_a_format(tmp_path: Path) -> None:
    """An archive is not a table: collection.tar.gz has to be unpacked."""
    (tmp_path / "collection.tar.gz").touch()
    with pytest.raises(
        LeadError, match=r"source.corpus: the name of .*collection.tar.gz tells no format; expected .tsv"
    ):
        collect(source(tmp_path, corpus="collection.tar.gz"))
