"""Figures of what runs cost and what it buys: quality against size and time, stages, and how runs hang together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lead.plan.plan import Plan
from lead.report.draw import CARD, DASHES, INK, QUIET, SERIES, Figure, draw, spread
from lead.report.facts import timing
from lead.report.results import Line, Results, significant

ROW = 0.42  # inches of a row of boxes
BOX = 0.42  # of a column or row, from the middle of a box to where arrows may pass
MARKERS = {"student": "o", "teacher": "s", "other": "D"}
MADE_FROM = {  # keys of a row that name other runs -> how people say it, and the style of its line
    "start": ("goes on from", "-"),
    "teacher": ("taught by", (0, (5, 2))),
    "negatives": ("hard negatives of", (0, (1.2, 1.5))),
    "passages": ("searches vectors of", (0, (6, 1.5, 1.5, 1.5))),
}
# words of stages as the names of timings have them
WORK = {"train": "training", "distil": "training", "align": "training", "encode": "encoding", "rerank": "reranking"}
KINDS = ["training", "encoding", "reranking", "everything else"]


def quality_against(results: Results, what: str, x: Callable[[Line], float | None], unit: str, file: str) -> Figure:
    """The first measure of each run, with its interval, against what it costs. BM25 is a line if it has no cost."""
    first = results.measures[0]
    shown = [(line, cost) for line in results.lines if (cost := x(line))]
    without = [line for line in results.lines if not x(line) and line.run == "bm25"]

    def plot(canvas: Any) -> None:
        axes = canvas.subplots()
        for line, cost in shown:
            low, mean, high = line.mark
            colour = SERIES[list(MARKERS).index(line.role)]
            axes.plot([cost, cost], [low, high], color=colour, linewidth=1, alpha=0.6)
            axes.plot([cost], [mean], MARKERS[line.role], color=colour, markersize=6)
        for line in without:
            axes.axhline(line.mark[1], color=QUIET, linewidth=1, linestyle=DASHES[2])
        axes.set(xscale="log", xlabel=f"{what} ({unit}, log scale)", ylabel=first)
        costs = [cost for _, cost in shown]
        low, high = min(costs), max(costs)
        axes.set_xlim(low / 1.25, high * (high / low * 1.6) ** 0.9)  # names stand on the right
        ticks = sorted({low, *([(low * high) ** 0.5] if high > 4 * low else []), high})
        axes.set_xticks(ticks, significant(ticks))
        axes.minorticks_off()
        marks = [*(line.mark for line, _ in shown), *(line.mark for line in without)]
        bottom, top = min(m[0] for m in marks), max(m[2] for m in marks)
        gap = (top - bottom) * 1.1 * 0.05 * max(1.0, len(marks) / 18)
        for line in without:
            axes.text(low / 1.2, line.mark[1], line.run, fontsize=8, va="bottom", color=INK)
        end = high * (high / low * 1.6) ** 0.25
        places = spread([line.mark[1] for line, _ in shown], gap)
        axes.set_ylim(min(bottom, *places) - gap, max(top, *places) + gap)
        for (line, cost), place in zip(shown, places, strict=True):
            axes.plot([cost, end], [line.mark[1], place], color=QUIET, linewidth=0.4)
            axes.text(end * 1.02, place, line.run, fontsize=8, va="center", color=INK)

    rows = [
        [line.run, line.role, significant([cost])[0], f"{line.shown(first)} {line.interval}"] for line, cost in shown
    ]
    rows += [[line.run, line.role, "", f"{line.shown(first)} {line.interval}"] for line in without]
    best = max(shown, key=lambda pair: pair[0].mark[1])
    alt = (
        f"{first} of {len(shown)} runs against {what}. {best[0].run} is highest: {best[0].shown(first)} at "
        f"{significant([best[1]])[0]} {unit}."
    )
    caption = (
        f"Up is better, left is cheaper. Circles are students, squares teachers; a line through a mark is the "
        f"{results.dataset.settings.evaluation.confidence:.0%} interval over queries."
    )
    caption += " Dotted: BM25, which has none." if without else ""
    svg = draw(file, alt, plot, height=2.6 + 0.1 * len(shown))
    return Figure(file, f"{first} against {what}", caption, alt, svg, [["run", "", f"{what} ({unit})", first], *rows])


def graph(plan: Plan, runs: Sequence[str]) -> Figure | None:
    """How the runs hang together: which grew from which, who taught, whose negatives. None if nothing does."""
    edges = [(a, b, key) for b in runs for key in MADE_FROM for a in _behind(plan, b, key) if a in runs]
    if not edges:
        return None
    depth = dict.fromkeys(runs, 0)
    for _ in runs:  # as many rounds as the longest path can have
        for a, b, _ in edges:
            depth[b] = max(depth[b], depth[a] + 1)
    columns: list[list[str]] = [[] for _ in range(max(depth.values()) + 1)]
    for run in runs:
        columns[depth[run]].append(run)
    place: dict[str, tuple[float, float]] = {}
    tallest = max(map(len, columns))
    width = max(7.4, min(9.0, 1.75 * len(columns)))
    aspect = width / len(columns) / ROW
    for x, column in enumerate(columns):
        above = {b: [place[a][1] for a, to, _ in edges if to == b and a in place] for b in column}
        column.sort(key=lambda b: sum(above[b]) / len(above[b]) if above[b] else 0.0)
        for y, run in enumerate(column):
            place[run] = (float(x), y + (tallest - len(column)) / 2)

    def plot(canvas: Any) -> None:
        axes = canvas.subplots()
        boxes = {}
        for run, (x, y) in place.items():
            box = {"boxstyle": "round,pad=0.35", "facecolor": CARD, "edgecolor": QUIET, "linewidth": 0.8}
            text = axes.text(x, y, run, ha="center", va="center", fontsize=8, bbox=box, zorder=3)
            boxes[run] = text.get_bbox_patch()
        for a, b, key in sorted(edges, key=lambda edge: edge[2]):
            style: dict[str, Any] = {
                "arrowstyle": "-|>",
                "color": SERIES[list(MADE_FROM).index(key)],
                "linestyle": MADE_FROM[key][1],
            }
            style |= {
                "connectionstyle": f"arc3,rad={_bend(a, b, place, aspect)}",
                "linewidth": 0.7 if key == "negatives" else 1.2,
            }
            style |= {"patchA": boxes[a], "patchB": boxes[b], "shrinkA": 1, "shrinkB": 2, "mutation_scale": 8}
            axes.annotate("", place[b], place[a], arrowprops=style, zorder=2)
        used = {key for _, _, key in edges}
        for key, (words, dashes) in ((key, MADE_FROM[key]) for key in MADE_FROM if key in used):
            axes.plot([], [], color=SERIES[list(MADE_FROM).index(key)], linestyle=dashes, label=words, linewidth=1.2)
        axes.legend(loc="upper left", bbox_to_anchor=(0, 0), ncols=4, fontsize=8)
        axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(tallest - 0.4, -0.6))
        axes.axis("off")

    table = [["run", *(words for words, _ in MADE_FROM.values())]]
    table += [[run, *(", ".join(_behind(plan, run, key)) for key in MADE_FROM)] for run in runs]
    alt = "The runs and what each was made from: " + "; ".join(
        f"{run} from {', '.join(sorted({a for a, b, _ in edges if b == run}))}"
        for run in runs
        if any(b == run for _, b, _ in edges)
    )
    caption = "Arrows go from what was there first to what was made of it."
    svg = draw("graph", alt, plot, width, max(1.8, 0.5 + ROW * tallest))
    return Figure("graph", "How the runs hang together", caption, alt, svg, table, wide=True)


def _bend(a: str, b: str, place: dict[str, tuple[float, float]], aspect: float) -> float:
    """How far an arrow is bent so that it passes the boxes between its ends.

    aspect: how many rows high a column is wide.
    """
    start, end = np.array(place[a]), np.array(place[b])
    others = np.array([at for run, at in place.items() if run not in (a, b)]).reshape(-1, 2)
    t = np.linspace(0.1, 0.9, 17)[:, None]

    def passes(bend: float) -> bool:
        middle = (start + end) / 2 + [0, bend * (end - start)[0] * aspect]
        curve = (1 - t) ** 2 * start + 2 * t * (1 - t) * middle + t**2 * end
        return bool((np.abs(curve[:, None] - others).max(axis=2) > BOX).all())

    return next(filter(passes, (0.0, 0.08, -0.08, 0.16, -0.16, 0.24, -0.24)), 0.1)


def _behind(plan: Plan, run: str, key: str) -> list[str]:
    """The runs that a key of a run's row names; `start` of a joint run's teacher is that run."""
    row, method = plan.rows[run], plan.rows.method(run)
    named: dict[str, list[str | None]] = {
        "start": [row.start, row.of],
        "teacher": [row.teacher, *(row.scores or ())],
        "passages": [row.passages],
        "negatives": [row.negatives, row.denoise] if method.judged else [],
    }
    return [name for name in dict.fromkeys(named[key]) if name is not None and name in plan.rows]


def stage_times(folder: Path, runs: Sequence[str]) -> dict[str, dict[str, tuple[float, float]]]:
    """Seconds and peak memory in MB (0: not known) of the stages of each run, from the timings that Snakemake wrote."""
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for file in sorted((folder / "timings").glob("*.tsv")):
        stage, _, rest = file.stem.partition(".")
        run = next((r for r in sorted(runs, key=len, reverse=True) if rest == r or rest.startswith(f"{r}.")), None)
        run = run or {"prepare": "the collection", "tokenize": "the collection", "bm25": "bm25"}.get(stage)
        took = timing(file)
        if run is None or took is None:
            continue
        name = f"{stage} {rest.removeprefix(run).lstrip('.')}".strip() if rest.startswith(run) else stage
        found.setdefault(run, {})[name] = (took[0], took[1] or 0.0)
    return found


def stages_figure(times: dict[str, dict[str, tuple[float, float]]], runs: Sequence[str]) -> Figure:
    """Time and peak memory of each run's own stages."""
    order = [name for name in ["the collection", *runs] if name in times]
    totals = {name: {kind: 0.0 for kind in KINDS} for name in order}
    for name in order:
        for stage, (seconds, _) in times[name].items():
            totals[name][WORK.get(stage.partition(" ")[0], KINDS[-1])] += seconds
    memory = {name: max(mb for _, mb in times[name].values()) / 1000 for name in order}
    longest = max(sum(totals[name].values()) for name in order)
    divide, unit = (3600.0, "hours") if longest > 7200 else (60.0, "minutes") if longest > 120 else (1.0, "seconds")

    def plot(canvas: Any) -> None:
        time, peak = canvas.subplots(1, 2, sharey=True, width_ratios=[3, 1])
        for y, name in enumerate(order):
            start = 0.0
            for i, kind in enumerate(KINDS):
                width = totals[name][kind] / divide
                time.barh(y, width, left=start, height=0.62, color=SERIES[i])
                start += width
            peak.barh(y, memory[name], height=0.62, color=SERIES[4])
        used = [i for i, kind in enumerate(KINDS) if any(totals[name][kind] for name in order)]
        for i in used:
            time.barh(0, 0, color=SERIES[i], label=KINDS[i])
        time.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, fontsize=8, borderaxespad=0.1, handlelength=1)
        time.set_yticks(range(len(order)), order)
        time.set(xlabel=unit, ylim=(len(order) - 0.4, -0.6))
        peak.set(xlabel="peak memory (GB)")
        for axes in (time, peak):
            axes.grid(False, axis="y")

    table = [["run", "stage", "seconds", "peak memory (MB)"]]
    for name in order:
        table += [[name, s, f"{seconds:,.0f}", f"{mb:,.0f}" if mb else ""] for s, (seconds, mb) in times[name].items()]
    most = max(order, key=lambda name: sum(totals[name].values()))
    whole = sum(sum(totals[name].values()) for name in order)
    alt = (
        f"Time and peak memory of {len(order)} runs. {most} took longest, {longest / divide:.1f} {unit}; all together "
        f"took {whole / divide:.1f} {unit}."
    )
    caption = "Of each run\u2019s own stages, as the machine was when they ran; starts of processes are in it."
    svg = draw("stages", alt, plot, 7.4, 1.0 + 0.25 * len(order))
    return Figure("stages", f"{unit.capitalize()} and peak memory of each run", caption, alt, svg, table, wide=True)


