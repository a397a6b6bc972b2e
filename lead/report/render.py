"""Tables of text as Markdown, CSV and HTML. All text is escaped."""

from __future__ import annotations

import csv
import html
import io
import re

Cells = list[list[str]]
Mark = tuple[float, float, float]  # a mean between the ends of its interval

# the greys are visible on white and on black; labels stay in place when a wide table scrolls
STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 1.5rem auto; max-width: 75rem; padding: 0 1rem; }
h2 { font-size: 1.2rem; margin: 2rem 0 0.4rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.8rem; text-align: right; vertical-align: top; border-bottom: 1px solid #8884; }
td { white-space: nowrap; }
thead th { vertical-align: bottom; border-bottom: 2px solid #888; }
tr > :first-child { text-align: left; padding-left: 0; position: sticky; left: 0; background: Canvas; }
tbody th { font-weight: normal; min-width: 9.5rem; }
tbody tr:hover > * { background: color-mix(in srgb, CanvasText 7%, Canvas); }
small { display: block; font-size: 0.8rem; }
small, .word, p { color: color-mix(in srgb, CanvasText 72%, Canvas); }
p { max-width: 60rem; margin: 0.6rem 0; }
code { background: #8882; padding: 0.1rem 0.3rem; overflow-wrap: anywhere; user-select: all; }
svg { stroke: currentColor; fill: currentColor; stroke-width: 1.5; display: block; margin-top: 0.2rem; }
.guide { stroke-width: 1; stroke-dasharray: 2 3; opacity: 0.6; }
@media (max-width: 40rem) { th, td { padding: 0.3rem 0.4rem; } }
"""


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


def html_table(
    title: str, cells: Cells, notes: list[str], marks: list[Mark | None] | None = None, guide: float | None = None
) -> str:
    """A section with a heading, a table and notes (`code` between backticks).

    marks: an interval for each row, drawn after its first number, all on one scale. guide: position of a line across
    all intervals.
    """
    drawn = _drawn(marks or [], guide)
    columns = [f"<th scope='col'>{html.escape(name)}</th>" for name in cells[0]]
    if drawn:
        columns.insert(2, "<th scope='col' aria-label='interval'></th>")
    header = "".join(columns)
    rows = ""
    for i, (label, first, *rest) in enumerate(cells[1:]):
        shown = [_cell(first), *([f"<td>{drawn[i]}</td>"] if drawn else []), *map(_cell, rest)]
        rows += f"<tr><th scope='row'>{_label(label)}</th>{''.join(shown)}</tr>\n"
    text = "".join(f"<p>{_code(note)}</p>\n" for note in notes)
    return (
        f"<section><h2>{html.escape(title)}</h2>\n<div class='wide'><table>\n<thead><tr>{header}</tr></thead>\n"
        f"<tbody>\n{rows}</tbody></table></div>\n{text}</section>"
    )


def _drawn(marks: list[Mark | None], guide: float | None, width: int = 150) -> list[str]:
    """A line for each interval, with a dot at its mean; nothing for fewer than two intervals."""
    known = [mark for mark in marks if mark is not None]
    if len(known) < 2:
        return []
    ends = [x for mark in known for x in mark] + ([guide] if guide is not None else [])
    low, span = min(ends), (max(ends) - min(ends)) or 1.0

    def x(value: float) -> str:
        return f"{4 + (width - 8) * (value - low) / span:.1f}"

    line = "" if guide is None else f"<line class='guide' x1='{x(guide)}' x2='{x(guide)}' y1='0' y2='18'/>"
    return [
        f"<svg width='{width}' height='18' aria-hidden='true'>{line}"
        + (f"<line x1='{x(m[0])}' x2='{x(m[2])}' y1='9' y2='9'/><circle cx='{x(m[1])}' cy='9' r='3'/>" if m else "")
        + "</svg>"
        for m in marks
    ]


def _label(text: str) -> str:
    return html.escape(text.replace("->", "\u2192"))  # a line break cannot split this arrow


def _cell(text: str) -> str:
    """A number with its note below, or a word such as `missing`."""
    first, _, rest = map(html.escape, text.partition(" "))
    if not any(map(str.isdigit, first)):
        return f"<td class='word'>{html.escape(text)}</td>"
    return f"<td>{first}<small>{rest}</small></td>" if rest else f"<td>{first}</td>"


def _code(note: str) -> str:
    parts = html.escape(note).split("`")
    return "".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts))


def html_page(title: str, sections: list[str], preamble: str = "") -> str:
    """A whole page that needs no other file."""
    intro = f"<p>{_code(preamble)}</p>\n" if preamble else ""
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><h1>{html.escape(title)}</h1>\n{intro}" + "\n".join(sections) + "\n</body></html>\n"
    )
