"""All settings of a run on a dataset, merged from the configuration files."""

from __future__ import annotations

from typing import Any

from lead.config.alignment import ALIGN
from lead.config.load import Loaded, merge, validate
from lead.config.schema import Settings, Train
from lead.errors import LeadError
from lead.plan.rows import Rows, seeded, split_seed


def dataset_settings(loaded: Loaded, dataset: str) -> Settings:
    """The settings of a dataset, without those of any run. Raises LeadError."""
    tree: dict[str, Any] = {}
    for part in loaded.parts(dataset, None):
        tree = merge(tree, part.tree)
    return _checked(loaded, dataset, tree)


def run_settings(loaded: Loaded, rows: Rows, dataset: str, run: str) -> Settings:
    """The settings of a run on a dataset: defaults < preset < dataset < config < row. Raises LeadError.

    Within one of these `phases` wins over `train`, and its later ones over its earlier; a later one's `train` wins
    over all of an earlier one. A teacher that goes on training alone has the rate of a jointly trained one. Alignment
    has rate, batch and steps of its own: those of `train` are read in its row only.
    """
    row = rows[run]
    tree: dict[str, Any] = {}
    aligned, parts = rows.method(run).stage == "align", loaded.parts(dataset, split_seed(run)[0])
    train: dict[str, Any] = dict(ALIGN) if aligned else {}
    for part in parts:
        tree = merge(tree, part.tree)
        given = part.tree.get("train", {})
        if aligned and part is not parts[-1]:
            given = {key: value for key, value in given.items() if key not in (*ALIGN, "steps")}
        train = merge(train, given)
        for phase in rows.phases(run):
            train = merge(train, part.tree.get("phases", {}).get(phase, {}))
    tree = seeded(tree, run)
    own = row.settings.get("train", {}).get("lr")
    alone = rows.method(run).stage == "train" and row.phase == "distil" and _grew_from_teacher(rows, run)
    if alone and own is None:  # the control of a jointly trained teacher: its rate, the contrastive loss only
        train["lr"] = train.get("teacher_lr") or train.get("lr", Train().lr)
    return _checked(loaded, dataset, tree | {"train": train})


def _grew_from_teacher(rows: Rows, run: str) -> bool:
    """Whether a run's model is a teacher that goes on training, by the encoder or the phase of its origin."""
    return rows.root(run) == "teacher" or rows[rows.origin(run)].phase == "teacher"


def _checked(loaded: Loaded, dataset: str, tree: dict[str, Any]) -> Settings:
    path = loaded.datasets[dataset][1]
    for name in ("teacher", "student"):
        if name not in tree.get("models", {}):
            raise LeadError(
                f"{path}: key 'settings.models.{name}' is missing, and preset and config do not give it; add it"
            )
    return validate(Settings, tree, str(path), prefix=("settings",))
