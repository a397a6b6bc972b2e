"""Malformed collections: TSV, JSONL, Parquet, TREC judgements, gzip."""

from __future__ import annotations

import datetime
import gzip
import re

import pyarrow as pa
from malformed.base import Bad, Command, Content, Site, jsonl, settings

GOOD = {
    "corpus": ("good.corpus.tsv", b"".join(b"p%d\tpassage %d\n" % (i, i) for i in range(20))),
    "queries": ("good.queries.tsv", b"".join(b"q%d\tquery %d\n" % (i, i) for i in range(10))),
    "qrels": ("good.qrels.txt", b"".join(b"q%d 0 p%d 1\n" % (i, i) for i in range(10))),
}


def zstd(content: bytes) -> bytes:
    """A zstd file's bytes."""
    packed = pa.BufferOutputStream()
    with pa.CompressedOutputStream(packed, "zstd") as file:
        file.write(content)
    found: bytes = packed.getvalue().to_pybytes()
    return found


MANY = b"".join(b"q%d 0 x%d 1\n" % (i, i) for i in range(10))
ONE = b"q1 0 p1 1\n"


def row(what: str, name: str, content: Content | None, says: str, note: str = "") -> Bad:
    """`lead prepare` with one file of the train split, or the corpus, spoilt; None: there is no such file."""

    def command(site: Site) -> Command:
        paths = {key: str(site.write(*good)) for key, good in GOOD.items()}
        split = {key: paths[key] for key in ("queries", "qrels")}
        paths[what] = str(site.folder / name)
        if content is not None:
            site.write(name, content)
        train = {key: paths[key] for key in ("queries", "qrels")}
        source = {"kind": "files", "corpus": paths["corpus"], "train": train, "test": split}
        return ["prepare", "--out", site.folder / "out", "--settings", settings(source=source)]

    place = re.escape(name) + ":" if says[:1].isdigit() else ""
    return Bad(f"{what} {name}: {note or says}", command, place + says)


