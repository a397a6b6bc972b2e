"""The paper's tables from result files: numbers, tests, seeds, gaps, what is missing, and how text is written."""

from __future__ import annotations

import csv
import io
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_table import result

from lead.cli import main
from lead.config.load import load
from lead.config.paper import load_paper
from lead.errors import LeadError
from lead.evaluation.render import csv_text, html_page, html_table, markdown
from lead.evaluation.stats import paired_test
from lead.evaluation.tables import tables
from lead.plan import Plan

CONFIG = Path(__file__).resolve().parents[1] / "config"
MEASURES = ["RR@10", "AP@100", "R@100"]  # demo's


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "results" / "demo"


def write(folder: Path, run: str, values: np.ndarray, depth: int = 1000) -> None:
    result(folder, run, values, MEASURES, depth=depth)


def built(folder: Path, name: str) -> dict[str, list[str]]:
    """Rows of a table by label."""
    tables(CONFIG / "config.yaml", "demo", folder, None)
    rows = list(csv.reader(io.StringIO((folder / "tables" / f"{name}.csv").read_text())))
    return {row[0]: row[1:] for row in rows}


def test_means_differences_and_missing_runs(folder: Path) -> None:
    rng = np.random.default_rng(0)
    base = rng.random(200) * 0.5
    for run, shift in (("student_more", 0.0), ("rd_cb", 0.02), ("lead_cb", 0.1)):
        write(folder, run, base + shift + rng.normal(0, 0.02, 200))
    rows = built(folder, "table6")
    assert rows[""] == [*MEASURES, "vs its RD or control", "vs student_more"]
    mean = 100 * float(np.mean(load_values(folder, "lead_cb")))
    assert rows["LEAD"][0].startswith(f"{mean:.2f} [")
    assert rows["LEAD"][3].startswith(("+8.", "+7."))
    assert rows["LEAD"][3].endswith("**") and rows["LEAD"][4].endswith("**")
    assert rows["RD"][3] == "" and rows["w/o joint training"][0] == "missing"
    text = (folder / "tables" / "table6.md").read_text()
    assert "snakemake --cores 2 -- results/demo/lead_cb_frozen.json" in text
    assert (folder / "tables" / "all.md").read_text().count("## Table") == 7
    assert built(folder, "table4")["K = 6"][0] == "not possible here"


def test_a_run_that_is_the_same_as_another_here_has_its_result(folder: Path) -> None:
    """`demo` aligns three layers: K = 3 is LEAD itself, and nobody is asked to make it again."""
    assert built(folder, "table4")["K = 3"][0] == "missing"
    text = (folder / "tables" / "table4.md").read_text()
    assert "results/demo/lead_cb.json" in text and "lead_cb_k3" not in text
    write(folder, "lead_cb", np.full(20, 0.5))
    assert built(folder, "table4")["K = 3"][0].startswith("50.00 [")
    write(folder, "lead_cb_k3", np.full(20, 0.25))  # made all the same
    assert built(folder, "table4")["K = 3"][0].startswith("25.00 [")


def load_values(folder: Path, run: str) -> np.ndarray:
    from lead.artifacts import read_table

    table = read_table(folder / "per_query" / f"{run}.parquet", "per_query").to_pandas()
    values: np.ndarray = table[table.measure == "RR@10"]["value"].to_numpy()
    return values


def test_seeds_are_averaged_and_their_spread_is_shown(folder: Path) -> None:
    base = np.random.default_rng(1).random(100) * 0.5
    for suffix, shift in (("", 0.0), ("-s2", 0.03), ("-s3", 0.06)):
        write(folder, f"lead_cb{suffix}", base + shift)
    mean = 100 * (base.mean() + 0.03)
    assert built(folder, "table5")["Random"][0].startswith(f"{mean:.2f} ± 3.00 [")
    assert "Seeds: lead_cb 3; seeds share the warm-up" in (folder / "tables" / "all.md").read_text()


def test_the_share_of_the_gap_is_told_only_where_there_clearly_is_one(folder: Path) -> None:
    base = np.random.default_rng(2).random(300) * 0.5
    noise = np.random.default_rng(3).normal(0, 0.05, 300)
    for run, values in (
        ("student", base), ("teacher_cb", base + 0.2 + noise), ("lead_cb", base + 0.15), ("teacher_de", base + noise),
        ("lead_de", base + 0.1),
    ):  # fmt: skip
        write(folder, run, values)
    tables(CONFIG / "config.yaml", "demo", folder, None)
    text = (folder / "tables" / "table3.md").read_text()
    assert "lead_cb closes 7" in text and "of the gap of 20." in text
    assert "lead_de: teacher_de is not clearly above the student" in text


