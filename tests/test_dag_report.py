"""The rule `report`, and Snakemake's own report of its parts."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from pathlib import Path

import pytest
from dag.project import ONE_THREAD, RESULTS, RUNS, jobs, replace, succeed

pytestmark = [pytest.mark.dag, pytest.mark.slow]
PAPER = (
    'measures: {}\ntables: {table1: {title: "Methods", rows: [{label: LEAD, run: lead_cb}, {label: RD, run: rd_cb}]}}\n'
)


def test_the_page_and_its_parts_are_in_snakemakes_report(made: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "a project", copy_function=shutil.copy2))
    (folder / "config" / "paper.yaml").write_text(PAPER, encoding="utf-8")
    replace(folder / "config" / "datasets" / "tiny.yaml", "preset: tiny", f"preset: tiny\nruns: [{', '.join(RUNS)}]")
    page = f"{RESULTS}/report.html"
    assert jobs(folder, "--", page) == {"report": 1}
    succeed(folder, *ONE_THREAD, "--", page)
    text = (folder / page).read_text(encoding="utf-8")
    assert all(f">{run}<" in text or f"<th scope='row'>{run}" in text for run in RUNS)
    assert jobs(folder, "--", page) == {}
    log = (folder / f"{RESULTS}/logs/report.log").read_text(encoding="utf-8")
    assert re.fullmatch(r"\S+ report done in \S+ s\n", log)  # `lead status` takes this as its end
    succeed(folder, "--report", "all.zip", "--", page)
    with zipfile.ZipFile(folder / "all.zip") as archive:
        index = archive.read("all/report.html").decode()
    shown = re.sub(r"\s|\\n", " ", index)
    for name in ("report.html", "runs.csv", "size.svg", "loss-lead_cb.svg", "pairs-lead_cb.svg", "stages.svg"):
        assert f'"{name}"' in shown, name
    assert "Quality and cost" in shown and "weights of teacher layers (eq. 7)" in shown
    assert json.loads((folder / RESULTS / "lead_cb.json").read_text())["metrics"]  # nothing was made again
