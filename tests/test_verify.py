"""`lead verify` on artifacts made by hand: inputs in other folders, negatives of other seeds, stages of the past."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from lead.config.load import load
from lead.config.stages import Bm25Settings, DenoiseSettings
from lead.plan.plan import Plan
from lead.plan.stage_settings import stage_settings
from lead.plan.verify import Verifier, verify
from lead.store.provenance import made_by, make_record
from lead.store.tables import SCHEMAS, write_json, write_table

CORPUS = pa.table({"pid": ["1", "2"], "text": ["a", "b"]}, schema=SCHEMAS["corpus"])


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """The configuration of the DAG tests with an evaluation set, a run that denoises, and a chain for each seed."""
    config = tmp_path / "config"
    shutil.copytree(Path(__file__).parent / "dag" / "config", config)
    test = "{queries: ../../q.jsonl, qrels: ../../q.tsv}"
    (config / "datasets" / "extra.yaml").write_text(f"source: {{kind: evaluation, of: tiny, test: {test}}}\n")
    with (config / "experiments.yaml").open("a") as f:
        f.write("  denoised: {method: contrastive, start: student, denoise: teacher_cb}\n")
    file = config / "config.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"seeds": "chain", "results": "results"}))
    monkeypatch.chdir(tmp_path)
    return Plan(load(Path("config/config.yaml")))


def test_damage_in_the_folder_of_another_dataset_is_said(plan: Plan) -> None:
    corpus = Path("results/tiny/data/corpus.parquet")
    write_table(CORPUS, corpus, "corpus")
    with made_by(make_record("bm25", Bm25Settings(), [corpus])):
        write_json({"metrics": {}}, Path("results/extra/bm25.json"))
    assert not [what for state, what in verify(plan, "extra") if state == "altered"]
    content = bytearray(corpus.read_bytes())
    content[10] ^= 1
    corpus.write_bytes(content)
    assert [what for state, what in verify(plan, "extra") if state == "altered" and str(corpus) in what]


def test_denoised_negatives_of_another_seed(plan: Plan) -> None:
    path = Path("results/tiny/negatives/miner-s2.teacher_cb-s2.parquet")
    settings = DenoiseSettings.model_validate(stage_settings(plan["tiny", "miner-s2"], "denoise"))
    with made_by(make_record("denoise", settings, [])):
        write_table(SCHEMAS["ranked"].empty_table(), path, "ranked")
    assert Verifier(plan)(path) == []


def test_a_stage_of_the_past_is_stale(plan: Plan) -> None:
    path = Path("results/tiny/runs/x.parquet")
    with made_by({"stage": "embed", "settings": {}, "inputs": {}, "code": "0"}):
        write_table(SCHEMAS["ranked"].empty_table(), path, "ranked")
    assert Verifier(plan)(path) == [("stale", f"{path}: made by the stage embed, which no longer exists")]


def test_a_source_under_results_need_not_be_an_artifact(plan: Plan) -> None:
    """Its content is compared, nothing else."""
    from lead.config.stages import ExternalSettings

    source, path = Path("results/mine.json"), Path("results/extra/runs/external.parquet")
    source.parent.mkdir()
    source.write_text("{}")
    with made_by(make_record("external", ExternalSettings(external_run=str(source)), [])):
        write_table(SCHEMAS["ranked"].empty_table(), path, "ranked")
    assert not [state for state, _ in Verifier(plan)(path) if state == "altered"]
    source.write_text("[]")
    assert ("stale", f"{path}: {source} has changed since it was read") in Verifier(plan)(path)
