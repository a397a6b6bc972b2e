"""Words of a text as Lucene's EnglishAnalyzer finds them: what BM25 counts.

Texts are split where Unicode's annex 29 splits words, lower-cased, freed of possessives and of Lucene's 33 English stop
words, and stemmed by Porter's algorithm as Lucene has it. Compared with Lucene 9.9.1 on 2.9 million words
(docs/scale.md), what differs is ideographs and superscript digits.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from lead.config.schema import Bm25

STOP_WORDS = frozenset(
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they this "
    "to was will with".split()
)
POSSESSIVES = ("'s", "\u2019s", "\uff07s")
# Letters, digits and underscores, at least one of them no underscore. An apostrophe, dot, colon or middle dot between
# two letters is inside a word, and so is an apostrophe, dot, comma or semicolon between two digits.
WORD = re.compile(
    r"(?<!_)_*[^\W_]\w*"
    r"(?:(?:(?<=[^\W\d_])[.:'\u2018\u2019\xb7\u2027](?=[^\W\d_])|(?<=\d)[.,;'\u2018\u2019](?=\d))\w+)*"
)


class Words(dict[str, int]):
    """The number of each word as it stands in a lower-cased text; -1: a stop word. A new word is given a number.

    Words of the same stem have the same number. Memory: about 200 bytes a distinct word.
    """

    def __init__(self, settings: Bm25) -> None:
        """`settings`: which stemmer, and whether stop words are left out."""
        self.stop_words = STOP_WORDS if settings.stop_words else frozenset()
        self.stem = _stemmer(settings.stemmer)
        self.stems: dict[str, int] = {}

    def __missing__(self, word: str) -> int:
        bare = word[:-2] if word.endswith(POSSESSIVES) else word
        number = -1 if bare in self.stop_words else self.stems.setdefault(self.stem(bare), len(self.stems))
        self[word] = number
        return number

    def read(self, texts: Iterable[str]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Numbers of all words of n texts, one text after the other, and how many words each has [n]."""
        numbers, ends = array("i"), array("q", [0])
        for text in texts:
            numbers.extend(map(self.__getitem__, WORD.findall(text.lower())))
            ends.append(len(numbers))
        found = np.frombuffer(numbers, np.int32) if numbers else np.empty(0, np.int32)
        kept = found >= 0
        before = np.concatenate([[0], np.cumsum(kept)])
        return found[kept], np.diff(before[np.frombuffer(ends, np.int64)]).astype(np.int32)


def _stemmer(name: str) -> Callable[[str], str]:
    import Stemmer

    if name == "none":
        return str
    stem: Callable[[str], str] = Stemmer.Stemmer(name, 0).stemWord  # 0: no cache, each word is asked for once
    return (lambda word: _lucene_porter(word, stem)) if name == "porter" else stem


# Porter's m > 0: somewhere a consonant follows a vowel; y is a vowel after a consonant
MEASURED = re.compile(r".*?(?:[aeiou]|(?<=[^aeiou])y).*?(?:[^aeiouy]|(?<=[aeiou])y)")
BLI_LOGI = re.compile(r"(.+)(bl|log)(?:y|i|ies)")


def _lucene_porter(word: str, stem: Callable[[str], str]) -> str:
    """Lucene's stem of a word, by Snowball's `porter`, which keeps to the published rules.

    Lucene, like Porter's own programs, leaves words of one and two letters alone, and its step 2 makes `bli` to `ble`
    and `logi` to `log`: `possibly` meets `possible`, and `technology` `technological`.
    """
    if len(word) < 3:
        return word
    match = BLI_LOGI.fullmatch(word)
    if match and MEASURED.match(match[1]):
        word = match[1] + ("ble" if match[2] == "bl" else "log")
    return stem(word)
