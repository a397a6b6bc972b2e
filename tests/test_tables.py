"""The paper's tables from result files: numbers, tests, seeds, gaps, what is missing, and how text is written."""

from __future__ import annotations

import csv
import io
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_table import result

from lead.cli import main
from lead.config.load import load
from lead.config.paper import load_paper
from lead.errors import LeadError
from lead.evaluation.stats import bootstrap_interval, holm, paired_test
from lead.plan.plan import Plan
from lead.report.paper_tables import tables
from lead.report.render import Table, csv_text, html_page, markdown
from lead.report.table import difference

CONFIG = Path(__file__).resolve().parents[1] / "config"
MEASURES = ["RR@10", "AP@100", "R@100"]  # demo's


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In a folder of its own: labels name the layers of models in results/, which `make demo` leaves in a checkout."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "results" / "demo"


def write(folder: Path, run: str, values: np.ndarray, **more: Any) -> None:
    result(folder, run, values, MEASURES, **more)


def built(folder: Path, name: str, dataset: str = "demo") -> dict[str, list[str]]:
    """Rows of a table by label."""
    tables(CONFIG / "config.yaml", dataset, folder, None)
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
    write(folder, "lead_cb_k3", np.full(20, 0.25))  # made all the same
    assert built(folder, "table4")["K = 3"][0].startswith("25.00 [")
    write(folder, "lead_cb", np.full(20, 0.5))  # the one that is kept up to date
    assert built(folder, "table4")["K = 3"][0].startswith("50.00 [")


def load_values(folder: Path, run: str) -> np.ndarray:
    from lead.store.tables import read_table

    table = read_table(folder / "per_query" / f"{run}.parquet", "per_query").to_pandas()
    values: np.ndarray = table[table.measure == "RR@10"]["value"].to_numpy()
    return values


def test_seeds_are_averaged_and_their_spread_is_shown(folder: Path) -> None:
    base = np.random.default_rng(1).random(100) * 0.5
    for suffix, shift in (("", 0.0), ("-s2", 0.03), ("-s3", 0.06)):
        write(folder, f"lead_cb{suffix}", base + shift)
    mean = 100 * (base.mean() + 0.03)
    rows = built(folder, "table5")
    low, high = bootstrap_interval(base + 0.03, 1000, 0.95, seed=1)
    assert rows["Random"][0] == f"{mean:.2f} ± 3.00 [{100 * low:.1f}, {100 * high:.1f}]"
    assert rows[""][3] == "seeds" and rows["Random"][3] == "1-3"
    assert "seeds share the warm-up; each has its own distillation" in (folder / "tables" / "all.md").read_text()


def test_differences_are_over_the_seeds_that_both_runs_have(folder: Path) -> None:
    """Seeds share batches: one that only one of two runs has would add its own good or bad luck."""
    rng = np.random.default_rng(1)
    luck = {"": 0.0, "-s2": 0.05, "-s3": -0.07}
    base = rng.random(100) * 0.5
    values = {s: base + more + rng.normal(0, 0.02, 100) for s, more in luck.items()}
    gained = {s: values[s] + rng.normal(0.01, 0.06, 100) for s in luck}
    for s in luck:
        write(folder, f"rd_cb{s}", values[s])
    for s in ("-s2", "-s3"):
        write(folder, f"lead_cb{s}", gained[s])
    write(folder, "lead_cb_frozen-s2", gained["-s2"] + 0.001)
    write(folder, "lead_cb_uniform-s9", base)
    write(folder, "student_more", base)
    rows = built(folder, "table6")
    assert rows[""][3:] == ["seeds", "vs its RD or control", "vs student_more"]
    assert [rows[label][3] for label in ("LEAD", "w/o joint training", "w/o layer re-weighting", "RD")] == [
        "2-3", "2", "9", "1-3",
    ]  # fmt: skip
    pairs = [  # LEAD's of seeds 2 and 3, the other's of seed 2
        (gained["-s2"] + gained["-s3"], values["-s2"] + values["-s3"]),
        (2 * gained["-s2"] + 0.002, 2 * values["-s2"]),
    ]
    raw = [paired_test(a, b) for a, b in pairs]
    for label, (a, b), p in zip(("LEAD", "w/o joint training"), pairs, holm(raw), strict=True):
        assert rows[label][4] == difference(float((a - b).mean() / 2), p, percent=True)
    assert rows["LEAD"][4] != difference(float((pairs[0][0] - pairs[0][1]).mean() / 2), raw[0], percent=True)
    assert rows["w/o layer re-weighting"][4] == "other seeds" and rows["LEAD"][5] == "other seeds"
    difference_of_first = 100 * float((values[""] - base).mean())
    assert rows["RD"][5].startswith(f"{difference_of_first:+.2f} ")  # both have the first


