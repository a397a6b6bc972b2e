"""What of a stage's settings decides its numbers (the recipe), and what decides only time and memory (the execution).

Identity, rerunning and resuming look at the recipe alone: a key whose field is marked `EXECUTION` may change.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

EXECUTION: dict[str, Any] = {"execution": True}  # as `json_schema_extra` of a field


def recipe(settings: BaseModel) -> dict[str, Any]:
    """The settings, as JSON, without the keys that decide only time and memory."""
    return _part(settings, execution=False)


def execution(settings: BaseModel) -> dict[str, Any]:
    """Only the keys that decide time and memory, as JSON."""
    return _part(settings, execution=True)


def _part(settings: BaseModel, execution: bool) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    dumped = settings.model_dump(mode="json")
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            inside = _part(value, execution)
            if inside or not execution:
                kept[name] = inside
            continue
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        marked = bool(extra.get("execution")) and not _selects(settings, name)
        if marked == execution:
            kept[name] = dumped[name]
    return kept


def _selects(settings: BaseModel, name: str) -> bool:
    """Whether the key decides which checkpoint is kept, and so decides numbers after all."""
    return name == "dev_every" and getattr(settings, "select", None) == "best"
