"""Results side by side on a terminal, with intervals and paired tests against baselines."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from lead.errors import LeadError
from lead.evaluation.stats import holm, paired_test
from lead.store.tables import read_json, read_table

WIDTH = 100  # columns of the terminal; notes are wrapped to it
SIGNIFICANT = 0.05
VERY_SIGNIFICANT = 0.01


@dataclass(frozen=True)
class Result:
    """One result file, DATASET/RUN.json."""

    path: Path
    measures: list[str]
    metrics: dict[str, dict[str, float]]
    queries: int
    confidence: float
    depth: int  # of the longest list
    settings: dict[str, Any]  # of all stages behind it, by `RUN.STAGE`; empty if the file has none

    @property
    def run(self) -> str:
        """The name of the run."""
        return self.path.stem

    @property
    def per_query(self) -> Path:
        """The file with the values of each query."""
        return self.path.parent / "per_query" / f"{self.run}.parquet"

    def values(self, measure: str) -> tuple[list[str], NDArray[np.float64]]:
        """Judged queries, sorted, and the value of `measure` for each."""
        if not self.per_query.exists():
            raise LeadError(f"{self.per_query} is missing; make it with: snakemake --cores 2 -- {self.per_query}")
        table = read_table(self.per_query, "per_query")
        table = table.filter(pc.equal(table["measure"], measure))
        return table["qid"].to_pylist(), table["value"].to_numpy()


def read_result(path: Path) -> Result:
    """The result in a file of lead evaluate. Raises LeadError for any other file."""
    raw: Any = read_json(path)
    try:
        measures = list(raw["measures"])
        if not measures:
            raise ValueError("no measure")
        keys = ("mean", "low", "high")
        metrics = {name: {key: float(raw["metrics"][name][key]) for key in keys} for name in measures}
        made_by = dict(raw.get("made_by", {}).get("settings", {}))
        numbers = int(raw["queries"]), float(raw["confidence"]), int(raw["ranked_depth"])
        return Result(path, measures, metrics, *numbers, made_by)
    except (LookupError, TypeError, ValueError, OverflowError, AttributeError) as e:
        raise LeadError(f"{path} is not a result of lead evaluate; give files like results/demo/lead_cb.json") from e


def table(results: list[Path], baselines: list[str]) -> str:
    """A table of `results` (DATASET/RUN.json) for each dataset, in the given order.

    It shows the mean of every measure and the bootstrap interval of the first. For each of `baselines` among the
    results, it shows the difference in the first measure and a paired test, Holm-corrected over the rows. Raises
    LeadError if a file is missing, is not a result, or has other queries than the baseline.
    """
    datasets: dict[Path, list[Result]] = {}
    for path in dict.fromkeys(results):
        datasets.setdefault(path.parent, []).append(read_result(path))
    return "\n\n".join(_dataset_table(folder.absolute().name, rows, baselines) for folder, rows in datasets.items())


def _dataset_table(dataset: str, rows: list[Result], baselines: list[str]) -> str:
    first = rows[0].measures[0]
    measures = list(dict.fromkeys(name for row in rows for name in row.measures))
    if wrong := [row for row in rows if first not in row.metrics]:
        raise LeadError(f"{wrong[0].path} has no {first}, unlike {rows[0].path}; evaluate both with the same measures")
    by_run = {row.run: row for row in rows}
    present = [name for name in dict.fromkeys(baselines) if name in by_run]

    columns = [["run", *(row.run for row in rows)]]
    columns.append([f"{first} [{rows[0].confidence:.0%} interval]", *(_interval(row.metrics[first]) for row in rows)])
    for name in measures[1:]:
        columns.append([name, *(number(row.metrics[name]["mean"]) if name in row.metrics else "-" for row in rows)])
    notes = []
    for name in present:
        others = [row for row in rows if row.run != name]
        tests = dict(zip((row.run for row in others), _compare(others, by_run[name], first), strict=True))
        cells = (difference(*tests[row.run]) if row.run in tests else "baseline" for row in rows)
        columns.append([f"vs {name}", *cells])
        if tests and all(p >= SIGNIFICANT for _, p in tests.values()):
            notes.append(
                f"No difference from {name} is significant at n = {by_run[name].queries:,} queries: too few to tell "
                "these runs apart, which does not show that they are equally good."
            )
    if present and len(rows) > 1:
        legend = (
            f"vs: difference in {first} and p of a two-sided paired t-test, corrected (Holm) for the {len(rows) - 1} "
            f"tests of its column. * p < {SIGNIFICANT}, ** p < {VERY_SIGNIFICANT}."
        )
        notes.insert(0, legend)
    if absent := [name for name in dict.fromkeys(baselines) if name not in by_run]:
        notes.append(f"Not among these results, so not compared with: {', '.join(absent)}.")
    counts = sorted({row.queries for row in rows})
    title = f"{dataset}: n = {' or '.join(f'{count:,}' for count in counts)} judged queries"
    wrapped = [line for note in notes for line in textwrap.wrap(note, WIDTH)]
    return "\n".join([title, "", *_align(columns), "", *wrapped]).rstrip()


def _compare(rows: Sequence[Result], baseline: Result, measure: str) -> list[tuple[float, float]]:
    """(difference of means, corrected p) of each of `rows` to `baseline`."""
    qids, reference = baseline.values(measure)
    differences, p_values = [], []
    for row in rows:
        own, values = row.values(measure)
        if own != qids:
            raise LeadError(
                f"{row.per_query} and {baseline.per_query} are of different queries; evaluate both with the same qrels"
            )
        differences.append(float(values.mean() - reference.mean()))
        p_values.append(paired_test(values, reference))
    return list(zip(differences, holm(p_values), strict=True))


def number(value: float, sign: str = "") -> str:
    """Three decimals, no zero before the point.

    >>> number(0.4386), number(1.0), number(-0.0123, "+")
    ('.439', '1.000', '-.012')
    """
    return f"{value:{sign}.3f}".replace("0.", ".", 1) if abs(value) < 0.9995 else f"{value:{sign}.3f}"


def _interval(metric: dict[str, float]) -> str:
    return f"{number(metric['mean'])} [{number(metric['low'])}, {number(metric['high'])}]"


def difference(delta: float, p: float, percent: bool = False) -> str:
    """A difference and its p-value.

    >>> difference(-0.0123, 0.004), difference(-0.0123, 0.4, percent=True)
    ('-.012 p=.004 **', '-1.23 p=.400')
    """
    shown = f"{100 * delta:+.2f}" if percent else number(delta, "+")
    stars = "**" if p < VERY_SIGNIFICANT else "*" if p < SIGNIFICANT else ""
    return f"{shown} p{'<.001' if p < 0.001 else '=' + number(p)} {stars}".rstrip()


def _align(columns: list[list[str]]) -> list[str]:
    """Lay `columns` side by side, as wide as their widest cell, with a line under the header."""
    widths = [max(map(len, column)) for column in columns]
    header, *rows = zip(*columns, strict=True)
    cells = [header, ["-" * width for width in widths], *rows]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
