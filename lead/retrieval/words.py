"""The words of a text, which BM25 counts. Three analysers share one rule for the ends of words.

The rule is Unicode's annex 29, on a normalised text, so combining marks stay with their letters. Scripts without spaces
need more: an ideograph or a hiragana sign is a word, as in Lucene's StandardAnalyzer. Thai, Lao, Khmer and Burmese give
overlapping pairs of grapheme clusters, which need no dictionary. An emoji is a word.

- `english`: Lucene's EnglishAnalyzer. Lower case, no possessives, no stop words, Porter's stems. Equal to Lucene
  9.9.1 on 2.9 million words (docs/scale.md), except for superscript digits, which are digits here.
- `unicode`: for every language. Compatibility forms (full-width letters, ligatures) and case are folded, also Turkish
  dotted and dotless i. As in Lucene's CJKAnalyzer, pairs of neighbouring ideographs are words too. Korean words
  give pairs of syllables, because their endings vary. No stop words.
- `code`: `english`, and the parts of identifiers, split at `_`, `.` and camelCase, are words too.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from array import array
from collections.abc import Callable, Iterable
from itertools import chain, pairwise

import numpy as np
import regex
from numpy.typing import NDArray

from lead.config.lists import Bm25

STOP_WORDS = frozenset(
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they this "
    "to was will with".split()
)
POSSESSIVES = ("'s", "\u2019s", "\uff07s")

# Annex 29 for the letters of `SIMPLE`, by `re`, which is three times as fast. Letters, digits and underscores, not only
# underscores. An apostrophe, dot, colon or middle dot between two letters is inside a word, and so is an
# apostrophe, dot, comma or semicolon between two digits.
WORD = re.compile(
    r"(?<!_)_*[^\W_]\w*"
    r"(?:(?:(?<=[^\W\d_])[.:'\u2018\u2019\xb7\u2027](?=[^\W\d_])|(?<=\d)[.,;'\u2018\u2019](?=\d))\w+)*"
)
# Latin, Greek and Cyrillic letters without combining marks, and common punctuation
SIMPLE = re.compile(
    r"[\0-\xac\xae-\xb7\xb9-\u024f\u0370-\u0482\u048a-\u052f\u1e00-\u1eff\u2010-\u2023\u2025-\u2027\u20a0-\u20bf]*"
)

_LETTER = r"\p{WB=ALetter}\p{WB=Hebrew_Letter}\p{No}"  # superscripts and fractions count as letters
_DIGIT = r"\p{WB=Numeric}"
_MARK = r"\p{WB=Extend}\p{WB=Format}\p{WB=ZWJ}"  # rule WB4: each belongs to the sign before it
_JOIN = r"\p{WB=ExtendNumLet}"  # the underscore and similar signs
_MIDDLE = r"\p{WB=MidNumLet}\p{WB=Single_Quote}"
_SIGN = r"[\p{Han}\p{Hiragana}]"
_UNSPACED = r"\p{LB=SA}"  # Thai, Lao, Khmer, Burmese, ..
ANNEX_29 = regex.compile(
    rf"(?<![{_JOIN}])[{_JOIN}]*[{_LETTER}{_DIGIT}][{_LETTER}{_DIGIT}{_JOIN}{_MARK}]*+"
    rf"(?:(?:(?<=[{_LETTER}][{_MARK}]*)[\p{{WB=MidLetter}}{_MIDDLE}][{_MARK}]*(?=[{_LETTER}])"
    rf"|(?<=[{_DIGIT}][{_MARK}]*)[\p{{WB=MidNum}}{_MIDDLE}][{_MARK}]*(?=[{_DIGIT}])"
    rf'|(?<=\p{{WB=Hebrew_Letter}}[{_MARK}]*)"[{_MARK}]*(?=\p{{WB=Hebrew_Letter}}))'
    rf"[{_LETTER}{_DIGIT}{_JOIN}{_MARK}]++)*+"
    rf"|(?:\p{{WB=Katakana}}[{_MARK}]*+)++"
    rf"|(?:{_SIGN}[{_MARK}]*+)++"
    rf"|{_UNSPACED}[{_UNSPACED}{_MARK}]*+"
    rf"|\p{{Emoji_Presentation}}[{_MARK}]*+",
    regex.V1,
)
RUN = regex.compile(rf"(?P<signs>{_SIGN})|{_UNSPACED}", regex.V1)  # the first sign of a run of a script without spaces
HANGUL = regex.compile(rf"(?:\p{{Hangul}}[{_MARK}]*+)++", regex.V1)
CLUSTER = regex.compile(r"\X")  # a sign with its marks
# where an identifier is split: no dot between two digits
PARTS = re.compile(r"_+|(?<!\d)\.|\.(?!\d)|(?<=[a-z\d])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
FOLDED = str.maketrans({"\u0130": "i", "\u0131": "i", "\u2018": "'", "\u2019": "'"})


def split_words(text: str, pairs: bool = False) -> list[str]:
    """The words of a normalised text, in order. pairs: also pairs of ideographs and of Korean syllables."""
    if text.isascii() or SIMPLE.fullmatch(text):
        return WORD.findall(text)
    return [part for word in ANNEX_29.findall(text) for part in _cut(word, pairs)]


def _cut(word: str, pairs: bool) -> list[str]:
    """The words of a run of a script without spaces; any other word unchanged."""
    run = RUN.match(word)
    if not run and not (pairs and HANGUL.fullmatch(word)):
        return [word]
    signs = CLUSTER.findall(word)
    neighbours = [a + b for a, b in pairwise(signs)]
    if run and run["signs"]:
        return signs + neighbours if pairs else signs
    return neighbours or signs


def english_words(text: str) -> list[str]:
    """Lower-cased words."""
    return split_words(_lower(unicodedata.normalize("NFC", text)))


def unicode_words(text: str) -> list[str]:
    """Words without soft hyphens and differences of case, width or apostrophe; and pairs of ideographs."""
    folded = unicodedata.normalize("NFKC", text.replace("\xad", "")).translate(FOLDED).casefold()
    return split_words(unicodedata.normalize("NFC", folded), pairs=True)


def code_words(text: str) -> list[str]:
    """Lower-cased words and the parts of identifiers."""
    return list(chain.from_iterable(map(_identifier, split_words(unicodedata.normalize("NFC", text)))))


@functools.lru_cache(2**18)  # most words of a corpus; a miss costs ten times as much
def _identifier(word: str) -> list[str]:
    """An identifier and its parts.

    >>> _identifier("pd.DataFrame"), _identifier("frame")
    (['pd.dataframe', 'pd', 'data', 'frame'], ['frame'])
    """
    if word.isalpha() and word.islower():
        return [word]
    parts = [_lower(part) for part in PARTS.split(word) if part]
    return [_lower(word), *parts] if len(parts) > 1 else parts


def _lower(text: str) -> str:
    """In lower case. Turkish dotted I becomes i, as in Lucene, not i and a combining dot."""
    return text.replace("\u0130", "i").lower()


ANALYSERS: dict[str, Callable[[str], list[str]]] = {
    "english": english_words,
    "unicode": unicode_words,
    "code": code_words,
}


class Words(dict[str, int]):
    """The number of each word of an analyser; -1 for a stop word. A new word gets a number.

    Words with the same stem have the same number. Memory: about 200 bytes a distinct word.
    """

    def __init__(self, settings: Bm25) -> None:
        """`settings`: the analyser, the stemmer, and whether stop words are left out."""
        self.split = ANALYSERS[settings.analyser]
        self.english = settings.analyser != "unicode"
        drop = self.english if settings.stop_words is None else settings.stop_words
        self.stop_words = STOP_WORDS if drop else frozenset()
        self.stem = _stemmer(settings.stemmer or ("porter" if self.english else "none"))
        self.stems: dict[str, int] = {}

    def __missing__(self, word: str) -> int:
        bare = word[:-2] if self.english and word.endswith(POSSESSIVES) else word
        number = -1 if bare in self.stop_words else self.stems.setdefault(self.stem(bare), len(self.stems))
        self[word] = number
        return number

    def read(self, texts: Iterable[str]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Numbers of all words of n texts, text by text, and the number of words of each text [n]."""
        numbers, ends = array("i"), array("q", [0])
        for text in texts:
            numbers.extend(map(self.__getitem__, self.split(text)))
            ends.append(len(numbers))
        found = np.frombuffer(numbers, np.int32) if numbers else np.empty(0, np.int32)
        kept = found >= 0
        before = np.concatenate([[0], np.cumsum(kept)])
        return found[kept], np.diff(before[np.frombuffer(ends, np.int64)]).astype(np.int32)

    def each(self, texts: list[str]) -> list[NDArray[np.int32]]:
        """Numbers of the words of each text."""
        numbers, counts = self.read(texts)
        return np.split(numbers, np.cumsum(counts)[:-1])


def _stemmer(name: str) -> Callable[[str], str]:
    import Stemmer

    if name == "none":
        return str
    stem: Callable[[str], str] = Stemmer.Stemmer(name, 0).stemWord  # 0: no cache, each word is stemmed once
    return (lambda word: _lucene_porter(word, stem)) if name == "porter" else stem


# Porter's m > 0: somewhere a consonant follows a vowel; y is a vowel after a consonant
MEASURED = re.compile(r".*?(?:[aeiou]|(?<=[^aeiou])y).*?(?:[^aeiouy]|(?<=[aeiou])y)")
BLI_LOGI = re.compile(r"(.+)(bl|log)(?:y|i|ies)")


def _lucene_porter(word: str, stem: Callable[[str], str]) -> str:
    """Lucene's stem of a word, from Snowball's `porter`, which follows the published rules.

    Lucene, like Porter's programs, does not change words of one and two letters. Its step 2 turns `bli` into `ble` and
    `logi` into `log`, so `possibly` equals `possible`, and `technology` equals `technological`.
    """
    if len(word) < 3:
        return word
    match = BLI_LOGI.fullmatch(word)
    if match and MEASURED.match(match[1]):
        word = match[1] + ("ble" if match[2] == "bl" else "log")
    return stem(word)
