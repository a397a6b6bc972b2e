"""Models of the hub: never asked for by the plan, refused before any work when they cannot be had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from dag.project import empty_project, refusal

from lead.config.load import load
from lead.plan.checks import check
from lead.plan.plan import Plan
from lead.pretrained import download


def test_a_model_of_the_hub_is_not_asked_for_but_one_that_cannot_be_had_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    folder = empty_project(tmp_path / "project")

    def check_student(name: str, **distil: Any) -> None:
        settings = {"models": {"student": {"reference": f"hub:some/{name}", "layers": None}}, "distil": distil}
        check(Plan(load(folder / "config.yaml", {"settings": settings}))["tiny", "lead_cb"])

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    check_student("online")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    kept = tmp_path / "hub" / "models--some--kept"
    (kept / "snapshots" / "abc").mkdir(parents=True)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("abc")
    (kept / "snapshots" / "abc" / "config.json").write_text('{"num_hidden_layers": 3, "hidden_size": 8}')
    (kept / "snapshots" / "abc" / "tokenizer.json").write_text("{}")
    for name in ("offline", "kept"):  # the second without its weights
        says = refusal(lambda name=name: check_student(name))
        assert "run 'student' on 'tiny': models: 'hub:some/" in says and f"hf download some/{name}" in says
    (kept / "snapshots" / "abc" / "model.safetensors").write_text("")
    check_student("kept")
    says = refusal(lambda: check_student("kept", layers={"strategy": "pairs", "pairs": [[1, 4]]}))
    assert "[1, 4] is outside teacher 1..4, student 1..3" in says  # its config.json is on this machine
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    pairs = {"strategy": "pairs", "pairs": [[2, 2], [1, 1]]}
    assert "do not ascend" in refusal(lambda: check_student("online", layers=pairs))  # nothing is known of this one
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    trained = folder.parent / "all results/tiny/models/student"
    monkeypatch.chdir(folder.parent)
    trained.mkdir(parents=True)
    check_student("trained")  # nobody needs the weights any more


def test_a_ready_model_of_the_hub_is_taken_whole_or_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    here = tmp_path / "models--some--model" / "snapshots" / "abc"
    here.mkdir(parents=True)
    (here.parents[1] / "refs").mkdir()
    (here.parents[1] / "refs" / "main").write_text("abc")
    for name in ("config.json", "model.safetensors"):
        (here / name).write_text("{}")
    assert "hf download some/model" in refusal(lambda: download("hub:some/model"))  # a part: modules.json may exist
    (here / ".gitattributes").write_text("")  # `hf download` has been here
    assert download("hub:some/model") == here
    assert "cannot load 'hub:some/other'" in refusal(lambda: download("hub:some/other"))


@pytest.mark.parametrize("name", ["a/b/c", "a/b@main", "https://huggingface.co/a/b"])
def test_what_is_no_name_on_the_hub_is_one_line(tmp_path: Path, name: str) -> None:
    folder = empty_project(tmp_path / "project")
    settings = {"models": {"student": {"reference": f"hub:{name}", "layers": None}}}
    says = refusal(lambda: check(Plan(load(folder / "config.yaml", {"settings": settings}))["tiny", "lead_cb"]))
    assert f"models: 'hub:{name}' is no name of a model" in says
