"""Ready retrievers through Snakemake: measured as they are, as teacher, and as the start of a training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import ready as tiny
from dag.project import ONE_THREAD, RESULTS, jobs, make_project, replace, succeed
from safetensors.numpy import load_file

pytestmark = pytest.mark.dag

ROWS = """\
  ready: {method: pretrained, init: bge}
  late: {method: pretrained, init: late, kind: cb}
  rd_late: {method: rd, start: small, teacher: late, negatives: bm25}
  small: {method: contrastive, init: student, phase: student, negatives: bm25}
  tuned: {method: contrastive, start: ready, phase: teacher, negatives: bm25}
"""
MODELS = '  bge: {reference: "path:bge", prompts: {query: "query "}}\n  late: {reference: "path:late"}\n'


def test_ready_models_are_measured_teach_and_go_on_training(
    tmp_path: Path, tiny_model: Path, tiny_collection: Path
) -> None:
    folder = make_project(tmp_path / "project", tiny_model, tiny_collection)
    tiny.sentence_transformer(folder / "bge", tiny_model, "cls")
    tiny.original_colbert(folder / "late")
    replace(folder / "config/presets/tiny.yaml", "models:\n", f"models:\n{MODELS}")
    replace(folder / "config/presets/tiny.yaml", "rerank_from: teacher_de", "rerank_from: ready")
    with (folder / "config/experiments.yaml").open("a") as f:
        f.write(ROWS)
    targets = [f"{RESULTS}/{run}.json" for run in ("ready", "late", "rd_late", "tuned")]
    succeed(folder, *ONE_THREAD, "--", *targets)

    results = {run: json.loads((folder / RESULTS / f"{run}.json").read_text()) for run in ("ready", "late", "tuned")}
    made_by = results["ready"]["made_by"]["settings"]["ready.pretrained"]
    assert made_by["model"]["prompts"] == {"query": "query ", "passage": ""} and made_by["given"] == []
    assert results["late"]["made_by"]["rerank_from"] == "ready"
    said = {run: json.loads((folder / RESULTS / f"models/{run}/lead.json").read_text()) for run in ("ready", "tuned")}
    assert said["ready"] == said["tuned"] and said["tuned"]["prompts"]["query"] == "query "
    assert said["tuned"]["scoring"]["pooling"] == "cls" and said["tuned"]["lengths"] == {"query": 40, "passage": 40}
    before, after = (load_file(folder / RESULTS / f"models/{run}/model.safetensors") for run in ("ready", "tuned"))
    assert any((before[name] != after[name]).any() for name in before)
    assert jobs(folder, "--", *targets) == {}
    prompts = folder / "bge/config_sentence_transformers.json"  # not only weights are the model
    prompts.write_text(prompts.read_text() + "\n", encoding="utf-8")
    assert jobs(folder, "--", f"{RESULTS}/ready.json")["pretrained"] == 1
