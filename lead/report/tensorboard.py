"""Metrics of trainings as event files for TensorBoard: their JSON lines are copied, trainings know nothing of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lead.config.load import load
from lead.errors import LeadError
from lead.plan.plan import Plan
from lead.store.atomic import atomic_folder
from lead.train.metrics import read_metrics


def tensorboard(config: Path, target: str, out: Path | None, overrides: dict[str, Any] | None) -> Path:
    """Write the event files of a run (target DATASET/RUN) or of all that were trained (DATASET); return their folder.

    out: default results/DATASET/tensorboard, a folder for each run. A run that still trains has its steps so far.
    Raises LeadError where TensorBoard is not installed, for an unknown dataset, and where there are no metrics.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as e:
        raise LeadError("TensorBoard is not installed: pip install 'lead-distil[tensorboard]'") from e
    dataset, _, run = target.partition("/")
    folder = Path(Plan(load(config, overrides)).datasets[dataset].folder)
    unfinished = sorted(folder.glob(f"state/{run or '*'}/*/metrics.jsonl"), key=lambda path: path.stat().st_mtime)
    logs = {path.parents[1].name: path for path in unfinished}
    logs |= {path.stem: path for path in sorted(folder.glob(f"metrics/{run or '*'}.jsonl"))}
    if not logs:
        raise LeadError(f"{folder} holds no metrics of {run or 'a training'}; make some with: lead run {target}")
    out = out or folder / "tensorboard"
    for name, path in logs.items():
        with atomic_folder(out / name) as partial, SummaryWriter(str(partial)) as writer:
            for step, tag, value in scalars(path):
                writer.add_scalar(tag, value, step)
    return out


def scalars(path: Path) -> Iterator[tuple[int, str, float]]:
    """(step, tag, value) of each number in a training's metrics."""
    for line in read_metrics(path):
        step, pairs = line.pop("step"), line.pop("pairs", None)
        for key, value in line.items():
            if key == "layer_weights" and pairs:  # the pairs of layers change from step to step
                value = {f"teacher {a} to student {b}": w for (a, b), w in zip(pairs, value, strict=True)}
            elif isinstance(value, list):
                value = {str(i): one for i, one in enumerate(value, 1)}
            for tag, one in value.items() if isinstance(value, dict) else [("", value)]:
                if one is not None:  # the norm of a gradient that overflowed
                    yield step, f"{key}/{tag}".rstrip("/"), one
