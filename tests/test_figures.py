"""What figures of the report are laid out by: labels do not touch, arrows pass boxes, lines are told apart."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from lead.report.costs import _bend
from lead.report.draw import curves, draw, spread


def test_an_arrow_passes_the_boxes_between_its_ends() -> None:
    place = {"a": (0.0, 0.0), "b": (1.0, 0.0), "c": (2.0, 0.0)}
    assert _bend("a", "b", place, 4.0) == 0 and _bend("a", "c", place, 4.0) != 0
    assert _bend("a", "c", place | {"b": (1.0, 1.0)}, 4.0) == 0


def test_labels_that_would_touch_are_moved_apart() -> None:
    rng = np.random.default_rng(0)
    places = rng.random(40).tolist()
    found = spread(places, 0.1)
    assert np.diff(sorted(found)).min() > 0.0999
    assert np.argsort(found).tolist() == np.argsort(places).tolist()


def test_twelve_layers_are_twelve_lines() -> None:
    def plot(canvas: Any) -> None:
        curves(canvas.subplots(), {f"layer {i}": ([1, 2], [i, i]) for i in range(12)}, 2)

    drawn = re.findall(r"style=\"fill: none; (stroke[^\"]*var\(--series\d\)[^\"]*)\"", draw("a", "a", plot))
    assert len(set(drawn)) == 12