def test_a_teacher_that_is_barely_above_the_student_leaves_no_gap_to_close(folder: Path) -> None:
    """p is below .05, as when a real teacher was .008 above: any share of that is noise."""
    base, noise = np.random.default_rng(2).random(300) * 0.5, np.random.default_rng(3).normal(0, 0.1, 300)
    for run, values in (("student", base), ("teacher_cb", base + 0.016 - noise.mean() + noise), ("lead_cb", base)):
        write(folder, run, values)
    tables(CONFIG / "config.yaml", "demo", folder, None)
    text = (folder / "tables" / "table3.md").read_text()
    assert "lead_cb: teacher_cb is not clearly above the student (+1.60 p=.00" in text
    assert 0.001 < paired_test(load_values(folder, "teacher_cb"), load_values(folder, "student")) < 0.01
    write(folder, "student", base[1:])
    with pytest.raises(LeadError, match="of different queries; evaluate them again"):
        tables(CONFIG / "config.yaml", "demo", folder, None)


def test_measures_that_lists_are_too_short_for_are_marked(folder: Path) -> None:
    values = np.random.default_rng(2).random(50)
    write(folder, "teacher_cb", values, depth=100)
    write(folder, "teacher_ce", values, depth=50)
    rows = built(folder, "table3")
    short = [row for row in rows.values() if any("†" in cell for cell in row)]
    assert [["†" in cell for cell in row[:3]] for row in short] == [[False, True, True]]
    assert "†: of shorter lists: teacher_ce 50" in (folder / "tables" / "table3.md").read_text()


def test_what_was_given_on_the_command_line_wins(folder: Path) -> None:
    write(folder, "student", np.random.default_rng(2).random(50))
    chain = ["--overrides", '{"seeds": "chain"}']
    assert main(["tables", "demo", "--results", str(folder), "--config", str(CONFIG / "config.yaml"), *chain]) == 0
    assert "every seed has its own chain" in (folder / "tables" / "all.md").read_text()


def test_the_papers_values_stand_beside_ours_on_its_datasets_only(folder: Path) -> None:
    paper = load_paper(CONFIG / "paper.yaml", list(Plan(load(CONFIG / "config.yaml")).rows))
    rows = {row.label: row.values for row in paper.tables["table3"].rows}
    assert rows["12CB -> 6DE: LEAD"]["mspas"] == [37.80, 38.32, 97.42]
    assert rows["12CE -> 6DE: RD"]["trec_doc_20"] == [54.00, 37.47]
    assert {row.label for row in paper.tables["table1"].rows if row.run is None} >= {"DeepCT", "docT5query", "ME-BERT"}
    write(folder, "student", np.random.default_rng(0).random(50))
    assert not any("paper" in cell for cell in built(folder, "table3")[""])
    assert not (folder / "tables" / "table1.md").exists()


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("run: lead_cb_k1,", "run: lead_cb_k11,", "no run 'lead_cb_k11'; did you mean 'lead_cb_k1'?"),
        ("[37.05, 37.61, 97.08]", "[37.05, 37.61]", "2 values of 'mspas', which has 3 measures"),
        ("title:", "titel:", "unknown key"),
    ],
)
def test_a_mistake_in_the_papers_tables_is_one_line(tmp_path: Path, old: str, new: str, says: str) -> None:
    shutil.copy(CONFIG / "paper.yaml", tmp_path / "paper.yaml")
    text = (tmp_path / "paper.yaml").read_text()
    assert old in text
    (tmp_path / "paper.yaml").write_text(text.replace(old, new, 1))
    with pytest.raises(LeadError) as error:
        load_paper(tmp_path / "paper.yaml", list(Plan(load(CONFIG / "config.yaml")).rows))
    assert says in str(error.value) and "\n" not in str(error.value)


def test_text_is_text_in_every_format() -> None:
    cells = [["", "a|b"], ["<script>alert(1)</script>", 'say "x", y']]
    text = markdown("<b>", cells, ["<i> p < .05"])
    assert "\\|" in text and "p < .05" in text and not re.search("<[a-z]", text)
    assert list(csv.reader(io.StringIO(csv_text(cells)))) == cells
    numbers = html_table("t", [["", "x"], ["a", "37.1 ± 1.2 [34.8, 39.5]"], ["b", "missing"]], [])
    assert "<td>37.1<small>± 1.2 [34.8, 39.5]</small></td>" in numbers and "<td class='word'>missing</td>" in numbers
    page = html_page("<b>", [html_table("<i>", cells, ["run `a<b` & c"])])
    assert "<script>" not in page and "<code>a&lt;b</code> &amp; c" in page and "<b>" not in page and "<i>" not in page
