"""Which texts are equal: passages for masks, mining and checks, queries for leaks. Texts are compared, not ids."""

from __future__ import annotations

import functools
import unicodedata

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

HANGUL_FILLERS = "\u115f\u1160\u3164\uffa0"  # letters in Unicode, but invisible


@functools.cache
def invisible() -> str:
    """All invisible characters: white space, control and format characters (zero-width space, BOM), fillers."""
    codes = [*range(0x10000), *range(0xE0000, 0xE0080)]  # the basic plane, and tags
    return HANGUL_FILLERS + "".join(
        c for c in map(chr, codes) if c.isspace() or unicodedata.category(c) in ("Cc", "Cf")
    )


def passage_form(text: str) -> str:
    """The form in which equal passages agree: Unicode's NFC, without invisible characters at both ends.

    It is empty for a text without visible characters.
    """
    if text.isascii() and "!" <= text[:1] <= "~" and "!" <= text[-1:] <= "~":
        return text  # most texts of most collections
    return unicodedata.normalize("NFC", text).strip(invisible())


def query_form(text: str) -> str:
    """The form in which equal queries agree: as for passages, but without differences of case and white space."""
    folded = unicodedata.normalize("NFC", passage_form(text).casefold())
    return " ".join(folded.split())


def first_rows(hashes: NDArray[np.int64] | NDArray[np.uint64]) -> NDArray[np.int64]:
    """For each of `hashes` [n], the first row with the same hash [n]."""
    order = np.argsort(hashes, kind="stable")  # stable: of equal hashes the first row comes first
    new = np.ones(len(order), dtype=bool)
    new[1:] = hashes[order[1:]] != hashes[order[:-1]]
    first = np.empty(len(order), np.int64)
    first[order] = order[new][np.cumsum(new) - 1]
    return first


def same_text(texts: pa.ChunkedArray) -> NDArray[np.int64]:
    """The group of each passage [n]: the row of the first passage with the same text (`passage_form`).

    Rows a and b hold the same text if group[a] == group[b]. Texts are read 4,096 at a time, so a mapped corpus stays
    on disk. Memory: 8 bytes a passage, and 40 while they are sorted (350 MB for MS MARCO).
    Texts are compared by 64 bits: two of ten million different texts agree by chance with probability 3e-6.
    """
    hashes = np.empty(len(texts), np.int64)
    row = 0
    for chunk in texts.chunks:
        for start in range(0, len(chunk), 4096):
            some = chunk.slice(start, 4096).to_pylist()
            hashes[row : row + len(some)] = [hash(passage_form(text)) for text in some]
            row += len(some)
    return first_rows(hashes)


def repeated(group: NDArray[np.int64]) -> dict[int, NDArray[np.int64]]:
    """The rows of each group that has more than one row."""
    values, counts = np.unique(group, return_counts=True)
    rows = np.flatnonzero(np.isin(group, values[counts > 1]))
    rows = rows[np.argsort(group[rows], kind="stable")]
    parts = np.split(rows, np.cumsum(counts[counts > 1])[:-1])
    return dict(zip(values[counts > 1].tolist(), parts, strict=False))


def rows_with_copies(
    rows: NDArray[np.int64], group: NDArray[np.int64], groups: dict[int, NDArray[np.int64]]
) -> NDArray[np.int64]:
    """`rows`, then all other rows with one of their texts. groups: the result of `repeated`."""
    same = [groups[g] for g in dict.fromkeys(group[rows].tolist()) if g in groups]
    if not same:
        return rows
    others = np.concatenate(same)
    return np.concatenate([rows, others[~np.isin(others, rows)]])
