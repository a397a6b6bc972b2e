"""The table on the terminal: what it shows, tests and refuses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lead.config.schema import LossWeights
from lead.errors import LeadError
from lead.evaluation.stats import holm, paired_test
from lead.report.table import table
from lead.report.training import PARTS
from lead.store.tables import SCHEMAS, write_json, write_table

MEASURES = ["RR@10", "AP@1000"]


def result(
    folder: Path,
    run: str,
    values: np.ndarray,
    measures: list[str] = MEASURES,
    per_query: bool = True,
    depth: int = 1000,
    settings: dict[str, Any] | None = None,
) -> Path:
    """A result file, with `values` of every measure for queries q000, q001, .."""
    mean = float(values.mean())
    metrics = {name: {"mean": mean, "low": mean - 0.02, "high": mean + 0.02} for name in measures}
    about: dict[str, Any] = {"made_by": {"settings": settings}} if settings else {}
    about |= {"queries": len(values), "confidence": 0.95, "ranked_depth": depth}
    write_json({"metrics": metrics, "measures": measures, **about}, folder / f"{run}.json")
    if per_query:
        rows = [(f"q{i:03d}", name, value) for i, value in enumerate(values) for name in sorted(measures)]
        columns = list(map(list, zip(*rows, strict=True)))
        write_table(pa.table(columns, schema=SCHEMAS["per_query"]), folder / f"per_query/{run}.parquet", "per_query")
    return folder / f"{run}.json"


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(0).random(100) * 0.5


def cells(line: str) -> list[str]:
    """The cells of a row, which two blanks or more separate."""
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_differences_and_corrected_tests(tmp_path: Path, values: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    runs = {
        "student_more": values,
        "rd_cb": values + rng.normal(0.02, 0.1, 100),
        "lead_cb": values + rng.normal(0.1, 0.1, 100),
    }
    text = table([result(tmp_path / "demo", run, v) for run, v in runs.items()], ["student_more", "nobody"])
    title, _, header, _, *rows = text.splitlines()
    assert title == "demo: n = 100 judged queries"
    assert cells(header) == ["run", "RR@10 [95% interval]", "AP@1000", "vs student_more"]
    first, second, third = (cells(row) for row in rows[:3])
    mean = values.mean()
    assert first == [
        "student_more",
        f"{mean:.3f}"[1:] + f" [{mean - 0.02:.3f}, {mean + 0.02:.3f}]".replace("0.", "."),
        f"{mean:.3f}"[1:],
        "baseline",
    ]
    p = holm([paired_test(runs[run], values) for run in ("rd_cb", "lead_cb")])
    gain = runs["rd_cb"].mean() - mean
    assert second[3] == f"{gain:+.3f} p={p[0]:.3f}".replace("0.", ".") + (" *" if p[0] < 0.05 else "")
    assert third[3].endswith("p<.001 **")
    assert "2 tests of its column" in text.replace("\n", " ")
    assert "Not among these results, so not compared with: nobody." in text
    assert "No difference from" not in text  # lead_cb's is significant
    assert all(len(line) <= 100 and line == line.rstrip() for line in text.splitlines())


def test_it_says_when_nothing_is_significant(tmp_path: Path, values: np.ndarray) -> None:
    noisy = values + np.random.default_rng(2).normal(0, 0.1, 100)
    text = table([result(tmp_path, "rd_cb", values), result(tmp_path, "lead_cb", noisy)], ["rd_cb"])
    assert "No difference from rd_cb is significant at n = 100 queries" in text.replace("\n", " ")
    assert "**" not in text.splitlines()[5]


def test_without_baselines_no_per_query_file_is_needed(tmp_path: Path, values: np.ndarray) -> None:
    text = table([result(tmp_path / "demo", "bm25", values, per_query=False)], ["rd_cb"])
    assert "bm25" in text and "vs:" not in text


def test_each_dataset_has_a_table_of_its_own(tmp_path: Path, values: np.ndarray) -> None:
    paths = [result(tmp_path / name, run, values) for name in ("one", "two") for run in ("a", "rd_cb")]
    text = table([*paths, paths[0]], ["rd_cb"])
    assert [line for line in text.splitlines() if "judged queries" in line] == [
        "one: n = 100 judged queries",
        "two: n = 100 judged queries",
    ]
    assert sum(line.startswith("a ") for line in text.splitlines()) == 2  # a file named twice is shown once


def test_a_measure_that_one_run_lacks(tmp_path: Path, values: np.ndarray) -> None:
    text = table([result(tmp_path, "a", values), result(tmp_path, "b", values, ["RR@10"])], [])
    assert cells(text.splitlines()[5])[-1] == "-"
    with pytest.raises(LeadError, match="has no RR@10"):
        table([result(tmp_path, "a", values), result(tmp_path, "b", values, ["AP@1000"])], [])


def test_a_missing_per_query_file_names_the_command(tmp_path: Path, values: np.ndarray) -> None:
    paths = [result(tmp_path, "rd_cb", values), result(tmp_path, "lead_cb", values, per_query=False)]
    with pytest.raises(LeadError, match=r"snakemake --cores 2 -- .*per_query/lead_cb\.parquet"):
        table(paths, ["rd_cb"])


def test_other_queries(tmp_path: Path, values: np.ndarray) -> None:
    paths = [result(tmp_path, "rd_cb", values), result(tmp_path, "lead_cb", values[:50])]
    with pytest.raises(LeadError, match="different queries"):
        table(paths, ["rd_cb"])


def test_files_that_are_no_results(tmp_path: Path) -> None:
    with pytest.raises(LeadError, match="does not exist"):
        table([tmp_path / "x.json"], [])
    write_json({"a": 1}, tmp_path / "y.json")
    with pytest.raises(LeadError, match="y.json is not a result"):
        table([tmp_path / "y.json"], [])


def test_parts_of_losses_have_the_equations_of_the_configuration() -> None:
    for key, field in LossWeights.model_fields.items():
        assert re.findall(r"eq\. \d+", str(field.description)) == re.findall(r"eq\. \d+", PARTS[key]), key
