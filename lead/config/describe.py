"""The keys of a stage's settings as text for `--help`."""

from __future__ import annotations

import typing
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from lead.config.types import OneOf


def describe(cls_name: str) -> str:
    """One line for each key of a class in lead.config.stages: path, type, default, meaning."""
    from lead.config import stages

    lines = list(keys(getattr(stages, cls_name)))
    width = min(34, max(len(name) for name, _ in lines)) if lines else 0
    return "settings (keys of --settings, with their defaults; --execution takes those that say so):\n" + "\n".join(
        f"  {n:<{width}}  {about}" for n, about in lines
    )


def keys(cls: type[BaseModel], prefix: str = "") -> typing.Iterator[tuple[str, str]]:
    """The path of each key of a class, and its choices, meaning and [default]."""
    for name, field in cls.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from keys(annotation, f"{prefix}{name}.")
            continue
        about = field.description or _of_a_run(name)
        if field.default is not PydanticUndefined:
            about = f"{about} [{_default(field.default)}]".strip()
        choices = [name for data in field.metadata if isinstance(data, OneOf) for name in data.names]
        if typing.get_origin(annotation) is typing.Literal:
            choices = list(map(str, typing.get_args(annotation)))
        if choices:
            about = f"{' | '.join(choices)}. {about}"
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("execution"):
            about += " (--execution too)"
        yield f"{prefix}{name}", about


def _of_a_run(name: str) -> str:
    """What a key of a run's settings or row is; a stage's key of the same name is that one."""
    from lead.config import experiments, lists, schema

    for cls in (schema.Settings, lists.Retrieval, lists.Evaluation, schema.Train, experiments.Row):
        if (field := cls.model_fields.get(name)) is not None and field.description:
            return field.description
    return ""


def _default(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
