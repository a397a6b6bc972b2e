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
from lead.data.layout import tell
from lead.errors import LeadError

READERS: dict[str, Callable[[Path], Any]] = {
    "corpus": lambda path: list(read_corpus([path], ["title", "text"])),
    "queries": lambda path: read_queries([path]),
    "qrels": lambda path: read_qrels([path]),
}


def write(path: Path, content: bytes | dict[str, list[Any]]) -> Path:
    """Write bytes, or columns as Parquet; compressed if the name says so."""
    if isinstance(content, dict):
        buffer = io.BytesIO()
        pq.write_table(pa.table(content), buffer)
        content = buffer.getvalue()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    if path.suffix == ".zst":
        with pa.CompressedOutputStream(str(path), "zstd") as file:
            file.write(content)
    return path


def passages(path: Path, fields: tuple[str, ...] = ("title", "text")) -> list[tuple[str, str]]:
    """The streamed corpus as pairs."""
    return [(row["pid"], row["text"]) for batch in read_corpus([path], fields) for row in batch.to_pylist()]


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
    assert [b.num_rows for b in read_corpus([path], ["text"])] == [30, 30, 30, 10]
    monkeypatch.setattr(collection, "BATCH_CHARACTERS", 1000)
    assert max(len("".join(b["text"].to_pylist())) for b in read_corpus([path], ["text"])) < 1100


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
    table = read_queries([write(tmp_path / (name + suffix), content)])
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
    table, repeated = read_qrels([write(tmp_path / (name + suffix), content)])
    assert table.to_pylist() == [{"qid": "01", "pid": "p", "rel": 2}, {"qid": "2", "pid": "p", "rel": -1}]
    assert repeated == 0


def test_ids_with_spaces(tmp_path: Path) -> None:
    """Where tabs separate columns, an id may hold a space."""
    table, _ = read_qrels([write(tmp_path / "qrels.tsv", b"q 1\tp 1\t1\n")])
    assert table.to_pylist() == [{"qid": "q 1", "pid": "p 1", "rel": 1}]


def test_repeated_judgements_are_counted(tmp_path: Path) -> None:
    """Saying the same again does no harm."""
    table, repeated = read_qrels([write(tmp_path / "qrels.txt", b"1 0 p 1\n1 0 p 1\n1 0 r 1\n")])
    assert (table.num_rows, repeated) == (2, 1)


# --- what a file says of itself --------------------------------------------------------------------------------------
PSGS = b'id\ttext\ttitle\n1\t"the ""first"" one"\t"A ""B"" C"\n2\t"second\twith a tab"\tT\n'
PSGS += b'3\t"two\nlines"\tU\n4\tplain\tV\n'


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("c.tsv", b"id\ttext\n7\tx\n", [("7", "x")]),
        ("c.tsv", b"PID\tPassage\n7\tx\n", [("7", "x")]),
        ("c.tsv", b"docid\tcontents\tTitle\n7\tx\tT\n", [("7", "T x")]),
        ("c.tsv", b"\tlang\ttext\t_id\turl\ttitle\n0\ten\tx\t7\thttp\tT\n", [("7", "T x")]),
        ("c.tsv", b"7\ttext\n8\tid\n", [("7", "text"), ("8", "id")]),
        ("psgs.tsv", PSGS, [("1", 'A "B" C the "first" one'), ("2", "T second\twith a tab"), ("3", "U two\nlines"),
                            ("4", "V plain")]),
        ("c.tsv", b'1\t"a b"\n2\t"c d"\n', [("1", "a b"), ("2", "c d")]),
        ("c.tsv", b'id\ttext\n1\t"a ""b"""\n2\tc d\n', [("1", 'a "b"'), ("2", "c d")]),
        ("c.tsv", b'1\t"To be or not to be"\n2\tno quote\n', [("1", '"To be or not to be"'), ("2", "no quote")]),
        ("c.tsv", b'1\t"a" and "b"\n2\t"c ""d"""\n', [("1", '"a" and "b"'), ("2", '"c ""d"""')]),
        ("c.tsv", b'1\t"never closed\n2\t"c d"\n', [("1", '"never closed'), ("2", '"c d"')]),
        ("c.csv", b'id,text\r\n1,"a, ""b""\r\nc"\r\n\r\n2,d e\r\n', [("1", 'a, "b"\r\nc'), ("2", "d e")]),
        ("c.csv", b'title,text,_id\nT,x,1\n', [("1", "T x")]),
        ("c.csv", "\ufeffid;text\n1;a, b\n".encode(), [("1", "a, b")]),
        ("c.tsv", b"#ID\tText\n1\tx\n", [("1", "x")]),
        ("c.jsonl", jsonl({"_id": 1, "title": "T", "text": None}, {"_id": 2, "title": None, "text": "x"}),
         [("1", "T"), ("2", "x")]),
        ("c.CSV", b"1,x\n2,y\n", [("1", "x"), ("2", "y")]),
        ("c.jsonl", jsonl({"ID": 7, "Title": "T", "Contents": "x"}, {"id": 8, "contents": "y"}),
         [("7", "T x"), ("8", "y")]),
        ("c.jsonl", jsonl({"_id": 7, "id": 3, "text": "x", "Text": "other"}), [("7", "x")]),
        ("c.parquet", {"DocID": [7], "Text": ["x"], "title": pa.nulls(1)}, [("7", "x")]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_file_says_which_column_is_what(
    tmp_path: Path, name: str, content: Any, expected: list[tuple[str, str]], suffix: str
) -> None:
    """By a header line, by the names of fields, by quotes as CSV writers set them; a header is no passage."""
    assert passages(write(tmp_path / (name + suffix), content)) == expected


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("q.tsv", b"qid\tquery\n01\tx y\n"),
        ("q.tsv", b"query_id\ttype\tQuery\n01\tz\tx y\n"),
        ("q.csv", b'id,question\n01,"x y"\n'),
        ("q.jsonl", jsonl({"query-id": "01", "Query": "x y", "answers": []})),
        ("q.parquet", {"query_id": ["01"], "QUESTION": ["x y"]}),
    ],
)
def test_queries_say_which_column_is_what(tmp_path: Path, name: str, content: Any) -> None:
    assert read_queries([write(tmp_path / name, content)]).to_pylist() == [{"qid": "01", "text": "x y"}]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("r.tsv", b"query-id\tcorpus-id\tscore\n01\tp\t2.0\n02\tp\t0.0\n"),
        ("r.tsv", b"qid\tQ0\tdocid\trel\n01\t0\tp\t2\n02\t0\tp\t0\n"),
        ("r.tsv", b"relevance\tdoc_id\tquery_id\n2\tp\t01\n0\tp\t02\n"),
        ("r.txt", b"qid pid rel\n01 p 2\n02 p 0\n"),
        ("r.csv", b'"query-id","corpus-id","score"\n"01","p",2\n"02","p",0\n'),
        ("r.tsv", b'"query-id"\t"corpus-id"\t"score"\n"01"\t"p"\t"2"\n"02"\t"p"\t"0"\n'),
        ("r.txt", b"01\t0 p\t2\n02  Q0\tp 0\r\n"),
        ("r.txt", b"01 0 p 2.\n02 0 p -0.00\n"),
        ("r.txt", b"01 0 p 2.00e+00\n02 0 p 0e0\n"),
        ("r.jsonl", jsonl({"Query-ID": "01", "corpus_id": "p", "score": 2.0}, {"qid": "02", "pid": "p", "label": 0})),
        ("r.parquet", {"query-id": ["01", "02"], "corpus-id": ["p", "p"], "score": pa.array([2.0, 0.0], pa.float32())}),
    ],
)
def test_judgements_say_which_column_is_what(tmp_path: Path, name: str, content: Any) -> None:
    """Headers of any order, quotes, tabs and spaces mixed, and whole numbers written as floats."""
    table, _ = read_qrels([write(tmp_path / name, content)])
    assert table.to_pylist() == [{"qid": "01", "pid": "p", "rel": 2}, {"qid": "02", "pid": "p", "rel": 0}]