def test_a_warm_up_that_seeds_share_is_compared_with_all_of_them(folder: Path) -> None:
    base = np.random.default_rng(1).random(100) * 0.5
    write(folder, "student", base)
    for s, more in (("-s2", 0.1), ("-s3", 0.3)):
        write(folder, f"student_more{s}", base + more + np.linspace(-0.01, 0.01, 100))
    rows = built(folder, "table3")
    assert rows["6DE: student"][3] == "shared" and rows["6DE: student"][-1].startswith("-20.00")


def test_seeds_of_a_warm_up_are_those_that_a_run_was_made_from(folder: Path) -> None:
    base = np.random.default_rng(1).random(100) * 0.4
    noise = np.linspace(-0.01, 0.01, 100)
    for run, more, steps in (
        ("student", 0.0, {}), ("student-s2", 0.2, {}), ("teacher_cb", 0.5, {}), ("teacher_cb-s2", 0.6, {}),
        ("lead_cb", 0.1, {"student.train": {}}), ("lead_cb-s2", 0.3, {"student.train": {}}),
    ):  # fmt: skip
        write(folder, run, base + more + (noise if "teacher" in run else 0), settings=steps)
    tables(CONFIG / "config.yaml", "demo", folder, None)
    closed = "lead_cb closes 40% [40%, 40%] of the gap of 50.00"  # both seeds from the first student: (.2 - 0) / .5
    assert closed in (folder / "tables" / "table3.md").read_text()
    for run, more in (("lead_cb", 0.1), ("lead_cb-s2", 0.3)):
        write(folder, run, base + more, settings={f"student{run[7:]}.train": {}})
    tables(CONFIG / "config.yaml", "demo", folder, None)
    closed = "lead_cb closes 22% [22%, 22%] of the gap of 45.00"  # each from its own: (.2 - .1) / (.55 - .1)
    assert closed in (folder / "tables" / "table3.md").read_text()


def test_a_result_that_no_table_shows_stops_none(folder: Path) -> None:
    write(folder, "student", np.random.default_rng(1).random(20))
    write(folder, "miner", np.random.default_rng(1).random(20), per_query=False)
    assert built(folder, "table3")["6DE: student"][0].endswith("]")


def test_seeds_say_themselves_whether_they_share_a_warm_up(folder: Path) -> None:
    values = np.random.default_rng(1).random(20)
    stages = {"lead_cb{}.distil": {"k": 3}, "student{}.train": {"steps": 9}}

    def made(own: str, warm_up: str, steps: int = 9) -> None:
        names = dict(zip(stages, (own, warm_up), strict=True))
        settings = {key.format(names[key]): {**v, "seed": len(names[key])} for key, v in stages.items()}
        settings[f"student{warm_up}.train"]["steps"] = steps
        write(folder, f"lead_cb{own}", values, settings=settings)

    made("", "")
    made("-s2", "-s2")
    built(folder, "table5")
    assert "every seed has its own chain" in (folder / "tables" / "all.md").read_text()  # whatever config.yaml says
    made("-s2", "")
    built(folder, "table5")
    assert "seeds share the warm-up" in (folder / "tables" / "all.md").read_text()
    made("-s2", "", steps=8)
    with pytest.raises(LeadError, match="lead_cb-s2.json and .* different settings of student.train .steps"):
        built(folder, "table5")


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
    # .15 / (.2 + the noise's mean); that mean has an error of .05 / sqrt(300), the share one of .011
    assert "lead_cb closes 74% [72%, 76%] of the gap of 20.25" in text
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


