"""Layer selection (section 3.3; strategies of section 4.5): which teacher layer teaches which student layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lead.config.schema import Layers
from lead.errors import LeadError


def check_layers(layers: Layers, n: int | None, m: int | None) -> None:
    """Refuse a selection that a teacher of `n` layers and a student of `m` layers do not allow. Raises LeadError.

    None: a number that is not known yet; what does not depend on it is checked all the same.
    """
    if m is not None and n is not None and m > n:
        raise LeadError(f"models: the student has {m} layers, the teacher only {n}; LEAD needs N >= M")
    if layers.pairs and layers.strategy != "pairs":
        raise LeadError("distil.layers.pairs is read with strategy: pairs only; set it, or leave the pairs out")
    if layers.strategy == "pairs":
        if not layers.pairs:
            raise LeadError(
                "distil.layers.pairs is empty; give [[teacher layer, student layer], ..] or another strategy"
            )
        for (a, b), (c, d) in zip(layers.pairs, layers.pairs[1:], strict=False):
            if a >= c or b >= d:
                raise LeadError(
                    f"distil.layers.pairs: [{a}, {b}], [{c}, {d}] do not ascend on both sides (section 3.3)"
                )
        for a, b in layers.pairs:
            if (n is not None and a > n) or (m is not None and b > m):
                raise LeadError(f"distil.layers.pairs: [{a}, {b}] is outside teacher 1..{n}, student 1..{m}")
        return
    if m is not None and layers.k > m:
        raise LeadError(f"distil.layers.k: {layers.k} is more than the student's {m} layers; set k to at most {m}")
    if n is not None and layers.strategy == "skip" and 1 + layers.skip * (layers.k - 1) > n:
        top = 1 + layers.skip * (layers.k - 1)
        raise LeadError(
            f"distil.layers.skip: {layers.skip} with k {layers.k} needs teacher layer {top}, but N is {n}; lower either"
        )


def select(layers: Layers, n: int, m: int, seed: int, step: int) -> list[tuple[int, int]]:
    """K pairs (a_i, b_i), 1 <= a_1 < .. < a_K <= n and 1 <= b_1 < .. < b_K <= m.

    Random pairs are a function of (seed, step) alone: all ranks agree, and a resumed run goes on exactly.

    >>> select(Layers(k=5, strategy="last"), 12, 6, seed=1, step=0)
    [(8, 2), (9, 3), (10, 4), (11, 5), (12, 6)]
    >>> select(Layers(k=5, strategy="skip"), 12, 6, seed=1, step=0)
    [(1, 2), (3, 3), (5, 4), (7, 5), (9, 6)]
    """
    k = layers.k
    if layers.strategy == "pairs":
        return [(a, b) for a, b in layers.pairs or []]
    if layers.strategy == "random":
        rng = np.random.default_rng([seed, step, 0x1A])
        a = sorted(int(i) for i in rng.choice(n, k, replace=False) + 1)
        b = sorted(int(i) for i in rng.choice(m, k, replace=False) + 1)
    else:
        a = list(range(n - k + 1, n + 1)) if layers.strategy == "last" else [1 + layers.skip * i for i in range(k)]
        b = list(range(m - k + 1, m + 1))
    return list(zip(a, b, strict=True))


def informative(log_probability: Sequence[float], k: int, m: int) -> list[tuple[int, int]]:
    """K pairs: the teacher layers that believe most in the positives (of equal ones the last), the student's last K.

    >>> informative([-2.0, -0.5, -3.0, -1.0], k=2, m=3)
    [(2, 2), (4, 3)]
    """
    most = sorted(range(1, len(log_probability) + 1), key=lambda a: (log_probability[a - 1], a))[-k:]
    return list(zip(sorted(most), range(m - k + 1, m + 1), strict=True))
