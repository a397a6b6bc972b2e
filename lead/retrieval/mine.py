"""Hard negatives: the top of each query's list without known positives (section 4.3).

A passage with the text of a known positive is a positive too, under any id.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lead.config.lists import Mining
from lead.config.stages import MineSettings
from lead.data.copies import same_text
from lead.data.texts import mapped
from lead.errors import LeadError
from lead.lists import ranks
from lead.retrieval.retrieve import lists
from lead.store.provenance import gathering
from lead.store.tables import SCHEMAS, read_table, write_lists
from lead.store.vectors import read_vectors

log = logging.getLogger("lead")

OWN_ID = 0.1  # warn if this share of queries has a best negative with the query's id


# --- known positives -------------------------------------------------------------------------------------------------
def known_positives(qrels: Iterable[Path], relevance: int) -> pa.Table:
    """Read all judgements (qid, pid, rel) of the files `qrels` with a grade of at least `relevance`."""
    judgements = pa.concat_tables([SCHEMAS["qrels"].empty_table(), *(read_table(path, "qrels") for path in qrels)])
    return judgements.filter(pc.greater_equal(judgements["rel"], relevance))


def with_copies(positives: pa.Table, passages: pa.Table) -> pa.Table:
    """`positives` (qid, pid, rel), and a row for every other passage of the corpus with a positive's text.

    passages: (pid, text), possibly mapped into memory. Memory: as `same_text`, and the ids of the copies.
    """
    group = same_text(passages["text"])
    found = pc.index_in(positives["pid"], value_set=passages["pid"])
    known = positives.filter(pc.is_valid(found))  # a judgement may name a passage that the corpus lacks
    rows = found.drop_null().to_numpy().astype(np.int64)
    members = np.flatnonzero(np.isin(group, group[rows]))  # every passage with the text of a positive
    members = members[np.argsort(group[members], kind="stable")]
    first, last = (np.searchsorted(group[members], group[rows], side) for side in ("left", "right"))
    sizes = last - first
    of = np.repeat(np.arange(len(rows)), sizes)  # the positive of each copy
    within = np.arange(len(of)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    copy = members[first[of] + within]
    new = copy != rows[of]
    if new.any():
        log.info("%d copies of positives under other ids are no negatives", len(np.unique(copy[new])))
    pids = passages["pid"].take(pa.array(copy[new]))
    copies = {"qid": known["qid"].take(pa.array(of[new])), "pid": pids, "rel": known["rel"].take(pa.array(of[new]))}
    return pa.concat_tables([positives, pa.table(copies).cast(positives.schema)])


def most_positives(positives: pa.Table) -> int:
    """The largest number of positives of a query. A search must go deeper by this number to leave enough negatives."""
    counts = positives.group_by("qid").aggregate([("pid", "count_distinct")])["pid_count_distinct"]
    return pc.max(counts).as_py() or 0


def drop_positives(
    ranked: pa.Table, positives: pa.Table, depth: int | None = None, ignore_identical_ids: bool = False
) -> pa.Table:
    """`ranked` without the pairs in `positives` (qid, pid), ranked anew from 1, cut at `depth`.

    ignore_identical_ids: also drop the passage with the query's id. Rows of a query must be neighbours, best first;
    their order is kept. Ids are compared as strings: an integer column raises an error instead of matching nothing.
    """
    # only these queries' positives: looking up all of them for every batch takes longer than the search
    positives = positives.filter(pc.is_in(positives["qid"], value_set=pc.unique(ranked["qid"])))
    dropped = np.isin(_pairs(ranked, positives), _pairs(positives, positives))
    if ignore_identical_ids:
        dropped |= _own_id(ranked)
    return _top(ranked.filter(pa.array(~dropped)), depth)


def _own_id(ranked: pa.Table) -> NDArray[np.bool_]:
    """For each row, whether the passage has the query's id."""
    return np.asarray(pc.equal(ranked["qid"], ranked["pid"]), dtype=bool)


