"""Without labels through Snakemake: alignment, its asymmetric use, RD from stored scores, and a corpus alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from dag.project import ONE_THREAD, RESULTS, jobs, last_words, make_project, succeed

pytestmark = pytest.mark.dag

ROWS = """\
  ready: {method: pretrained, init: teacher, negatives: bm25}
  aligned: {method: align, init: student, teacher: ready, settings: {train: {batch_size: 16, steps: 4}}}
  both: {method: asymmetric, start: aligned, passages: ready}
  rd_stored: {method: rd, start: aligned, scores: {ready: 1.0}, negatives: bm25}
"""
MINE = "source: {kind: files, corpus: ../../data/corpus.jsonl}\nqueries: {from: crops, number: 40}\npreset: tiny\n"


def test_models_without_labels(tmp_path: Path, tiny_model: Path, tiny_collection: Path) -> None:
    folder = make_project(tmp_path / "project", tiny_model, tiny_collection)
    with (folder / "config/experiments.yaml").open("a") as f:
        f.write(ROWS)
    (folder / "config/datasets/mine.yaml").write_text(MINE)
    alone = "all results/mine/models/rd_stored"
    targets = [*(f"{RESULTS}/{run}.json" for run in ("aligned", "both", "rd_stored")), alone]
    succeed(folder, *ONE_THREAD, "--", *targets)

    made = {run: json.loads((folder / RESULTS / f"{run}.json").read_text())["made_by"]["settings"]
            for run in ("both", "rd_stored")}  # fmt: skip
    assert made["both"]["aligned.align"]["train"]["steps"] == 4 and "ready.encode" in made["both"]
    assert made["rd_stored"]["ready.score"]["depth"] == 100
    assert not (folder / RESULTS / "models/both").exists()
    assert (folder / alone / "lead.json").is_file()
    report = json.loads((folder / "all results/mine/data/report.json").read_text())
    assert report["source"]["queries"]["from"] == "crops" and report["splits"]["test"]["queries"] == 0
    assert jobs(folder, "--", *targets) == {}
    assert "mine.yaml: no test queries, so no results" in last_words(
        folder, "-n", "--", "all results/mine/aligned.json"
    )
