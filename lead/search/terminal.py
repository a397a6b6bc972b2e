"""`lead search`: one query, or a prompt for many, answered on the terminal or as JSON."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from lead.errors import LeadError
from lead.search.passages import Hit, Passages
from lead.search.snippet import Marker, Snippet, one_line
from lead.search.systems import System

PROMPT = "query> "
BOLD, DIM, MARK, END = "\x1b[1m", "\x1b[2m", "\x1b[1;33m", "\x1b[0m"
INDENT = " " * 12


@dataclass(frozen=True)
class Answer:
    """What a system found: its passages, and how long it took."""

    system: System
    hits: list[Hit]
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        results = [vars(hit) for hit in self.hits]
        about = {"run": self.system.name, "about": self.system.about}
        return about | {"milliseconds": round(1000 * self.seconds, 1), "results": results}


def answer(system: System, passages: Passages, query: str, k: int) -> Answer:
    """Ask a system."""
    started = time.monotonic()
    rows, scores = system.rank(query, k)
    return Answer(system, passages.hits(rows, scores), time.monotonic() - started)


@dataclass(frozen=True)
class Terminal:
    """Asks systems, and prints what they answer.

    first: answers at once. others: made when the first has answered, then kept; a run that is not made is one line.
    """

    passages: Passages
    first: System
    others: list[Callable[[], System]]
    marker: Marker
    k: int
    as_json: bool

    def __call__(self, query: str) -> None:
        """Answer a query."""
        answers: list[Answer | LeadError] = []
        for make in [lambda: self.first, *self.others]:
            try:
                answers.append(answer(make(), self.passages, query, self.k))
            except LeadError as e:
                if not answers:
                    raise
                answers.append(e)
            if not self.as_json:
                print("\n".join(self._lines(query, answers[-1])), end="\n\n", flush=True)
        if self.as_json:
            first, *others = (a.as_json() if isinstance(a, Answer) else {"error": str(a)} for a in answers)
            more = {"compare": others} if self.others else {}
            escape = not (sys.stdout.encoding or "").lower().startswith("utf")  # or letters would be question marks
            print(json.dumps({"query": query} | first | more, ensure_ascii=escape), flush=True)

    def _lines(self, query: str, found: Answer | LeadError) -> Iterator[str]:
        if isinstance(found, LeadError):
            yield str(found)
            return
        ms = f"{1000 * found.seconds:.0f} ms"
        yield f"{_style(BOLD, found.system.name)}: {found.system.about} ({ms})"
        if not found.hits:
            yield "  nothing found"
        width = max(40, min(100, shutil.get_terminal_size().columns - 1)) - len(INDENT)
        for hit in found.hits:
            yield f"{hit.rank:>3} {hit.score:>7.3f} {_style(BOLD, one_line(hit.title) or one_line(hit.id))}"
            snippet = self.marker.snippet(query, hit.text, 2 * width - 8)
            yield from (INDENT + line for line in marked(snippet, width))


def marked(snippet: Snippet, width: int) -> Iterator[str]:
    """The lines of a snippet, no longer than `width`, the query's words in colour."""
    at = 0
    for line in textwrap.wrap(snippet.text, width):
        at = snippet.text.index(line, at)
        out, done = "", 0
        for start, end in ((max(0, s - at), min(e - at, len(line))) for s, e in snippet.marks):
            if start < end:
                out += line[done:start] + _style(MARK, line[start:end])
                done = end
        yield out + line[done:]
        at += len(line)


def _style(code: str, text: str) -> str:
    """Text with an ANSI style, where standard output is a terminal that shows it and nobody asked for none."""
    shows = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return f"{code}{text}{END}" if shows else text


def queries(asked: str | None) -> Iterator[str]:
    """The query of the command line; else those that are typed at a prompt, or come line by line from elsewhere.

    Raises LeadError for one that is no text.
    """
    if asked is not None:
        yield _checked(asked)
        return
    prompt = sys.stdin.isatty()
    if prompt:
        import contextlib

        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (arrow keys and history)
        print("Type a query; Ctrl-D ends.", file=sys.stderr)
    while True:
        try:
            query = input(PROMPT if prompt else "").strip()
        except UnicodeDecodeError as e:
            raise LeadError(f"a query is not UTF-8 ({e.reason}); convert the queries") from e
        except EOFError:
            if prompt:
                print()
            return
        if query:
            yield _checked(query)


def _checked(query: str) -> str:
    try:
        query.encode()
    except UnicodeEncodeError:  # bytes of a shell that are no UTF-8
        raise LeadError(f"the query {query!r} is not UTF-8; convert it") from None
    return query
