"""`lead show`: the settings of a run, and where each comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from dag.project import empty_project

from lead.config.load import load
from lead.config.phases import ALIGN
from lead.plan.plan import Plan
from lead.plan.rows import split_seed
from lead.terminal.show import origins, show


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """The plan of a project that we are in."""
    config = empty_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    return Plan(load(config / "config.yaml"))


def test_every_setting_has_the_value_of_the_place_that_it_is_said_to_come_from(plan: Plan) -> None:
    with Path("config/experiments.yaml").open("a") as rows:
        rows.write("  ready: {method: pretrained, init: teacher}\n")
        rows.write("  aligned: {method: align, init: student, teacher: ready}\n")
        rows.write("  teacher_more: {method: contrastive, start: teacher_cb}\n")
    overrides = {"settings": {"bm25": {"k1": 3.0}, "phases": {"distil": {"teacher_lr": 1e-3}}}}
    plan = Plan(load("config/config.yaml", overrides))
    for run in ("lead_cb-s2", "aligned", "teacher_more"):
        job = plan["tiny", run]
        settings = job.settings.model_dump(mode="json")
        parts = {part.where: part.tree for part in plan.loaded.parts("tiny", split_seed(job.run)[0])}
        parts["--config"] = overrides
        found = origins(job)
        for key, where in found.items():
            now: Any = settings
            for part in key.split("."):
                now = now[part]
            if key == "seed" or key.startswith("phases."):
                continue
            if where == "default of an alignment":
                assert now == ALIGN[key.removeprefix("train.")]
                continue
            file, _, phase = where.removesuffix(" (teacher_lr)").partition(": phases.")
            tree = parts[file]["settings"] if file == "--config" else parts[file]
            value: Any = tree["phases"][phase] if phase else tree
            read = key.replace("train.lr", "train.teacher_lr") if where.endswith(" (teacher_lr)") else key
            for part in read.split(".")[1 if phase else 0 :]:
                value = value[part]
            assert value == now, key
        assert found["bm25.k1"] == "--config"
    found = origins(plan["tiny", "lead_cb-s2"])
    assert found["seed"] == "the name lead_cb-s2"
    assert found["train.steps"].endswith("presets/tiny.yaml: phases.distil")
    assert found["train.batch_size"].endswith("presets/tiny.yaml")
    assert found["train.teacher_lr"] == "--config: phases.distil"
    assert origins(plan["tiny", "aligned"])["train.lr"] == "default of an alignment"
    assert plan["tiny", "teacher_more"].settings.train.lr == 1e-3
    assert "align." not in show(plan, "tiny/lead_cb", None, True, False)
    ready = show(plan, "tiny/ready", None, True, False)  # a ready model's folder says these
    assert "lengths." not in ready and "scoring.de.pooling" not in ready and "scoring.de.scale" in ready


def test_show_is_short_and_all_is_everything(plan: Plan) -> None:
    short = show(plan, "tiny/lead_cb", None, False, False)
    assert "start student, teacher teacher_cb" in short and "train.steps" in short
    assert "train.weight_decay" not in short and "denoise" not in short and "map" not in short
    long = show(plan, "tiny/lead_cb", None, True, False)
    assert "train.weight_decay" in long and "default" in long and len(long) > len(short)
    assert "distil." not in show(plan, "tiny/bm25", None, True, False)