ROWS = [
    # --- text files: columns, encoding, lines
    row("corpus", "c.tsv", b"1\tx\n2\ttitle\tx\n", "2: 3 columns, but 2 in the lines before; expected id, text or"),
    row("corpus", "c.tsv", b"1 x\n", "1: 1 column; expected"),
    row("corpus", "c.tsv", b"1\ta\tb\tc\td\n", "1: 5 columns; expected"),
    row("corpus", "c.tsv", b"1\tx\n\tx\n", "2: empty id; expected a string or whole number as pid"),
    row("corpus", "c.tsv", b"1\tx\n\n2\tx\n1\ty\n", "4: passage id 1 occurs before, in line 1; ids must be unique"),
    row("corpus", "c.tsv", b"1\tx\n2\tab\xffc\n", "2: byte 0xff at column 5 is not UTF-8; convert"),
    row("corpus", "c.tsv", gzip.compress(b"1\tx\n", mtime=0), "1: byte 0x8b at column 2 is not UTF-8; .*name it .gz"),
    row("corpus", "c.tsv", "\ufeff1\tx\n".encode("utf-16-le"), "1: byte 0xff at column 1 is not UTF-8", "UTF-16"),
    row("corpus", "c.tsv", b"\0" * 4096, "1: 1 column; expected", "a disk's zeros"),
    row("corpus", "c.tsv", b"", "source.corpus holds no passages", "empty"),
    row("corpus", "c.tsv", b"\n\r\n\n", "source.corpus holds no passages", "blank lines"),
    row("corpus", "c.tsv", None, "source.corpus: no file .*c.tsv; download it"),
    row("corpus", "c.tar.gz", b"1\tx\n", "source.corpus: the name of .*c.tar.gz has no known ending; expected .tsv"),
    row("corpus", "x" * 5000 + ".tsv", None, "source.corpus: no file", "a name that is too long"),
    row("corpus", "c\0.tsv", None, r"source.corpus: no file .*c\\x00.tsv", "NUL in a name"),
    row("queries", "q.tsv", b"1\tx\n1\ty\n", "2: query id 1 occurs before; ids must be unique within a split"),
    row("queries", "q.tsv", b"1\tx\ty\n", "1: 3 columns; expected id, text"),
    row("queries", "q.tsv", b"\tx\n", "1: empty id"),
    row("queries", "q.tsv", b"", "unresolved_judgements: train: 10 of 10", "empty"),
    row("queries", "q.tsv", GOOD["qrels"][1], "1: 1 column; expected id, text", "judgements in their place"),
    row("queries", "q.tsv", b"q1\r\tx\n", r"unresolved_judgements: train: 10 of 10", "an id with a carriage return"),
    row("corpus", "c.tsv", b"id\ttitle\n1\tx\n", "1: the header has no text: id, title; expected id, text"),
    row("corpus", "c.tsv", b"id\ttext\ttext\n1\tx\ty\n", "1: the header has a name twice: id, text, text"),
    row("corpus", "c.tsv", b"id\ttext\ttitle\n1\tx\n", "2: 2 columns, but 3 in the lines before"),
    row("corpus", "c.tsv", b'1\t"a ""b"""\n' * 300 + b'2\t"c\n', r"301: not valid TSV with quotes .*; double each"),
    row("corpus", "c.csv", b'id,text\n1,"x\n', r"2: not valid CSV \(unexpected end of data\); double each quote"),
    row("corpus", "c.csv", b'id,text\n1,"x" y\n', r"2: not valid CSV \(.*; double each quote"),
    row("corpus", "c.csv", "\ufeffid,text\n1,x\n".encode("utf-16"), "1: byte 0x.* is not UTF-8", "UTF-16"),
    row("queries", "q.csv", b"id,answer\n1,x\n", "unresolved_judgements: train: 10 of 10", "no query column"),
    # --- gzip, zstd
    row("corpus", "c.tsv.zst", b"(\xb5/\xfd not zstd", "1: damaged or truncated zstd"),
    row("corpus", "c.jsonl.zst", b"", "source.corpus holds no passages|1: damaged or truncated zstd", "empty"),
    row("corpus", "c.tsv.zst", zstd(b"1\t" + bytes(20 << 20)), "1: holds more than 100 times its size|1: line of more"),
    row("corpus", "c.parquet.zst", zstd(bytes(20 << 20)), "1: holds more than 100 times its size", "a bomb"),
    row("corpus", "c.tsv.gz", gzip.compress(GOOD["corpus"][1])[:-9], "20: damaged or truncated gzip", "truncated"),
    row("corpus", "c.tsv.gz", gzip.compress(GOOD["corpus"][1])[:5], "1: damaged or truncated gzip", "a header's half"),
    row("queries", "q.tsv.gz", gzip.compress(b"1\tx\n") + b"more", "2: damaged or truncated gzip", "bytes behind it"),
    row("qrels", "r.txt.gz", b"\x1f\x8b not gzip at all", "1: damaged or truncated gzip"),
    row("corpus", "c.jsonl.gz", b"", "1: damaged or truncated gzip|source.corpus holds no passages", "empty"),
    row("corpus", "c.tsv.gz", gzip.compress(b"1\t" + bytes(65 << 20), 1), "1: line of more than 64 MiB", "a long line"),
    row("corpus", "c.tsv.gz", gzip.compress(b"1\t" + bytes(1 << 20) + b"\n") * 20, r"\d+: holds more than 100 times"),
    row("corpus", "c.parquet.gz", gzip.compress(bytes(20 << 20)), "1: holds more than 100 times its size", "a bomb"),
    # --- JSONL
    row("corpus", "c.jsonl", b'{"_id": "1", "text": "x"}\n{"_id": ', "2: not valid JSON .*; expected one JSON object"),
    row("corpus", "c.jsonl", b"[" * 100_000, "1: not valid JSON"),
    row("corpus", "c.jsonl", b'{"_id": ' + b"9" * 5000 + b', "text": "x"}', "1: not valid JSON", "a huge number"),
    row("corpus", "c.jsonl", b"[1]\n", "1: a JSON list; expected one JSON object"),
    row("corpus", "c.jsonl", b'[\n{"_id": 1, "text": "x"}\n]\n', "1: not valid JSON", "one JSON list"),
    row("corpus", "c.jsonl", b'{"text": "x"}\n', "1: no id: None; expected a string or whole number as pid or _id"),
    row("corpus", "c.jsonl", b'{"_id": "", "text": "x"}\n', "1: empty id; expected"),
    row("corpus", "c.jsonl", b'{"_id": true, "text": "x"}\n', "1: no id: True; expected"),
    row("corpus", "c.jsonl", b'{"_id": NaN, "text": "x"}\n', "1: no id: nan; expected"),
    row("corpus", "c.jsonl", b'{"_id": "1"}\n', "1: no text: None; expected a string"),
    row("corpus", "c.jsonl", b'{"_id": "1", "text": ["x"]}\n', r"1: no text: \['x'\]; expected a string"),
    row("corpus", "c.jsonl", b'{"_id": "1", "text": "\\ud800"}\n', "1: text holds half a surrogate pair; fix"),
    row("corpus", "c.jsonl", b'{"_id": "\\udc80", "text": ""}\n', "1: the id holds half a surrogate pair; fix"),
    row("corpus", "c.jsonl", jsonl({"_id": 1, "text": "x"}, {"_id": "1", "text": "y"}), "2: passage id 1 occurs"),
    row("corpus", "c.jsonl", jsonl(*[{"_id": "a\n\x1b[2J", "text": ""}] * 2), r"2: passage id a\\n\\x1b\[2J occurs"),
    row("corpus", "c.jsonl", jsonl({"_id": 1, "title": 5, "text": "x"}), "1: no title: 5; expected a string as title"),
    row("queries", "q.jsonl", b"nonsense\n", "1: not valid JSON"),
    row("queries", "q.jsonl", jsonl({"_id": 1, "words": "x"}), "1: no text: None"),
    row("qrels", "r.jsonl", jsonl({"qid": 1, "pid": 1}), "1: relevance 'None' is not a whole number"),
    # --- Parquet
    row("corpus", "c.parquet", b"PAR1 but no more", "1: damaged or not Parquet .*; make the file again"),
    row("corpus", "c.parquet", b"", "1: damaged or not Parquet", "empty"),
    row("corpus", "c.parquet", {"pid": ["1", None], "text": ["x", "y"]}, "2: no id: None"),
    row("corpus", "c.parquet", {"pid": ["1"], "words": ["x"]}, "1: no text: None"),
    row("corpus", "c.parquet", {"pid": ["1", "1"], "text": ["x", "y"]}, "2: passage id 1 occurs before, in line 1"),
    row("corpus", "c.parquet", {"pid": [1.0], "text": ["x"]}, r"1: no id: 1\.0"),
    row("corpus", "c.parquet", {"pid": ["1"], "text": [b"x"]}, "1: no text: b'x'"),
    row("corpus", "c.parquet", {"pid": [datetime.date(2026, 1, 1)], "text": ["x"]}, "1: no id: datetime.date"),
    row("corpus", "c.parquet", {"pid": pa.array([2**62], pa.timestamp("us"))}, "1: damaged", "the year 148108"),
    row("corpus", "c.parquet", {"pid": ["1"], "text": pa.array([b"\xff"]).view(pa.string())}, "1: .*utf-8", "UTF-8"),
    row("corpus", "c.parquet", pa.table([["1"], ["2"], ["x"]], ["pid", "pid", "text"]), "1: .*twice: pid, pid"),
    row("corpus", "c.parquet", {"pid": [], "text": []}, "source.corpus holds no passages", "no rows"),
    row("qrels", "r.parquet", {"qid": ["1"], "pid": ["p"], "rel": [0.5]}, "1: relevance '0.5' is not"),
    # --- judgements
    row("qrels", "r.txt", b"1 0 p 1\n1 0 p2 1.5\n", "2: relevance '1.5' is not a whole number; expected qid"),
    row("qrels", "r.txt", b"1 0 p 99999999999\n", "1: relevance '99999999999' is not"),
    row("qrels", "r.txt", b"1 0 p \xd9\xa3\n", "1: relevance '\u0663' is not", "a digit that is not ours"),
    row("qrels", "r.txt", b"1 0 p 1\n1 p 1\n", "2: 3 columns, but 4 in the lines before"),
    row("qrels", "r.txt", b"1 p\n", "1: 2 columns; expected qid, any, pid, rel"),
    row("qrels", "r.txt", b"1 Q0 p 1 0.5 run\n", "1: 6 columns; expected qid, any, pid, rel", "a TREC run"),
    row("qrels", "r.txt", b"1 0 p 1\n1 0 p 2\n", "2: query 1 and passage p were judged 1 before; keep one"),
    row("qrels", "r.tsv", b"1\t0\t\t1\n", "1: empty id"),
    row("qrels", "r.tsv", b"query-id\tcorpus-id\tscore\n1\tp\tx\n", "2: relevance 'x' is not"),
    row("qrels", "r.tsv", b"a\tb\tc\n1\tp\t1\n", "1: relevance 'c' is not", "a foreign header"),
    row("qrels", "r.txt", b"1 0 \xe9 1\n", "1: byte 0xe9 at column 5 is not UTF-8"),
    row("qrels", "r.txt", MANY, "checks.unresolved_judgements: train: 10 of 10 .*, e.g. q0 x0", "unknown ids"),
    row("qrels", "r.txt", ONE.replace(b"1\n", b"-1\n"), "the train split has no query|unjudged", "negative grades"),
    row("qrels", "r.txt", b"", "unjudged_queries: train: 10 of 10|has no query", "empty"),
    row("qrels", "r.txt", ONE, "checks.unjudged_queries: train: 9 of 10|one query: too few", "one judgement"),
]  # fmt: skip
