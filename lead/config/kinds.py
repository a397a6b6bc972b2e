"""The kinds of model: one record for each value of `kind` in config/experiments.yaml.

A record holds what the plan needs before any model is loaded. Everything else is in the kind's class. A new
architecture needs one class and one row here (docs/extending.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from lead.config.registry import check_reference, imported
from lead.config.types import OneOf
from lead.errors import Named


@dataclass(frozen=True)
class Kind:
    """A kind of model.

    model: "module:class" of its subclass of `lead.models.base.LayeredModel`. candidates: the largest set that it scores
    in a training step: all passages of the `batch`, or a query's `own` list. ranks_by: `search` (one vector for each
    text, inner products) or `rerank` (it reorders another run's list). adds_tokens: whether `scoring.markers` and
    `scoring.expand` add tokens to its texts. keeps_width: whether a linear layer must have equal numbers of inputs and
    outputs. vectors: whether scores are products of vectors, which may be normalised to unit length. scoring: keys of
    `scoring.KIND` whose defaults are others than in `lead.config.schema.Scoring`.
    """

    name: str  # in configuration and on disk
    title: str  # for people
    model: str
    candidates: Literal["batch", "own"]
    ranks_by: Literal["search", "rerank"]
    adds_tokens: bool = False
    keeps_width: bool = False
    vectors: bool = True
    scoring: Mapping[str, Any] = field(default_factory=dict)

    @property
    def a(self) -> str:
        """The title with its article.

        >>> KINDS["cb"].a
        'a ColBERT'
        """
        return f"a {self.title}"

    def at_most(self, wanted: Literal["batch", "own"]) -> Literal["batch", "own"]:
        """The candidates `wanted`, or `own` if it scores only these."""
        return "own" if "own" in (wanted, self.candidates) else "batch"

    def check(self) -> None:
        """Refuse a record without a class. It imports no torch. Raises LeadError."""
        check_reference(self.model, self._where)

    def load(self) -> Any:
        """The class. It imports torch. Raises LeadError if it cannot be imported."""
        return imported(self.model, self._where)

    @property
    def _where(self) -> str:
        return f"kind of model '{self.name}' (lead.config.kinds)"


UNIT = {"normalise": "unit", "layer_normalise": "unit"}
KINDS: Named[Kind] = Named(
    "kind of model",
    "lead.config.kinds",
    {
        kind.name: kind
        for kind in (
            Kind("de", "dual encoder", "lead.models.dual_encoder:DualEncoder", "batch", "search"),
            # raw token vectors saturate it (docs/design.md)
            Kind("cb", "ColBERT", "lead.models.colbert:ColBERT", "batch", "rerank", adds_tokens=True, scoring=UNIT),
            # w is shared by all layers
            Kind(
                "ce",
                "cross encoder",
                "lead.models.cross_encoder:CrossEncoder",
                "own",
                "rerank",
                keeps_width=True,
                vectors=False,
            ),
        )
    },
)

KindName = Annotated[str, OneOf("kind", tuple(KINDS))]
