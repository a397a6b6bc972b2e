"""`lead report` and `lead speed` of folders of results that are not as usual: seeds, linear layers, other measures."""

from __future__ import annotations

import json
import re
import shutil
from html import unescape
from pathlib import Path

import pytest
from reported import make_reported
from searchable import Searchable

from lead import cli
from lead.report.facts import model_facts


@pytest.fixture(scope="module")
def project(
    tmp_path_factory: pytest.TempPathFactory, searchable: Searchable, tiny_model: Path, tiny_collection: Path
) -> Searchable:
    """Results, and their report."""
    here = make_reported(tmp_path_factory.mktemp("reported"), searchable, tiny_model, tiny_collection)
    assert cli.main(["report", "tiny", *here.options]) == 0
    return here


def test_training_curves_are_those_of_the_first_seed_and_a_linear_layer_is_the_last_layer(
    project: Searchable, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(project.folder, tmp_path / "made here" / "tiny"))
    options = ["--config", str(project.config), "--overrides", f"{{results: {folder.parent}}}"]
    log, seed2 = (folder / "metrics" / f"{name}.jsonl" for name in ("lead_cb", "lead_cb-s2"))
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    seed2.write_text(json.dumps({"step": 1, "loss": {"stu": 77.0, "total": 77.0}}), encoding="utf-8")
    for line in lines:
        if "pairs" in line:
            line["pairs"] = [[a + 1, b + 1] for a, b in line["pairs"]]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    for run in ("lead_cb", "teacher_cb"):
        own = json.loads((folder / "models" / run / "lead.json").read_text())
        (folder / "models" / run / "lead.json").write_text(json.dumps(own | {"linear": {"size": 8}}))
    assert cli.main(["report", "tiny", *options]) == 0
    text = (folder / "report.html").read_text(encoding="utf-8")
    before = (project.folder / "report.html").read_text(encoding="utf-8")
    shown, seed1 = (
        re.findall("<figure id='loss-lead_cb'>.*?(<table.*?)</figure>", page, re.S) for page in (text, before)
    )
    assert len(shown) == 1 and shown == seed1
    n, m = (model_facts(folder / "models" / run).aligned for run in ("teacher_cb", "lead_cb"))
    assert (n, m) == (5, 5) and f"each of the teacher's {n} layers" in unescape(text)
    (pairs,) = re.findall("<figure id='pairs-lead_cb'>(.*?)</figure>", text, re.S)
    assert f"student layer {m}<" in pairs and f"student layer {m + 1}" not in pairs


def test_after_another_first_measure_the_page_has_those_of_all_results(project: Searchable, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(project.folder, tmp_path / "made here" / "tiny"))
    changed = f"{{results: {folder.parent}, settings: {{evaluation: {{measures: [nDCG@10, R@20]}}}}}}"
    assert cli.main(["report", "tiny", "--config", str(project.config), "--overrides", changed]) == 0
    assert "Differences are in points of RR@10" in (folder / "report.html").read_text(encoding="utf-8")


def test_without_results_the_speed_of_all_models_is_measured(
    project: Searchable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(project.folder, tmp_path / "made here" / "tiny"))
    for path in [*folder.glob("*.json"), *folder.glob("speed/*")]:
        path.unlink()
    options = ["--config", str(project.config), "--overrides", f"{{results: {folder.parent}}}"]
    assert cli.main(["speed", "tiny", *options]) == 0
    assert {path.stem for path in folder.glob("speed/*")} >= {"lead_cb", "student_more"}
