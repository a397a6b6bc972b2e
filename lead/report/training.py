"""Figures of trainings, from their metrics: loss by part, quality on dev, weights of teacher layers, layer pairs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lead.report.draw import INK, SERIES, Figure, binned, curves, draw
from lead.report.table import number
from lead.train.metrics import read_metrics

BINS = 40  # points of a curve, each of three steps or more
LEAST = 0.1  # of RR@10 on dev, the least that its axis spans
ROWS = 8  # of the table behind it
# parts of losses as settings and metrics name them -> as people and the paper do
PARTS = {
    "lyr": "layer loss (eq. 8)",
    "rep": "response loss (eq. 9)",
    "tch": "teacher\u2019s contrastive loss (eq. 10)",
    "stu": "student\u2019s contrastive loss (eq. 11)",
    "map": "loss of the maps",
}


@dataclass
class Log:
    """What a training wrote: steps; loss parts, entropies and dev quality by name; weights of its layer pairs."""

    steps: list[int] = field(default_factory=list)
    losses: dict[str, list[float]] = field(default_factory=dict)
    entropies: dict[str, list[float]] = field(default_factory=dict)  # nats; of runs that learn from a teacher
    dev_steps: list[int] = field(default_factory=list)
    dev: dict[str, list[float]] = field(default_factory=dict)
    weights: list[list[tuple[int, int, float]]] = field(default_factory=list)  # of a step: (teacher, student, weight)


def read_log(path: Path) -> Log:
    """The metrics of a training."""
    log = Log()
    for line in read_metrics(path):
        _take(log, line)
    return log


def _take(log: Log, line: dict[str, Any]) -> None:
    if "loss" in line:
        log.steps.append(line["step"])
        for name, value in line["loss"].items():
            log.losses.setdefault(name, []).append(value)
        for model in ("teacher", "student") if "teacher_entropy" in line else ():
            *layers, final = line[f"{model}_entropy"]
            log.entropies.setdefault(f"{model}, final scores", []).append(final)
            if layers:
                log.entropies.setdefault(f"{model}, layers", []).append(float(np.mean(layers)))
        if "pairs" in line and "layer_weights" in line:
            log.weights.append([(a, b, w) for (a, b), w in zip(line["pairs"], line["layer_weights"], strict=True)])
    elif "dev_mrr10" in line:
        log.dev_steps.append(line["step"])
        for name, value in line["dev_mrr10"].items():
            log.dev.setdefault(name, []).append(value)


def loss_figure(run: str, about: str, log: Log) -> Figure:
    """Loss by part over steps, and below it the quality on dev."""
    parts = {name: values for name, values in log.losses.items() if name != "total" or len(log.losses) > 2}
    drawn = {_short(name): (log.steps, values) for name, values in parts.items()}
    if "total" in drawn:
        drawn["total"] = drawn.pop("total")
    dev = {name: (log.dev_steps, values) for name, values in log.dev.items()} if len(log.dev_steps) > 1 else {}

    def plot(canvas: Any) -> None:
        panels = canvas.subplots(2 if dev else 1, 1, sharex=True, squeeze=False)[:, 0]
        curves(panels[0], drawn, max(8, min(BINS, len(log.steps) // 3)))
        panels[0].set_ylabel("loss")
        panels[0].set_ylim(bottom=min(0.0, *(min(values) for _, values in drawn.values())))
        if dev:
            curves(panels[1], dev, len(log.dev_steps), marker="o")
            panels[1].set_ylabel("RR@10 on dev")
            low, high = panels[1].get_ylim()
            more = max(0.0, LEAST - (high - low)) / 2  # noise is not to look like progress
            panels[1].set_ylim(low - more, high + more)
        panels[-1].set_xlabel("step")

    first = {name: binned(log.steps, values, 10)[1] for name, (_, values) in drawn.items()}
    falls = ", ".join(f"{name} from {v[0]:.3g} to {v[-1]:.3g}" for name, v in first.items())
    better = "; ".join(f"{n} {number(v[0])} before, {number(v[-1])} after" for n, (_, v) in dev.items())
    alt = f"Loss of {run} over {log.steps[-1]:,} steps: {falls}." + (f" RR@10 on dev: {better}." if better else "")
    svg = draw(f"loss-{run}", alt, plot, height=4.4 if dev else 2.9)
    title = "Loss and quality on dev" if dev else "Loss"
    return Figure(f"loss-{run}", title, f"{about}.", alt, svg, _rows(log, parts, dev), run=run)


def _short(part: str) -> str:
    """The name of a part of the loss beside the word loss."""
    return PARTS.get(part, part).partition(" (")[0].removesuffix(" loss")


def _rows(log: Log, parts: dict[str, list[float]], dev: dict[str, Any]) -> list[list[str]]:
    """Mean losses of parts of the training, and the last dev quality in each."""
    table = [["steps", *(PARTS.get(name, name) for name in parts), *(f"RR@10 on dev: {name}" for name in dev)]]
    for rows in np.array_split(np.arange(len(log.steps)), min(ROWS, len(log.steps))):
        first, last = log.steps[rows[0]], log.steps[rows[-1]]
        line = [f"{first:,} to {last:,}" if first < last else f"{last:,}"]
        line += [f"{np.mean([values[i] for i in rows]):.4f}" for values in parts.values()]
        for steps, values in dev.values():
            seen = [v for s, v in zip(steps, values, strict=True) if first <= s <= last]
            line.append(number(seen[-1]) if seen else "")
        table.append(line)
    return table


def entropies_figure(run: str, log: Log) -> Figure:
    """Entropies of teacher and student over steps: of their final scores, and the mean over the layers read."""
    drawn = {name: (log.steps, values) for name, values in log.entropies.items()}

    def plot(canvas: Any) -> None:
        axes = canvas.subplots()
        curves(axes, drawn, max(8, min(BINS, len(log.steps) // 3)))
        axes.set(xlabel="step", ylabel="entropy, nats", ylim=(0, None))

    ends = {name: binned(log.steps, values, 10)[1] for name, values in log.entropies.items()}
    alt = f"Entropies of {run}: " + "; ".join(
        f"{name} {v[0]:.2f} before, {v[-1]:.2f} after" for name, v in ends.items()
    )
    caption = "How sure teacher and student are of a query\u2019s candidates."
    svg = draw(f"entropies-{run}", f"{alt}.", plot)
    return Figure(f"entropies-{run}", "Entropies", caption, f"{alt}.", svg, _rows(log, log.entropies, {}), run=run)


def weights_figure(run: str, log: Log, n: int, m: int) -> Figure:
    """Weights of teacher layers over the training: the mean over those steps that aligned the layer."""
    by_layer: dict[int, tuple[list[int], list[float]]] = {}
    for step, pairs in zip(log.steps, log.weights, strict=True):
        for a, _, w in pairs:
            steps, values = by_layer.setdefault(a, ([], []))
            steps.append(step)
            values.append(w)
    drawn = {f"layer {a}": by_layer[a] for a in sorted(by_layer)}

    def plot(canvas: Any) -> None:
        axes = canvas.subplots()
        curves(axes, drawn, max(2, min(16, len(log.steps) // 4)))
        axes.set(xlabel="step", ylabel="weight (eq. 7)", ylim=(0, None))

    table = [["teacher layer", "steps that aligned it", "mean weight", "in the first tenth", "in the last tenth"]]
    means = {}
    for a, (_, values) in sorted(by_layer.items()):
        tenth, share = max(1, len(values) // 10), len(values) / len(log.steps)
        means[a] = float(np.mean(values))
        early, late = np.mean(values[:tenth]), np.mean(values[-tenth:])
        table.append([f"{a}", f"{share:.0%}", f"{means[a]:.3f}", f"{early:.3f}", f"{late:.3f}"])
    top = max(means, key=means.__getitem__)
    alt = (
        f"Weights of the teacher layers that {run} aligned; layer {top} of {n} has the highest mean, {means[top]:.2f}."
    )
    caption = (
        f"How much each of the teacher's {n} layers counts in the layer loss, where it is aligned with one of the "
        f"student's {m}. Weights of a step sum to 1."
    )
    svg = draw(f"weights-{run}", alt, plot, height=3.3)
    return Figure(f"weights-{run}", "Weights of teacher layers", caption, alt, svg, table, run=run)


def pairs_figure(run: str, log: Log, n: int, m: int) -> Figure:
    """A heat map of the layer pairs: their share of the layer loss over the whole training."""
    shares: NDArray[np.float64] = np.zeros((n, m))
    for pairs in log.weights:
        for a, b, w in pairs:
            shares[a - 1, b - 1] += w / len(log.weights)

    def plot(canvas: Any) -> None:
        from matplotlib.patches import Rectangle

        axes = canvas.subplots()
        for a in range(n):
            for b in range(m):
                strength = 0.75 * shares[a, b] / shares.max()
                axes.add_patch(Rectangle((b + 0.53, a + 0.53), 0.94, 0.94, facecolor=SERIES[0], alpha=strength))
                if shares[a, b] >= 0.005:
                    axes.text(b + 1, a + 1, f"{shares[a, b]:.2f}", ha="center", va="center", fontsize=8, color=INK)
        axes.set(xlim=(0.5, m + 0.5), ylim=(0.5, n + 0.5), xlabel="student layer", ylabel="teacher layer")
        axes.set_xticks(range(1, m + 1))
        axes.set_yticks(range(1, n + 1))
        axes.grid(False)

    a, b = (int(i) + 1 for i in np.unravel_index(int(shares.argmax()), shares.shape))
    alt = (
        f"Heat map of {n} teacher layers and {m} student layers of {run}; the pair of teacher layer {a} and student "
        f"layer {b} has the largest share, {shares.max():.2f}."
    )
    table = [["teacher layer", *(f"student layer {b}" for b in range(1, m + 1))]]
    table += [[f"{a + 1}", *(f"{share:.3f}" for share in shares[a])] for a in range(n)]
    svg = draw(f"pairs-{run}", alt, plot, height=max(2.2, min(6.0, 0.8 + 0.34 * n)))
    caption = "Share of each pair of layers in the layer loss, over all steps: how often it is drawn, times its weight."
    return Figure(f"pairs-{run}", "Layer pairs", caption, alt, svg, table, run=run)
