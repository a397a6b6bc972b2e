"""Checks of what models allow: of the configuration before any work, and of the models when they are loaded.

None means unknown, such as a number of a model on the hub. It passes every check.
"""

from __future__ import annotations

from lead.config.kinds import Kind
from lead.config.schema import Scoring
from lead.errors import LeadError


def check_linear(size: int | None, width: int | None, kind: Kind) -> None:
    """Refuse a linear layer of `size` outputs after an encoder of `width` outputs. Raises LeadError."""
    if size is None or width is None:
        return
    if kind.keeps_width and size != width:
        raise LeadError(f"models: linear.size of {kind.a} must be its width, {width}: w is shared by all layers")


def check_maps(same_tokens: bool | None, n: int | None, m: int | None, *models: tuple[Kind, Scoring]) -> None:
    """Refuse FD (maps over tokens) for a teacher of `n` and a student of `m` transformer layers.

    same_tokens: whether both have the same tokenizer and lengths. models: kind and scoring of both. Raises LeadError.
    """
    if same_tokens is False:
        raise LeadError(
            "method fd compares maps over tokens, so teacher and student must have the same tokenizer and lengths; use "
            "rd or lead, which compare scores"
        )
    if n is not None and m is not None and m > n:
        raise LeadError(f"method fd: the student has {m} transformer layers, the teacher only {n}; it needs as many")
    if any(kind.adds_tokens and (scoring.markers or scoring.expand) for kind, scoring in models):
        raise LeadError("method fd: scoring.cb.markers and expand add tokens to ColBERT's texts; set both to false")
