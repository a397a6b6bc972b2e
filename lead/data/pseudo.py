"""Pseudo-queries: train queries that are drawn from the corpus itself, where nobody has judged any.

A query's source passage is relevant to it. So is every other passage that holds its words in this order: a copy, a near
copy, another part of the same document. It is masked like any relevant passage, and never a negative. Passages stay as
they are, with the words of their queries in them, as with the crops of Contriever (Izacard et al. 2021): the inverse
cloze task (Lee et al. 2019) removes them from most passages, but an index holds whole passages.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import random
import re
from collections.abc import Callable, Iterable
from typing import Any

import pyarrow as pa

from lead.data.collection import Split, hash64
from lead.data.copies import query_form
from lead.errors import LeadError
from lead.store.tables import SCHEMAS

log = logging.getLogger("lead")

HAN = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"  # Chinese and Japanese: each character counts as a word
SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])\s*|\n\s*\n")  # where one ends
PIECE = re.compile(rf"[{HAN}]|[^\s{HAN}]+")  # a word with its punctuation
WORD = re.compile(rf"[{HAN}]|[^\W{HAN}]+")
LEAST = 4  # words of a sentence or crop
LONGEST = 20  # words of a crop
LENGTHY = 40  # words of a sentence, at most
MOST = 20  # passages that a query may be relevant to: one that occurs in more says nothing
FIRST = 3  # words of a query that are looked up in every passage
Texts = Callable[[], Iterable[tuple[str, str]]]  # (pid, text) of every passage, in the order of the corpus


def pseudo_queries(queries: Any, passages: Texts, titles: Texts | None, relevance: int) -> tuple[Split, dict[str, Any]]:
    """At most `queries.number` train queries, one a passage, and facts for the report. `queries`: `PseudoQueries`.

    Which passages are drawn, and what of them, depends on the seed and their ids, not on the order of the corpus. Two
    passes over the corpus. Memory: the queries and their judgements. Raises LeadError where no passage gives a query.
    """
    way = getattr(queries, "from")
    if way == "titles" and titles is None:
        raise LeadError("queries.from: titles: passages of this source have no titles; use sentences or crops")
    drawn = _draw(queries.number, queries.seed, way, passages(), titles() if way == "titles" and titles else None)
    if way == "crops" and len(drawn) < min(2, queries.number):  # a corpus of names: half of the words of each
        drawn = _draw(queries.number, queries.seed, way, passages(), None, least=1)
    texts = {form: (pid, text) for form, pid, text in drawn}
    holders = _holders(texts, passages())
    kept = {form: (pid, text) for form, (pid, text) in texts.items() if len(holders[form]) <= MOST}
    if not kept:
        raise LeadError(f"queries.from: {way}: no passage gives a query; use another of titles, sentences and crops")
    qids = {form: f"pseudo-{pid}" for form, (pid, _) in kept.items()}
    judged = [(qids[form], pid, relevance) for form, (own, _) in kept.items() for pid in sorted({own, *holders[form]})]
    columns = list(map(list, zip(*judged, strict=True)))
    facts = {
        "from": way,
        "queries": len(kept),
        "judgements": len(judged),
        "in_too_many_passages": len(texts) - len(kept),
    }
    log.info("train: %s queries drawn from the corpus (%s)", f"{len(kept):,}", way)
    split = Split(
        pa.table([list(qids.values()), [text for _, text in kept.values()]], schema=SCHEMAS["queries"]),
        pa.table(columns, schema=SCHEMAS["qrels"]),
    )
    return split, facts


def fitting(passages: Iterable[tuple[str, str]]) -> tuple[str, str]:
    """Which `from` fits these passages (title, text), and why, for people.

    Titles, if at least half of the passages have one of `LEAST` words or more; else sentences, if half have one that is
    not the whole passage; else crops.

    >>> fitting([("", "One sentence of five words. And here is another one.")])[0], fitting([("", "a b c d e")])[0]
    ('sentences', 'crops')
    """
    titles = sentences = n = 0
    for title, text in passages:
        n += 1
        titles += len(PIECE.findall(title)) >= LEAST and bool(_title(text, title))
        sentences += bool(_part("sentences", text, random.Random(0)))
    if 2 * titles >= n > 0:
        return "titles", f"{titles / n:.0%} of the passages have a title of {LEAST} words or more"
    if 2 * sentences >= n > 0:
        return "sentences", f"{sentences / n:.0%} of the passages have a sentence of {LEAST} to {LENGTHY} words"
    return "crops", "few passages have telling titles or sentences"


def _draw(
    number: int,
    seed: int,
    way: str,
    passages: Iterable[tuple[str, str]],
    titles: Iterable[tuple[str, str]] | None,
    least: int = LEAST,
) -> list[tuple[str, str, str]]:
    """(form, pid, text) of the queries of the passages with the smallest hashes; of equal queries the first.

    least: words of a crop.
    """
    kept: dict[str, tuple[int, str, str]] = {}  # form -> hash, pid, text
    heap: list[tuple[int, str]] = []  # (-hash, form): the largest hash first
    named = itertools.repeat(("", "")) if titles is None else titles
    for (pid, text), (_, title) in zip(passages, named, strict=False):
        value = hash64(f"{seed}:{pid}")
        if len(kept) >= number and value >= -heap[0][0]:
            continue
        found = _title(text, title) if way == "titles" else _part(way, text, random.Random(value), least)
        form = query_form(found)
        if not form or (form in kept and kept[form][0] <= value):
            continue
        kept[form] = value, pid, found
        heapq.heappush(heap, (-value, form))
        while len(kept) > number or kept.get(heap[0][1], (None,))[0] != -heap[0][0]:
            value, form = heapq.heappop(heap)
            if kept.get(form, (None,))[0] == -value:
                del kept[form]
    return [(form, pid, text) for form, (_, pid, text) in sorted(kept.items(), key=lambda item: item[1])]


def _title(text: str, title: str) -> str:
    """The title of a passage, unless it is the whole of it."""
    return "" if query_form(title) == query_form(text) else title.strip()


def _part(way: str, text: str, rng: random.Random, least: int = LEAST) -> str:
    """A sentence or a crop of a passage, not the whole of it; empty where there is none."""
    words = [match.span() for match in PIECE.finditer(text)]
    if way == "crops":
        longest = min(LONGEST, len(words) // 2)
        if longest < least:
            return ""
        size = rng.randint(min(LEAST, longest), longest)
        start = rng.randrange(len(words) - size + 1)
        return " ".join(text[words[start][0] : words[start + size - 1][1]].split())
    sentences = [(s, len(PIECE.findall(s))) for s in SENTENCE.split(text.strip())]
    rest = [s for s, n in sentences if LEAST <= n <= LENGTHY and n < len(words)]
    return " ".join(rng.choice(rest).split()) if rest else ""


def _holders(queries: Iterable[str], passages: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """The passages that hold the words of each of these queries in its order; MOST + 1 where there are more."""
    found: dict[str, list[str]] = {form: [] for form in queries}
    firsts: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for form in found:
        words = WORD.findall(form)
        firsts.setdefault(tuple(words[:FIRST]), []).append((form, f" {' '.join(words)} "))
    sizes = sorted({len(first) for first in firsts})
    for pid, text in passages:
        words = WORD.findall(query_form(text))
        seen = {words_ for size in sizes for words_ in zip(*(words[i:] for i in range(size)), strict=False)}
        padded = f" {' '.join(words)} "
        for first in seen & firsts.keys():
            for form, query in firsts[first]:
                if len(found[form]) <= MOST and query in padded:
                    found[form].append(pid)
    return found
