"""The paper's datasets through their own rules, on a collection with MS MARCO's files at 1/1000 of its size.

LEAD_MARCO_SCALE=1/100 runs it on a larger one (docs/scale.md has its figures), and documents further.
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
DOCUMENTS, DOCTRAIN, DOCDEV = (max(7, round(n * SCALE)) for n in (3_213_835, 367_013, 5_193))
TARGETS = [f"results/{dataset}/{run}.json" for dataset in ("mspas", "trec_pas_19") for run in ("bm25", "lead_cb")]
# documents as far as the first model, to save time; at a larger scale to what is trained on that one's negatives
OF_DOCUMENTS = "student" if "LEAD_MARCO_SCALE" in os.environ else "miner"
TARGETS += [f"results/{dataset}/{run}.json" for dataset in ("msdoc", "trec_doc_19") for run in ("bm25", OF_DOCUMENTS)]
TARGETS += ["results/mspas/external.json", "results/msdoc/external.json"]
# Everything else is as in the repository's own files.
SMALL = {
    "models": {"teacher": {"reference": "path:model"}, "student": {"reference": "path:model", "layers": [2, 4]}},
    "lengths": {"query": 12, "passage": 16},
    "train": {"steps": 2, "batch_size": 4, "negatives": 2, "precision": "fp32", "dev_queries": 0},
    "distil": {"layers": {"k": 2}},
    "dev_share": 0.01,
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
    for name, options in (("official", ()), ("documents", ("--documents",))):
        generate = [sys.executable, ROOT / "benchmarks" / "marco.py", "--scale", str(SCALE), "--out", folder / name]
        subprocess.run([*generate, *options], check=True)
    datasets = folder / "config" / "datasets"

    def split(folder: str, queries: str, qrels: str) -> dict[str, str]:
        return {"queries": f"../../{folder}/{queries}", "qrels": f"../../{folder}/{qrels}"}

    source = {"kind": "files", "corpus": "../../official/collection.tsv", "fields": ["text"]}
    source |= {"train": split("official", "queries.train.tsv", "qrels.train.tsv")}
    source |= {"test": split("official", "queries.dev.small.tsv", "qrels.dev.small.tsv")}
    expect = {"passages": PASSAGES, "train": TRAIN, "test": DEV}
    lists = "../../official/top1000.dev.tsv"
    edit(datasets / "mspas.yaml", source=source, expect=expect, external_run=lists, shards=2)
    topics = split("official", "msmarco-test2019-queries.tsv", "2019qrels-pass.txt")
    edit(datasets / "trec_pas_19.yaml", source={"kind": "evaluation", "of": "mspas", "test": topics})

    source = {"kind": "files", "corpus": "../../documents/msmarco-docs.tsv.gz", "fields": ["title", "text"]}
    source |= {"train": split("documents", "msmarco-doctrain-queries.tsv.gz", "msmarco-doctrain-qrels.tsv.gz")}
    source |= {"test": split("documents", "msmarco-docdev-queries.tsv.gz", "msmarco-docdev-qrels.tsv.gz")}
    expect = {"passages": DOCUMENTS, "train": DOCTRAIN, "test": DOCDEV}
    lists = "../../documents/msmarco-docdev-top100.gz"
    edit(datasets / "msdoc.yaml", source=source, expect=expect, external_run=lists, shards=2)
    topics = split("documents", "msmarco-test2019-queries.tsv.gz", "2019qrels-docs.txt")
    edit(datasets / "trec_doc_19.yaml", source={"kind": "evaluation", "of": "msdoc", "test": topics})
    edit(folder / "config" / "config.yaml", settings=SMALL)
    succeed(folder, "--", *TARGETS)
    return folder


def result(folder: Path, target: str) -> Any:
    return json.loads((folder / target).read_text())


def test_every_result_is_made_once(made: Path) -> None:
    assert jobs(made, "--", *TARGETS) == {}
    for dataset, queries, measures, run in (
        ("mspas", DEV, {"RR@10", "AP@1000", "R@1000"}, "lead_cb"),
        ("trec_pas_19", 43, {"nDCG@10", "AP@1000"}, "lead_cb"),
        ("msdoc", DOCDEV, {"RR@10", "AP@100", "R@100"}, OF_DOCUMENTS),
        ("trec_doc_19", 43, {"nDCG@10", "R@100"}, OF_DOCUMENTS),
    ):
        for name in ("bm25", run):
            found = result(made, f"results/{dataset}/{name}.json")
            assert found["queries"] == queries and set(found["metrics"]) == measures


def test_relevance_is_planted(made: Path) -> None:
    """BM25 finds about what it finds on MS MARCO, which random lists would not."""
    # ten times the passages are ten times the rivals: .159 at 1/100
    enough = 0.2 if Fraction(1, 1000) >= SCALE else 0.1
    for dataset, measure in (("mspas", "R@1000"), ("trec_pas_19", "nDCG@10"), ("msdoc", "R@100")):
        assert result(made, f"results/{dataset}/bm25.json")["metrics"][measure]["mean"] > enough


def test_the_official_lists_are_a_run(made: Path) -> None:
    """The generator puts the answer into two lists of three."""
    for dataset, measure, depth, queries in (("mspas", "R@1000", 1000, DEV), ("msdoc", "R@100", 100, DOCDEV)):
        assert result(made, f"results/{dataset}/external.json")["metrics"][measure]["mean"] > 0.3
        listed = pq.read_metadata(made / f"results/{dataset}/runs/external.parquet").num_rows
        assert 0.9 * depth * queries < listed <= depth * queries


def test_counts_are_those_of_the_collection(made: Path) -> None:
    for dataset, passages, train, unjudged in (
        ("mspas", PASSAGES, TRAIN, round(305_792 * SCALE)), ("msdoc", DOCUMENTS, DOCTRAIN, 0),
    ):  # fmt: skip
        report = json.loads((made / f"results/{dataset}/data/report.json").read_text())
        assert report["corpus"]["passages"] == passages
        assert report["splits"]["train"]["unjudged_queries"] == unjudged
        assert report["splits"]["train"]["queries"] + report["splits"]["dev"]["queries"] == train
    for dataset in ("trec_pas_19", "trec_doc_19"):
        assert pq.read_metadata(made / f"results/{dataset}/data/queries.test.parquet").num_rows == 200


def test_an_evaluation_set_shares_models_and_vectors(made: Path) -> None:
    for of, dataset, run, sizes in (
        ("mspas", "trec_pas_19", "lead_cb", [PASSAGES // 2, PASSAGES - PASSAGES // 2]),
        ("msdoc", "trec_doc_19", OF_DOCUMENTS, [DOCUMENTS // 2, DOCUMENTS - DOCUMENTS // 2]),
    ):
        assert {p.name for p in (made / "results" / dataset).iterdir()} >= {"runs", "bm25.json", f"{run}.json"}
        assert not (made / f"results/{dataset}/models").exists()
        shards = sorted((made / f"results/{of}/embeddings/{run}").glob("passages.*.parquet"))
        assert [pq.read_metadata(p).num_rows for p in shards] == sizes
        assert not list((made / f"results/{dataset}/embeddings").rglob("passages*"))
