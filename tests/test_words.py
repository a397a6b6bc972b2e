"""The words of a text: Lucene 9.9.1's answers for English ones, and words of every script."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lead.config.lists import Bm25
from lead.retrieval.words import ANNEX_29, SIMPLE, WORD, Words


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
    for text in ("_" * 100_000, "ก" + "\u0301" * 100_000, 'א"' * 50_000, "क." * 50_000, "\u203f" * 100_000):
        assert len(ANNEX_29.findall(text)) <= 1


# --- every script ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("analyser", ["english", "unicode", "code"])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("तारा तार", "तारा तार"),  # vowel signs stay
        ("cafe\u0301 café", "café café"),  # decomposed and composed
        ("q\u0307q й", "q\u0307q й"),  # a mark that no composed letter has
        ("İSTANBUL I\u0307zmir", "istanbul izmir"),  # Turkish dotted I
        ("猫喜欢 すし", "猫 喜 欢 す し"),  # ideographs and hiragana are words
        ("カタカナー", "カタカナー"),  # a katakana word is one
        ("อากาศ", "อา าก กา าศ"),  # pairs of Thai clusters
        ('צה"ל', 'צה"ל'),  # a Hebrew acronym
        ("مِصر, ١٬٢", "مِصر ١٬٢"),  # Arabic: marks, thousands
        ("a\u200db", "a\u200db"),  # a format character is inside a word
        ("I \U0001f355!", "i \U0001f355"),  # an emoji is a word
        ("!? 。 \u0301", ""),
    ],
)
def test_words_of_every_script(analyser: str, text: str, expected: str) -> None:
    found = words(text, analyser=analyser, stemmer="none")
    assert [w for w in found if len(w) == 1 or not _signs(w)] == unicodedata.normalize("NFC", expected).split()


def _signs(word: str) -> bool:
    """Whether a word is a pair of ideographs or hiragana, which `unicode` has besides the single ones."""
    return len(word) == 2 and all("぀" <= c <= "ゟ" or "一" <= c <= "鿿" for c in word)


def test_the_unicode_analyser_folds_and_pairs() -> None:
    assert words("猫喜欢", analyser="unicode") == ["猫", "喜", "欢", "猫喜", "喜欢"]
    assert words("날씨가", analyser="unicode") == ["날씨", "씨가"]  # Korean endings vary
    assert words("일", analyser="unicode") == ["일"]
    # width, ligatures, case, sharp s, final sigma, dotless i, curly apostrophes
    same = "Ｐｉｚｚａ ﬁt STRASSE ΣΟΦΟΣ ISPARTA l\u2019eau"
    other = "pizza fit straße σοφος ısparta l'eau"
    assert words(same, analyser="unicode") == words(other, analyser="unicode")
    assert words("the running dogs' dog's", analyser="unicode") == ["the", "running", "dogs", "dog's"]
    assert words("the running", analyser="unicode", stemmer="english", stop_words=True) == ["run"]


def test_the_code_analyser_splits_identifiers_and_keeps_them() -> None:
    assert words("pd.DataFrame", analyser="code", stemmer="none") == ["pd.dataframe", "pd", "data", "frame"]
    # "to" is a stop word
    assert words("_to_csv BERTModel", analyser="code") == ["_to_csv", "csv", "bertmodel", "bert", "model"]
    assert words("3.5.2 conv2d conv2D", analyser="code") == ["3.5.2", "conv2d", "conv2d", "conv2", "d"]
    assert words("The cats", analyser="code") == ["cat"]


@given(st.text(st.characters(max_codepoint=0x20BF).filter(lambda c: SIMPLE.fullmatch(c) is not None)))
@example("r\u00b2 x\u00b2.y 1.\u00b2 \u00bd' a\u2019b a\u00b7b 1'2 _é_ \u0375\u037a")
def test_the_fast_pattern_and_annex_29_find_the_same_words(text: str) -> None:
    text = unicodedata.normalize("NFC", text)
    if SIMPLE.fullmatch(text):
        assert WORD.findall(text) == ANNEX_29.findall(text)


def test_the_fast_pattern_is_right_for_every_character_it_is_used_for() -> None:
    for c in map(chr, range(0x2100)):
        if SIMPLE.fullmatch(c) and unicodedata.is_normalized("NFC", c):
            for text in (c, f"a{c}a", f"1{c}1", f"a{c}1", f"1{c}a", f"_{c}"):
                assert WORD.findall(text) == ANNEX_29.findall(text), ascii(text)


def test_soft_hyphens_of_a_typeset_text_are_no_part_of_words() -> None:
    assert words("so\u00adft", analyser="unicode") == ["soft"]
