"""The metrics of a training: JSON lines, appended while it runs, so that a long training shows its curve."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from lead.errors import LeadError
from lead.store.atomic import atomic_file

log = logging.getLogger("lead")


class Metrics:
    """A file of JSON lines: one for each step (`loss`, `lr`, ..) and one for each evaluation on dev (`dev_mrr10`).

    A line is with the operating system as soon as it is appended. Memory: no line is kept.
    """

    def __init__(self, path: Path) -> None:
        """`path`: beside the checkpoints. Nothing is opened before `resume`."""
        self.path = path
        self._file: IO[bytes] | None = None

    def resume(self, step: int) -> None:
        """Keep the lines up to this step (-1: none) and append after them. Later lines and a partial one go."""
        self.close()
        with self._one_line():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            kept = last = 0
            with self.path.open("ab+") as file:
                file.seek(0)
                for line in file:
                    number = _step(line)
                    if number is None or number > step:
                        break
                    kept, last = kept + len(line), number
                file.truncate(kept)
            self._file = self.path.open("ab", buffering=0)
        if last < step:
            log.warning(
                "%s ends at step %d, the checkpoint is of step %d: the lines between are lost", self.path, last, step
            )

    def append(self, line: dict[str, Any]) -> None:
        """Write one line. Raises LeadError when the disk is full."""
        assert self._file is not None
        data = json.dumps(line).encode() + b"\n"
        with self._one_line():
            if self._file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def sync(self) -> None:
        """Bring all lines to the disk: a checkpoint must not outlive its metrics."""
        assert self._file is not None
        with self._one_line():
            os.fsync(self._file.fileno())

    def publish(self, path: Path) -> None:
        """Copy the file to its declared place, whole or not at all."""
        with atomic_file(path) as temporary:
            shutil.copyfile(self.path, temporary)

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    @contextlib.contextmanager
    def _one_line(self) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            raise LeadError(f"cannot write {self.path}: {e.strerror}") from e


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Each line of a training's metrics; one that a kill left half written is skipped."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            try:
                value = json.loads(line)
            except ValueError:
                continue
            yield value


def _step(line: bytes) -> int | None:
    """The step of a whole line; None for a partial or damaged one."""
    try:
        value = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    step = value.get("step") if isinstance(value, dict) else None
    return step if isinstance(step, int) else None
