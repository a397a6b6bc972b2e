"""Inputs given to the wrong stage, malformed tables between stages, results that are none, and command lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from malformed.base import Bad, Command, Content, Site, settings

from lead.store.tables import write_json

EMPTY: Content = b""
NULL = pa.array([None], pa.string())
RANKED = {"qid": ["dev0"], "pid": ["p0"], "rank": pa.array([1], pa.int32()), "score": pa.array([1.0], pa.float32())}
TRAINING = ("corpus", "queries", "qrels", "dev-queries", "dev-qrels")


def vectors(ids: list[str], width: int = 4, value: float = 1.0) -> pa.Table:
    flat = np.full(len(ids) * width, value, np.float32)
    return pa.table({"id": ids, "vector": pa.FixedSizeListArray.from_arrays(pa.array(flat), width)})


def given(stage: str, says: str, note: str, chosen: str = "{}", **inputs: str | Content) -> Bad:
    """A stage with some of its inputs replaced: the name of another artifact, or content of its own."""

    def command(site: Site) -> Command:
        data = site.collection
        for name in ("v.passages", "v.queries"):
            site.write(f"{name}.parquet", vectors([f"{name}{i}" for i in range(3)]))
        places: dict[str, Path] = {
            "corpus": data / "corpus.parquet", "queries": data / "queries.dev.parquet",
            "qrels": data / "qrels.dev.parquet", "negatives": data / "negatives.parquet",
            "dual": site.dual, "cross": site.cross, "pretrained": site.model, "folder": data, "nothing": data / "no",
            "v.passages": site.folder / "v.passages.parquet", "v.queries": site.folder / "v.queries.parquet",
        }  # fmt: skip
        words: Command = [stage]
        for option, what in (GOOD[stage] | inputs).items():
            content = what if not isinstance(what, str) else places[what]
            path = content if isinstance(content, Path) else site.write(f"given.{option}.parquet", content)
            words += [f"--{option}", path]
        for option in OUT.get(stage, ("out",)):
            words += [f"--{option}", site.folder / "new" / option]
        return [*words, "--settings", chosen]

    return Bad(f"{stage}: {note}", command, says)


GOOD: dict[str, dict[str, str | Content]] = {
    "encode": {"model": "dual", "texts": "corpus"},
    "mine": {"passages": "v.passages", "queries": "v.queries", "qrels": "qrels"},
    "retrieve": {"passages": "v.passages", "queries": "v.queries"},
    "rerank": {"model": "cross", "corpus": "corpus", "queries": "queries", "ranked": "negatives"},
    "denoise": {"model": "cross", "corpus": "corpus", "queries": "queries", "qrels": "qrels", "negatives": "negatives"},
    "evaluate": {"ranked": "negatives", "qrels": "qrels"},
    "bm25": {"corpus": "corpus", "test-queries": "queries"},
    "train": {**dict.fromkeys(TRAINING, "qrels"), "corpus": "corpus", "queries": "queries", "dev-queries": "queries"},
}
OUT = {"evaluate": ("out", "per-query"), "bm25": ("ranked",), "train": ("out", "state", "metrics")}
START = settings(model={"reference": "path:nowhere"})


def result(says: str, name: str, content: bytes | dict[str, Any]) -> Bad:
    """`lead table` of a file; a record gets the sum that lead's own files have."""

    def command(site: Site) -> Command:
        path = site.folder / "run.json"
        if isinstance(content, dict):
            write_json(content, path)
        else:
            path.write_bytes(content)
        return ["table", path]

    return Bad(f"table: {name}", command, says)


def words(says: str, *command: str, code: int = 1) -> Bad:
    """A command line alone."""
    return Bad(" ".join(w[:30] for w in command), lambda _: list(command), says, code)


METRICS = {"mean": 0.5, "low": 0.4, "high": 0.6}
RESULT = {"measures": ["RR@10"], "metrics": {"RR@10": METRICS}, "queries": 2, "confidence": 0.95}
PER_QUERY = {"qid": ["a"], "measure": ["AP"], "value": [1.0]}

