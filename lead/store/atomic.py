"""Outputs appear whole or not at all. They are written under a temporary name, flushed to disk and renamed."""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from lead.errors import LeadError
from lead.store.checksums import MANIFEST, write_manifest
from lead.store.provenance import FILE, current, dumps


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _temporary(path: Path, folder: bool = False) -> Iterator[Path]:
    """A new file or folder beside `path`; it is removed at the end.

    First it removes the temporary files of killed processes beside this path. Only one process should write a path at
    a time. If another process is writing it now, that process loses its temporary file and fails with one line.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        _remove(left)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    if folder:
        temporary.mkdir()
    else:
        temporary.touch(exist_ok=False)
    try:
        yield temporary
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        with contextlib.suppress(OSError):  # renamed first: a process that still writes into it fails
            path = path.rename(path.with_suffix(f".{secrets.token_hex(4)}.tmp"))
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """Errors of the file system and of safetensors as a LeadError that names the output."""
    try:
        yield
    except (OSError, SafetensorError) as e:
        reason = getattr(e, "strerror", None) or str(e)
        raise LeadError(f"cannot write {path}: {' '.join(reason.split())}") from e


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`; it takes the place of `path` when the block succeeds."""
    path = Path(path)
    with _one_line(path), _temporary(path) as temporary:
        mode = temporary.stat().st_mode & 0o777
        yield temporary
        temporary.chmod(mode)  # safetensors makes files that only the owner can read
        _fsync(temporary)
        os.replace(temporary, path)
        _fsync(path.parent)


@contextlib.contextmanager
def scratch_file(path: str | Path) -> Iterator[Path]:
    """A new file beside `path`, removed when the block ends."""
    path = Path(path)
    with _one_line(path), _temporary(path) as temporary:
        yield temporary


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """A temporary folder beside `path`; it takes the place of `path`, with checksums, when the block succeeds.

    Raises LeadError if `path` exists and was not written this way.
    """
    path = Path(path)
    check_replaceable(path)
    with _one_line(path), _temporary(path, folder=True) as temporary:
        yield temporary
        if record := current():
            (temporary / FILE).write_text(dumps(record), encoding="utf-8")
        for file in (files := write_manifest(temporary)):
            shutil.copymode(temporary / MANIFEST, file)  # as in atomic_file
        for p in [*files, temporary / MANIFEST, temporary]:
            _fsync(p)
        old = temporary.with_suffix(".old.tmp")
        try:  # after a kill there is the old folder, none, or the new one, never a part
            if path.exists():
                os.replace(path, old)
            os.replace(temporary, path)
        finally:
            _remove(old)
        _fsync(path.parent)


def check_replaceable(path: Path) -> None:
    """Raises LeadError if the output folder holds something that lead did not write, or is the one we are in."""
    if not path.name:
        raise LeadError(f"cannot write {path}: give the name of a folder that lead may replace")
    ours = (path / MANIFEST).is_file()
    if path.exists() and not ours and (not path.is_dir() or any(path.iterdir())):
        raise LeadError(f"cannot write {path}: it exists and was not written by lead; give another path")
