"""Layer selection: the paper's lists, and random pairs as a function of (seed, step)."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lead.config.schema import Layers
from lead.errors import LeadError
from lead.methods.layers import check_layers, select


def split(pairs: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
    return [a for a, _ in pairs], [b for _, b in pairs]


def test_last_and_skip_are_the_papers_lists_for_12_and_6_layers_and_k_5() -> None:
    assert split(select(Layers(k=5, strategy="last"), 12, 6, 0, 0)) == ([8, 9, 10, 11, 12], [2, 3, 4, 5, 6])
    assert split(select(Layers(k=5, strategy="skip"), 12, 6, 0, 0)) == ([1, 3, 5, 7, 9], [2, 3, 4, 5, 6])
    assert split(select(Layers(k=4, strategy="skip", skip=3), 12, 6, 0, 0)) == ([1, 4, 7, 10], [3, 4, 5, 6])


def test_given_pairs_are_taken_as_they_are() -> None:
    layers = Layers(strategy="pairs", pairs=[[4, 1], [12, 3]])
    assert select(layers, 12, 6, 3, 9) == [(4, 1), (12, 3)]


@pytest.mark.parametrize("pairs", [[], [(7, 1)], [(0, 1)], [(3, 2), (2, 3)], [(1, 1), (1, 2)]])
def test_what_a_strategy_gives_is_checked(pairs: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lead.methods.layers.pairs", lambda layers, situation: pairs)
    with pytest.raises(LeadError, match="layer strategy 'pairs': it gave"):
        select(Layers(strategy="pairs", pairs=[[1, 1]]), 6, 3, 0, 0)


@given(st.lists(st.floats(-9, 0), min_size=1, max_size=9), st.data())
def test_informative_layers_have_the_highest_log_probability(log_probability: list[float], data: st.DataObject) -> None:
    n = len(log_probability)
    m = data.draw(st.integers(1, n))
    k = data.draw(st.integers(1, m))
    layers = Layers(k=k, strategy="informative")
    a, b = split(select(layers, n, m, 0, 0, log_probability))
    assert b == list(range(m - k + 1, m + 1)) and a == sorted(set(a)) and len(a) == k
    left = [log_probability[i - 1] for i in range(1, n + 1) if i not in a]
    assert not left or max(left) <= min(log_probability[i - 1] for i in a)


def test_of_layers_with_equal_log_probability_the_last_are_chosen() -> None:
    layers = Layers(k=2, strategy="informative")
    assert select(layers, 4, 2, 0, 0, [-1.0, -1.0, -2.0, -1.0]) == [(2, 1), (4, 2)]


@given(st.data())
def test_random_layers_are_k_ordered_layers_in_range(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 24))
    m = data.draw(st.integers(1, n))
    k = data.draw(st.integers(1, m))
    seed, step = data.draw(st.integers(0, 2**31)), data.draw(st.integers(0, 10**6))
    a, b = split(select(Layers(k=k), n, m, seed, step))
    assert len(a) == len(b) == k
    assert a == sorted(set(a)) and 1 <= a[0] and a[-1] <= n
    assert b == sorted(set(b)) and 1 <= b[0] and b[-1] <= m


def test_random_layers_are_a_function_of_seed_and_step_alone_and_change_with_both() -> None:
    def stream(seed: int) -> list[list[tuple[int, int]]]:
        return [select(Layers(k=3), 12, 6, seed, step) for step in range(50)]

    forward = stream(1)
    backward = [select(Layers(k=3), 12, 6, 1, step) for step in reversed(range(50))][::-1]
    assert forward == backward
    assert len({tuple(p) for p in forward}) > 40
    assert sum(x == y for x, y in zip(forward, stream(2), strict=True)) < 5


def test_every_choice_of_layers_occurs_about_equally_often_and_the_two_sides_are_independent() -> None:
    seen: dict[tuple[Any, Any], int] = {}
    steps = 1800
    for step in range(steps):
        a, b = split(select(Layers(k=2), 4, 3, 5, step))
        seen[tuple(a), tuple(b)] = seen.get((tuple(a), tuple(b)), 0) + 1
    every = [(a, b) for a in combinations(range(1, 5), 2) for b in combinations(range(1, 4), 2)]
    assert set(seen) == set(every)
    # 18 choices, 100 expected each, standard deviation 10
    assert all(50 < count < 150 for count in seen.values())


@pytest.mark.parametrize(
    ("layers", "n", "m", "key"),
    [
        (Layers(k=1), 3, 4, "N >= M"),
        (Layers(k=5), 12, 4, "distil.layers.k"),
        (Layers(k=5, strategy="last"), 12, 4, "distil.layers.k"),
        (Layers(k=5, strategy="skip", skip=3), 12, 6, "distil.layers.skip"),
        (Layers(strategy="pairs"), 12, 6, "distil.layers.pairs"),
        (Layers(strategy="pairs", pairs=[[12, 7]]), 12, 6, "distil.layers.pairs"),
        (Layers(strategy="pairs", pairs=[[1, 1], [13, 6]]), 12, 6, "distil.layers.pairs"),
    ],
)
def test_an_impossible_selection_is_refused_in_one_line_that_names_the_key(
    layers: Layers, n: int, m: int, key: str
) -> None:
    with pytest.raises(LeadError, match=key) as caught:
        check_layers(layers, n, m)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("layers", "n", "m"),
    [
        (Layers(k=6), 12, 6),
        (Layers(k=6), 6, 6),
        (Layers(k=6, strategy="skip"), 11, 6),
        (Layers(k=5, strategy="pairs", pairs=[[12, 2]]), 12, 2),  # k is not read with pairs
    ],
)
def test_a_selection_that_just_fits_is_allowed(layers: Layers, n: int, m: int) -> None:
    check_layers(layers, n, m)
    a, b = split(select(layers, n, m, 1, 1))
    assert max(a) <= n and max(b) <= m
