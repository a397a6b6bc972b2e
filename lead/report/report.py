"""`lead report`: one page about the runs of a dataset, and its parts as files."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lead import __version__
from lead.config.load import load
from lead.config.methods import METHODS
from lead.errors import LeadError
from lead.plan.plan import Plan
from lead.plan.rows import split_seed
from lead.report import costs, training
from lead.report.draw import Figure
from lead.report.facts import Facts, model_facts
from lead.report.paper_tables import build, made_row
from lead.report.queries import compare
from lead.report.render import Table, csv_text, intervals, page
from lead.report.results import Results, megabytes, millions, significant
from lead.report.told import Methods, trainings
from lead.store.atomic import atomic_file, atomic_folder

log = logging.getLogger("lead")
NOT_MEASURED = "not measured"
Noted = tuple[str, str]  # what stands in a cell, and the note below it


@dataclass(frozen=True)
class Chapter:
    """Figures of one kind. name: of its folder. about: what is said above them, or in their place."""

    name: str
    title: str
    figures: list[Figure]
    about: str


def report(
    config: Path,
    dataset: str,
    out: Path | None = None,
    overrides: dict[str, Any] | None = None,
    baseline: str | None = None,
) -> Path:
    """Write the page of a dataset to `out` (results/DATASET/report.html), and its parts into the folder beside it.

    overrides: keys that replace those of the configuration. baseline: the run that all others are tested against. The
    parts, report/CHAPTER/NAME.svg and report/quality/runs.csv, are those that `snakemake --report` takes.

    Nothing is measured here: what was not measured is said to be so. Raises LeadError for an unknown dataset, for one
    without any result, and for damaged results.
    """
    plan = Plan(load(config, overrides))
    folder = Path(plan.datasets[dataset].folder)
    found = Results(plan, dataset, baseline)
    if not found.names and not any((folder / "metrics").glob("*.jsonl")):
        raise LeadError(f"{folder} holds no result; make one with: lead run {dataset}")
    out = out or folder / "report.html"
    chapters = [_quality(found), _trainings(found), _costs(found)]
    best = found.best()
    other = None if best is None else found.beside(best.run)
    compared = compare(found, best.run, other) if best is not None and other is not None else None
    rows, together = runs_table(found), costs.graph(plan, trainings(found))
    text = page(
        "report.html.jinja",
        results=found,
        rows=rows,
        verdict=found.verdict(),
        told=Methods(found),
        graph=together,
        chapters={chapter.name: chapter for chapter in chapters},
        compared=compared,
        appendix=appendix(found),
        best=best,
        students=sum(line.role == "student" for line in found.lines),
        drawn=intervals([line.mark for line in found.lines], found.guide(), width=90),
        notes=_notes(found),
        newest=_newest(folder),
        version=__version__,
    )
    with atomic_file(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    more = {"quality": compared.figure if compared else None, "training": together}
    _parts(out.with_suffix(""), chapters, more, rows)
    return out


def _parts(folder: Path, chapters: Sequence[Chapter], more: dict[str, Figure | None], rows: list[list[Noted]]) -> None:
    """Each figure as a file of its own: what `snakemake --report` takes. more: figures from elsewhere on the page."""
    with atomic_folder(folder) as temporary:
        for chapter in chapters:
            (temporary / chapter.name).mkdir()
            for figure in filter(None, [*chapter.figures, more.get(chapter.name)]):
                text = page("figure.svg.jinja", figure=figure)
                (temporary / chapter.name / f"{figure.name}.svg").write_text(text, encoding="utf-8")
        cells = [[" ".join(filter(None, cell)) for cell in row] for row in rows]
        cells = [["run", "what it is", *row[1:]] if i == 0 else [*rows[i][0], *row[1:]] for i, row in enumerate(cells)]
        (temporary / "quality" / "runs.csv").write_text(csv_text(cells), encoding="utf-8")


def _notes(results: Results) -> list[str]:
    """What a reader of the main table must know, and what would complete it."""
    name, notes = results.dataset.name, []
    if results.baseline and len(results.lines) > 1:
        notes.append(f"Intervals are drawn on one scale; the dashed line is {results.baseline}.")
    if missing := results.missing_controls():
        notes.append(
            "Not made yet, and useful beside these: " + ", ".join(f"`lead run {name}/{run}`" for run in missing) + "."
        )
    if any(line.facts.speed is None for line in results.lines):
        slow = next((line.run for line in results.lines if line.facts.speed is None and line.role == "student"), "RUN")
        notes.append(f"Milliseconds a query are measured by `lead speed {name}/{slow}`, on the machine at hand.")
    if any(line.facts.texts_a_second is None and line.facts.encoded for line in results.lines):
        notes.append(
            "\u2020: passages divided by the seconds of the whole stage that encoded them, its start included."
        )
    return notes


def _newest(folder: Path) -> str:
    """The day of the newest result."""
    times = [path.stat().st_mtime for path in [*folder.glob("*.json"), *folder.glob("metrics/*.jsonl")]]
    return datetime.datetime.fromtimestamp(max(times)).strftime("%Y-%m-%d")


# --- the main table --------------------------------------------------------------------------------------------------
def runs_table(results: Results) -> list[list[Noted]]:
    """The main table: a header, and a row for each run, best first. Numbers are written as `lead table` writes them."""
    first = results.measures[0]
    seeded = any(len(line.values.seeds) > 1 for line in results.lines)
    confidence = results.dataset.settings.evaluation.confidence
    header: list[Noted] = [
        ("run", ""),
        (first, f"[{confidence:.0%} interval]"),
        *((m, "") for m in results.measures[1:]),
    ]
    header += [(f"vs {results.baseline}", f"in {first}"), *([("seeds", "")] if seeded else [])]
    header += [("model", ""), ("parameters", "millions"), ("dimensions", ""), ("index", "MB")]
    header += [("a query", "ms"), ("texts", "a second")]
    table = [header]
    for line in results.lines:
        row: list[Noted] = [(line.run, line.about), (line.shown(first), line.interval)]
        row += [(line.shown(measure), "") for measure in results.measures[1:]]
        row.append(("baseline", "") if line.run == results.baseline else _noted(line.difference or "other seeds"))
        row += [(line.values.named_seeds(), "")] if seeded else []
        table.append([*row, *_costs_of(line.facts)])
    return table


def _noted(text: str) -> Noted:
    first, _, rest = text.partition(" ")
    return first, rest


def _costs_of(of: Facts) -> list[Noted]:
    speed = (NOT_MEASURED, "") if of.milliseconds is None else (significant([of.milliseconds])[0], "")
    return [
        (of.title, f"{of.layers} layers" if of.layers else ""),
        (millions(of.parameters), ""),
        (f"{of.size}" if of.size else "", "a token" if of.size and of.reranks else ""),
        ("none", f"reranks {of.reranks}") if of.reranks else (megabytes(of.index), ""),
        speed,
        _throughput(of),
    ]


def _throughput(of: Facts) -> Noted:
    if of.texts_a_second is not None:
        return significant([of.texts_a_second])[0], ""
    if of.encoded is not None:
        return f"{significant([of.encoded])[0]} †", ""
    return ("" if of.parameters is None or of.reranks else NOT_MEASURED), ""


# --- chapters of figures ---------------------------------------------------------------------------------------------
def _quality(results: Results) -> Chapter:
    figures = []
    if sum(line.facts.parameters is not None for line in results.lines) > 1:
        figures.append(
            costs.quality_against(
                results, "size", lambda line: (line.facts.parameters or 0) / 1e6 or None, "million parameters", "size"
            )
        )
    if sum(line.facts.milliseconds is not None for line in results.lines) > 1:
        figures.append(
            costs.quality_against(results, "time", lambda line: line.facts.milliseconds, "ms a query", "time")
        )
    for key, title, file in (("k", "K, the number of layer pairs", "k"), ("strategy", "layer strategy", "strategy")):
        if (figure := costs.variants(results, key, title, file)) is not None:
            figures.append(figure)
    return Chapter(
        "quality", "Quality and cost", figures, "" if figures else "With one model there is nothing to compare."
    )


def _trainings(results: Results) -> Chapter:
    """Figures of every training that the results grew from, and of those that have no result yet."""
    rows = results.plan.rows
    found = sorted((results.folder / "metrics").glob("*.jsonl"), key=lambda path: split_seed(path.stem), reverse=True)
    files = {split_seed(path.stem)[0]: path for path in found}  # the first seed's is the last
    names = [name for name in trainings(results) if name in files]
    alone, grouped = [], []  # of runs with one figure, and with several
    for name in names:
        read, job = training.read_log(files[name]), results.plan[results.dataset.name, name]
        if not read.steps:
            continue
        figures = [training.loss_figure(name, rows[name].about or METHODS[rows[name].method].about, read)]
        if read.entropies and all(len(values) == len(read.steps) for values in read.entropies.values()):
            figures.append(training.entropies_figure(name, read))
        if read.weights and len(read.weights) == len(read.steps):
            n, m = (model_facts(Path(folder)).aligned for folder in (job.teacher, job.model))
            n = n or max(a for pairs in read.weights for a, _, _ in pairs)
            m = m or max(b for pairs in read.weights for _, b, _ in pairs)
            figures += [training.weights_figure(name, read, n, m), training.pairs_figure(name, read, n, m)]
        grouped += figures if len(figures) > 1 else []
        alone += [replace(figure, title=name, run="") for figure in figures if len(figures) == 1]
    figures = [*alone, *grouped]
    about = (
        "Loss by part, and RR@10 on a pool of candidates for dev queries (higher than on the whole collection). "
        "A point of a curve is the mean over neighbouring steps. Of several seeds, the first is shown."
    )
    if any(figure.name.startswith("entropies-") for figure in figures):
        about += (
            " Entropy: 0 if one candidate has all the probability, ln n for n equal ones; of layers, the mean over "
            "those that a step reads, which are the aligned ones and the last."
        )
    return Chapter("training", "Training", figures, about if figures else "No training has left metrics here.")


def _costs(results: Results) -> Chapter:
    times = costs.stage_times(results.folder, list(results.plan.rows))
    order = [run for run in trainings(results) if run in times]
    figures = [costs.stages_figure(times, order)] if times else []
    about = "" if figures else "Not measured: Snakemake times the stages that it runs."
    return Chapter("stages", "Time and memory", figures, about)


# --- appendix --------------------------------------------------------------------------------------------------------
def appendix(results: Results) -> list[Table]:
    """The paper's tables with what exists of them here, without tests: the main table has these."""
    plan, name, found = results.plan, results.dataset.name, []
    measures, reported = results.measures, plan.paper.measures.get(name, [])
    for table in plan.paper.tables.values():
        rows = [row for row in table.rows if made_row(row, name, results.runs, plan).run in results.runs]
        if len(rows) > 1 and (table.datasets is None or name in table.datasets):
            there = table.model_copy(update={"rows": rows})
            found.append(build(there, name, measures, reported, results.runs, plan, tested=False))
    return found
