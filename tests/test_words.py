"""The words of a text: what Lucene 9.9.1's EnglishAnalyzer answered for the same texts."""

from __future__ import annotations

import numpy as np
import pytest

from lead.config.schema import Bm25
from lead.retrieval.words import WORD, Words


def words(text: str, **settings: bool | str) -> list[str]:
    """The stems of a text."""
    found = Words(Bm25.model_validate(settings))
    numbers, lengths = found.read([text])
    assert lengths.tolist() == [len(numbers)]
    stems = list(found.stems)
    return [stems[n] for n in numbers.tolist()]


@pytest.mark.parametrize(
    ("text", "lucene"),
    [
        ("Don't run McDonald's U.S.A. 3.5 1,000", "don't run mcdonald u.s.a 3.5 1,000"),
        ("a.b a:b x_y AT&T foo-bar be9's '90s rock'n'roll", "a.b a:b x_y t foo bar be9 s 90 rock'n'rol"),
        ("O\u2019Neil\u2019s it's as us ab's 1.a a.1 1'2 ''s", "o\u2019neil us ab 1 1 1'2 s"),
        ("___ _a_ The CATS, and into THERE", "_a_ cat"),
        ("possibly possible stably technologies technological geology analogies", None),
    ],
)
def test_words_are_lucenes(text: str, lucene: str | None) -> None:
    if lucene is None:  # Porter's programs, not his published rules: each pair meets
        assert words(text) == "possibl possibl stabli technolog technolog geologi analog".split()
    else:
        assert words(text) == lucene.split()


def test_stop_words_are_lucenes_33_and_go_before_stemming() -> None:
    assert len(Words(Bm25()).stop_words) == 33
    assert words("this is what that does") == ["what", "doe"]
    assert words("this is", stop_words=False) == ["thi", "is"]


def test_a_word_has_one_number_and_texts_their_own_words() -> None:
    found = Words(Bm25())
    numbers, lengths = found.read(["cats the cat", "", "the", "dog Cat"])
    assert numbers.tolist() == [0, 0, 1, 0] and lengths.tolist() == [2, 0, 0, 2]
    assert found.read([])[1].size == 0 and found.read(["dogs"])[0].tolist() == [1]
    assert numbers.dtype == np.int32


def test_long_runs_of_one_character_take_no_quadratic_time() -> None:
    for text in ("_" * 100_000, "a." * 50_000, "1," * 50_000, "'" * 100_000):
        assert len(WORD.findall(text)) <= 1
