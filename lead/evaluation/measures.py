"""Names of measures, as `ir_measures` writes them. Quick to import, so that a configuration can be checked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lead.errors import LeadError, nearest

if TYPE_CHECKING:
    from ir_measures import Measure

EXAMPLES = "RR@10, AP@1000, R@1000, nDCG@10, P@5, Success@5, RR(rel=2)@10"


def provider() -> Any:
    """Return the code that computes the measures: pytrec_eval, and MS MARCO's for RR with a cut-off.

    The default of ir_measures also tries other installed packages, so two machines could compute different values.
    """
    import ir_measures

    return ir_measures.providers.FallbackProvider([ir_measures.pytrec_eval, ir_measures.msmarco])


def parse_measures(names: Sequence[str], relevance: int = 1) -> dict[str, Measure]:
    """Return the measure of each name.

    Binary measures count grades of at least `relevance`, unless the name has `rel=`. nDCG uses the grades. Raises
    LeadError for a malformed name; the message names the nearest valid one.
    """
    return {name: _parse(name, relevance) for name in names}


def check_measures(names: Sequence[str]) -> None:
    """Raise LeadError unless each name is a measure that `lead evaluate` computes, and none occurs twice."""
    parse_measures(names)
    for name in names:
        if list(names).count(name) > 1:
            raise LeadError(f"evaluation.measures: {name!r} is listed twice")


def _parse(name: str, relevance: int) -> Measure:
    import ir_measures

    try:
        measure: Measure = ir_measures.parse_measure(name)
        if not provider().supports(measure):
            raise ValueError("not a measure that lead computes")
        if not all(1 <= measure.params.get(name, 1) < 2**31 for name in ("cutoff", "rel")):
            raise ValueError("a number out of range")
    except (ValueError, NameError, TypeError, KeyError, AttributeError, AssertionError) as e:
        # ir_measures refuses a name with any of these
        raise LeadError(f"evaluation.measures: {name!r} is not a measure{_hint(name)}; examples: {EXAMPLES}") from e
    if "rel" in measure.SUPPORTED_PARAMS and "rel" not in measure.params:
        measure = measure(rel=relevance)
    return measure


def _hint(name: str) -> str:
    """Name the nearest known measure, if the part before the brackets and the cut-off is not a measure."""
    import ir_measures

    match = re.match(r"\w*", name)
    stem = match.group() if match else ""
    known = list(ir_measures.measures.registry)
    by_case = [measure for measure in known if measure.lower() == stem.lower()]
    if stem in known:
        return ""
    if by_case:
        return f" (did you mean {by_case[0]!r}?)"
    hint = nearest(stem, known)
    return f" ({hint})" if hint.startswith("did") else ""
