"""Tables of text as Markdown and CSV, and whole pages from templates. All text is escaped."""

from __future__ import annotations

import csv
import functools
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

Cells = list[list[str]]
Mark = tuple[float, float, float]  # a mean between the ends of its interval
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffe\uffff\ud800-\udfff]")


@dataclass(frozen=True)
class Table:
    """A table that is ready for rendering: header and rows of text, and notes in Markdown.

    marks: an interval for each row, drawn after its first number, all on one scale. guide: position of a line across
    all intervals.
    """

    title: str
    cells: Cells
    notes: list[str]
    marks: list[Mark | None] = field(default_factory=list)
    guide: float | None = None

    @property
    def drawn(self) -> list[dict[str, str]]:
        """Coordinates of the intervals."""
        return intervals(self.marks, self.guide)


def markdown(title: str, cells: Cells, notes: list[str], level: int = 1) -> str:
    """A heading, a table aligned as text, and notes as paragraphs."""
    safe = [[_no_tags(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in cells]
    widths = [max(3, *(len(row[i]) for row in safe)) for i in range(len(safe[0]))]
    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    lines = [
        "| "
        + " | ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        + " |"
        for row in [safe[0], rule, *safe[1:]]
    ]
    return "\n\n".join([f"{'#' * level} {_no_tags(title)}", "\n".join(lines), *map(_no_tags, notes)]) + "\n"


def _no_tags(text: str) -> str:
    """Escape HTML, which Markdown lets through; `p < .05` is not HTML."""
    return re.sub("<(?=[A-Za-z/!?])", "&lt;", text)


def csv_text(cells: Cells) -> str:
    """Comma-separated, quoted where needed."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(cells)
    return out.getvalue()


def html_page(title: str, tables: Sequence[Table], preamble: str = "") -> str:
    """A whole page of tables that needs no other file."""
    return page("tables.html.jinja", title=title, tables=tables, preamble=preamble)


def page(template: str, **values: Any) -> str:
    """A page from a template of lead/report/page."""
    return _templates().get_template(template).render(**values)


@functools.cache
def _templates() -> Environment:
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )
    made.globals |= {"parted": _parted, "has_digit": lambda text: any(map(str.isdigit, text)), "svg": Markup}
    return made


def _printable(value: Any) -> Any:
    """Text without what HTML cannot hold: control characters become a replacement character."""
    return value if isinstance(value, Markup) or not isinstance(value, str) else CONTROL.sub("\ufffd", value)


def _parted(text: str) -> tuple[str, str]:
    """A number, and the note that stands below it."""
    first, _, rest = text.partition(" ")
    return first, rest


def intervals(marks: Sequence[Mark | None], guide: float | None, width: int = 150) -> list[dict[str, str]]:
    """Where the line of each interval and the dot of its mean are; nothing for fewer than two intervals."""
    known = [mark for mark in marks if mark is not None]
    if len(known) < 2:
        return []
    ends = [x for mark in known for x in mark] + ([guide] if guide is not None else [])
    low, span = min(ends), (max(ends) - min(ends)) or 1.0

    def x(value: float | None) -> str:
        return "" if value is None else f"{4 + (width - 8) * (value - low) / span:.1f}"

    return [
        {
            "width": f"{width}",
            "guide": x(guide),
            **dict(zip(("low", "mean", "high"), map(x, mark or (None,) * 3), strict=True)),
        }
        for mark in marks
    ]
