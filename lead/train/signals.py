"""Signals that ask a training to stop: it finishes the step at hand, saves its state, and says so in one line."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

from lead.errors import Interrupted, Preempted

STOPPING = ("SIGTERM", "SIGUSR1", "SIGINT", "SIGHUP")


class Told:
    """Which signal has asked to stop; None while none has."""

    signal: signal.Signals | None = None


def heeded(names: tuple[str, ...]) -> list[signal.Signals]:
    """Those of these signals that are not ignored: `nohup` ignores SIGHUP, a script's `&` ignores SIGINT."""
    return [signal.Signals[name] for name in names if signal.getsignal(signal.Signals[name]) is not signal.SIG_IGN]


def stopped(number: signal.Signals | None, when: str = "") -> Preempted:
    """The error that ends a stage whose state is saved: exit status 130 after SIGINT, else 75."""
    name = "a signal" if number is None else number.name
    error = Interrupted if number == signal.SIGINT else Preempted
    return error(f"stopped by {name}{when}; started again, it goes on from its last checkpoint")


@contextlib.contextmanager
def noted(told: Told, main: bool = True, ranks: bool = False) -> Iterator[None]:
    """Note signals in `told` instead of ending. After SIGINT a second one ends the process at once.

    `main`: whether this process tells the user that it is stopping. `ranks`: whether torchrun started it; it passes a
    second SIGINT on as SIGTERM. Only Python's main thread can handle signals; in another nothing happens.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = heeded(STOPPING)

    def note(number: int, _: object) -> None:
        told.signal = signal.Signals(number)
        if number == signal.SIGINT:
            for second in numbers if ranks else [number]:
                signal.signal(second, signal.SIG_DFL)
            if main:  # `print` and loggers must not be called from a signal handler
                os.write(2, b"\nSIGINT: saving the state after this step; a second SIGINT stops at once\n")

    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