def test_the_report_tells_what_was_taken_for_what(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Names that nothing is read from are named."""
    caplog.set_level("INFO", "lead")
    facts: dict[str, Any] = {}
    list(read_corpus([write(tmp_path / "psgs.tsv", PSGS)], ["text"], facts))
    assert facts["corpus"] == {
        "columns": {"pid": "id", "text": "text", "title": "title"}, "header": True, "quotes": True,
    }  # fmt: skip
    tell(facts)
    assert "corpus (its first line is a header): pid from id, text from text, title from title, quotes " in caplog.text
    content = {"_id": ["1"], "text": ["x"], "Titel": ["lost"], "metadata": ["m"]}
    for name, written in (("c.parquet", content), ("c.jsonl", jsonl({k: v[0] for k, v in content.items()}))):
        facts = {}
        list(read_corpus([write(tmp_path / name, written)], ["text"], facts))
        assert facts["corpus"] == {"columns": {"pid": "_id", "text": "text"}, "unread": ["Titel", "metadata"]}
        caplog.clear()
        tell(facts)
        assert "corpus: these columns are not read: Titel" in caplog.text


def test_a_table_in_several_files(tmp_path: Path) -> None:
    """Shards are read one after the other; an id may stand in one of them only."""
    a, b = write(tmp_path / "a.tsv", b"1\tx\n"), write(tmp_path / "b.jsonl", jsonl({"_id": 2, "text": "y"}))
    assert [b["pid"].to_pylist() for b in read_corpus([a, b], ["text"])] == [["1", "2"]]
    write(b, jsonl({"_id": 1, "text": "y"}))
    with pytest.raises(LeadError, match=r"b.jsonl:1: passage id 1 occurs before, in .*a.tsv:1"):
        list(read_corpus([a, b], ["text"]))


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("cut", [-9, 5])
def test_truncated_gzip(tmp_path: Path, reader: str, cut: int) -> None:
    """A download that broke off is noticed, also when it breaks off in the trailer."""
    packed = write(tmp_path / "x.tsv.zst", b"1\t2\n" if reader != "qrels" else b"1\t2\t3\n")
    packed.write_bytes(packed.read_bytes()[:cut])
    with pytest.raises(LeadError, match=r"x.tsv.zst:\d: damaged or truncated zstd .*; download the file again"):
        READERS[reader](packed)
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
        LeadError, match=r"source.corpus: the name of .*collection.tar.gz has no known ending; expected .tsv"
    ):
        collect(source(tmp_path, corpus="collection.tar.gz"))
