"""Settings of phases: alignment, and what each phase overrides of `train`."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from lead.config.recipe import ADDED
from lead.config.types import Positive, PositiveInt, Strict

ALIGN = {"lr": 3e-4, "batch_size": 32}  # what `train` is in the phase `align`, unless phases.align says otherwise


def _in_order(steps: list[int]) -> list[int]:
    if steps[0] > steps[1]:
        raise ValueError(f"give the fewest steps first: [{steps[1]}, {steps[0]}]")
    return steps


Between = Annotated[list[PositiveInt], Field(min_length=2, max_length=2), AfterValidator(_in_order)]


class Align(Strict):
    """Alignment without labels (method align): the student learns the teacher's vectors of passages and queries."""

    loss: Literal["squared", "cosine"] = Field(
        "squared",
        description="squared: squared distance of the vectors whose products are scores (of unit length with "
        "`normalise: unit`); cosine: 1 - their cosine",
    )
    epochs: Positive = Field(3.0, description="passes over the texts, unless phases.align gives `steps` or `epochs`")
    between: Between | None = Field(
        None,
        description="fewest and most steps, whatever `epochs` here says: a small collection needs more passes",
        json_schema_extra=ADDED,
    )
    texts: list[str] = Field(
        [],
        description="files of more texts, read as passages: .txt, a text a line, or any that a corpus may be (with "
        "ids); relative to the folder that the workflow runs in",
    )
    queries: list[str] = Field([], description="files of more queries, like `texts`, but read as queries")


def align_steps(epochs: float, between: list[int] | None, an_epoch: int) -> int:
    """Steps of an alignment with so many steps an epoch.

    >>> align_steps(3.0, None, 60), align_steps(3.0, [3000, 20000], 60), align_steps(3.0, [3000, 20000], 9000)
    (180, 3000, 20000)
    """
    fewest, most = between or (1, math.inf)
    return int(min(max(math.ceil(epochs * an_epoch), fewest), most))


def passes(epochs: float, between: list[int] | None, seen: str) -> str:
    """How long a training is that is told in epochs, for people. seen: what it passes over.

    >>> passes(3.0, None, "the texts"), passes(0.5, [3000, 20000], "all texts")
    ('3 passes over the texts', '0.5 passes over all texts, but 3,000 to 20,000 steps')
    """
    bounds = "" if between is None else f", but {between[0]:,} to {between[1]:,} steps"
    return f"{epochs:g} passes over {seen}{bounds}"


class PhaseTrain(Strict):
    """Overrides of `train` in one phase. Keys are those of `train`."""

    miner: dict[str, Any] = Field({}, description="the 12DE that mines negatives")
    teacher: dict[str, Any] = Field({}, description="warm-up of the teachers on mined negatives")
    student: dict[str, Any] = Field({}, description="warm-up of the student on mined negatives")
    align: dict[str, Any] = Field(
        {},
        description="alignment without labels. It does not read lr (3e-4 here), batch_size (32 texts), steps and "
        "epochs of `train`",
    )
    distil: dict[str, Any] = Field({}, description="distillation and its controls")
    aligned: dict[str, Any] = Field({}, description="overrides `distil` in runs that start from an aligned student")
    cross: dict[str, Any] = Field(
        {}, description="overrides the others in runs that train a cross encoder or learn from one"
    )
    teacher_ce: dict[str, Any] = Field({}, description="overrides `cross` in the warm-up of a cross encoder")
