"""A quick look at files of texts and judgements: what they were taken for, how many rows, how long texts are."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from lead.data.layout import FileKind, Layout, rows
from lead.data.records import PACKED, format_of, lines

SAMPLE = 2000  # rows of a large file that are looked at
SMALL = 64 << 20  # bytes of files that are read whole
TOKENS = 1.35  # of a WordPiece tokenizer a word of English; and the two special ones
UNSPACED = re.compile(
    "[\u2e80-\ud7ff\uf900-\uffef]"
)  # scripts without spaces between words: a character counts as a word
NOT_LATIN = re.compile("[^\x00-\u024f\u2000-\u206f]")


@dataclass(frozen=True)
class Look:
    """What some files hold.

    count: rows; of large files an estimate, unless `exact`. words: of each text looked at, sorted; titles are counted
    in. layout: what the first file was taken for. titled: whether texts have titles. latin: share of Latin characters.
    """

    paths: Sequence[Path]
    count: int
    exact: bool
    words: list[int]
    layout: Layout
    titled: bool = False
    latin: float = 1.0

    def tokens(self, share: float) -> int:
        """About how many tokens this share of the texts have at most."""
        return round(quantile(self.words, share) * TOKENS) + 2

    def mean(self, most: int) -> float:
        """About how many tokens a text has after it was cut to `most`."""
        cut = [min(most, words * TOKENS + 2) for words in self.words]
        return sum(cut) / max(1, len(cut)) if cut else float(most)


def quantile(values: Sequence[int], share: float) -> int:
    """The value that this share of the sorted values does not exceed.

    >>> quantile([1, 2, 3, 4], 0.5), quantile([1, 2, 3, 4], 1.0), quantile([], 0.5)
    (2, 4, 0)
    """
    return values[max(0, -int(-share * len(values) // 1) - 1)] if values else 0


def words_of(text: str) -> int:
    """Words of a text; a character of a script without spaces counts as a word."""
    return len(text.split()) + len(UNSPACED.findall(text))


def look(paths: Sequence[Path], kind: FileKind) -> Look:
    """Look at files that are read one after the other. Raises LeadError with file and line for a malformed row.

    Files below `SMALL` together are read whole. Of others the first `SAMPLE` rows are, which may differ from the rest;
    their number is estimated from bytes.
    """
    layout, words, read, titled, letters, other, size = Layout(), [], 0, False, 0, 0, 0
    whole = sum(path.stat().st_size for path in paths) <= SMALL
    for path in paths:
        for _, row in rows(path, kind, layout) if whole else islice(rows(path, kind, layout), SAMPLE):
            text = " ".join(str(row[key]) for key in ("title", "text") if row.get(key))
            titled = titled or bool(row.get("title"))
            size += sum(len(str(value).encode(errors="replace")) for value in row.values())
            letters, other = letters + len(text), other + len(NOT_LATIN.findall(text))
            words.append(words_of(text))
            read += 1
        if not whole:
            break
    count = read if whole else _count(paths, read, size)
    if len(words) > 20 * SAMPLE:
        words = random.Random(0).sample(words, 20 * SAMPLE)
    return Look(
        paths,
        count,
        whole or format_of(paths[0]) == "parquet",
        sorted(words),
        layout,
        titled,
        1 - other / max(1, letters),
    )


def _count(paths: Sequence[Path], read: int, size: int) -> int:
    """Rows of files, from those of the footer (Parquet), else from the bytes of the rows that were read.

    `size`: bytes of the values that were read, for CSV, whose rows may have several lines.
    """
    if format_of(paths[0]) == "parquet" and paths[0].suffix not in PACKED:
        import pyarrow.parquet as pq

        return sum(pq.read_metadata(path).num_rows for path in paths)
    factor = 3.0 if paths[0].suffix in PACKED else 1.0  # of texts, unpacked
    if format_of(paths[0]) != "csv":
        size = sum(len(line.encode()) + 1 for _, line in islice(lines(paths[0]), read))
    return max(read, round(factor * sum(os.path.getsize(p) for p in paths) / max(1.0, size / max(1, read))))
