"""The paper's tables (1 to 9) from result files: our values, intervals and tests, beside the paper's values."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from lead.config.lists import Evaluation
from lead.config.load import load
from lead.config.paper import PaperRow, PaperTable
from lead.evaluation.stats import bootstrap_interval, holm, paired_test
from lead.plan.plan import Plan
from lead.plan.targets import sensible, twin
from lead.report.facts import model_facts
from lead.report.render import Mark, Table, csv_text, html_page, markdown
from lead.report.seeds import Run, Runs, against, check_queries, together
from lead.report.table import difference
from lead.store.atomic import atomic_file

CONTROL = "student_more"
PAPER_LAYERS = {"teacher": "12", "student": "6"}  # what its labels say, by the encoder a run grew from
CLEARLY = 0.001  # level of the paired test for a teacher clearly above the student


def tables(
    config: Path, dataset: str, results: Path | None, out: Path | None, overrides: dict[str, Any] | None = None
) -> list[Path]:
    """Write every table that applies to `dataset` as Markdown, CSV and HTML into `out`, and all.md and all.html.

    results: the dataset's folder of results, if it is not the one of `config`. out: by default its folder `tables`.
    overrides: keys that replace those of the configuration.

    Raises LeadError for a dataset that does not exist or a damaged result; missing runs are shown as missing.
    """
    plan = Plan(load(config, overrides))
    measures = plan.datasets[dataset].settings.evaluation.measures
    paper = plan.paper
    folder = results or Path(plan.results) / dataset
    runs, out = Runs(folder, plan.rows), out or folder / "tables"
    built = {
        name: build(table, dataset, measures, paper.measures.get(dataset, []), runs, plan)
        for name, table in paper.tables.items()
        if table.datasets is None or dataset in table.datasets
    }
    preamble = preamble_text(plan, dataset, measures, runs)
    written = {}
    for name, table in built.items():
        written[f"{name}.md"] = markdown(table.title, table.cells, table.notes)
        written[f"{name}.csv"] = csv_text(table.cells)
        written[f"{name}.html"] = html_page(dataset, [table])
    written["all.md"] = f"# {dataset}\n\n{preamble}\n\n" + "\n".join(
        markdown(t.title, t.cells, t.notes, level=2) for t in built.values()
    )
    written["all.html"] = html_page(dataset, list(built.values()), preamble)
    for name, text in written.items():
        with atomic_file(out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return [out / name for name in written]


def preamble_text(plan: Plan, dataset: str, measures: list[str], runs: Runs) -> str:
    """The text above all tables of a dataset."""
    own = {run.own_warm_up for run in runs.used()} - {None} or {plan.loaded.config.seeds == "chain"}
    how = [
        "seeds share the warm-up; each has its own distillation" if False in own else "",
        "every seed has its own chain, warm-up included" if True in own else "",
    ]
    confidence = plan.datasets[dataset].settings.evaluation.confidence
    return (
        f"Measures: {', '.join(measures)}, in percent; the first with a {100 * confidence:g} % bootstrap interval over "
        f"queries (drawn in HTML; dashed: {CONTROL}). Differences are in the first measure, in points, over the seeds "
        "that both runs have, from each query's mean over these; p: two-sided paired t-test over queries, "
        "Holm-corrected over the rows of its column; * p < .05, ** p < .01. ±: standard deviation between seeds, which "
        "is in no interval and no p. A row without seeds has the first alone; "
        f"{'; in some runs '.join(h for h in how if h)}."
    )


def build(
    table: PaperTable,
    dataset: str,
    measures: list[str],
    reported_measures: list[str],
    runs: Runs,
    plan: Plan,
    tested: bool = True,
) -> Table:
    """One table of one dataset: the paper's rows that we can run on it, or that have the paper's values for it.

    tested: whether differences have p-values.
    """
    rows = [made_row(row, dataset, runs, plan) for row in table.rows if row.run is not None or dataset in row.values]
    rows = _with_real_layers(rows, dataset, plan)
    ours = any(dataset in row.values for row in rows)
    first, evaluation = measures[0], plan.datasets[dataset].settings.evaluation
    baselines = _tests([(row, row.against) for row in rows], runs, first, tested)
    control = _tests([(row, CONTROL) for row in rows if row.run != CONTROL], runs, first, tested)
    seeded = any(runs[str(row.run)].seeds != [1] for row in rows if row.run in runs)
    header = [
        "",
        *measures,
        "seeds" if seeded else "",
        "vs its RD or control" if any(baselines.values()) else "",
        f"vs {CONTROL}",
    ]
    header += [f"paper: {m}" for m in measures] if ours else []
    lines, missing, fitting = [], [], sensible(plan, dataset) if any(r.run not in runs for r in rows) else []
    marks = [_mark(runs[str(row.run)], first, evaluation) if row.run in runs else None for row in rows]
    for row, mark in zip(rows, marks, strict=True):
        cells = [row.label]
        if row.run is None:
            cells += ["quoted"] + [""] * (len(measures) + 2)
        elif row.run in runs:
            run = runs[row.run]
            cells += [_mean(run, m, mark if m == first else None) for m in measures]
            cells += ["shared" if run.shared else run.named_seeds()]
            cells += [baselines.get(row.label, ""), control.get(row.label, "")]
        else:
            possible = row.run in fitting
            cells += ["missing" if possible else "not possible here"] + [""] * (len(measures) + 2)
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
        notes += list(_gaps(rows, runs, first, evaluation))
    kept = [[line[i] for i in keep] for line in [header, *lines]]
    return Table(table.title, kept, notes, marks, runs[CONTROL].mean(first) if CONTROL in runs else None)


def _with_real_layers(rows: list[PaperRow], dataset: str, plan: Plan) -> list[PaperRow]:
    """Labels that name layers, 12CB -> 6DE, with those of the models that are here."""
    there: dict[str, set[int]] = {}
    for row in rows:
        if row.run is not None and row.run in plan.rows and plan.rows.method(row.run).has_model:
            layers = model_facts(Path(plan[dataset, row.run].model)).layers
            there.setdefault(plan.rows.root(row.run), set()).update([layers] if layers else [])
    real = {paper: f"{min(there[root])}" for root, paper in PAPER_LAYERS.items() if len(there.get(root, ())) == 1}
    relabelled = [re.sub(r"\b(12|6)(?=DE|CB|CE)", lambda m: real.get(m[0], m[0]), row.label) for row in rows]
    return [row.model_copy(update={"label": label}) for row, label in zip(rows, relabelled, strict=True)]


def made_row(row: PaperRow, dataset: str, runs: Runs, plan: Plan) -> PaperRow:
    """The row with the run whose result it shows: its run, or a run with the same settings on this dataset."""
    if row.run is None or row.run in (plan.loaded.datasets[dataset][0].runs or []):
        return row
    same = twin(plan[dataset, row.run])  # of equal runs, targets make only the first
    return row if same not in runs and row.run in runs else row.model_copy(update={"run": same})


def _command(plan: Plan, dataset: str, missing: list[str]) -> str:
    gpus = plan.datasets[dataset].gpus
    granted = f"--cores {gpus} --resources gpu={gpus}" if gpus > 1 else "--cores 2"
    return f"snakemake {granted} -- " + " ".join(
        f"{plan.results}/{dataset}/{run}.json" for run in dict.fromkeys(missing)
    )


def _mean(run: Run, measure: str, mark: Mark | None) -> str:
    if measure not in run.values:
        return "-"
    spread = run.spread(measure)
    text = f"{100 * run.mean(measure):.2f}" + (f" ± {100 * spread:.2f}" if spread is not None else "")
    text += " †" if run.short(measure) else ""
    return text if mark is None else text + f" [{100 * mark[0]:.1f}, {100 * mark[2]:.1f}]"


def _mark(run: Run, measure: str, evaluation: Evaluation) -> Mark:
    """The mean over queries and seeds, between the ends of the interval over queries."""
    low, high = bootstrap_interval(run.per_query(measure), evaluation.resamples, evaluation.confidence, seed=1)
    return low, run.mean(measure), high


def _tests(pairs: Iterable[tuple[PaperRow, str | None]], runs: Runs, measure: str, tested: bool) -> dict[str, str]:
    """For each row's label: the difference to its baseline and the corrected p, if both runs exist."""
    other: dict[str, str] = {}
    found: list[tuple[str, float, float]] = []
    for row, baseline in pairs:
        if row.run in runs and baseline in runs and row.run != baseline:
            test = against(runs[str(row.run)], runs[str(baseline)], measure, runs.folder)
            if test is None:
                other[row.label] = "other seeds"
            else:
                found.append((row.label, *test))
    if not tested:
        return other | {label: f"{100 * delta:+.2f}" for label, delta, _ in found}
    corrected = zip(found, holm([p for _, _, p in found]), strict=True)
    return other | {label: difference(delta, p, percent=True) for (label, delta, _), p in corrected}


