"""The paper's tables (1 to 9) rebuilt from result files: our values, intervals, tests, and the paper's beside them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lead.atomic import atomic_file
from lead.config.load import load
from lead.config.paper import PaperRow, PaperTable
from lead.errors import LeadError
from lead.evaluation.render import Cells, csv_text, html_page, html_table, markdown
from lead.evaluation.stats import bootstrap_interval, holm, paired_test
from lead.evaluation.table import Result, difference, read_result
from lead.plan import Plan
from lead.rows import split_seed

Values = NDArray[np.float64]
CONTROL = "student_more"
RESAMPLES = 2000
CLEARLY = 0.001  # a teacher is clearly above the student where a paired test says so at this level


@dataclass(frozen=True)
class Run:
    """All seeds of a run: values[measure] is [seeds, queries]."""

    name: str
    qids: list[str]
    values: dict[str, Values]
    depth: int

    def short(self, measure: str) -> bool:
        """Whether its lists end before the measure's cut-off, as those of a run that reranks a few passages only."""
        cutoff = re.search(r"@(\d+)$", measure)
        return cutoff is not None and int(cutoff[1]) > self.depth

    def mean(self, measure: str) -> float:
        """Over queries and seeds."""
        return float(self.values[measure].mean())

    def spread(self, measure: str) -> float | None:
        """Standard deviation between the seeds' means; None with one seed."""
        means = self.values[measure].mean(1)
        return float(means.std(ddof=1)) if len(means) > 1 else None

    def per_query(self, measure: str) -> Values:
        """Each query's value, averaged over seeds: what intervals and tests are computed from."""
        if measure not in self.values:
            raise LeadError(f"run '{self.name}' was evaluated without {measure}; evaluate it again")
        averaged: Values = self.values[measure].mean(0)
        return averaged


class Runs:
    """The results of a dataset that exist, read when they are asked for."""

    def __init__(self, folder: Path) -> None:
        """`folder`: results/{dataset}."""
        self.folder = folder
        self.files: dict[str, list[Path]] = {}
        for path in sorted(folder.glob("*.json"), key=lambda p: split_seed(p.stem)):
            self.files.setdefault(split_seed(path.stem)[0], []).append(path)
        self._read: dict[str, Run] = {}

    def __contains__(self, name: object) -> bool:
        return name in self.files

    def __getitem__(self, name: str) -> Run:
        """All seeds of a run. Raises LeadError when their queries differ."""
        if name not in self._read:
            results = [read_result(path) for path in self.files[name]]
            columns: dict[str, list[Values]] = {m: [] for m in results[0].measures}
            qids: list[str] = []
            for result in results:
                for measure, column in columns.items():
                    qids = self._column(result, measure, column, qids)
            self._read[name] = Run(
                name, qids, {m: np.stack(c) for m, c in columns.items()}, min(r.depth for r in results)
            )
        return self._read[name]

    @staticmethod
    def _column(result: Result, measure: str, column: list[Values], qids: list[str]) -> list[str]:
        own, values = result.values(measure)
        if qids and own != qids:
            raise LeadError(f"{result.per_query} is of other queries than the other seeds; evaluate them again")
        column.append(values)
        return own


@dataclass(frozen=True)
class Built:
    """A table ready to be rendered: header and rows of text, and notes in Markdown."""

    title: str
    cells: Cells
    notes: list[str]


