"""The paper's datasets through their own rules, on a collection with MS MARCO's files at 1/1000 of its size.

LEAD_MARCO_SCALE=1/100 runs it on a larger one (docs/scale.md has its figures).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from conftest import make_bert
from dag.project import ROOT, jobs, succeed

pytestmark = pytest.mark.dag
SCALE = Fraction(os.environ.get("LEAD_MARCO_SCALE", "1/1000"))
PASSAGES, TRAIN, DEV = (round(n * SCALE) for n in (8_841_823, 502_939, 6_980))
TARGETS = [f"results/{dataset}/{run}.json" for dataset in ("mspas", "trec_pas_19") for run in ("bm25", "lead_cb")]
TARGETS.append("results/mspas/given.json")
# Everything else is as in the repository's own files.
SMALL = {
    "models": {"teacher": {"reference": "path:model"}, "student": {"reference": "path:model", "layers": [2, 4]}},
    "lengths": {"query": 12, "passage": 16},
    "train": {"steps": 2, "batch_size": 4, "negatives": 2, "precision": "fp32", "dev_queries": 0},
    "distil": {"layers": {"k": 2}},
}


def edit(path: Path, **changes: Any) -> None:
    """Replace keys of a YAML file."""
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes, sort_keys=False))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository's configuration over official files on disk, and small models."""
    folder = tmp_path_factory.mktemp("marco")
    shutil.copytree(ROOT / "config", folder / "config")
    make_bert(folder / "model")
    files = folder / "official"
    subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "marco.py", "--scale", str(SCALE), "--out", files], check=True
    )

    def split(queries: str, qrels: str) -> dict[str, str]:
        return {"queries": f"../../official/{queries}", "qrels": f"../../official/{qrels}"}

    source = {"kind": "files", "corpus": "../../official/collection.tsv", "fields": ["text"]}
    source |= {"train": split("queries.train.tsv", "qrels.train.tsv")}
    source |= {"test": split("queries.dev.small.tsv", "qrels.dev.small.tsv")}
    datasets = folder / "config" / "datasets"
    expect = {"passages": PASSAGES, "train": TRAIN, "test": DEV}
    given = "../../official/top1000.dev.tsv"
    edit(datasets / "mspas.yaml", source=source, expect=expect, given=given, shards=2)
    topics = split("msmarco-test2019-queries.tsv", "2019qrels-pass.txt")
    edit(datasets / "trec_pas_19.yaml", source={"kind": "evaluation", "of": "mspas", "test": topics})
    edit(folder / "config" / "config.yaml", settings=SMALL)
    succeed(folder, "--", *TARGETS)
    return folder


def result(folder: Path, target: str) -> Any:
    return json.loads((folder / target).read_text())


def test_every_result_is_made_once(made: Path) -> None:
    assert jobs(made, "--", *TARGETS) == {}
    for dataset, queries, measures in (
        ("mspas", DEV, {"RR@10", "AP@1000", "R@1000"}),
        ("trec_pas_19", 43, {"nDCG@10", "AP@1000"}),
    ):
        for run in ("bm25", "lead_cb"):
            found = result(made, f"results/{dataset}/{run}.json")
            assert found["queries"] == queries and set(found["metrics"]) == measures


def test_relevance_is_planted(made: Path) -> None:
    """BM25 finds about what it finds on MS MARCO, which random lists would not."""
    # ten times the passages are ten times the rivals: .159 at 1/100
    enough = 0.2 if Fraction(1, 1000) >= SCALE else 0.1
    for dataset, measure in (("mspas", "R@1000"), ("trec_pas_19", "nDCG@10")):
        assert result(made, f"results/{dataset}/bm25.json")["metrics"][measure]["mean"] > enough


def test_the_official_lists_are_a_run(made: Path) -> None:
    """The generator puts the answer into two lists of three."""
    assert result(made, "results/mspas/given.json")["metrics"]["R@1000"]["mean"] > 0.3
    listed = pq.read_metadata(made / "results/mspas/runs/given.parquet").num_rows
    assert 900 * DEV < listed <= 1000 * DEV


def test_counts_are_those_of_the_collection(made: Path) -> None:
    report = json.loads((made / "results/mspas/data/report.json").read_text())
    assert report["corpus"]["passages"] == PASSAGES
    assert report["splits"]["train"]["unjudged_queries"] == round(305_792 * SCALE)
    assert report["splits"]["train"]["queries"] + report["splits"]["dev"]["queries"] == TRAIN
    assert pq.read_metadata(made / "results/trec_pas_19/data/queries.test.parquet").num_rows == 200


def test_an_evaluation_set_shares_models_and_vectors(made: Path) -> None:
    assert {p.name for p in (made / "results/trec_pas_19").iterdir()} >= {"runs", "bm25.json", "lead_cb.json"}
    assert not (made / "results/trec_pas_19/models").exists()
    shards = sorted((made / "results/mspas/embeddings/lead_cb").glob("passages.*.parquet"))
    assert [pq.read_metadata(p).num_rows for p in shards] == [PASSAGES // 2, PASSAGES - PASSAGES // 2]
    assert not list((made / "results/trec_pas_19/embeddings").rglob("passages*"))