def _gaps(rows: list[PaperRow], runs: Runs, measure: str, evaluation: Evaluation) -> Iterable[str]:
    """The share of the gap between student and teacher that each run closes, if the gap is clear."""
    tail = (1 - evaluation.confidence) / 2
    for row in rows:
        if row.teacher is None or not all(name in runs for name in (row.run, row.teacher, "student")):
            continue
        compared = together(*(runs[str(n)] for n in ("student", row.teacher, row.run)))
        if compared is None:
            continue
        check_queries(runs.folder, *compared)
        student, teacher, run = (r.per_query(measure) for r in compared)
        gap, p = float(teacher.mean() - student.mean()), paired_test(teacher, student)
        if gap <= 0 or p >= CLEARLY:
            shown = difference(gap, p, percent=True)
            yield f"{row.run}: {row.teacher} is not clearly above the student ({shown}); no share of the gap is shown."
            continue
        rng = np.random.default_rng(1)
        draws = rng.integers(len(student), size=(evaluation.resamples, len(student)))
        shares = (run[draws].mean(1) - student[draws].mean(1)) / (teacher[draws].mean(1) - student[draws].mean(1))
        low, high = np.quantile(shares, [tail, 1 - tail])
        share = float(run.mean() - student.mean()) / gap
        yield (
            f"{row.run} closes {share:.0%} [{low:.0%}, {high:.0%}] of the gap of {100 * gap:.2f} between student and "
            f"{row.teacher} (measured before joint training)."
        )