def tables(
    config: Path, dataset: str, results: Path | None, out: Path | None, overrides: dict[str, Any] | None = None
) -> list[Path]:
    """Write every table that applies to `dataset` as Markdown, CSV and HTML into `out`, and all.md, all.html.

    `results`: the dataset's folder of results, if it is not where `config` says; `out`: default, its folder tables.
    `overrides`: keys of the configuration given elsewhere.

    Raises LeadError for a dataset that does not exist or a result that is damaged; missing runs are shown as missing.
    """
    plan = Plan(load(config, overrides))
    measures = plan.resolve(dataset).evaluation.measures
    paper = plan.paper
    folder = results or Path(plan.results) / dataset
    runs, out = Runs(folder), out or folder / "tables"
    built = {
        name: build(table, dataset, measures, paper.measures.get(dataset, []), runs, plan)
        for name, table in paper.tables.items()
        if table.datasets is None or dataset in table.datasets
    }
    seeds = {n: len(files) for n, files in runs.files.items() if len(files) > 1}
    preamble = preamble_text(plan, dataset, measures, seeds)
    written = {}
    for name, table in built.items():
        written[f"{name}.md"] = markdown(table.title, table.cells, table.notes)
        written[f"{name}.csv"] = csv_text(table.cells)
        written[f"{name}.html"] = html_page(dataset, [html_table(table.title, table.cells, table.notes)])
    written["all.md"] = f"# {dataset}\n\n{preamble}\n\n" + "\n".join(
        markdown(t.title, t.cells, t.notes, level=2) for t in built.values()
    )
    written["all.html"] = html_page(dataset, [html_table(t.title, t.cells, t.notes) for t in built.values()], preamble)
    for name, text in written.items():
        with atomic_file(out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return [out / name for name in written]


def preamble_text(plan: Plan, dataset: str, measures: list[str], seeds: dict[str, int]) -> str:
    """What holds for all tables of a dataset."""
    how = {
        "distil": "seeds share the warm-up; each has its own distillation",
        "chain": "every seed has its own chain, warm-up included",
    }[plan.loaded.config.seeds]
    counts = ", ".join(f"{name} {n}" for name, n in sorted(seeds.items())) or "one seed everywhere"
    return (
        f"Measures: {', '.join(measures)}, in percent; the first with a 95 % bootstrap interval over queries. "
        "±: standard deviation between seeds. Differences are in the first measure, in points, from each query's mean "
        "over seeds; p: two-sided paired t-test, Holm-corrected over the rows of its column; * p < .05, ** p < .01. "
        f"Seeds: {counts}; {how}."
    )


def build(
    table: PaperTable, dataset: str, measures: list[str], reported_measures: list[str], runs: Runs, plan: Plan
) -> Built:
    """One table of one dataset: a row for each of the paper's rows that we can run or that it reports here."""
    rows = [_made(row, dataset, runs, plan) for row in table.rows if row.run is not None or dataset in row.values]
    ours = any(dataset in row.values for row in rows)
    first = measures[0]
    against = _tests([(row, row.against) for row in rows], runs, first)
    control = _tests([(row, CONTROL) for row in rows if row.run != CONTROL], runs, first)
    header = ["", *measures, "vs its RD or control" if any(against.values()) else "", f"vs {CONTROL}"]
    header += [f"paper: {m}" for m in measures] if ours else []
    lines, missing, sensible = [], [], plan.sensible(dataset) if any(r.run not in runs for r in rows) else []
    for row in rows:
        cells = [row.label]
        if row.run is None:
            cells += ["quoted"] + [""] * (len(measures) + 1)
        elif row.run in runs:
            run = runs[row.run]
            cells += [_mean(run, m, interval=m == first) for m in measures]
            cells += [against.get(row.label, ""), control.get(row.label, "")]
        else:
            possible = row.run in sensible
            cells += ["missing" if possible else "not possible here"] + [""] * (len(measures) + 1)
            missing += [row.run] if possible else []
        if ours:
            reported = dict(zip(reported_measures, row.values.get(dataset, []), strict=False))
            cells += ["" if (v := reported.get(m)) is None else f"{v:.2f}" for m in measures]
        lines.append(cells)
    keep = [i for i, name in enumerate(header) if name or i == 0]
    notes = [f"Missing: `{_command(plan, dataset, missing)}`"] if missing else []
    made = [runs[str(row.run)] for row in rows if row.run in runs]
    if depths := {run.name: run.depth for run in made if any(run.short(m) for m in measures)}:
        notes.append("†: of shorter lists: " + ", ".join(f"{name} {depth}" for name, depth in depths.items()))
    if table.gap:
        notes += list(_gaps(rows, runs, first))
    return Built(table.title, [[line[i] for i in keep] for line in [header, *lines]], notes)


def _made(row: PaperRow, dataset: str, runs: Runs, plan: Plan) -> PaperRow:
    """The row with the run that has its result, or whose result is asked for: its own, or one that is the same here."""
    if row.run is None or row.run in runs:
        return row
    return row.model_copy(update={"run": plan.twin(dataset, row.run)})


def _command(plan: Plan, dataset: str, missing: list[str]) -> str:
    return "snakemake --cores 2 -- " + " ".join(
        f"{plan.results}/{dataset}/{run}.json" for run in dict.fromkeys(missing)
    )


def _mean(run: Run, measure: str, interval: bool) -> str:
    if measure not in run.values:
        return "-"
    spread = run.spread(measure)
    text = f"{100 * run.mean(measure):.2f}" + (f" ± {100 * spread:.2f}" if spread is not None else "")
    text += " †" if run.short(measure) else ""
    if interval:
        low, high = bootstrap_interval(run.per_query(measure), RESAMPLES, 0.95, seed=1)
        text += f" [{100 * low:.1f}, {100 * high:.1f}]"
    return text


def _tests(pairs: Iterable[tuple[PaperRow, str | None]], runs: Runs, measure: str) -> dict[str, str]:
    """For each row's label the difference to its baseline and its corrected p, where both runs exist."""
    found: list[tuple[str, float, float]] = []
    for row, baseline in pairs:
        if row.run in runs and baseline in runs and row.run != baseline:
            a, b = runs[str(row.run)], runs[str(baseline)]
            _check_queries(runs.folder, a, b)
            x, y = a.per_query(measure), b.per_query(measure)
            found.append((row.label, float(x.mean() - y.mean()), paired_test(x, y)))
    corrected = holm([p for _, _, p in found])
    return {label: difference(delta, p, percent=True) for (label, delta, _), p in zip(found, corrected, strict=True)}


def _check_queries(folder: Path, *runs: Run) -> None:
    for run in runs[1:]:
        if run.qids != runs[0].qids:
            raise LeadError(f"{folder}: {runs[0].name} and {run.name} are of different queries; evaluate them again")


def _gaps(rows: list[PaperRow], runs: Runs, measure: str) -> Iterable[str]:
    """The share of the gap from student to teacher that each run closes, where there clearly is a gap."""
    for row in rows:
        if row.teacher is None or not all(name in runs for name in (row.run, row.teacher, "student")):
            continue
        compared = [runs[str(n)] for n in ("student", row.teacher, row.run)]
        _check_queries(runs.folder, *compared)
        student, teacher, run = (r.per_query(measure) for r in compared)
        gap, p = float(teacher.mean() - student.mean()), paired_test(teacher, student)
        if gap <= 0 or p >= CLEARLY:
            shown = difference(gap, p, percent=True)
            yield f"{row.run}: {row.teacher} is not clearly above the student ({shown}); no share of the gap is told."
            continue
        rng = np.random.default_rng(1)
        draws = rng.integers(len(student), size=(RESAMPLES, len(student)))
        shares = (run[draws].mean(1) - student[draws].mean(1)) / (teacher[draws].mean(1) - student[draws].mean(1))
        low, high = np.quantile(shares, [0.025, 0.975])
        share = float(run.mean() - student.mean()) / gap
        yield (
            f"{row.run} closes {share:.0%} [{low:.0%}, {high:.0%}] of the gap of {100 * gap:.2f} between student and "
            f"{row.teacher} (measured before joint training)."
        )
