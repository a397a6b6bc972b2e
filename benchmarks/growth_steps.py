"""How the cost of a LEAD step and of encoding grows: processor time and memory of each.

    python benchmarks/growth_steps.py --out docs/figures      # about 2 minutes on one core

A step is forward and backward of a ColBERT teacher of 6 layers and a student of 3, MiniLM's shape, random weights, one
thread, float32. One size is changed at a time: queries of a batch, hard negatives of each, K layer pairs, tokens of a
passage. Encoding: passages of the teacher's shape. Writes growth_steps.json and growth_steps.svg. Each point runs in a
process of its own, forked after the imports, since the most memory of a process never falls again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from gpu_parts import CPU, PAPER, Parts, Size

from lead.device import keep_freed_memory
from lead.retrieval.encode import encode_ids

BASE = replace(PAPER, width=384, teacher=6, student=3, k=3, batch=2, negatives=3, query=16, passage=32, words=2000)
GROWN = {
    "batch": ("queries of a batch", [1, 2, 4, 8]),
    "negatives": ("hard negatives", [1, 3, 7]),
    "k": ("layer pairs K", [1, 2, 3]),
    "passage": ("tokens of a passage", [16, 32, 64]),
}
ENCODED = [16, 64, 256]
REPEATS = 2
FOLDER = Path(tempfile.mkdtemp())  # of the random models, made once


def cost(request: Callable[[], object]) -> dict[str, float]:
    """Processor seconds of a request, warm, and the most memory of the process above what it began with, in MB."""
    began, times = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    request()
    for _ in range(REPEATS):
        started = time.process_time()
        request()
        times.append(time.process_time() - started)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": round(median(times), 4), "mb": round((most - began) / 1024, 1)}


def step_cost(size: Size) -> dict[str, float]:
    """Of a step of this size; memory without the models."""
    keep_freed_memory()
    parts = Parts(FOLDER, size)
    step = parts.step(CPU, precision="fp32", dropout=0.0)
    prepared = step.prepare(parts.data(1, full=True).batch(0))

    def request() -> None:
        step(prepared, 0)
        for model in step.trained().values():
            model.zero_grad(set_to_none=False)

    return cost(request)


def encoding_cost(passages: int) -> dict[str, float]:
    """Of the vectors of passages of up to 64 tokens, of different lengths."""
    keep_freed_memory()
    parts = Parts(FOLDER, replace(BASE, passage=64))
    model, texts = parts.model("de", BASE.teacher, CPU).eval(), parts.texts(passages, 64, full=False)
    out = np.zeros((passages, model.size), np.float32)

    def request() -> None:
        for rows, x in encode_ids(model, model.tokenize("passage", texts), 16384, "fp32", "passages"):
            out[rows] = x.numpy()

    return cost(request)


def points() -> list[dict[str, Any]]:
    """The cost of every size, each in a process of its own."""
    asked = [(step_cost, key, value, replace(BASE, **{key: value})) for key in GROWN for value in GROWN[key][1]]
    asked += [(encoding_cost, "passages", n, n) for n in ENCODED]  # type: ignore[list-item, misc]
    rows: list[dict[str, Any]] = []
    known: dict[Any, dict[str, float]] = {}
    for function, argument in (
        (step_cost, BASE),
        (encoding_cost, ENCODED[0]),
    ):  # these make the models, which takes memory too
        with multiprocessing.get_context("fork").Pool(1) as pool:
            pool.apply(function, (argument,))
    for function, key, value, argument in asked:
        if argument not in known:
            with multiprocessing.get_context("fork").Pool(1) as pool:
                known[argument] = pool.apply(function, (argument,))
        rows.append({"grown": key, "value": value, **known[argument]})
        print(rows[-1], flush=True)
    return rows


def draw(rows: list[dict[str, Any]], out: Path) -> None:
    """Time, and memory, against each size; lines through the first point show growth in proportion."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "growth", "svg.fonttype": "none"})
    import matplotlib.pyplot as plt

    titles = {key: title for key, (title, _) in GROWN.items()} | {"passages": "passages encoded"}
    figure, axes = plt.subplots(2, len(titles), figsize=(11, 4), layout="constrained")
    for (above, below), (key, title) in zip(axes.T, titles.items(), strict=True):
        of = [row for row in rows if row["grown"] == key]
        x = [row["value"] for row in of]
        for axis, what in ((above, "seconds"), (below, "mb")):
            axis.plot(x, [row[what] for row in of], "o-", ms=3)
            axis.plot(x, [of[0][what] * value / x[0] for value in x], ":", c="grey")
            axis.set(ylim=(0, 1.15 * max(row[what] for row in of)), xticks=x)
            axis.spines[["top", "right"]].set_visible(False)
        below.set_xlabel(title)
    axes[0][0].set_ylabel("s (CPU, one thread)")
    axes[1][0].set_ylabel("most memory, MB")
    figure.savefig(out, metadata={"Date": None})


def main() -> None:
    """Measure every size, then draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    rows = points()
    (args.out / "growth_steps.json").write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    draw(rows, args.out / "growth_steps.svg")


if __name__ == "__main__":
    main()
