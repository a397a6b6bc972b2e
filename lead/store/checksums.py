"""Sums of artifacts; above all the seal of a Parquet file, in a place where Parquet's readers do not look.

Parquet's own checksums are of page bodies. The headers of the pages and the footer, which says what every byte of the
file is, have none. A seal stands between pages and footer, which readers find by offsets and by its length:

    pages | "LEADSEAL" | SHA-256 of the pages | SHA-256 of that and of the footer | footer | length | "PAR1"

The second sum is checked whenever a file is opened, for microseconds: with the checksums of page bodies it leaves page
headers, whose damage ends in an error (tests/test_seal.py), to `check_pages`. It depends on every byte of the file, and
so is its name wherever something records what it was made from.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import IO

from lead.errors import LeadError

MAGIC = b"LEADSEAL"
SUM = hashlib.sha256().digest_size
SIZE = len(MAGIC) + 2 * SUM
MANIFEST = "manifest.json"  # of a folder: the sums of its files
TAIL = 8  # length of the footer in four bytes, "PAR1"


def identity(path: Path) -> str:
    """Sum of an artifact's content: a Parquet file's seal, a folder's manifest's sum, another file's own. LeadError."""
    try:
        return (None if path.is_dir() else read_checksum(path)) or sha256(path)
    except (OSError, ValueError) as e:  # ValueError: NUL in a name
        raise LeadError(f"cannot read {path}: {getattr(e, 'strerror', None) or e}") from e


def sha256(path: str | Path) -> str:
    """SHA-256 of a file, or of a folder's manifest (which holds its files' sums), in hex. Raises LeadError."""
    path = Path(path)
    try:
        with (path / MANIFEST if path.is_dir() else path).open("rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()
    except (OSError, ValueError) as e:  # ValueError: NUL in a name
        raise LeadError(f"cannot read {path}: {getattr(e, 'strerror', None) or e}") from e


def write_checksum(path: Path) -> None:
    """Seal a Parquet file that was just written. Reads it once."""
    with path.open("r+b") as f:
        start = _footer_start(f)
        assert start is not None
        pages = _sum_of(f, start)
        footer = f.read()
        f.seek(start)
        f.write(MAGIC + pages + hashlib.sha256(pages + footer).digest() + footer)


def read_checksum(path: Path) -> str | None:
    """The seal in hex, checked against the footer; None for a file that has none: a foreign one, or not Parquet.

    Raises LeadError for a file whose footer is not the one that was sealed.
    """
    with path.open("rb") as f:
        found = _seal(f)
        if found is None:
            return None
        _, pages, seal = found
        if hashlib.sha256(pages + f.read()).digest() != seal:
            raise LeadError(f"{path} is damaged: its footer is not what was written; delete it and rerun its stage")
        return seal.hex()


def check_pages(path: Path) -> None:
    """Compare every byte before the seal with it. Raises LeadError where they differ, or where there is no seal."""
    if read_checksum(path) is None:
        raise LeadError(f"{path} has no seal: damaged, or not written by lead; delete it and rerun its stage")
    with path.open("rb") as f:
        found = _seal(f)
        assert found is not None
        start, pages, _ = found
        if _sum_of(f, start) != pages:
            raise LeadError(f"{path} is damaged: its pages are not what was written; delete it and rerun its stage")


def _seal(f: IO[bytes]) -> tuple[int, bytes, bytes] | None:
    """Where the pages end, their sum, and the seal; `f` is left at the footer."""
    start = _footer_start(f)
    if start is None or start < SIZE:
        return None
    f.seek(start - SIZE)
    magic, pages, seal = f.read(len(MAGIC)), f.read(SUM), f.read(SUM)
    return (start - SIZE, pages, seal) if magic == MAGIC else None


def _footer_start(f: IO[bytes]) -> int | None:
    """Offset of the footer, None where the file does not end as Parquet does."""
    size = f.seek(0, os.SEEK_END)
    if size < TAIL:
        return None
    f.seek(size - TAIL)
    tail = f.read(TAIL)
    start = size - TAIL - int.from_bytes(tail[:4], "little")
    return start if tail.endswith(b"PAR1") and start > 0 else None


def _sum_of(f: IO[bytes], size: int) -> bytes:
    """SHA-256 of the first `size` bytes; `f` is left after them."""
    f.seek(0)
    digest = hashlib.sha256()
    while size and (block := f.read(min(size, 1 << 22))):
        digest.update(block)
        size -= len(block)
    return digest.digest()
