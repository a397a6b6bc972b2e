"""The stage `given`: ranked lists that come with a collection (MS MARCO's top1000), to rerank or compare with."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from lead.artifacts import read_table, write_table
from lead.config.sources import IR_DATASETS
from lead.config.stages import GivenSettings
from lead.data import ir
from lead.data.records import bad, format_of, identifier, lines, records, wrong_width
from lead.errors import LeadError
from lead.retrieval.search import alphabetical, ranked_table, ranks

log = logging.getLogger("lead")

LAYOUTS = "qid, pid, query, passage or qid, pid, rank, both between tabs, or qid, Q0, pid, rank, score, tag"
BATCH = 1 << 16  # lines that are Python objects at a time
Line = tuple[str, str, float | None]  # qid, pid, score


def given(*, settings: GivenSettings, corpus: Path, queries: Path, out: Path) -> None:
    """Write the lists of these queries, best first, at most `depth` passages each. Lists of other queries are left out.

    Ties go to the smaller pid. Lists without ranks or scores (top1000) keep the order of their file. Memory: the ids of
    the corpus, and about 50 bytes a line. Raises LeadError for a line that cannot be read, a passage that is not in
    the corpus or occurs twice in a list, and where no query has a list.
    """
    source = settings.given
    key = f"given: {source}"
    qids, pids = (read_table(path, columns=[id_])[id_] for path, id_ in ((queries, "qid"), (corpus, "pid")))
    rows, passages, scores = _collect(_lines(source), qids)
    if not len(rows):
        raise LeadError(f"{key} holds no list of any of the {len(qids):,} queries; it is of other queries")
    found = pc.index_in(passages, value_set=pids)
    if found.null_count:
        unknown = passages.filter(pc.is_null(found))
        raise LeadError(
            f"{key}: passage {unknown[0]} and {len(unknown) - 1:,} others are not in the corpus; the lists are of "
            "another version of it"
        )
    where = found.to_numpy()
    order = np.lexsort((alphabetical(passages), -scores, rows))
    rows, where, scores = rows[order], where[order], scores[order]
    # pairs as single numbers, so that a passage listed twice for a query is seen
    pairs = np.sort(rows.astype(np.int64) * len(pids) + where)
    if (again := pairs[1:][pairs[1:] == pairs[:-1]]).size:
        row, place = divmod(int(again[0]), len(pids))
        raise LeadError(f"{key}: the list of query {qids[row]} has passage {pids[place]} twice; keep one of the two")
    kept = ranks(rows) <= settings.depth
    listed = len(np.unique(rows))
    log.info(
        "%s of %s queries have a list, of %.0f passages on average", f"{listed:,}", f"{len(qids):,}", len(rows) / listed
    )
    if listed < len(qids):
        log.warning("%s queries have no list: they count as not answered", f"{len(qids) - listed:,}")
    ids = qids.combine_chunks(), pids.combine_chunks()
    write_table(ranked_table(*ids, rows[kept], where[kept], scores[kept]), out, "ranked")


def _collect(found: Iterator[Line], qids: pa.ChunkedArray) -> tuple[np.ndarray, pa.Array, np.ndarray]:
    """Rows of the queries, pids and scores [m] of the lines that are of these queries."""
    place = {qid: row for row, qid in enumerate(qids.to_pylist())}
    count = [0] * len(place)
    rows, scores, passages = [], [], []
    with tqdm(desc="lists", unit=" lines", disable=None) as bar:
        while batch := list(itertools.islice(found, BATCH)):
            bar.update(len(batch))
            ours = [(place[qid], pid, score) for qid, pid, score in batch if qid in place]
            passages.append(pa.array([pid for _, pid, _ in ours], pa.string()))
            rows.append(np.array([row for row, _, _ in ours], np.int32))
            values = np.empty(len(ours), np.float32)
            for i, (row, _, score) in enumerate(ours):
                values[i] = -count[row] if score is None else score
                count[row] += 1
            scores.append(values)
    if not rows:
        return np.empty(0, np.int32), pa.array([], pa.string()), np.empty(0, np.float32)
    return np.concatenate(rows), pa.concat_arrays(passages), np.concatenate(scores)


def _lines(source: str) -> Iterator[Line]:
    """Query, passage and score of each line; no score where the lists have none."""
    if source.startswith(IR_DATASETS):
        yield from ir.read_lists(source.removeprefix(IR_DATASETS), "given")
        return
    path = Path(source)
    if format_of(path) in ("parquet", "jsonl"):
        for number, record in records(path, ("qid", "pid", "score")):
            ids = (identifier(path, number, record, (name,)) for name in ("qid", "pid"))
            yield *ids, _number(path, number, record.get("score"), "score")  # type: ignore[misc]
        return
    width = None
    for number, line in lines(path):
        cells = line.split("\t") if "\t" in line else line.split()
        if len(cells) not in (3, 4, 6) or len(cells) != (width or len(cells)):
            raise bad(path, number, wrong_width(len(cells), width), f"expected {LAYOUTS}")
        width = len(cells)
        if width == 4:
            yield cells[0], cells[1], None
        elif width == 3:
            yield cells[0], cells[1], -_number(path, number, cells[2], "rank")
        else:
            yield cells[0], cells[2], _number(path, number, cells[4], "score")


def _number(path: Path, line: int, value: object, what: str) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise bad(path, line, f"{what} '{str(value)[:60]}' is not a number", f"expected {LAYOUTS}")
    return number
