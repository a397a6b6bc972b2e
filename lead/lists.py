"""Ranked lists as arrays and tables: the best scores, ranks, and the order of ids."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lead.store.tables import SCHEMAS

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


def best(scores: Floats, order: Ints, k: int) -> Ints:
    """Find the k highest of `scores` [m], highest first; ties, also at the cut-off, go to the lower `order` [m]."""
    chosen = np.arange(scores.size)
    if scores.size > k:  # sort only what can be among the first k, with everything that ties with the k-th
        chosen = np.flatnonzero(scores >= np.partition(scores, scores.size - k)[scores.size - k])
    result: Ints = chosen[descending(scores[chosen], order[chosen])[:k]]
    return result


def descending(scores: Floats, order: Ints) -> Ints:
    """Sort `scores` [m], highest first, ties by the lower `order` [m], which is below 2**32: positions [m]."""
    result: Ints = np.argsort(keys(scores, order))
    return result


def keys(scores: Floats, order: Ints) -> Ints:
    """Integers [m] whose ascending order is that of `descending`. Sorting them is twice as fast as np.lexsort.

    The bits of a float, read as an integer, grow with it; those of a negative float fall.
    """
    bits = (np.float32(0) - scores).view(np.int32)
    bits ^= (bits >> 31) & np.int32(0x7FFFFFFF)
    result: Ints = (bits.astype(np.int64) << 32) | order
    return result


def ranks(groups: NDArray[Any]) -> Ints:
    """Count 1, 2, .. within each run of equal neighbours in `groups` [m]."""
    position = np.arange(groups.size)
    starts = np.ones(groups.size, dtype=bool)
    starts[1:] = groups[1:] != groups[:-1]
    result: Ints = position - np.maximum.accumulate(np.where(starts, position, 0)) + 1
    return result


def ranked_table(
    qids: pa.Array, pids: pa.Array, queries: Ints, passages: Ints, scores: NDArray[np.floating[Any]]
) -> pa.Table:
    """Make a `ranked` table from m positions in `qids` and `pids`; a query's rows come together, best first."""
    columns = {"qid": qids.take(pa.array(queries)), "pid": pids.take(pa.array(passages))}
    return pa.table(columns | {"rank": ranks(queries), "score": scores}).cast(SCHEMAS["ranked"])


def alphabetical(ids: pa.Array) -> Ints:
    """Return the place of each of `ids` [m] when sorted as strings: 0 for the first."""
    places = np.empty(len(ids), dtype=np.int64)
    places[pc.sort_indices(ids).to_numpy()] = np.arange(len(ids))
    return places
