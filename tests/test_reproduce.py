"""`make reproduce`: documented values are compared with results, and those in docs/ are those of docs/results.md."""

from __future__ import annotations

import json
import re
import runpy
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_table import result

from lead.evaluation.stats import holm, paired_test
from lead.report.table import difference
from lead.store.tables import write_json

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks/reproduce.py"


def call(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SCRIPT, *arguments]
    return subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True)


def test_values_are_recorded_and_compared(tmp_path: Path) -> None:
    """A value too far off, and a missing one, are told by name."""
    (tmp_path / "tiny").mkdir()
    for run, mean in (("rd_cb", 0.5), ("rd_cb-s2", 0.54), ("lead_cb", 0.6)):
        write_json({"metrics": {"RR@10": {"mean": mean, "low": 0.4, "high": 0.7}}}, tmp_path / f"tiny/{run}.json")
    values = tmp_path / "tiny.json"
    assert call(values, "--results", tmp_path, "--record", "rd_cb", "lead_cb", "--within", "0.02").returncode == 0
    said = json.loads(values.read_text())["values"]
    assert said["rd_cb"]["seeds"] == [0.5, 0.54] and "seeds" not in said["lead_cb"]
    assert runpy.run_path(str(SCRIPT))["_cell"](said["rd_cb"]) == ".500 [.400, .700]; 2 seeds .520 ± .028"
    same = call(values, "--results", tmp_path)
    assert same.returncode == 0 and "2 of 2 as documented" in same.stdout
    write_json({"metrics": {"RR@10": {"mean": 0.519}}}, tmp_path / "tiny/rd_cb.json")
    (tmp_path / "tiny/lead_cb.json").unlink()
    other = call(values, "--results", tmp_path)
    assert other.returncode == 1 and "1 of 2 as documented" in other.stdout
    assert re.search(r"^OFF  lead_cb ", other.stdout, re.M) and re.search(r"^ok   rd_cb .*\+0.0190", other.stdout, re.M)


def test_the_tables_of_the_page_are_those_of_the_values() -> None:
    """`python benchmarks/reproduce.py --tables` would change nothing."""
    text = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    made = runpy.run_path(str(SCRIPT))
    assert "| `lead_cb`: " in text.partition("<!-- values: demo -->")[2] and made["tables"](text) == text
    assert made["tables"](text.replace("<!-- end -->", "| old |\n<!-- end -->")) == text


def test_differences_are_those_of_all_seeds_and_corrected_in_each_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each run has the mean of its own seeds. p in the file is not corrected, p in the table is Holm's."""
    rng = np.random.default_rng(0)
    one, two, rd, student = (rng.random(50) for _ in range(4))
    for run, values in (("aligned_more", one), ("aligned_more-s2", two), ("rd_cb", rd), ("student", student)):
        result(tmp_path / "tiny", run, values, ["RR@10"])
    values, both = tmp_path / "values/tiny.json", (one + two) / 2
    values.parent.mkdir()
    added = ["--record", "rd_cb", "--against", "aligned_more", "rd_cb", "student"]
    assert call(values, "--results", tmp_path, *added).returncode == 0
    said, others = json.loads(values.read_text())["differences"]["aligned_more"], {"rd_cb": rd, "student": student}
    for run, other in others.items():
        expected = {"mean": (both - other).mean(), "p": paired_test(both, other)}
        assert said[run] == {key: pytest.approx(value, abs=1e-6, rel=1e-2) for key, value in expected.items()}
    made = runpy.run_path(str(SCRIPT))
    monkeypatch.setitem(made["tables"].__globals__, "DOCS", tmp_path)
    page = made["tables"]("<!-- differences: tiny/aligned_more\nagainst student rd_cb fd_cb -->\nold\n<!-- end -->\n")
    p = holm([said[run]["p"] for run in ("student", "rd_cb")])
    for run, corrected in zip(("student", "rd_cb"), p, strict=True):
        cell = difference(said[run]["mean"], corrected)
        assert re.search(rf"^\| `{run}`: .* \| {re.escape(cell)} \|$", page, re.M)
    assert re.search(r"^\| `fd_cb`: .* \| not run \|$", page, re.M) and "old" not in page


def test_the_readme_has_these_values() -> None:
    """Its table of the demo, and the means of its table of three collections."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    demo, *others = (
        json.loads((ROOT / f"docs/values/{name}.json").read_text())["values"]
        for name in ("demo", "pydocs", "pydocs_wide", "medquad")
    )
    rows = re.findall(r"^\| \**`(\w+)`\** \|.*?\| \**(\.\d+)\** \| (\.\d+) to (\.\d+) \|$", readme, re.M)
    keys = ("mean", "low", "high")
    assert {run: shown for run, *shown in rows} == {r: [f"{v[k]:.3f}"[1:] for k in keys] for r, v in demo.items()}
    runs = {
        "BM25": "bm25",
        "the teacher, untrained": "pretrained_teacher",
        "student without judgements": "student_aligned",
        "labels only": "student",
        "student, then labels": "aligned_pass",
    }
    for label, run in runs.items():
        of = [run, "aligned_long" if run == "aligned_pass" else run, run]
        said = [file[name] for file, name in zip(others, of, strict=True)]
        means = [f"{statistics.mean(one.get('seeds', [one['mean']])):.3f}"[1:] for one in said]
        (row,) = re.findall(rf"^\| \**{label}\b.*?((?: \| \**\.\d+\**){{3}}) \|$", readme, re.M)
        assert re.findall(r"\.\d+", row) == means, label
