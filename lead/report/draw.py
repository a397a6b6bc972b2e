"""Figures: matplotlib draws, and what it drew becomes SVG that a page can hold, in the page's colours and fonts."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lead.errors import LeadError
from lead.report.render import Cells

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

SVG = "http://www.w3.org/2000/svg"
XLINK = "{http://www.w3.org/1999/xlink}href"
# a colour that matplotlib is given -> the colour of the page, which is another one in the dark
THEME = {
    "#000001": "var(--ink)",
    "#000002": "var(--quiet)",
    "#000003": "var(--line)",
    "#000004": "var(--card)",
    **{f"#00001{i}": f"var(--series{i})" for i in range(1, 9)},
}
INK, QUIET, LINE, CARD = list(THEME)[:4]
SERIES = list(THEME)[4:]
DASHES: list[Any] = ["-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5))]
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "lead",
    "text.parse_math": False,  # a name may hold a $
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.labelcolor", "ytick.labelcolor"), INK),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), QUIET),
    "grid.color": LINE,
}


@dataclass(frozen=True)
class Figure:
    """A figure of the report, and the numbers behind it.

    name: of its file. caption: what it shows, in a sentence or two. alt: what a screen reader says instead of the
    picture. wide: it takes the whole width of a page. run: the one it is about, if it is about one.
    """

    name: str
    title: str
    caption: str
    alt: str
    svg: str
    table: Cells
    wide: bool = False
    run: str = ""


def draw(name: str, alt: str, plot: Callable[[Canvas], None], width: float = 4.2, height: float = 2.9) -> str:
    """The SVG of a figure. width, height: in inches; on the page it fills its place.

    Raises LeadError where matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure as Canvas
    except ImportError as e:
        raise LeadError("figures need the package matplotlib: pip install matplotlib") from e
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(width, height), layout="constrained")
        plot(canvas)
        drawn = io.BytesIO()
        canvas.savefig(drawn, format="svg", metadata={"Date": None})
    return themed(drawn.getvalue(), name, alt)


def themed(svg: bytes, name: str, alt: str) -> str:
    """SVG of matplotlib as a part of a page: the page's colours and fonts, ids of its own, and a text instead of it."""
    ET.register_namespace("", SVG)
    root = ET.fromstring(svg)
    for child in list(root):
        if child.tag == f"{{{SVG}}}metadata":
            root.remove(child)
    used = {m for e in root.iter() for v in e.attrib.values() for m in re.findall(r"(?:url\(#|^#)([^)]+)", v)}
    for element in root.iter():
        _clean(element, name, used)
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib |= {"role": "img", "aria-label": alt}
    return ET.tostring(root, encoding="unicode")


def _clean(element: ET.Element, name: str, used: set[str]) -> None:
    given = element.attrib.pop("id", None)
    if given in used:
        element.set("id", f"{name}-{given}")
    if (link := element.attrib.pop(XLINK, None)) is not None:
        element.set("href", f"#{name}-{link[1:]}")
    for key, value in list(element.attrib.items()):
        value = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", value)
        value = re.sub("#[0-9a-f]{6}", lambda m: THEME.get(m[0], m[0]), value)
        element.set(key, re.sub(r"font: (?:bold |\d+ )*([\d.]+px) [^;]+", _font, value))


def _font(found: re.Match[str]) -> str:
    weight = "; font-weight: bold" if "bold" in found[0] or "700" in found[0] else ""
    return f"font-size: {found[1]}{weight}"


# --- parts of figures ------------------------------------------------------------------------------------------------
def binned(x: Sequence[float], y: Sequence[float], bins: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means of neighbouring points, at most `bins` of them: what is left of a long and noisy curve.

    >>> binned([1, 2, 3, 4], [0, 2, 4, 6], 2)
    (array([1.5, 3.5]), array([1., 5.]))
    """
    parts = min(bins, len(x))
    return (
        np.array([part.mean() for part in np.array_split(np.asarray(x, np.float64), parts)]),
        np.array([part.mean() for part in np.array_split(np.asarray(y, np.float64), parts)]),
    )


def curves(
    axes: Axes, lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], bins: int, marker: str = ""
) -> None:
    """A line for each name, told apart by colour and dashes, and a legend above them."""
    for i, (name, (x, y)) in enumerate(lines.items()):
        dashes = DASHES[(i + i // len(SERIES)) % len(DASHES)]  # a ninth line is not the first again
        style = {"color": SERIES[i % len(SERIES)], "linestyle": dashes, "label": name}
        axes.plot(*binned(x, y, bins), marker=marker, markersize=4, **style)
    if len(lines) > 1:
        columns = max(1, min(len(lines), 58 // (max(map(len, lines)) + 8)))  # as many as its width holds
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.1, fontsize=8)


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Places of labels, moved apart so that neighbours are at least `gap` from each other.

    >>> spread([0.0, 0.1, 5.0], 1.0)
    [-0.45, 0.55, 5.0]
    """
    groups: list[list[int]] = []
    where: list[float] = []  # the middle of each group
    for i in sorted(range(len(places)), key=places.__getitem__):
        groups.append([i])
        where.append(places[i])
        while len(groups) > 1 and where[-1] - where[-2] < gap * (len(groups[-1]) + len(groups[-2])) / 2:
            last = groups.pop()
            groups[-1] += last
            where.pop()
            where[-1] = float(np.mean([places[j] for j in groups[-1]]))
    found = [0.0] * len(places)
    for group, middle in zip(groups, where, strict=True):
        for rank, j in enumerate(group):
            found[j] = round(middle + gap * (rank - (len(group) - 1) / 2), 6)
    return found