def _top(ranked: pa.Table, depth: int | None) -> pa.Table:
    """The lists ranked anew from 1, cut at `depth`."""
    rank = ranks(_codes(ranked["qid"], pc.unique(ranked["qid"])))
    ranked = ranked.set_column(ranked.column_names.index("rank"), "rank", pa.array(rank, pa.int32()))
    return ranked if depth is None else ranked.filter(pa.array(rank <= depth))


def _codes(ids: pa.ChunkedArray, known: pa.Array) -> NDArray[np.int64]:
    """Find the position of each id in `known`, -1 for others."""
    return np.asarray(pc.index_in(ids, value_set=known).fill_null(-1), dtype=np.int64)


def _pairs(table: pa.Table, positives: pa.Table) -> NDArray[np.int64]:
    """A number for each row's (qid, pid), the same for equal pairs; -1 if either id is not in `positives`."""
    pids = pc.unique(positives["pid"])
    query = _codes(table["qid"], pc.unique(positives["qid"]))
    passage = _codes(table["pid"], pids)
    return np.where((query < 0) | (passage < 0), -1, query * len(pids) + passage)


# --- likely positives ------------------------------------------------------------------------------------------------
def lowest_scores(passages: Sequence[Path], queries: Sequence[Path], positives: pa.Table) -> pa.Table:
    """(qid, score): the lowest inner product (eq. 1) of each query with one of its known positives.

    A query without a positive in the corpus has no row. Memory: the vectors of one file of `passages`, of all
    positives, and of one file of `queries`.
    """
    wanted = pc.unique(positives["pid"])
    vectors: dict[str, NDArray[np.float32]] = {}
    for path in passages:
        pids, matrix = read_vectors(path)
        rows = np.flatnonzero(np.asarray(pc.is_in(pa.array(pids, pa.string()), value_set=wanted)))
        vectors |= {pids[row]: matrix[row].copy() for row in rows}
    relevant: dict[str, list[str]] = {}
    for qid, pid in zip(positives["qid"].to_pylist(), positives["pid"].to_pylist(), strict=True):
        if pid in vectors:
            relevant.setdefault(qid, []).append(pid)
    lowest: dict[str, float] = {}
    for path in queries:
        for qid, query in zip(*read_vectors(path), strict=True):
            if of := relevant.get(qid):
                lowest[qid] = float((np.stack([vectors[pid] for pid in of]).astype(np.float64) @ query).min())
    return pa.table(
        {"qid": pa.array(list(lowest), pa.string()), "score": pa.array(list(lowest.values()), pa.float32())}
    )


def choose(
    ranked: pa.Table, lowest: pa.Table, mining: Mining, depth: int, rng: np.random.Generator
) -> tuple[pa.Table, dict[str, int]]:
    """At most `depth` negatives for each query of `ranked`, and the number of passages that each filter removed.

    This follows `mine_hard_negatives` of sentence-transformers. First drop passages that score too near to the
    lowest-scoring positive, then the best `range_min` of the rest; then keep the top or a random sample. lowest (qid,
    score): a query without a row has no margin. Rows of a query are neighbours, best first, without known positives.
    """
    row = _codes(ranked["qid"], lowest["qid"].combine_chunks())
    positive = np.append(lowest["score"].to_numpy(), np.float32(np.nan))[row].astype(np.float64)  # NaN for row -1
    score, removed = ranked["score"].to_numpy().astype(np.float64), {}
    kept = np.ones(len(ranked), dtype=bool)
    limits = {
        "margin": None if mining.margin is None else positive - mining.margin,
        "relative_margin": None
        if mining.relative_margin is None
        else positive - mining.relative_margin * abs(positive),
    }
    for name, limit in limits.items():
        if limit is not None:
            near = kept & (score > limit)  # no score is above NaN
            removed[name], kept = int(near.sum()), kept & ~near
    ranked = _top(ranked.filter(pa.array(kept)), mining.range_max)
    skipped = ranked["rank"].to_numpy() <= mining.range_min
    removed["range_min"] = int(skipped.sum())
    ranked = ranked.filter(pa.array(~skipped))
    if mining.sampling == "random":
        query, drawn = _codes(ranked["qid"], pc.unique(ranked["qid"])), rng.random(len(ranked))
        order = np.lexsort((drawn, query))
        sampled = np.sort(order[ranks(query[order]) <= depth])
        removed["sampling"] = len(ranked) - len(sampled)
        ranked = ranked.take(pa.array(sampled))
    return _top(ranked, depth), removed


