"""Ranked lists of a dual encoder (eq. 1, section 4.3), from a whole corpus or merged from the lists of its shards."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from lead.config.stages import RetrieveSettings
from lead.errors import LeadError
from lead.lists import alphabetical, ranked_table, ranks
from lead.retrieval import search
from lead.retrieval.search import search_file
from lead.store.provenance import gathering
from lead.store.tables import ABOUT, open_table, write_lists
from lead.store.vectors import read_ids


def retrieve(
    *,
    settings: RetrieveSettings,
    gpu: int,
    passages: list[Path] | None,
    queries: Path,
    index: list[Path] | None,
    parts: list[Path] | None,
    out: Path,
) -> None:
    """Rank the passages for each query by the inner product of their vectors (eq. 1) and keep the top.

    Without `index` the search is exact. With it, the index's name and recall go into the metadata of `out`. parts:
    lists of the same queries over all shards of a corpus; they are merged, without a search. Memory: as `lists`.
    """
    tables, about = lists(passages, index, parts, [queries], settings.depth, settings.index_parameters, gpu)
    with gathering(parts or []):
        write_lists(tables, out, about)


def lists(
    passages: Sequence[Path] | None,
    indexes: Sequence[Path] | None,
    parts: Sequence[Path] | None,
    queries: Sequence[Path],
    depth: int,
    parameters: str | None,
    gpu: int,
) -> tuple[Iterator[pa.Table], dict[str, Any] | None]:
    """Search all shards `passages`, or merge the lists `parts` of each shard, as if the corpus were one file.

    Returns `ranked` tables, one for each batch of queries, and the names and recall of approximate `indexes`. Scores
    are exact and ids break ties, so without indexes the number of shards does not matter. Memory: as `search_file`,
    and 16 bytes and both ids for each passage on a shard's list. Of parts, one batch is in memory at a time.

    Raises LeadError if shards hold the same passage, or if parts hold lists of other queries or a passage twice.
    """
    if bool(passages) == bool(parts):
        raise LeadError("give --passages to search them, or --parts to merge the lists of the shards of a corpus")
    if parts:
        if indexes:
            raise LeadError("--index goes with --passages; parts are lists already")
        files, asked = [open_table(path, "ranked") for path in parts], query_batches(queries)
        told = [json.loads((file.schema_arrow.metadata or {}).get(ABOUT.encode(), "null")) for file in files]
        for file in files:
            if file.num_row_groups != len(asked):
                raise LeadError(f"{file.path} holds lists of other queries than {queries[0]}; make it again")
        return joined([map(file.group, range(len(asked))) for file in files], asked, depth), mean(told)
    assert passages
    if indexes and len(indexes) != len(passages):
        raise LeadError(f"--index: {len(indexes)} indexes for {len(passages)} files of --passages; give one for each")
    if len(passages) > 1:
        pids = pa.concat_arrays([read_ids(path) for path in passages])
        if pc.count_distinct(pids).as_py() != len(pids):
            raise LeadError(f"{passages[0]} and the other --passages hold a passage twice; encode the shards again")
    of_each = zip_longest(passages, indexes or [])
    searches = (search_file(path, queries, depth, index, parameters, gpu) for path, index in of_each)
    if len(passages) == 1:
        return next(searches)
    found, told = zip(*((list(tables), about) for tables, about in searches), strict=True)  # one shard at a time
    return joined(found, query_batches(queries), depth), mean(told)


def query_batches(queries: Sequence[Path]) -> list[pa.Array]:
    """The ids of the queries in each batch of `search_file`."""
    ids = map(read_ids, queries)
    return [of_file.slice(start, search.BATCH) for of_file in ids for start in range(0, len(of_file), search.BATCH)]


def joined(found: Sequence[Iterable[pa.Table]], asked: Sequence[pa.Array], depth: int) -> Iterator[pa.Table]:
    """Merge the lists `found` in each shard of a corpus: a table for every batch of queries `asked`."""
    of_batches = zip(asked, *found, strict=True)
    for qids, *tables in tqdm(of_batches, total=len(asked), desc="gather", unit="batch", disable=None):
        yield merged(pa.concat_tables(tables), qids, depth)


def merged(found: pa.Table, qids: pa.Array, depth: int) -> pa.Table:
    """The best `depth` passages for each of `qids` in `found`, a `ranked` table with rows in any order.

    Raises LeadError if it holds a list of another query, or a list with a passage twice.
    """
    query = np.asarray(pc.index_in(found["qid"], value_set=qids).fill_null(-1))
    if len(query) and query.min() < 0:
        raise LeadError("--parts hold lists of other queries; make them again")
    scores, rows = found["score"].to_numpy(), np.argsort(query, kind="stable")
    kept = [np.empty(0, np.int64)]  # candidates, with ties at the end of a list: few rows are left to sort
    for low, high in pairwise(np.searchsorted(query[rows], np.arange(len(qids) + 1))):
        of_query = rows[low:high]
        if len(of_query) > depth:
            least = np.partition(scores[of_query], len(of_query) - depth)[len(of_query) - depth]
            of_query = of_query[scores[of_query] >= least]
        kept.append(of_query)
    rows = np.concatenate(kept)
    pids, query = found["pid"].take(pa.array(rows)).combine_chunks(), query[rows].astype(np.int64)
    codes = pids.dictionary_encode()
    if len(np.unique(query * len(codes.dictionary) + codes.indices.to_numpy())) < len(rows):
        raise LeadError("two of --parts hold a passage twice; encode the shards again")
    order = np.lexsort((alphabetical(pids), -scores[rows], query))
    order = order[ranks(query[order]) <= depth]
    return ranked_table(qids, pids, query[order], order, scores[rows[order]])


def mean(told: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
    """The shards' facts about their approximate indexes, with mean recalls; None if the search is exact."""
    parts = [about for about in told if about is not None]
    if not parts:
        return None
    recalls = {c: [part["recall"][c] for part in parts if part["recall"][c] is not None] for c in parts[0]["recall"]}
    means = {c: round(float(np.mean(of_parts)), 4) if of_parts else None for c, of_parts in recalls.items()}
    return {**parts[0], "recall": means, "parts": len(parts)}
