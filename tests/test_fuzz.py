"""Fuzzing what reads people's files: it parses, or raises a LeadError of one line, and nothing else.

A quick profile runs by default; LEAD_FUZZ=N tries N examples a parser. What it found is kept as @example, or in
tests/malformed/.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lead.config import stages
from lead.config.experiments import Config, Experiments
from lead.config.load import validate
from lead.config.paper import Paper, load_paper
from lead.config.parse import parse_yaml, read_yaml
from lead.config.schema import Dataset, Settings
from lead.data.files import read_corpus, read_qrels, read_queries
from lead.errors import LeadError
from lead.evaluation.measures import check_measures
from lead.plan.rows import Rows, split_seed
from lead.report.table import read_result
from lead.store.tables import SCHEMAS, read_json, read_table

QUICK = 40
fuzz = settings(
    max_examples=int(os.environ.get("LEAD_FUZZ", QUICK)),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@contextmanager
def one_line() -> Iterator[None]:
    """What is inside passes, or raises a LeadError whose message can be printed as one line."""
    try:
        yield
    except LeadError as e:
        message = str(e)
        assert message.isprintable() and 0 < len(message) <= 1000
        message.encode()


READERS: list[Callable[[Path], Any]] = [
    lambda p: list(read_corpus([p], ["title", "text"])), lambda p: read_queries([p]), lambda p: read_qrels([p])
]  # fmt: skip


def read_all(name: str, content: bytes) -> None:
    """Give a file of this name to every reader of collections."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        for read in READERS:
            with one_line():
                read(path)


