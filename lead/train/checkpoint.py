"""Checkpoints of a training run: weights, optimizer state and step; atomic, checksummed, no pickle.

Data order, negatives, layer pairs and dropout are functions of seed, generation and step: exact resume needs no more.
The lines of metrics are in a file beside the checkpoints (lead.train.metrics).
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lead.errors import LeadError
from lead.store.atomic import atomic_folder
from lead.store.checksums import check_folder

log = logging.getLogger("lead")


def _name(step: int) -> str:
    return f"step-{step:08d}"


def save(
    folder: Path, step: int, models: dict[str, nn.Module], optimizer: torch.optim.Optimizer, extra: Any, keep: int
) -> None:
    """Write folder/step-N: weights by model name, optimizer state by parameter index. Only the newest `keep` stay.

    `extra`: anything small that JSON can hold. Folders of this step or of later ones are removed first: they could not
    be read, or training would not be here. Raises LeadError when nothing can be written.
    """
    for unreadable in folder.glob("step-*"):
        if unreadable.name >= _name(step):
            shutil.rmtree(unreadable)
    with atomic_folder(folder / _name(step)) as temporary:
        for name, model in models.items():
            save_file({k: v.contiguous() for k, v in model.state_dict().items()}, temporary / f"{name}.safetensors")
        state = optimizer.state_dict()["state"]
        flat = {f"{i}.{k}": v for i, entry in state.items() for k, v in entry.items() if isinstance(v, Tensor)}
        save_file(flat, temporary / "optimizer.safetensors")
        (temporary / "state.json").write_text(json.dumps({"step": step, "extra": extra}) + "\n")
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old)


def restore(folder: Path, models: dict[str, nn.Module], optimizer: torch.optim.Optimizer) -> tuple[int, Any] | None:
    """Load the newest readable checkpoint into models and optimizer: (steps done, extra), or None if there is none.

    A damaged checkpoint is named in a warning, and the one before it is used.
    """
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            check_folder(path)
        except LeadError as e:
            log.warning("checkpoint skipped: %s", e)
            continue
        for name, model in models.items():
            model.load_state_dict(load_file(path / f"{name}.safetensors"), strict=True)
        entries: dict[int, dict[str, Tensor]] = {}
        for key, value in load_file(path / "optimizer.safetensors").items():
            index, _, what = key.partition(".")
            entries.setdefault(int(index), {})[what] = value
        optimizer.load_state_dict(optimizer.state_dict() | {"state": entries})
        state = json.loads((path / "state.json").read_text())
        return int(state["step"]), state["extra"]
    return None


def clear(folder: Path) -> None:
    """Remove all checkpoints, and the best weights so far."""
    for old in (*folder.glob("step-*"), folder / "best"):
        shutil.rmtree(old, ignore_errors=True)