ROWS = [
    # --- another artifact than the stage reads
    given("encode", "qrels.dev.parquet holds neither passages .* nor queries", "judgements", texts="qrels"),
    given("encode", "negatives.parquet holds neither passages", "negatives", texts="negatives"),
    given("encode", "not Parquet|cannot read", "a folder", texts="folder"),
    given("encode", "is a cross encoder: it has no single vector a text; use lead rerank", "a CE", model="cross"),
    given("encode", "not a folder written by lead", "a foreign model", model="pretrained"),
    given("encode", "no single vector|not a folder|cannot", "a table for a model", model="corpus"),
    given("retrieve", "corpus.parquet is not a table of vectors", "texts for passages", passages="corpus"),
    given("retrieve", "negatives.parquet is not a table of vectors", "a list for queries", queries="negatives"),
    given("retrieve", "width 5, .* of width 4", "another width", queries=vectors(["a"], 5)),
    given("retrieve", "NaN or infinite numbers", "NaN", passages=vectors(["a"], value=np.nan)),
    given("retrieve", "damaged or not Parquet", "an empty file", passages=EMPTY),
    given("mine", "is not a qrels table: it has", "a list for judgements", qrels="negatives"),
    given("mine", "is not a table of vectors", "queries that are texts", queries="queries"),
    given("rerank", "is not a ranked table: it has", "vectors for a list", ranked="v.queries"),
    given("rerank", "is a dual encoder; its own lists come from lead retrieve", "a DE", model="dual"),
    given("rerank", "names passages or queries that", "unknown ids", ranked=pa.table(RANKED | {"pid": ["no"]})),
    given("denoise", "is a dual encoder", "a DE", model="dual"),
    given("denoise", "do not have|do not belong", "unknown ids", negatives=pa.table(RANKED | {"qid": ["no"]})),
    given("evaluate", "is not a ranked table: it has", "judgements for a list", ranked="qrels"),
    given("evaluate", "is not a qrels table", "a list for judgements", qrels="negatives"),
    given("evaluate", "ranks are not 1, 2", "ranks from 2", ranked=pa.table(RANKED | {"rank": pa.array([2], "i4")})),
    given("evaluate", "given.ranked.parquet: .*'pid' is empty", "a null", ranked=pa.table(RANKED | {"pid": NULL})),
    given("evaluate", "no query of .* is judged in", "another split", ranked=pa.table(RANKED | {"qid": ["test0"]})),
    given("bm25", "is not a corpus table", "queries for a corpus", corpus="queries"),
    given("bm25", "given.corpus.parquet: .*'text' is empty", "a null", corpus={"pid": ["a"], "text": NULL}),
    given("bm25", "no passage of the corpus has a word", "no words", corpus={"pid": ["a"], "text": ["!"]}),
    given("encode", "'text' is empty", "a null", texts={"pid": ["a"], "text": NULL}),
    given("train", "is not a ranked table", "vectors for negatives", start="dual", negatives="v.queries"),
    given("train", "has no config.json in nowhere", "no model", START),
    given("train", "one of settings.model .* and --start", "two models", START, start="dual"),
    given("train", "no id is found in the corpus", "other judgements", settings(), start="dual",
          qrels=pa.table({"qid": ["x"], "pid": ["y"], "rel": pa.array([1], "i4")})),
    given("train", "train.batch_size: 80 is more than the 10 train queries", "a large batch", settings(), start="dual"),
    # --- results
    result("run.json cannot be read as JSON", "a text", b"RR@10 .5"),
    result("run.json cannot be read as JSON", "nested without end", b"[" * 100_000),
    result("run.json is not what lead wrote", "a list", b"[]"),
    result("run.json is not a result of lead evaluate", "no measure", RESULT | {"measures": []}),
    result("run.json is not a result of lead evaluate", "a text for a mean", RESULT | {"metrics": {"RR@10": 1}}),
    result("run.json is not a result of lead evaluate", "a list of metrics", RESULT | {"metrics": []}),
    result("run.json is not a result of lead evaluate", "infinite queries", RESULT | {"queries": np.inf}),
    # --- the command line
    words("--ranked x+ .* does not exist", *"evaluate --qrels x --out x --per-query x --ranked".split(), "x" * 5000),
    words("argument --texts: give a path", "encode", "--model", ".", "--texts", "", "--out", "x", code=2),
    words("--settings nope.json: No such file", "encode", *"--model . --texts . --out x --settings nope.json".split()),
    words(r"--settings \.: Is a directory", "encode", *"--model . --texts . --out x --settings .".split()),
    words("--threads 0: give at least 1", "encode", *"--model . --texts . --out x --threads 0".split()),
    words("--gpu: invalid int value: '1e3'", "encode", *"--model . --texts . --out x --gpu 1e3".split(), code=2),
    words("expected one argument", "encode", "--model", "-x", "--texts", ".", "--out", "x", code=2),
    words("unrecognized arguments: --trust", "encode", *"--model . --texts . --out x --trust".split(), code=2),
    words("cannot write README.md/x", "encode", *"--model . --texts . --out README.md/x".split()),
    words("no dataset 'demo; rm -rf x' in", "show", "demo; rm -rf x/lead_cb"),
    words("no dataset .*did you mean 'demo'", "verify", "demoo"),
    words("no dataset .*'..'", "tables", ".."),
    words(r"cannot read .*: No such file", "show", "--config", "nowhere/config.yaml"),
    words("cannot read config: Is a directory", "show", "--config", "config"),
]  # fmt: skip
