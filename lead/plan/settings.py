"""All settings of a run on a dataset, merged from the configuration files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lead.config.load import Loaded, merge, validate
from lead.config.phases import ALIGN
from lead.config.schema import Settings
from lead.errors import LeadError
from lead.plan.rows import Rows, seeded, split_seed

LENGTH = ("steps", "epochs")  # keys of `train` that say how long a training is


def dataset_settings(loaded: Loaded, dataset: str) -> Settings:
    """The settings of a dataset, without those of any run. Raises LeadError."""
    tree: dict[str, Any] = {}
    for part in loaded.parts(dataset, None):
        tree = merge(tree, part.tree)
    return _checked(loaded, dataset, tree)


def run_settings(loaded: Loaded, rows: Rows, dataset: str, run: str) -> Settings:
    """The settings of a run on a dataset: defaults < preset < dataset < config < row. Raises LeadError.

    Within one of these `phases` wins over `train`, and its later ones over its earlier; a later one's `train` wins
    over all of an earlier one. Of `steps` and `epochs` the later one counts. A teacher that goes on training alone has
    the rate of a jointly trained one. Alignment has rate, batch and steps of its own: those of `train` are read in its
    row only.
    """
    tree: dict[str, Any] = {}
    for part in loaded.parts(dataset, split_seed(run)[0]):
        tree = merge(tree, part.tree)
    train = {key: value for key, (value, _) in train_settings(loaded, rows, dataset, run).items()}
    return _checked(loaded, dataset, seeded(tree, run) | {"train": train})


def train_settings(loaded: Loaded, rows: Rows, dataset: str, run: str) -> dict[str, tuple[Any, str]]:
    """The keys of `train` of a run that are no defaults: the value, and where it stands."""
    row, parts = rows[run], loaded.parts(dataset, split_seed(run)[0])
    aligned = rows.method(run).stage == "align"
    train: dict[str, tuple[Any, str]] = {}
    _lay(train, ALIGN if aligned else {}, "default of an alignment")
    for part in parts:
        given = part.tree.get("train", {})
        if aligned and part is not parts[-1]:
            given = {key: value for key, value in given.items() if key not in (*ALIGN, *LENGTH)}
        _lay(train, given, part.where)
        for phase in rows.phases(run):
            _lay(train, part.tree.get("phases", {}).get(phase, {}), f"{part.where}: phases.{phase}")
    own = row.settings.get("train", {}).get("lr")
    alone = rows.method(run).stage == "train" and row.phase == "distil" and _grew_from_teacher(rows, run)
    if alone and own is None:  # the control of a jointly trained teacher: its rate, the contrastive loss only
        rate, where = train.get("teacher_lr", (None, ""))
        train |= {} if rate is None else {"lr": (rate, f"{where} (teacher_lr)")}
    return train


def _lay(train: dict[str, tuple[Any, str]], given: Mapping[str, Any], where: str) -> None:
    """Lay later keys over `train`: of `steps` and `epochs`, the later one says how long a training is."""
    if given.get("epochs") is not None or "steps" in given:
        for key in LENGTH:
            train.pop(key, None)
    train |= {key: (value, where) for key, value in given.items()}


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
