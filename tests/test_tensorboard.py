"""`lead tensorboard`: what a training wrote, read back from the event files by TensorBoard's own reader."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from reported import make_reported
from searchable import Searchable

from lead import cli
from lead.report.training import read_log


@pytest.fixture(scope="module")
def project(
    tmp_path_factory: pytest.TempPathFactory, searchable: Searchable, tiny_model: Path, tiny_collection: Path
) -> Searchable:
    return make_reported(tmp_path_factory.mktemp("board"), searchable, tiny_model, tiny_collection)


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Step and value of each scalar."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_event_files_hold_every_number_of_the_metrics(project: Searchable, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):  # again, for newer steps
        assert cli.main(["tensorboard", "tiny/lead_cb", *project.options]) == 0
    out = project.folder / "tensorboard"
    assert capsys.readouterr().out.splitlines()[-1] == f"tensorboard --logdir {out}"
    found, log = read(out / "lead_cb"), read_log(project.folder / "metrics" / "lead_cb.jsonl")
    for part, values in log.losses.items():
        assert found[f"loss/{part}"] == [(s, pytest.approx(v)) for s, v in zip(log.steps, values, strict=True)]
    assert [step for step, _ in found["dev_mrr10/student"]] == log.dev_steps
    weights = {tag: values for tag, values in found.items() if tag.startswith("layer_weights/teacher ")}
    assert sum(map(len, weights.values())) == 2 * len(log.steps)  # K = 2
    assert {"gradient_norm/teacher", "student_entropy/1", "lr"} <= set(found)


def test_a_training_that_still_runs_has_its_steps_so_far(project: Searchable, tmp_path: Path) -> None:
    """One of them, in fp16, was skipped: it has no norm."""
    state = project.folder / "state" / "student" / "0123"
    state.mkdir(parents=True)
    skipped = {"step": 1, "loss": {"total": 2.5}, "gradient_norm": {"model": None}, "loss_scale": 32768.0}
    (state / "metrics.jsonl").write_text(json.dumps(skipped) + '\n{"step": 2, "lo', encoding="utf-8")
    old = state.with_name("4567") / "metrics.jsonl"  # of other settings
    old.parent.mkdir()
    old.write_text(json.dumps({"step": 9, "loss": {"total": 1.0}}), encoding="utf-8")
    os.utime(old, (0, 0))
    assert cli.main(["tensorboard", "tiny", "--out", str(tmp_path / "events"), *project.options]) == 0
    assert read(tmp_path / "events" / "student") == {"loss/total": [(1, 2.5)], "loss_scale": [(1, 32768.0)]}
    assert {path.name for path in (tmp_path / "events").iterdir()} >= {"student", "lead_cb"}


def test_without_metrics_or_tensorboard_one_line_says_so(
    project: Searchable, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["tensorboard", "tiny/nothing", *project.options]) == 1
    assert "holds no metrics of nothing" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # as where it is not installed
    assert cli.main(["tensorboard", "tiny", *project.options]) == 1
    assert "pip install 'lead-distil[tensorboard]'" in capsys.readouterr().err
