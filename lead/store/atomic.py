"""Outputs appear whole or not at all: written beside their final place, flushed to disk, and renamed."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from lead.errors import LeadError
from lead.store.checksums import MANIFEST, sha256
from lead.store.provenance import FILE, current, dumps


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _beside(path: Path, folder: bool) -> Iterator[Path]:
    """A temporary file or folder beside `path`, locked while it is in use, and gone afterwards.

    What killed processes have left of theirs for the same path, which nobody has locked any more, is removed first.
    """
    prefix, suffix = f".{path.name}.", ".tmp"
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f"{glob.escape(prefix)}*{suffix}"):
        with contextlib.suppress(OSError), _locked(left):  # a lock that somebody holds, or no locks on this file system
            _remove(left)
    while True:
        temporary, lock = _new(path.parent, prefix, suffix, folder), contextlib.ExitStack()
        with contextlib.suppress(OSError):  # no locks on this file system
            lock.enter_context(_locked(temporary, wait=True))
        if temporary.exists():
            break
        lock.close()  # before it was locked another process took it for what a killed one had left, and removed it
    try:
        with lock:
            yield temporary
    finally:
        _remove(temporary)


def _new(parent: Path, prefix: str, suffix: str, folder: bool) -> Path:
    """An empty file or folder in `parent` with a name of its own."""
    if folder:
        return Path(tempfile.mkdtemp(prefix=prefix, suffix=suffix, dir=parent))
    fd, name = tempfile.mkstemp(prefix=prefix, suffix=suffix, dir=parent)
    os.close(fd)
    return Path(name)


@contextlib.contextmanager
def _locked(path: Path, wait: bool = False) -> Iterator[None]:
    """Hold the lock of a file or folder; the system gives it back when the process dies.

    OSError if it is taken, unless it is waited for.
    """
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(fd)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """What the file system refuses, and safetensors' word for it, as a LeadError that names the output."""
    try:
        yield
    except (OSError, SafetensorError) as e:
        reason = getattr(e, "strerror", None) or str(e)
        raise LeadError(f"cannot write {path}: {' '.join(reason.split())}") from e


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`, which takes its place (fsync, rename) when the block succeeds."""
    path = Path(path)
    with _one_line(path), _beside(path, folder=False) as temporary:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        _fsync(temporary)
        os.replace(temporary, path)
        _fsync(path.parent)


@contextlib.contextmanager
def scratch_file(path: str | Path) -> Iterator[Path]:
    """A file with a name of its own beside `path`, gone when the block ends; what killed processes left goes before."""
    path = Path(path)
    with _one_line(path), _beside(path, folder=False) as temporary:
        yield temporary


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """A temporary folder beside `path` that replaces it, with a manifest of checksums, when the block succeeds.

    Raises LeadError rather than replace anything that was not written this way.
    """
    path = Path(path)
    check_replaceable(path)
    with _one_line(path), _beside(path, folder=True) as temporary:
        yield temporary
        if record := current():
            (temporary / FILE).write_text(dumps(record), encoding="utf-8")
        files = sorted(p for p in temporary.rglob("*") if p.is_file())
        manifest = {str(p.relative_to(temporary)): sha256(p) for p in files}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        for p in [*files, temporary / MANIFEST, temporary]:
            _fsync(p)
        temporary.chmod(0o755)
        with _beside(path, folder=True) as old:  # a kill leaves the old folder, none, or the new one: never a part
            if path.exists():
                os.replace(path, old)
            os.replace(temporary, path)
        _fsync(path.parent)


def check_replaceable(path: Path) -> None:
    """Refuse an output folder that holds what lead did not write there. Raises LeadError."""
    ours = (path / MANIFEST).is_file()
    if path.exists() and not ours and (not path.is_dir() or any(path.iterdir())):
        raise LeadError(f"cannot write {path}: it exists and was not written by lead; give another path")
