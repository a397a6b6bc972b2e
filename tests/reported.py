"""A project with results to report, made by the stages: BM25, a student before and after LEAD, its teacher."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from conftest import make_retriever
from searchable import Searchable

from lead.config.stages import DistilSettings, EncodeSettings, EvaluateSettings, RetrieveSettings
from lead.evaluation.evaluate import evaluate
from lead.store.provenance import made_by, make_record

MEASURES = ["RR@10", "R@20", "R@60"]  # the dataset's
TIMING = "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time\n"
PAPER = """\
measures: {tiny: ["RR@10", "R@20", "R@60"]}
tables:
  table1:
    title: "<i>Teachers</i> and methods"
    rows:
      - {label: "4DE -> 2DE <b>student</b>", run: student_more, values: {tiny: [10.0, 20.0, null]}}
      - {label: LEAD, run: lead_cb, against: student_more, values: {tiny: [30.0, 40.0, 50.0]}}
      - {label: never made, run: rd_cb}
"""


def make_reported(folder: Path, searchable: Searchable, model: Path, collection: Path) -> Searchable:
    """A copy of `searchable` with results of bm25, teacher_cb, student_more and lead_cb, and a training of lead_cb."""
    from lead.retrieval.encode import encode
    from lead.retrieval.retrieve import retrieve
    from lead.train.stages import distil

    shutil.copytree(searchable.config.parents[1], folder, dirs_exist_ok=True)
    here = replace(searchable, config=folder / "config" / "config.yaml", folder=folder / "made here" / "tiny")
    (folder / "config" / "paper.yaml").write_text(PAPER, encoding="utf-8")
    data, models, runs = here.folder / "data", here.folder / "models", here.folder / "runs"
    shutil.rmtree(models / "lead_cb")
    make_retriever(model, "de", pooling="mean", normalise="unit").save(models / "student_more")
    settings: dict[str, Any] = {
        "train": {"steps": 12, "batch_size": 4, "negatives": 2, "lr": 1e-3, "precision": "fp32", "dev_every": 6,
                  "dev_queries": 6, "dev_negatives": 2, "checkpoint_every": 100},
        "distil": {"layers": {"k": 2, "strategy": "random"}},
    }  # fmt: skip
    inputs = {key: data / f"{name}.parquet" for key, name in (
        ("corpus", "corpus"), ("queries", "queries.train"), ("qrels", "qrels.train"),
        ("dev_queries", "queries.dev"), ("dev_qrels", "qrels.dev"))}  # fmt: skip
    checked = DistilSettings.model_validate(settings)
    with made_by(make_record("distil", checked, [])):
        distil(settings=checked, gpu=0, **inputs, negatives=collection / "negatives.parquet",
               start=models / "student_more", teacher=models / "teacher_cb", out=models / "lead_cb",
               teacher_out=models / "lead_cb_teacher", state=here.folder / "state" / "lead_cb",
               metrics=here.folder / "metrics" / "lead_cb.jsonl")  # fmt: skip
    for run in ("student_more", "lead_cb"):
        vectors = here.folder / "embeddings" / run
        for texts, out in ((data / "corpus.parquet", "passages"), (data / "queries.test.parquet", "queries.test")):
            encode(settings=EncodeSettings(precision="fp32"), gpu=0, model=models / run, texts=texts,
                   out=vectors / f"{out}.parquet")  # fmt: skip
        retrieve(settings=RetrieveSettings(depth=60), gpu=0, passages=[vectors / "passages.parquet"], index=None,
                 parts=None, queries=vectors / "queries.test.parquet", out=runs / f"{run}.parquet")  # fmt: skip
    for run in ("bm25", "teacher_cb", "student_more", "lead_cb"):
        how: dict[str, Any] = {"evaluation": {"measures": MEASURES, "resamples": 20}}
        how["made_by"] = {"dataset": "tiny", "run": run, "settings": {"lead_cb.distil": checked.model_dump(mode="json")}
                          if run == "lead_cb" else {}}  # fmt: skip
        evaluate(settings=EvaluateSettings.model_validate(how), ranked=runs / f"{run}.parquet",
                 qrels=data / "qrels.test.parquet", out=here.folder / f"{run}.json",
                 per_query=here.folder / "per_query" / f"{run}.parquet", trec=None)  # fmt: skip
    timings = here.folder / "timings"
    timings.mkdir()
    for name, seconds, memory in (("distil.lead_cb", 90.0, 812.5), ("encode.lead_cb.passages", 8.0, 400.0),
                                  ("bm25", 2.5, 99.0), ("retrieve.lead_cb", 3.0, "NA")):  # fmt: skip
        line = f"{seconds}\t0:00:00\t{memory}\t1\t1\t1\t1\t1\t1\t1\n"
        (timings / f"{name}.tsv").write_text(TIMING + line, encoding="utf-8")
    return here