# --- text files ------------------------------------------------------------------------------------------------------
PIECES = st.sampled_from(
    [b"\t", b"\n", b"\r\n", b"\r", b" ", b"", b"1", b"0", b"-1", b"q1", b"p1", b"Q0", b"query-id\tcorpus-id\tscore"]
    + [b"id\ttext\ttitle\n", b'"a ""b"" c"', b",", b"qid,pid,rel\n"]
    + [b"\xef\xbb\xbf", b"\xff", b"\x00", b"\xed\xa0\x80", b'"', b"\xc2\x85", "\u0663".encode(), b"9" * 5000]
)
LINES = st.lists(PIECES | st.binary(max_size=8), max_size=30).map(b"".join)
TEXT = st.text(max_size=8) | st.sampled_from(["\ud800", "\udcff", "\x1b[2J", "\n", "\u2028"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
FIELDS = ["_id", "id", "pid", "qid", "title", "text", "query-id", "corpus-id", "score", "rel"]
RECORDS = st.dictionaries(st.sampled_from(FIELDS) | TEXT, VALUES, max_size=6)


@fuzz
@given(LINES, st.sampled_from(["x.tsv", "x.txt", "x.csv", "x.jsonl", "x.parquet"]))
def test_lines_of_anything(content: bytes, name: str) -> None:
    read_all(name, content)


@fuzz
@given(LINES, st.integers(0, 60), st.integers(0, 255), st.sampled_from(["x.tsv.gz", "x.jsonl.gz", "x.parquet.gz"]))
def test_damaged_gzip(content: bytes, at: int, byte: int, name: str) -> None:
    packed = bytearray(gzip.compress(content, mtime=0))
    packed[at % len(packed)] = byte
    read_all(name, bytes(packed))
    read_all(name, bytes(packed[:at]))


@fuzz
@given(st.lists(RECORDS | VALUES, max_size=4), st.booleans())
@example([{"_id": "\ud800", "text": ""}], True)
@example([{"_id": 10**4000, "text": ""}], True)
def test_records_of_anything(records: list[Any], ascii_only: bool) -> None:
    lines = "".join(json.dumps(r, ensure_ascii=ascii_only) + "\n" for r in records)
    read_all("x.jsonl", lines.encode("utf-8", "surrogatepass"))


TYPES = [pa.string(), pa.large_string(), pa.binary(), pa.int64(), pa.uint64(), pa.float64(), pa.bool_(), pa.null()]
TYPES += [pa.timestamp("us"), pa.timestamp("ns"), pa.date32(), pa.time64("ns"), pa.duration("ns"), pa.decimal128(38, 3)]
TYPES += [pa.list_(pa.int64()), pa.struct([("a", pa.int64())]), pa.dictionary(pa.int32(), pa.string())]


@st.composite
def columns(draw: st.DrawFn) -> pa.Table:
    """A table of columns that readers look for, of any type and of any bits."""
    names = draw(st.lists(st.sampled_from(FIELDS), max_size=5))
    arrays = []
    for _ in names:
        kind = draw(st.sampled_from(TYPES))
        if pa.types.is_temporal(kind):
            numbers = draw(st.lists(st.none() | st.integers(-(2**31), 2**31 - 1), min_size=2, max_size=2))
            scale = 1 if kind.bit_width == 32 else draw(st.sampled_from([1, 10**6, 2**32]))
            raw = pa.array([n if n is None else n * scale for n in numbers], pa.int32() if scale == 1 else pa.int64())
            arrays.append(raw.cast(pa.int32() if kind.bit_width == 32 else pa.int64()).view(kind))
        elif kind == pa.string() and draw(st.booleans()):
            arrays.append(pa.array(draw(st.lists(st.binary(max_size=4), min_size=2, max_size=2))).view(kind))
        else:
            values = [["a", "b"], [1, 2], [0.5, 2.5], [True, False], [None, None], [b"a", b"\xff"], [[1], None]]
            values += [[{"a": 1}, None], [2**63, 1]]
            for value in draw(st.permutations(values)):
                try:
                    arrays.append(pa.array(value, kind))
                    break
                except (pa.ArrowException, OverflowError, TypeError, ValueError):
                    continue
    return pa.table(arrays, names) if arrays else pa.table({"none": [1]})


@fuzz
@given(columns(), st.integers(0, 2000), st.integers(0, 255), st.booleans())
def test_parquet_of_any_type_and_damage(table: pa.Table, at: int, byte: int, damage: bool) -> None:
    buffer = io.BytesIO()
    try:
        pq.write_table(table, buffer)
    except pa.ArrowException:
        return  # Parquet has no such type
    content = bytearray(buffer.getvalue())
    if damage:
        content[at % len(content)] = byte
    read_all("x.parquet", bytes(content))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "t.parquet").write_bytes(content)
        for schema in SCHEMAS:
            with one_line():
                read_table(Path(folder) / "t.parquet", schema)


# --- configuration ---------------------------------------------------------------------------------------------------
TOKENS = st.sampled_from(
    "a b: : - ? | > & &a * *a ! !!int !!python/name:os.system !!binary !!set !!omap !!timestamp % @ ` { } [ ] , # ' \" "
    "--- ... ~ null true .nan .inf 1e5 0x 0xff 0b1 0o7 1_0 2026-13-01 2026-01-01T0:0:0+99 1:60 << = \\ \t".split(" ")
    + ["\n", "\n  ", "\n- ", ": ", " ", "\x00", "\x85", "\ufeff", "0x" + "f" * 4000, "[" * 300, '"\\ud800"', "- " * 400]
)
YAML = st.lists(TOKENS | st.text(max_size=3), max_size=25).map("".join)
MODELS: list[Any] = [Dataset, Settings, Experiments, Config, Paper, stages.PrepareSettings, stages.DistilSettings]


@fuzz
@given(YAML)
@example("a: !!timestamp x")
@example("&a [*a]")
def test_yaml_of_anything(text: str) -> None:
    with one_line():
        parse_yaml(text, "here")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.yaml"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        with one_line():
            read_yaml(path)


def keys_of(model: Any) -> list[str]:
    return [k for k in json.dumps(model.model_json_schema()).split('"') if k.isidentifier()]


KEYS = {model: sorted(set(keys_of(model))) for model in MODELS}
NUMBERS = st.sampled_from([0, 1, -1, 2**31, 2**63, 10**30, 0.5, 1e308, float("nan"), float("inf")])
WORDS = st.sampled_from(["files", "pydocs", "evaluation", "ir_datasets", "lead", "contrastive", "student", "path:x"])


@st.composite
def tree_of(draw: st.DrawFn) -> tuple[Any, Any]:
    """A model of the configuration, and a tree of its own keys with any values."""
    model = draw(st.sampled_from(MODELS))
    keys = st.sampled_from(KEYS[model]) | TEXT | st.integers()
    leaves = NUMBERS | WORDS | VALUES
    return model, draw(
        st.recursive(leaves, lambda x: st.lists(x, max_size=3) | st.dictionaries(keys, x, max_size=4), max_leaves=12)
    )


@fuzz
@given(tree_of())
def test_settings_of_anything(given_: tuple[Any, Any]) -> None:
    model, tree = given_
    with one_line():
        made = validate(model, tree, "here", "a: 1\n")
        json.dumps(made.model_dump(mode="json"))
        if isinstance(made, Experiments):
            Rows("here", made.runs)


@fuzz
@given(st.dictionaries(st.sampled_from(["measures", "metrics", "queries", "confidence", "tables"]), VALUES) | VALUES)
def test_results_and_paper_of_anything(value: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.json"
        path.write_text(json.dumps(value), encoding="utf-8")
        for read in (read_json, read_result, lambda p: load_paper(p, ["student"])):
            with one_line():
                read(path)


MEASURE = st.lists(
    st.sampled_from("RR nDCG AP P R Success @ 10 1 -1 1e9 ( ) rel = , 0 None 'x' [ ] { } : . \n".split(" "))
)


@fuzz
@given(MEASURE.map("".join) | st.text(max_size=12))
@example("nDCG@99999999999999999999")
@example("AP(rel=99999999999999999999)@5")
def test_measures_of_anything(name: str) -> None:
    with one_line():
        check_measures([name])


@fuzz
@given(
    st.text(max_size=6),
    st.sampled_from(["-s", "-s0", "-s1", "-s2", "-s9", "-s\u0663"]),
    st.text("0123456789", max_size=20),
)
def test_seeds_of_anything(name: str, seed: str, digits: str) -> None:
    base, number = split_seed(name + seed + digits)
    assert number >= 1 and (number == 1 or base + f"-s{number}" == name + seed + digits)
