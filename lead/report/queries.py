"""Gains and losses of single queries between two runs, with the texts behind them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lead.report.draw import INK, QUIET, SERIES, Figure, draw
from lead.report.results import Results
from lead.report.seeds import check_queries, together
from lead.report.table import number
from lead.store.tables import open_table, read_table

SHOWN = 6  # queries at each end
RELEVANT = 2  # relevant passages shown for a query
LONG = 300  # letters of a passage


@dataclass
class Passage:
    """A passage of an example. ranks: its rank in the lists of run and baseline; None: not in the list."""

    pid: str
    text: str = ""
    ranks: tuple[int | None, int | None] = (None, None)


@dataclass
class Example:
    """A query, its value in run and baseline, its relevant passages, and what ranks first where that is another one.

    more: relevant passages that are not shown. first: whose first passage, and the passage.
    """

    qid: str
    values: tuple[str, str]
    text: str = ""
    relevant: list[Passage] = field(default_factory=list)
    more: int = 0
    first: list[tuple[str, Passage]] = field(default_factory=list)


@dataclass(frozen=True)
class Compared:
    """A run beside its baseline, query by query."""

    run: str
    baseline: str
    figure: Figure
    gains: list[Example]
    losses: list[Example]


def compare(results: Results, run: str, baseline: str) -> Compared | None:
    """Where a run gains and where it loses. None if they have no seeds in common."""
    first, folder = results.measures[0], results.folder
    pair = together(results.runs[run], results.runs[baseline])
    if pair is None:
        return None
    check_queries(folder, *pair)
    x, y = (one.per_query(first) for one in pair)
    change, qids = x - y, pair[0].qids
    order = np.argsort(-change, kind="stable")
    ends = [order[:SHOWN], order[::-1][:SHOWN]]
    picked = [[i for i in end if sign * change[i] > 0] for end, sign in zip(ends, (1, -1), strict=True)]
    gains, losses = ([Example(qids[i], (number(x[i]), number(y[i]))) for i in end] for end in picked)
    _fill(results, run, baseline, [*gains, *losses])
    return Compared(run, baseline, _figure(first, run, baseline, change[order]), gains, losses)


def _figure(measure: str, run: str, baseline: str, change: Any) -> Figure:
    better, worse = int((change > 0).sum()), int((change < 0).sum())
    same = len(change) - better - worse

    def plot(canvas: Any) -> None:
        axes = canvas.subplots()
        at = np.arange(len(change)) + 0.5
        for part, colour in ((change > 0, SERIES[2]), (change < 0, SERIES[1])):
            axes.fill_between(at, 0, np.where(part, change, 0), step="mid", color=colour, linewidth=0, alpha=0.85)
        axes.axhline(0, color=QUIET, linewidth=0.8)
        axes.set(xlabel="queries, from the largest gain to the largest loss", ylabel=f"change of {measure}")
        axes.set_xlim(0, len(change))
        top = max(0.05, float(np.abs(change).max())) * 1.08
        axes.set_ylim(-top, top)
        axes.text(0.98, 0.96, f"better {better:,}\nthe same {same:,}\nworse {worse:,}",
                  transform=axes.transAxes, ha="right", va="top", fontsize=8, color=INK)  # fmt: skip

    counts = f"better {better:,}, worse {worse:,}, the same {same:,} queries"
    alt = f"Change of {measure} from {baseline} to {run}, query by query: {counts}."
    edges = [1.01, 0.5, 0.25, 0.1, 0.0]
    table = [["change", "better by that much", "worse by that much"]]
    for high, low in zip(edges, edges[1:], strict=False):
        up, down = (int(((c > low) & (c <= high)).sum()) for c in (change, -change))
        name = f"more than {low:g}" if high > 1 else f"{low:g} to {high:g}"
        table.append([name, f"{up:,}", f"{down:,}"])
    svg = draw("queries", alt, plot, 7.4, 2.4)
    caption = f"{run} beside {baseline}: {counts}."
    return Figure("queries", f"Gains and losses of {run} against {baseline}", caption, alt, svg, table, wide=True)


def _fill(results: Results, run: str, baseline: str, examples: list[Example]) -> None:
    """Look up texts, relevant passages and ranks, as far as the files are there."""
    data = Path(results.dataset.folder) / "data"
    queries, qrels = data / "queries.test.parquet", data / "qrels.test.parquet"
    qids = pa.array([example.qid for example in examples], pa.string())
    if not queries.exists() or not qrels.exists() or not examples:
        return
    asked = _of(read_table(queries, "queries"), qids)
    texts = dict(zip(asked["qid"].to_pylist(), asked["text"].to_pylist(), strict=True))
    judged: dict[str, list[str]] = {}
    least = results.dataset.settings.evaluation.relevance
    for row in _of(read_table(qrels, "qrels"), qids).to_pylist():
        if row["rel"] >= least:
            judged.setdefault(row["qid"], []).append(row["pid"])
    ranks = [_ranks(results, name, qids) for name in (run, baseline)]
    for example in examples:
        example.text = texts.get(example.qid, "")
        found = [list_.get(example.qid, {}) for list_ in ranks]
        pids = sorted(judged.get(example.qid, []), key=lambda pid: min(list_.get(pid, 10**9) for list_ in found))
        example.relevant = [Passage(pid, ranks=(found[0].get(pid), found[1].get(pid))) for pid in pids[:RELEVANT]]
        example.more = len(pids) - len(example.relevant)
        firsts = [next((pid for pid, rank in list_.items() if rank == 1), None) for list_ in found]
        for pid in dict.fromkeys(pid for pid in firsts if pid is not None and pid not in pids):
            whose = [name for name, one in zip((run, baseline), firsts, strict=True) if one == pid]
            example.first.append((" and ".join(whose), Passage(pid)))
    passages = [p for example in examples for p in [*example.relevant, *(p for _, p in example.first)]]
    known = _texts(Path(results.dataset.corpus), {passage.pid for passage in passages})
    for passage in passages:
        text = known.get(passage.pid, "(this passage is not in the corpus)")
        passage.text = text if len(text) <= LONG else text[:LONG].rsplit(" ", 1)[0] + " \u2026"


def _of(table: pa.Table, qids: pa.Array) -> pa.Table:
    return table.filter(pc.is_in(table["qid"], value_set=qids))


def _ranks(results: Results, run: str, qids: pa.Array) -> dict[str, dict[str, int]]:
    """Rank of each passage in the lists of these queries: of the run's first seed that is there."""
    for file in results.runs.files[run]:
        path = Path(results.dataset.folder) / "runs" / f"{file.stem}.parquet"
        if path.exists():
            found: dict[str, dict[str, int]] = {}
            for row in _of(read_table(path, "ranked"), qids).to_pylist():
                found.setdefault(row["qid"], {})[row["pid"]] = row["rank"]
            return found
    return {}


def _texts(corpus: Path, pids: set[str]) -> dict[str, str]:
    """Texts of these passages. Memory: a row group."""
    found: dict[str, str] = {}
    if not corpus.exists():
        return found
    file, wanted = open_table(corpus, "corpus"), pa.array(sorted(pids), pa.string())
    for group in range(file.num_row_groups):
        if pc.any(pc.is_in(file.group(group, ["pid"])["pid"], value_set=wanted)).as_py():
            table = file.group(group)
            table = table.filter(pc.is_in(table["pid"], value_set=wanted))
            found |= zip(table["pid"].to_pylist(), table["text"].to_pylist(), strict=True)
        if len(found) == len(pids):
            break
    return found
