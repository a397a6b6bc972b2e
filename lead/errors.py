"""The one exception that is a user's business: it is printed as a single line, without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LeadError(Exception):
    """Something the user can mend: a bad value, a missing file, a damaged artifact.

    The message is one line that says what is wrong, where (key, file, line), and the remedy.
    """


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
