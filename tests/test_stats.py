"""Bootstrap intervals, paired tests and Holm's correction."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lead.evaluation.stats import bootstrap_interval, holm, paired_test


def test_bootstrap_interval() -> None:
    values = np.random.default_rng(0).random(400)
    low, high = bootstrap_interval(values, 4000, 0.95, seed=1)
    margin = 1.96 * values.std() / math.sqrt(400)  # the normal interval, close at this size
    assert (low, high) == pytest.approx((values.mean() - margin, values.mean() + margin), abs=0.003)
    assert (low, high) == bootstrap_interval(values, 4000, 0.95, seed=1)
    assert (low, high) != bootstrap_interval(values, 4000, 0.95, seed=2)
    narrow = bootstrap_interval(values, 4000, 0.5, seed=1)
    assert low < narrow[0] < narrow[1] < high
    assert bootstrap_interval(np.full(5, 0.25), 10, 0.95, seed=1) == (0.25, 0.25)
    # of two values the mean is 0, .5 or 1, with chances 1/4, 1/2, 1/4
    assert bootstrap_interval(np.array([0.0, 1.0]), 1000, 0.4, seed=1) == (0.5, 0.5)
    assert bootstrap_interval(np.array([0.0, 1.0]), 1000, 0.6, seed=1) == (0.0, 1.0)


def test_t_test_by_hand() -> None:
    """Differences 1, 2, 3: t = 2 / (1 / sqrt 3) with 2 degrees of freedom, where P(|T| > t) = 1 - t / sqrt(2 + t^2)."""
    a, b = np.array([1.0, 2.0, 3.0]), np.zeros(3)
    t = 2 * math.sqrt(3)
    assert paired_test(a, b) == paired_test(b, a) == pytest.approx(1 - t / math.sqrt(2 + t * t))
    assert paired_test(a, a) == 1.0
    assert paired_test(a[:1], b[:1]) == 1.0  # one query tells nothing
    assert paired_test(b + 0.5, b) == 0.0  # the same gain for every query


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_is_between_no_correction_and_bonferroni(p_values: list[float]) -> None:
    corrected = holm(p_values)
    assert all(p <= c <= min(1, len(p_values) * p) for p, c in zip(p_values, corrected, strict=True))
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    assert [corrected[i] for i in order] == sorted(corrected)
