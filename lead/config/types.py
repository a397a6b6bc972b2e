"""Types of configuration values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from lead.errors import nearest

PositiveInt = Annotated[int, Field(ge=1, le=2**31 - 1)]
Count = Annotated[int, Field(ge=0, le=2**31 - 1)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"  # of runs, datasets, presets: they are parts of file names and shell commands
Name = Annotated[str, Field(pattern=NAME)]
Precision = Literal["bf16", "fp16", "fp32"]  # what it means on a device: lead.device.number_format


@dataclass(frozen=True)
class OneOf:
    """Metadata of an annotated `str`: it must be one of these names. A wrong name is refused with the nearest one.

    renamed: old name -> new name.
    """

    what: str
    names: tuple[str, ...]
    renamed: Mapping[str, str] = field(default_factory=dict)

    def check(self, name: str) -> str:
        """Return the name. Raises ValueError."""
        if name in self.renamed:
            raise ValueError(f"the {self.what} '{name}' is called '{self.renamed[name]}' now; rename it")
        if name not in self.names:
            raise ValueError(f"no {self.what} '{name}'; {nearest(name, self.names)}")
        return name

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "enum": list(self.names)}


class Strict(BaseModel):
    """Unknown keys and wrong types are errors; values do not change once checked."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def with_source(reference: str) -> str:
    """The reference of a model, its source said: a name alone, such as `BAAI/bge-base-en-v1.5`, is of the hub."""
    return reference if reference.startswith(("hub:", "path:", "package:")) else f"hub:{reference}"


Reference = Annotated[
    str,
    Field(
        pattern=r"^((hub|path|package):.+|[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+)$",
        description="hub:<owner/name> or <owner/name>, path:<folder>, or package:<import name>/<folder inside it>",
    ),
    AfterValidator(with_source),
]
