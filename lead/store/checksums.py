"""SHA-256 checksums of artifacts: of any file, of a folder (a list in the format of `sha256sum`), of a Parquet file.

Parquet has checksums only for the bodies of its pages. Its footer holds the type and place of every column, and has no
checksum. So lead adds 72 bytes between the pages and the footer, where other readers do not look:

    pages | "LEADSEAL" | P = SHA-256 of the pages | F = SHA-256 of P and the footer | footer | length | "PAR1"

F is checked whenever a file is opened. This takes microseconds at any size of the file. F depends on every byte, so it
also identifies the content. `lead verify` checks P. docs/design.md says why the checksum is not in another file.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import IO

from lead.errors import LeadError

MANIFEST = "SHA256SUMS"  # of a folder: `sha256sum -c SHA256SUMS` checks it
CARD = "README.md"  # of a folder: people may edit it, so it has no checksum
MAGIC = b"LEADSEAL"
SIZE = len(MAGIC) + 2 * 32
BLOCK = 1 << 22  # bytes read at a time


def sha256(path: str | Path) -> str:
    """SHA-256 of a file, or of a folder's list of checksums, in hex. Raises LeadError."""
    path = Path(path)
    try:
        with (path / MANIFEST if path.is_dir() else path).open("rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()
    except (OSError, ValueError) as e:  # ValueError: NUL in a name
        raise LeadError(f"cannot read {path}: {getattr(e, 'strerror', None) or e}") from e


def identity(path: Path) -> str:
    """Checksum of an artifact's content: F of a Parquet file of lead, else `sha256`. Raises LeadError."""
    try:
        return (None if path.is_dir() else read_checksum(path)) or sha256(path)
    except (OSError, ValueError) as e:
        raise LeadError(f"cannot read {path}: {getattr(e, 'strerror', None) or e}") from e


# --- folders ---------------------------------------------------------------------------------------------------------
def write_manifest(folder: Path) -> list[Path]:
    """Write the checksums of all files in a folder but its README.md, and return all files."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / MANIFEST)
    lines = [f"{sha256(p)}  {p.relative_to(folder).as_posix()}\n" for p in files if p != folder / CARD]
    (folder / MANIFEST).write_text("".join(lines), encoding="utf-8")
    return files


def check_folder(path: str | Path) -> Path:
    """`path`, if every file in its list of checksums exists unchanged. Raises LeadError.

    Files that are not in the list are ignored.
    """
    path = Path(path)
    try:
        lines = (path / MANIFEST).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise LeadError(
            f"{path} is not a folder written by lead (no {MANIFEST}); rerun the stage that makes it"
        ) from None
    except (OSError, ValueError) as e:
        raise LeadError(f"{path / MANIFEST} cannot be read ({e}); delete {path} and rerun its stage") from e
    entries = [line.partition("  ") for line in lines]
    if not entries or not all(name for _, _, name in entries):
        raise LeadError(f"{path / MANIFEST} cannot be read (not lines of sha256sum); delete {path} and rerun its stage")
    for expected, _, name in entries:
        if not (path / name).is_file() or sha256(path / name) != expected:
            raise LeadError(f"{path / name} is missing or damaged (checksum); delete {path} and rerun its stage")
    return path


# --- Parquet ---------------------------------------------------------------------------------------------------------
def write_checksum(path: Path) -> None:
    """Put the checksums into a Parquet file that was just written. Reads the file once."""
    with path.open("r+b") as f:
        start, _, footer = _tail(f)
        pages = _sum_of(f, start)
        f.seek(start)
        f.write(MAGIC + pages + hashlib.sha256(pages + footer).digest() + footer)


def read_checksum(path: Path) -> str | None:
    """F of a Parquet file in hex, after a check against P and the footer. None for a file without F: not made by lead.

    Raises LeadError if the footer has changed since it was written.
    """
    with path.open("rb") as f:
        _, sums, footer = _tail(f)
    if not sums.startswith(MAGIC):
        return None
    pages, expected = sums[-64:-32], sums[-32:]
    if hashlib.sha256(pages + footer).digest() != expected:
        raise LeadError(f"{path} is damaged: its footer is not what was written; delete it and rerun its stage")
    return expected.hex()


def check_pages(path: Path) -> None:
    """Compare every byte of a Parquet file with its checksums. Raises LeadError if they differ or are missing."""
    if read_checksum(path) is None:
        raise LeadError(
            f"{path} has no checksum: damaged, or not written by lead; if a stage makes it, rerun that stage"
        )
    with path.open("rb") as f:
        start, sums, _ = _tail(f)
        if _sum_of(f, start - SIZE) != sums[-64:-32]:
            raise LeadError(f"{path} is damaged: its pages are not what was written; delete it and rerun its stage")


def _tail(f: IO[bytes]) -> tuple[int, bytes, bytes]:
    """Offset of a Parquet file's footer, the 72 bytes before it, and the bytes from the footer to the end.

    Both are empty if the file does not end like a Parquet file.
    """
    size = f.seek(0, os.SEEK_END)
    f.seek(max(0, size - 8))
    end = f.read()
    start = size - 8 - int.from_bytes(end[:4], "little")
    if start < 0 or end[4:] != b"PAR1":
        return size, b"", b""
    f.seek(max(0, start - SIZE))
    return start, f.read(min(start, SIZE)), f.read()


def _sum_of(f: IO[bytes], size: int) -> bytes:
    """SHA-256 of the first `size` bytes."""
    digest = hashlib.sha256()
    f.seek(0)
    for done in range(0, size, BLOCK):
        digest.update(f.read(min(BLOCK, size - done)))
    return digest.digest()
