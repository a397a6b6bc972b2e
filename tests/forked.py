"""`lead` in a process forked from one that has imported everything: a start of `python -m lead` costs seconds.

The process is real: it is signalled, killed and waited for. Tests of what a start does call the real command.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

PRELOAD = [
    "pytest",
    "hypothesis",
    "torch",
    "transformers.models.auto.modeling_auto",
    "transformers.models.bert.modeling_bert",
    "lead.cli",
    "lead.train.stages",
    "lead.train.fd",
    "lead.train.adore",
    *(f"lead.models.{kind}" for kind in ("dual_encoder", "colbert", "cross_encoder")),
    *(f"lead.methods.{loss}" for loss in ("contrastive", "rd", "lead")),
]
multiprocessing.set_forkserver_preload(PRELOAD)
FORKSERVER = multiprocessing.get_context("forkserver")


def run_ranks(worker: Callable[..., None], arguments: tuple[Any, ...], ranks: int) -> None:
    """Call `worker(rank, *arguments)` in this many such processes. Raises what one of them raises."""
    import torch.multiprocessing as mp

    mp.start_processes(worker, args=arguments, nprocs=ranks, start_method="forkserver")


def _lead(words: list[str], said: str, ignored: list[int]) -> None:
    with open(said, "wb") as stderr:
        os.dup2(stderr.fileno(), 2)
    for number in (signal.SIGINT, signal.SIGHUP):  # as an interactive shell starts it, whatever started the tests
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    from lead.cli import main

    sys.exit(main(words))


class Lead:
    """`lead WORDS`, started with some signals ignored. As a context, it is killed at the end if it still works."""

    def __init__(self, words: list[str], ignored: tuple[int, ...] = ()) -> None:
        handle, name = tempfile.mkstemp(suffix=".stderr")
        os.close(handle)
        self._said = Path(name)
        self.process: BaseProcess = FORKSERVER.Process(target=_lead, args=(words, name, list(ignored)))
        self.process.start()

    @property
    def said(self) -> str:
        """What is in its stderr by now."""
        return self._said.read_text(errors="replace")

    @property
    def status(self) -> int | None:
        """Its exit status, -N if signal N ended it; None while it works."""
        return self.process.exitcode

    def signal(self, number: int) -> None:
        """Send a signal to it."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def finished(self, timeout: float = 1200) -> str:
        """Wait until it has ended; what it said."""
        self.process.join(timeout)
        assert self.process.exitcode is not None, self.said
        return self.said

    def __enter__(self) -> Lead:
        return self

    def __exit__(self, *raised: object) -> None:
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        self._said.unlink()


def done(words: list[str]) -> tuple[int, str]:
    """Run `lead WORDS` to its end: its exit status, and what it said."""
    with Lead(words) as lead:
        said = lead.finished()
        assert lead.status is not None
        return lead.status, said
