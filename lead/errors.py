"""The exceptions for what a user can fix. They are printed as one line, without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")
LONGEST = 1000  # characters of a message


class LeadError(Exception):
    """Something the user can fix: a bad value, a missing file, a damaged artifact.

    The message is one line that says what is wrong, where (key, file, line), and the remedy.
    """

    def __init__(self, message: str) -> None:
        r"""A long message is cut. Characters that cannot be printed are written as escapes (`\n`)."""
        message = message if len(message) <= LONGEST else f"{message[:700]} ... {message[-250:]}"
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in message))


class Preempted(LeadError):
    """A stage was told to stop and saved its state. Started again, it continues. The user made no mistake."""

    status = 75  # EX_TEMPFAIL of sysexits.h: try again


class Interrupted(Preempted):
    """The same after SIGINT (Ctrl-C). Shells expect this status."""

    status = 130


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint for a misspelt name: the nearest valid one, else all of them.

    >>> nearest("stduent", ["student", "teacher_cb"])
    "did you mean 'student'?"
    >>> nearest("x", ["b", "a"])
    'valid: a, b'
    """
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else "valid: " + ", ".join(names)


class Named(dict[str, T]):
    """Things by name. An unknown name raises a LeadError that says the nearest known name."""

    def __init__(self, what: str, where: object, things: Mapping[str, T]) -> None:
        """`what`, `where`: what the things are, and the file or folder they come from. The message says both."""
        super().__init__(things)
        self.what, self.where = what, where

    def __missing__(self, name: str) -> T:
        raise LeadError(f"no {self.what} '{name}' in {self.where}; {nearest(name, self)}")
