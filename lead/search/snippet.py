"""The part of a passage that shows why it was found, with the query's words marked."""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass
from functools import cache

import regex

from lead.config.lists import Bm25
from lead.retrieval.words import Words

READ = 20_000  # characters of a passage that are looked at
MATCHES = 300  # words of the query found there, at most
BEFORE = 40  # characters shown before the first of them
WORD = regex.compile(r"[\p{Han}\p{Hiragana}]\p{M}*|[\w\p{M}]+")
RULE = re.compile(r"(?<!\S)[-=~^*_#+.]{3,}(?!\S)")  # lines that are drawn under headings and around tables
JOINERS = "\u200c\u200d"  # of Persian words, Indic letters and emoji


@dataclass(frozen=True)
class Snippet:
    """A part of a passage on one line. marks: where the query's words are, [start, end) in `text`, ascending.

    whole: whether it is all of the passage, but for line breaks and blanks.
    """

    text: str
    marks: list[tuple[int, int]]
    whole: bool

    def parts(self) -> list[tuple[str, bool]]:
        """The text in pieces, and whether each is a word of the query."""
        found, at = [], 0
        for start, end in self.marks:
            found += [(self.text[at:start], False), (self.text[start:end], True)]
            at = end
        return [part for part in [*found, (self.text[at:], False)] if part[0]]


class Marker:
    """Finds the words of a query in passages, as BM25 counts them: `reading` finds `read`, stop words are none."""

    def __init__(self, settings: Bm25) -> None:
        """`settings`: those of BM25 on the dataset."""
        self.words = Words(settings)

    def snippet(self, query: str, text: str, size: int = 240) -> Snippet:
        """About `size` characters of a passage, those with most of the query's different words."""
        line = one_line(RULE.sub(" ", text[:READ]))
        wanted = self._numbers(query)
        numbers = cache(self._numbers)
        found = [(m.start(), m.end(), n) for m in WORD.finditer(line) if (n := numbers(m[0]) & wanted)][:MATCHES]
        start, end = _window([s for s, _, _ in found], [n for _, _, n in found], len(line), size)
        if start:  # whole words only
            start = line.find(" ", start, start + BEFORE) + 1 or start
        if end < len(line):
            end = max(line.rfind(" ", start, end), start) or end
            end = end if end > start else min(start + size, len(line))
        before, after = "… " if start else "", " …" if end < len(line) or len(text) > READ else ""
        shift = len(before) - start
        marks = [(s + shift, min(e, end) + shift) for s, e, _ in found if start <= s < end]
        return Snippet(before + line[start:end] + after, marks, not before and not after and line == one_line(text))

    def _numbers(self, text: str) -> set[int]:
        return set(self.words.read([text])[0].tolist())


def _window(starts: list[int], words: list[set[int]], length: int, size: int) -> tuple[int, int]:
    """Start and end of the `size` characters of a line with most different words; of equals the first."""
    best, at = (0, 0), 0
    for first, begin in enumerate(starts):
        last = bisect_left(starts, begin - BEFORE + size)
        score = len(set().union(*words[first:last])), last - first
        if score > best:
            best, at = score, begin
    if at + BEFORE < size:  # it fits beside the beginning
        at = 0
    return max(0, at - BEFORE), min(length, max(0, at - BEFORE) + size)


def one_line(text: str) -> str:
    """A text on one line without anything that a terminal obeys: control characters and direction marks are blanks."""
    shown = text if text.isprintable() else "".join(c if c.isprintable() or c in JOINERS else " " for c in text)
    return re.sub(r"\s+", " ", shown).strip()
