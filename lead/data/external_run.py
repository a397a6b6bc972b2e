"""The stage `external`: it reads ranked lists that another system made (MS MARCO's top1000, a TREC run)."""

from __future__ import annotations

import itertools
import logging
import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from tqdm import tqdm

from lead.config.folders import expand
from lead.config.sources import IR_DATASETS
from lead.config.stages import ExternalSettings
from lead.data import ir
from lead.data.layout import RUN, Layout, find, rows
from lead.data.records import bad, format_of, identifier, lines, wrong_width
from lead.errors import LeadError
from lead.lists import alphabetical, ranked_table, ranks
from lead.store.tables import read_table, write_table

log = logging.getLogger("lead")

LAYOUTS = "qid, pid, query, passage or qid, pid, rank, both between tabs, or qid, Q0, pid, rank, score, tag"
BATCH = 1 << 16  # lines held as Python objects at a time
Line = tuple[str, str, float]  # qid, pid, score


def external(*, settings: ExternalSettings, corpus: Path, queries: Path, out: Path) -> None:
    """Write the lists of these queries, best first, at most `depth` passages each. Lists of other queries are left out.

    Ties go to the smaller pid. If a file has neither ranks nor scores (top1000), passages are in the order of their
    ids, and the table's metadata has `unordered`. Memory: the ids of the corpus, and about 50 bytes a line. Raises
    LeadError for a line that cannot be read, for a passage that is not in the corpus or occurs twice in a list, and
    if no query has a list.
    """
    source = settings.external_run
    key = f"external_run: {source}"
    qids, pids = (read_table(path, columns=[id_])[id_] for path, id_ in ((queries, "qid"), (corpus, "pid")))
    query, passages, scores = _collect(_lines(source), qids, key)
    if not len(query):
        raise LeadError(f"{key} has no list for any of the {len(qids):,} queries; name the lists of these queries")
    found = pc.index_in(passages, value_set=pids)
    if found.null_count:
        unknown = passages.filter(pc.is_null(found))
        raise LeadError(
            f"{key}: passage {unknown[0]} and {len(unknown) - 1:,} others are not in the corpus; the lists "
            "belong to another version of the corpus"
        )
    where = found.to_numpy()
    order = np.lexsort((alphabetical(passages), -scores, query))
    query, where, scores = query[order], where[order], scores[order]
    # pairs as single numbers, so that a passage listed twice for a query is seen
    pairs = np.sort(query.astype(np.int64) * len(pids) + where)
    if (again := pairs[1:][pairs[1:] == pairs[:-1]]).size:
        q, p = divmod(int(again[0]), len(pids))
        raise LeadError(f"{key}: the list of query {qids[q]} has passage {pids[p]} twice; keep one of the two")
    place = ranks(query)
    kept = place <= settings.depth
    n, mean = len(np.unique(query)), len(query) / len(np.unique(query))
    log.info("%s of %s queries have a list, of %.0f passages on average", f"{n:,}", f"{len(qids):,}", mean)
    if n < len(qids):
        log.warning("%s queries have no list: they count as not answered", f"{len(qids) - n:,}")
    inside = query[1:] == query[:-1]
    unordered = bool(inside.any()) and not (inside & (scores[1:] != scores[:-1])).any()
    if unordered:
        cut = "" if kept.all() else f"; retrieval.depth {settings.depth} cuts them by id, raise it to {place.max()}"
        log.warning("the lists have no order: rerank them; only their recall at full depth is meaningful%s", cut)
    ids = qids.combine_chunks(), pids.combine_chunks()
    table = ranked_table(*ids, query[kept].astype(np.int64), where[kept], scores[kept])
    write_table(table, out, "ranked", about={"unordered": True} if unordered else None)


