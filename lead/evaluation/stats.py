"""Bootstrap intervals of a mean, paired tests of two runs, and Holm's correction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.floating[Any]]

BLOCK = 2**22  # numbers drawn at a time: bounds memory


def bootstrap_interval(values: Values, resamples: int, confidence: float, seed: int) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values` [n]: (low, high).

    The same seed draws the same queries for every measure of n queries. Raises ValueError if n is 0.
    """
    n = values.size
    if n == 0:
        raise ValueError("no values to resample")
    rng = np.random.default_rng(seed)
    rows = max(1, BLOCK // n)
    sizes = [min(rows, resamples - start) for start in range(0, resamples, rows)]
    means = np.concatenate([values[rng.integers(n, size=(size, n))].mean(axis=1) for size in sizes])
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def paired_test(a: Values, b: Values) -> float:
    """Two-sided p-value of the hypothesis that `a` and `b` [n], values of the same queries, have the same mean.

    This is the t-test. It needs no seed and resolves small p-values, which Holm's correction multiplies. In simulations
    with IR measures it keeps its error rates best (Urbano, Lima and Hanjalic, SIGIR 2019).
    """
    from scipy.stats import ttest_rel  # late: it takes longer to import than the rest of `lead table`

    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    if difference.size < 2 or not difference.any():
        return 1.0  # no difference
    if np.ptp(difference) == 0:
        return 0.0  # the same gain for every query: no variance to divide by
    return float(ttest_rel(a, b).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction. It keeps the probability of any false alarm among the tests at the level.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for done, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - done) * p_values[i]))
        corrected[i] = highest
    return corrected
