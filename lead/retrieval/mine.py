"""Hard negatives: the top of each query's list, without any passage known to be relevant to it (section 4.3)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lead.config.stages import MineSettings
from lead.lists import ranks
from lead.retrieval.retrieve import lists
from lead.store.provenance import gathering
from lead.store.tables import SCHEMAS, read_table, write_lists

log = logging.getLogger("lead")


def known_positives(qrels: Iterable[Path], relevance: int) -> pa.Table:
    """Read all judgements (qid, pid, rel) of the files `qrels` with a grade of at least `relevance`."""
    judgements = pa.concat_tables([SCHEMAS["qrels"].empty_table(), *(read_table(path, "qrels") for path in qrels)])
    return judgements.filter(pc.greater_equal(judgements["rel"], relevance))


def most_positives(positives: pa.Table) -> int:
    """Count the positives of the query that has most: so much deeper must a search go to leave enough negatives."""
    counts = positives.group_by("qid").aggregate([("pid", "count_distinct")])["pid_count_distinct"]
    return pc.max(counts).as_py() or 0


def drop_positives(ranked: pa.Table, positives: pa.Table, depth: int) -> pa.Table:
    """`ranked` without the pairs in `positives` (qid, pid), ranked anew from 1, cut at `depth`.

    The order within each query is kept; rows of a query must be neighbours, best first. Ids are compared as strings: an
    integer column raises an error instead of matching nothing.
    """
    # of all positives those of a few queries: looking each up for every batch would take longer than the search
    positives = positives.filter(pc.is_in(positives["qid"], value_set=pc.unique(ranked["qid"])))
    is_positive = np.isin(_pairs(ranked, positives), _pairs(positives, positives))
    kept = ranked.filter(pa.array(~is_positive))
    rank = ranks(_codes(kept["qid"], pc.unique(kept["qid"])))
    kept = kept.set_column(kept.column_names.index("rank"), "rank", pa.array(rank, pa.int32()))
    return kept.filter(pa.array(rank <= depth))


def _codes(ids: pa.ChunkedArray, known: pa.Array) -> NDArray[np.int64]:
    """Find the position of each id in `known`, -1 for others."""
    return np.asarray(pc.index_in(ids, value_set=known).fill_null(-1), dtype=np.int64)


def _pairs(table: pa.Table, positives: pa.Table) -> NDArray[np.int64]:
    """Give a number to each row's (qid, pid), equal pairs alike; -1 when either is not in `positives`."""
    pids = pc.unique(positives["pid"])
    query = _codes(table["qid"], pc.unique(positives["qid"]))
    passage = _codes(table["pid"], pids)
    return np.where((query < 0) | (passage < 0), -1, query * len(pids) + passage)


def write_negatives(tables: Iterable[pa.Table], positives: pa.Table, depth: int, out: Path) -> None:
    """Drop `positives` from `ranked` tables that hold whole queries, cut at `depth`, and write them one by one."""
    queries = full = 0

    def negatives() -> Iterator[pa.Table]:
        nonlocal queries, full
        for table in tables:
            kept = drop_positives(table, positives, depth)
            queries += pc.count_distinct(kept["qid"]).as_py()
            full += pc.sum(pc.equal(kept["rank"], depth)).as_py() or 0
            yield kept

    write_lists(negatives(), out)
    log.info("%d queries with negatives, %d of them with all %d", queries, full, depth)


def mine(
    *,
    settings: MineSettings,
    gpu: int,
    passages: list[Path] | None,
    queries: list[Path],
    qrels: list[Path],
    index: list[Path] | None,
    parts: list[Path] | None,
    out: Path,
) -> None:
    """Search with a dual encoder's vectors and keep, for each query, the top passages that are not known positives.

    The search goes deeper than `mine_depth` by the largest number of positives of a query, so that every list is full
    unless the corpus itself is too small. `parts`: what was mined for the same queries in all shards of a corpus, to be
    gathered instead. Memory: as `lists`.
    """
    positives = known_positives(qrels, settings.relevance)
    depth = settings.mine_depth + (0 if parts else most_positives(positives))
    tables, _ = lists(passages, index, parts, queries, depth, settings.index_parameters, gpu)
    with gathering(parts or []):
        write_negatives(tables, positives, settings.mine_depth, out)
