"""A project whose runs can be searched: a student, its ColBERT teacher and BM25; one passage is hostile."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from dag.project import empty_project

from lead.config.stages import Bm25Settings, EncodeSettings, RerankSettings, RetrieveSettings
from lead.search.systems import Collection
from lead.store.tables import read_table, write_table

HOSTILE_ID = '<b id="owned">p</b>&"'
HOSTILE = (
    '<script>document.title="owned"</script> array "quoted" \'single\' <img src=x onerror="document.title=\'owned\'"> '
    "shape \u202e right to left \u202c \u05e9\u05dc\u05d5\u05dd \u0639\u0631\u0628\u064a \x1b[31m\x07 "
    "</li></ol> &lt;b&gt; {{ 7*7 }} ${7*7} stride" + " and so on" * 20
)
HOSTILE_QUERY = "stride <script>document.title='owned'</script> \u0639\u0631\u0628\u064a"


@dataclass(frozen=True)
class Searchable:
    """folder: of the results of the dataset. options: of `lead search` and `lead serve`."""

    config: Path
    folder: Path

    @property
    def overrides(self) -> dict[str, Any]:
        return {"results": str(self.folder.parent)}

    @property
    def options(self) -> list[str]:
        return ["--config", str(self.config), "--overrides", f"{{results: {self.folder.parent}}}"]

    def find(self, run: str) -> Collection:
        return Collection.find(f"tiny/{run}", self.config, self.overrides)

    def ranked(self, run: str) -> dict[str, list[tuple[str, float]]]:
        """The list of each test query as a stage wrote it: ids and scores."""
        lists: dict[str, list[tuple[str, float]]] = {}
        for row in read_table(self.folder / "runs" / f"{run}.parquet", "ranked").to_pylist():
            lists.setdefault(row["qid"], []).append((row["pid"], row["score"]))
        return lists

    def queries(self) -> dict[str, str]:
        table = read_table(self.folder / "data" / "queries.test.parquet", "queries")
        return dict(zip(table["qid"].to_pylist(), table["text"].to_pylist(), strict=True))


def make_searchable(folder: Path, model: Path, collection: Path) -> Searchable:
    """Models are untrained; vectors and lists are made by the stages themselves."""
    from conftest import make_retriever

    from lead.retrieval.bm25 import bm25
    from lead.retrieval.encode import encode
    from lead.retrieval.rerank import rerank
    from lead.retrieval.retrieve import retrieve

    config = empty_project(folder) / "config.yaml"
    here = Searchable(config, folder / "made here" / "tiny")
    data, runs, vectors = here.folder / "data", here.folder / "runs", here.folder / "embeddings" / "lead_cb"
    shutil.copytree(collection, data)
    corpus, queries = data / "corpus.parquet", data / "queries.test.parquet"
    more = pa.table({"pid": [HOSTILE_ID], "text": [HOSTILE]}, schema=read_table(corpus, "corpus").schema)
    write_table(pa.concat_tables([read_table(corpus, "corpus"), more]), corpus, "corpus")
    asked = read_table(queries, "queries")
    more = pa.table({"qid": ["hostile"], "text": [HOSTILE_QUERY]}, schema=asked.schema)
    write_table(pa.concat_tables([asked, more]), queries, "queries")
    judged = read_table(data / "qrels.test.parquet", "qrels")
    more = pa.table({"qid": ["hostile"] * 2, "pid": [HOSTILE_ID, "p0"], "rel": [1, 0]}, schema=judged.schema)
    write_table(pa.concat_tables([judged, more]), data / "qrels.test.parquet", "qrels")
    models = here.folder / "models"
    make_retriever(model, "de", pooling="mean", normalise="unit").save(models / "lead_cb")
    make_retriever(model, "cb", normalise="unit").save(models / "teacher_cb")
    for texts, out in ((corpus, "passages"), (queries, "queries.test")):
        encode(settings=EncodeSettings(precision="fp32"), gpu=0, model=models / "lead_cb", texts=texts,
               out=vectors / f"{out}.parquet")  # fmt: skip
    retrieve(settings=RetrieveSettings(depth=50), gpu=0, passages=[vectors / "passages.parquet"], index=None,
             parts=None, queries=vectors / "queries.test.parquet", out=runs / "lead_cb.parquet")  # fmt: skip
    rerank(settings=RerankSettings(rerank_depth=50, precision="fp32"), gpu=0, model=models / "teacher_cb",
           queries=queries,
           corpus=corpus, ranked=runs / "lead_cb.parquet", out=runs / "teacher_cb.parquet")  # fmt: skip
    bm25(settings=Bm25Settings(depth=50), corpus=corpus, queries=None, qrels=None, test_queries=queries,
         negatives=None, ranked=runs / "bm25.parquet")  # fmt: skip
    return here


def environment() -> dict[str, str]:
    """Of a process that imports this checkout."""
    root = str(Path(__file__).resolve().parents[1])
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