# --- the stage -------------------------------------------------------------------------------------------------------
def write_negatives(tables: Iterable[pa.Table], depth: int, out: Path) -> None:
    """Write `ranked` tables of negatives one after the other, and log their number. A query is within one table."""
    queries = full = own = 0

    def counted() -> Iterator[pa.Table]:
        nonlocal queries, full, own
        for table in tables:
            first = pc.equal(table["rank"], 1)
            queries += pc.sum(first).as_py() or 0
            full += pc.sum(pc.equal(table["rank"], depth)).as_py() or 0
            own += int(_own_id(table.filter(first)).sum())
            yield table

    write_lists(counted(), out)
    log.info("%d queries with negatives, %d of them with all %d", queries, full, depth)
    if own and own >= OWN_ID * queries:
        log.warning(
            "the best negative of %d of %d queries has the query's own id; if queries are passages of the corpus, set "
            "retrieval.ignore_identical_ids: true",
            own,
            queries,
        )


def mine(
    *,
    settings: MineSettings,
    gpu: int,
    passages: list[Path] | None,
    queries: list[Path],
    qrels: list[Path],
    index: list[Path] | None,
    parts: list[Path] | None,
    corpus: Path | None = None,
    out: Path,
) -> None:
    """Search with a dual encoder's vectors and keep, for each query, the top passages that are not known positives.

    With `corpus`, copies of positives under other ids are dropped too. The search goes deeper than `mine_depth` by the
    largest number of positives of a query. So every list is full, unless the corpus is too small or `mining` removes
    more. parts: mined lists of the same queries from all shards of a corpus; they are gathered, without a search.
    Memory: as `lists`, and with `corpus` as `with_copies`. Raises LeadError for `mining` of parts.
    """
    mining, filtered = settings.mining, settings.mining != Mining()
    if parts and filtered:
        raise LeadError("mining: its filters need the scores of all positives; they are not for a corpus in shards")
    positives = known_positives(qrels, settings.relevance)
    if corpus is not None:
        positives = with_copies(positives, mapped(corpus, out.with_name(f"{out.name}.corpus.arrow")))
    lowest = pa.table({"qid": pa.array([], pa.string()), "score": pa.array([], pa.float32())})
    if passages and (mining.margin is not None or mining.relative_margin is not None):
        lowest = lowest_scores(passages, queries, positives)
    searched = depth = settings.mine_depth
    if filtered:
        searched = mining.range_max or depth + mining.range_min
    if not parts:
        searched += most_positives(positives) + settings.ignore_identical_ids
    tables, _ = lists(passages, index, parts, queries, searched, settings.index_parameters, gpu)
    removed: dict[str, int] = {}

    def negatives() -> Iterator[pa.Table]:
        rng = np.random.default_rng(mining.seed)
        for table in tables:
            kept = drop_positives(table, positives, None if filtered else depth, settings.ignore_identical_ids)
            if filtered:
                kept, gone = choose(kept, lowest, mining, depth, rng)
                for name, number in gone.items():
                    removed[name] = removed.get(name, 0) + number
            yield kept

    with gathering(parts or []):
        write_negatives(negatives(), depth, out)
    for name, number in removed.items():
        log.info("mining.%s removed %s passages", name, f"{number:,}")
