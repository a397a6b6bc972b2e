"""Layer selection (section 3.3; strategies of section 4.5): which teacher layer teaches which student layer.

A strategy is a function here and a row of STRATEGIES in lead/config/methods.py. It imports no torch: the plan checks
layers before any model is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from lead.config.methods import STRATEGIES, Strategy
from lead.config.registry import imported
from lead.config.schema import Layers
from lead.errors import LeadError

Pairs = list[tuple[int, int]]  # (a_i, b_i): a teacher layer and the student layer that it teaches


@dataclass(frozen=True)
class Situation:
    """What a strategy may look at: N teacher and M student layers, the seed, the step, and the batch's scores.

    log_probability [N]: the mean log-probability that each teacher layer assigns to the batch's positives, for a
    strategy with `scores: True`; empty for the others.
    """

    n: int
    m: int
    seed: int = 0
    step: int = 0
    log_probability: Sequence[float] = ()


def select(
    layers: Layers, n: int, m: int, seed: int, step: int, log_probability: Sequence[float] | None = None
) -> Pairs:
    """K pairs (a_i, b_i), 1 <= a_1 < .. < a_K <= n and 1 <= b_1 < .. < b_K <= m.

    `log_probability`: as in `Situation`; None before the batch is scored, when only the student's layers are needed.

    >>> select(Layers(k=5, strategy="last"), 12, 6, seed=1, step=0)
    [(8, 2), (9, 3), (10, 4), (11, 5), (12, 6)]
    >>> select(Layers(k=5, strategy="skip"), 12, 6, seed=1, step=0)
    [(1, 2), (3, 3), (5, 4), (7, 5), (9, 6)]
    """
    pairs: Pairs = _function(STRATEGIES[layers.strategy], "select")(
        layers, Situation(n, m, seed, step, [0.0] * n if log_probability is None else log_probability)
    )
    ascending = all(a < c and b < d for (a, b), (c, d) in pairwise(pairs))
    if not pairs or not ascending or any(not (1 <= a <= n and 1 <= b <= m) for a, b in pairs):
        raise LeadError(
            f"layer strategy '{layers.strategy}': it gave {pairs}; pairs (teacher 1..{n}, student 1..{m}) must ascend"
        )
    return pairs


def check_layers(layers: Layers, n: int | None, m: int | None) -> None:
    """Refuse a selection that a teacher of `n` layers and a student of `m` layers do not allow. Raises LeadError.

    None: a number that is not known yet; what does not depend on it is checked all the same.
    """
    if m is not None and n is not None and m > n:
        raise LeadError(f"models: the student has {m} layers, the teacher only {n}; LEAD needs N >= M")
    if layers.pairs and layers.strategy != "pairs":
        raise LeadError("distil.layers.pairs is read with strategy: pairs only; set it, or leave the pairs out")
    strategy = STRATEGIES[layers.strategy]
    _function(strategy, "select")
    _function(strategy, "check")(layers, n, m)


def _function(strategy: Strategy, which: str) -> Any:
    return imported(getattr(strategy, which), f"strategy '{strategy.name}' (lead.config.methods)")


# --- strategies ------------------------------------------------------------------------------------------------------
def last_layers(k: int, m: int) -> list[int]:
    """The last k of m layers."""
    return list(range(m - k + 1, m + 1))


def random(layers: Layers, situation: Situation) -> Pairs:
    """K ordered layers of each. A function of (seed, step): all ranks agree, and a resumed run goes on exactly."""
    rng = np.random.default_rng([situation.seed, situation.step, 0x1A])
    a = sorted(int(i) for i in rng.choice(situation.n, layers.k, replace=False) + 1)
    b = sorted(int(i) for i in rng.choice(situation.m, layers.k, replace=False) + 1)
    return list(zip(a, b, strict=True))


def last(layers: Layers, situation: Situation) -> Pairs:
    """The last K layers of each."""
    return list(zip(last_layers(layers.k, situation.n), last_layers(layers.k, situation.m), strict=True))


def skip(layers: Layers, situation: Situation) -> Pairs:
    """Teacher layers 1, 1 + s, 1 + 2 s, ..; the student's last K."""
    return [(1 + layers.skip * i, b) for i, b in enumerate(last_layers(layers.k, situation.m))]


def informative(layers: Layers, situation: Situation) -> Pairs:
    """The K teacher layers that assign most probability to the positives, of equal ones the last; student: last K.

    >>> informative(Layers(k=2, strategy="informative"), Situation(4, 3, log_probability=[-2.0, -0.5, -3.0, -1.0]))
    [(2, 2), (4, 3)]
    """
    most = sorted(range(1, situation.n + 1), key=lambda a: (situation.log_probability[a - 1], a))[-layers.k :]
    return list(zip(sorted(most), last_layers(layers.k, situation.m), strict=True))


def pairs(layers: Layers, situation: Situation) -> Pairs:
    """The pairs of `distil.layers.pairs`."""
    return [(a, b) for a, b in layers.pairs or []]


# --- their checks ----------------------------------------------------------------------------------------------------
def check_k(layers: Layers, n: int | None, m: int | None) -> None:
    """Refuse more pairs than the student has layers. Raises LeadError."""
    if m is not None and layers.k > m:
        raise LeadError(f"distil.layers.k: {layers.k} is more than the student's {m} layers; set k to at most {m}")


def check_skip(layers: Layers, n: int | None, m: int | None) -> None:
    """Refuse a step that leads above the teacher's last layer. Raises LeadError."""
    check_k(layers, n, m)
    top = 1 + layers.skip * (layers.k - 1)
    if n is not None and top > n:
        raise LeadError(
            f"distil.layers.skip: {layers.skip} with k {layers.k} needs teacher layer {top}, but N is {n}; lower either"
        )


def check_pairs(layers: Layers, n: int | None, m: int | None) -> None:
    """Refuse no pairs, pairs that do not ascend, and layers that are not there. Raises LeadError."""
    if not layers.pairs:
        raise LeadError("distil.layers.pairs is empty; give [[teacher layer, student layer], ..] or another strategy")
    for (a, b), (c, d) in zip(layers.pairs, layers.pairs[1:], strict=False):
        if a >= c or b >= d:
            raise LeadError(f"distil.layers.pairs: [{a}, {b}], [{c}, {d}] do not ascend on both sides (section 3.3)")
    for a, b in layers.pairs:
        if (n is not None and a > n) or (m is not None and b > m):
            raise LeadError(f"distil.layers.pairs: [{a}, {b}] is outside teacher 1..{n}, student 1..{m}")
