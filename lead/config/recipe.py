"""The keys of a stage's settings that decide its numbers (the recipe), and those for time and memory (the execution).

Identity, rerunning and resuming depend only on the recipe: a key whose field is marked `EXECUTION` may change.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

EXECUTION: dict[str, Any] = {"execution": True}  # as `json_schema_extra` of a field
# of a field that came later: at its default it is in no recipe, so that nothing made before it is made again
ADDED: dict[str, Any] = {"added": True}


def recipe(settings: BaseModel) -> dict[str, Any]:
    """The settings, as JSON, without the keys that decide only time and memory."""
    return _part(settings, execution=False)


def execution(settings: BaseModel) -> dict[str, Any]:
    """Only the keys that decide time and memory, as JSON."""
    return _part(settings, execution=True)


def execution_keys(cls: type[BaseModel]) -> dict[str, Any]:
    """The keys of a stage's settings that may be in an execution: a tree whose leaves are None."""
    found: dict[str, Any] = {}
    for name, field in cls.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            if inside := execution_keys(field.annotation):
                found[name] = inside
        elif isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("execution"):
            found[name] = None
    return found


def flat(tree: dict[str, Any], at: str = "") -> dict[str, Any]:
    """The values of a tree by their dotted paths. An empty tree is a value.

    >>> flat({"train": {"lr": 1, "clip": 2}, "seed": 3})
    {'train.lr': 1, 'train.clip': 2, 'seed': 3}
    """
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{at}{key}.") if isinstance(value, dict) and value else {f"{at}{key}": value}
    return found


def _part(settings: BaseModel, execution: bool) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    dumped = settings.model_dump(mode="json")
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        if extra.get("added") and value == field.default:
            continue
        if isinstance(value, BaseModel):
            inside = _part(value, execution)
            if inside or not execution:
                kept[name] = inside
            continue
        marked = bool(extra.get("execution")) and not _selects(settings, name)
        if marked == execution:
            kept[name] = dumped[name]
    return kept


def _selects(settings: BaseModel, name: str) -> bool:
    """Whether the key decides which checkpoint is kept. Then it decides numbers too."""
    return name == "dev_every" and getattr(settings, "select", None) == "best"