def _collect(
    found: Iterator[Line], qids: pa.ChunkedArray, key: str
) -> tuple[NDArray[np.int32], pa.Array, NDArray[np.float32]]:
    """Query rows, pids and scores [m] of the lines of these queries. LeadError for a score that is not finite."""
    known = {qid: row for row, qid in enumerate(qids.to_pylist())}
    numbers, scores, passages = [np.empty(0, np.int32)], [np.empty(0, np.float32)], [pa.array([], pa.string())]
    with tqdm(desc="lists", unit=" lines", disable=None) as bar:
        while batch := list(itertools.islice(found, BATCH)):
            bar.update(len(batch))
            ours = [(known[qid], pid, score) for qid, pid, score in batch if qid in known]
            numbers.append(np.array([row for row, _, _ in ours], np.int32))
            passages.append(pa.array([pid for _, pid, _ in ours], pa.string()))
            with np.errstate(over="ignore"):  # reported below
                scores.append(np.array([score for _, _, score in ours], np.float64).astype(np.float32))
            if not np.isfinite(scores[-1]).all():
                raise LeadError(f"{key}: a score is not finite in single precision; scale the scores")
    return np.concatenate(numbers), pa.concat_arrays(passages), np.concatenate(scores)


def _lines(source: str) -> Iterator[Line]:
    """Query, passage and score of each line; the score is 0 if the file gives no order."""
    if source.startswith(IR_DATASETS):
        yield from ir.read_lists(source.removeprefix(IR_DATASETS), "external_run")
        return
    path = expand(source)
    if not path.is_file():
        raise LeadError(f"external_run: no file {path}; fix the path")
    if path.name.endswith((".tar.gz", ".tgz", ".tar", ".zip")):
        raise LeadError(f"external_run: {path} is an archive; unpack it, and name the file of lists in it")
    if format_of(path) in ("parquet", "jsonl", "csv") or _has_header(path):
        yield from _records(path)
        return
    width = None
    best: dict[str, int] = {}  # the first rank of each list
    for number, line in lines(path):
        cells = line.split("\t") if "\t" in line else line.split()
        if len(cells) not in (3, 4, 6) or len(cells) != (width or len(cells)):
            raise bad(path, number, wrong_width(len(cells), width), f"expected {LAYOUTS}")
        if width is None and len(cells) == 4 and _is_number(cells[2]) and _is_number(cells[3]):
            raise bad(path, number, "2 ids and 2 numbers", f"expected {LAYOUTS}")
        width = len(cells)
        if width == 4:
            yield cells[0], cells[1], 0.0
        elif width == 3:
            rank = _rank(path, number, cells[2])
            best[cells[0]] = min(rank, best.get(cells[0], rank))
            yield cells[0], cells[1], -float(rank)
        else:
            yield cells[0], cells[2], _score(path, number, cells[4])
    _check_first(path, best)


def _has_header(path: Path) -> bool:
    """Whether the first line of a text file names a query id and a passage id."""
    first = next((line for _, line in lines(path)), "")
    return {"qid", "pid"} <= find(RUN, tuple(first.split("\t"))).keys()


def _records(path: Path) -> Iterator[Line]:
    """Lines of a file whose columns have names: qid, pid, and score or rank."""
    best: dict[str, int] = {}
    for number, row in rows(path, RUN, Layout()):
        qid, pid = (identifier(path, number, row.get(name), (name,)) for name in ("qid", "pid"))
        if row.get("score") is not None:
            yield qid, pid, _score(path, number, row["score"])
        elif row.get("rank") is not None:
            rank = _rank(path, number, str(row["rank"]))
            best[qid] = min(rank, best.get(qid, rank))
            yield qid, pid, -float(rank)
        else:
            raise bad(path, number, "neither score nor rank", "expected qid, pid, and score or rank")
    _check_first(path, best)


def _check_first(path: Path, best: dict[str, int]) -> None:
    """Refuse ranks that do not start at 1. They may be scores, and then the highest score would come last."""
    for qid, rank in best.items():
        if rank != 1:
            raise LeadError(
                f"external_run: {path}: the ranks of query {qid} start at {rank}, not 1; if they are scores, write a "
                "TREC run"
            )


def _rank(path: Path, line: int, value: str) -> int:
    if not re.fullmatch("[1-9][0-9]{0,8}", value):
        raise bad(path, line, f"'{value[:60]}' is not a rank, counted from 1", f"expected {LAYOUTS}")
    return int(value)


def _score(path: Path, line: int, value: object) -> float:
    if not _is_number(value):
        raise bad(path, line, f"score '{str(value)[:60]}' is not a number", "expected a finite number")
    return float(value)  # type: ignore[arg-type]


def _is_number(value: object) -> bool:
    try:
        return math.isfinite(float(value))  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return False