def test_a_table_of_the_papers_own_dataset(tmp_path: Path) -> None:
    folder, rng = tmp_path / "results" / "mspas", np.random.default_rng(0)
    measures = ["RR@10", "AP@1000", "R@1000"]
    values = {run: rng.random(300) * 0.5 + more for run, more in (("student", 0.0), ("rd_cb", 0.1), ("lead_cb", 0.2))}
    for run, v in values.items():
        result(folder, run, v, measures)
    rows = built(folder, "table3", "mspas")
    paper = [f"paper: {m}" for m in measures]
    assert rows[""] == [*measures, "vs its RD or control", "vs student_more", *paper]
    mean = f"{100 * values['lead_cb'].mean():.2f}"
    low, high = bootstrap_interval(values["lead_cb"], 1000, 0.95, seed=1)
    gain = difference(
        float((values["lead_cb"] - values["rd_cb"]).mean()),
        paired_test(values["lead_cb"], values["rd_cb"]),
        percent=True,
    )
    interval = f"{mean} [{100 * low:.1f}, {100 * high:.1f}]"
    assert rows["12CB -> 6DE: LEAD"] == [interval, mean, mean, gain, "", "37.80", "38.32", "97.42"]
    assert rows["12CB -> 6DE: FD"] == ["missing", "", "", "", "", "33.92", "34.56", "96.12"]
    text = (folder / "tables" / "table3.md").read_text()
    assert "Missing: `snakemake --cores 8 --resources gpu=8 -- results/mspas/student_more.json" in text
    first = built(folder, "table1", "mspas")
    assert first["ME-BERT"][0] == "quoted" and first["ME-BERT"][-3:] == ["33.80", "", ""]


def test_the_papers_tables_agree_with_each_other() -> None:
    """The same systems stand in several of its tables: LEAD in all but two."""
    paper = load_paper(CONFIG / "paper.yaml", list(Plan(load(CONFIG / "config.yaml")).rows))
    reported: dict[tuple[str, str, int], set[float]] = {}
    for name, table in paper.tables.items():
        for row in table.rows:
            for dataset, values in row.values.items():
                rounded = 1 if name in ("table1", "table2") else 2
                for i, value in enumerate(values):
                    if value is not None and row.run is not None:
                        reported.setdefault((row.run, dataset, i), set()).add(round(value, rounded))
    several = {key: found for key, found in reported.items() if len(found) > 1}
    assert {key: found for key, found in several.items() if max(found) - min(found) > 0.051} == {}
    runs = {name: [row.run for row in paper.tables[name].rows] for name in ("table4", "table5", "table6")}
    assert runs["table4"] == [f"lead_cb_k{k}" for k in range(1, 7)]
    assert runs["table5"][:3] == ["lead_cb", "lead_cb_last", "lead_cb_skip"]
    assert runs["table6"][:3] == ["lead_cb", "lead_cb_frozen", "lead_cb_uniform"]


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
    numbers = html_page("t", [Table("t", [["", "x"], ["a", "37.1 ± 1.2 [34.8, 39.5]"], ["b", "missing"]], [])])
    assert "<td>37.1<small>± 1.2 [34.8, 39.5]</small></td>" in numbers and "<td class='word'>missing</td>" in numbers
    rows = [["", "x"], ["a", "1"], ["b", "missing"], ["c", "3"]]
    drawn = html_page("t", [Table("t", rows, [], [(0, 1, 2), None, (2, 3, 4)], 1)])
    first, second, third = re.findall("<svg.*?</svg>", drawn)
    assert "cx='39.5'" in first and "x2='75.0'" in first and "circle" not in second and "cx='110.5'" in third
    assert drawn.count("class='guide' x1='39.5'") == 3
    assert "<svg" not in html_page("t", [Table("t", [["", "x"], ["a", "1"]], [], [(0, 1, 2)])])  # nothing to compare
    page = html_page("<b>", [Table("<i>", cells, ["run `a<b` & c"])])
    assert "<script>" not in page and "<code>a&lt;b</code> &amp; c" in page and "<b>" not in page and "<i>" not in page
