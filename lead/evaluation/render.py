"""Tables of text as Markdown, CSV and HTML. Text is text: whatever a label holds is escaped."""

from __future__ import annotations

import csv
import html
import io

Cells = list[list[str]]

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; color: #1c2430; }
table { border-collapse: collapse; margin: 0.5rem 0 1rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.8rem; text-align: right; border-bottom: 1px solid #dde3ea; white-space: nowrap; }
th { border-bottom: 2px solid #8593a3; font-weight: 600; }
th:first-child, td:first-child { text-align: left; }
tbody tr:hover { background: #f3f6f9; }
p { color: #4a5663; max-width: 60rem; } code { background: #f0f3f6; padding: 0.1rem 0.3rem; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
"""


def markdown(title: str, cells: Cells, notes: list[str], level: int = 1) -> str:
    """A heading, a table aligned as text, and notes as paragraphs."""
    safe = [[cell.replace("|", "\\|") for cell in row] for row in cells]
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
    return "\n\n".join([f"{'#' * level} {title}", "\n".join(lines), *notes]) + "\n"


def csv_text(cells: Cells) -> str:
    """Comma-separated, quoted where needed."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(cells)
    return out.getvalue()


def html_table(title: str, cells: Cells, notes: list[str]) -> str:
    """A section with a heading, a table and notes (`code` between backticks)."""
    header = "".join(f"<th>{html.escape(cell)}</th>" for cell in cells[0])
    rows = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>\n" for row in cells[1:])
    text = "".join(f"<p>{_code(note)}</p>\n" for note in notes)
    return (
        f"<section><h2>{html.escape(title)}</h2>\n<div class='wide'><table>\n<thead><tr>{header}</tr></thead>\n"
        f"<tbody>\n{rows}</tbody></table></div>\n{text}</section>"
    )


def _code(note: str) -> str:
    parts = html.escape(note).split("`")
    return "".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts))


def html_page(title: str, sections: list[str], preamble: str = "") -> str:
    """A whole page that needs nothing else."""
    intro = f"<p>{_code(preamble)}</p>\n" if preamble else ""
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><h1>{html.escape(title)}</h1>\n{intro}" + "\n".join(sections) + "\n</body></html>\n"
    )
