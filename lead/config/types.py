"""Types of configuration values."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(ge=1, le=2**31 - 1)]
Count = Annotated[int, Field(ge=0, le=2**31 - 1)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"  # of runs, datasets, presets: part of files' names, and of shell commands
Name = Annotated[str, Field(pattern=NAME)]


class Strict(BaseModel):
    """Unknown keys and wrong types are errors; values do not change once checked."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