def variants(results: Results, key: str, title: str, file: str) -> Figure | None:
    """The first measure of runs that differ in one key of `distil.layers` alone: K, or the strategy. None: no such."""
    first = results.measures[0]
    groups: dict[str, dict[Any, Line]] = {}
    for line in results.lines:
        job = results.job(line.run)
        if job is None or job.method.sees != "layers":
            continue
        distil = job.settings.distil.model_dump(mode="json")
        value = distil["layers"].pop(key)
        if key == "strategy":
            for other in ("skip", "pairs"):  # read by one strategy alone
                distil["layers"].pop(other, None)
        same = repr((job.row.start, job.row.teacher, job.settings.train.model_dump(mode="json"), distil))
        groups.setdefault(same, {}).setdefault(value, line)
    group = max(groups.values(), key=len, default={})
    if len(group) < 2:
        return None
    values = sorted(group, key=lambda v: v if isinstance(v, int) else -group[v].mark[1])

    def plot(canvas: Any) -> None:
        axes = canvas.subplots()
        for x, value in enumerate(values):
            low, mean, high = group[value].mark
            axes.plot([x, x], [low, high], color=SERIES[0], linewidth=1.2, alpha=0.7)
            axes.plot([x], [mean], "o", color=SERIES[0], markersize=6)
        axes.set_xticks(range(len(values)), [str(value) for value in values])
        axes.set(xlabel=title, ylabel=first, xlim=(-0.6, len(values) - 0.4))

    table = [[title, "run", first]]
    table += [[str(v), group[v].run, f"{group[v].shown(first)} {group[v].interval}"] for v in values]
    top = max(values, key=lambda v: group[v].mark[1])
    overlap = max(group[v].mark[0] for v in values) <= min(group[v].mark[2] for v in values)
    alt = f"{first} by {title}: highest with {top}, {group[top].shown(first)}."
    caption = "Runs that differ in this alone. Lines are intervals over queries" + (
        "; all overlap." if overlap else "."
    )
    return Figure(file, f"{first} by {title}", caption, alt, draw(file, alt, plot), table)
