"""Cutting texts to tokens: of a long one only the beginning is tokenized, and the ids are those of the whole."""

from __future__ import annotations

import resource
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from test_liberal import make_encoder

from lead.tokenizer import CHARACTERS, cut, load_tokenizer

LENGTH = 8


@pytest.fixture(scope="module", params=["wordpiece", "byte-level"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Any:
    folder = tiny_model
    if request.param == "byte-level":
        folder = make_encoder(tmp_path_factory.mktemp("roberta") / "m", "roberta")
    return load_tokenizer(str(folder), "")


def whole(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer(text, truncation=True, max_length=LENGTH)["input_ids"]
    return found


PIECES = st.sampled_from(
    ["word ", "  ", "\n\t", "x" * 50, "x" * 200, " " * 600, "\u691c\u7d22", "a.b,c ", "naïve ", "e\u0301 ", "🙂"]
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
@given(pieces=st.lists(PIECES, max_size=60), times=st.integers(1, 9))
@example(pieces=[" " * 600], times=9)
@example(pieces=["x" * 200], times=9)
@example(pieces=[" " * 600, "word"], times=1)
def test_ids_are_those_of_the_whole_text(tokenizer: Any, pieces: list[str], times: int) -> None:
    text = "".join(pieces) * times
    assert cut(tokenizer, ["short", text, ""], LENGTH) == [whole(tokenizer, t) for t in ("short", text, "")]


def test_a_tokenizer_that_keeps_the_end_reads_it_all(tokenizer: Any) -> None:
    text = "word " * CHARACTERS * LENGTH + "the end"
    tokenizer.truncation_side = "left"
    try:
        assert cut(tokenizer, [text], LENGTH) == [whole(tokenizer, text)] != cut(tokenizer, [text[:50]], LENGTH)
    finally:
        tokenizer.truncation_side = "right"


def test_a_huge_text_costs_little(tokenizer: Any) -> None:
    """22 MB took 3.5 GB and 43 s for 24 tokens."""
    text = "some words of a text that goes on " * (22_000_000 // 34)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    assert len(cut(tokenizer, [text], 24)[0]) == 24
    assert time.monotonic() - start < 5 and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000
