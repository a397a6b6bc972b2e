"""The one exception that is a user's business: it is printed as a single line, without a traceback."""

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
        r"""Names and data in it may hold anything: what is too long is cut, what is not printable spelt out (`\n`)."""
        message = message if len(message) <= LONGEST else f"{message[:700]} ... {message[-250:]}"
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in message))


class Preempted(LeadError):
    """A stage was told to stop and has saved its state: started again, it goes on. Not a mistake of the user's."""

    status = 75  # EX_TEMPFAIL of sysexits.h: try again


class Interrupted(Preempted):
    """The same, by SIGINT (Ctrl-C): somebody wants it to end, and shells expect this status."""

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
    """Things by name. Asking for a name that is not there raises a LeadError with the nearest one."""

    def __init__(self, what: str, where: object, things: Mapping[str, T]) -> None:
        """`what`, `where`: what the things are, and the file or folder they come from, for the message."""
        super().__init__(things)
        self.what, self.where = what, where

    def __missing__(self, name: str) -> T:
        raise LeadError(f"no {self.what} '{name}' in {self.where}; {nearest(name, self)}")
