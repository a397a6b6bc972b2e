"""Exact search by the products of each query with all passages: for a corpus whose products fit into memory.

A rounded product decides which passages can be among the top k. Their scores are inner products in float64, rounded
once, the same whatever the CPU, the threads and the batch: a matrix product in float64 gives them, except for the few
(one in a million) that lie so near the middle of two float32 numbers that its own rounding could decide. These are
added up in a fixed order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lead.lists import Floats, Ints, keys

SMALL = 2**16  # passages; with more, faiss takes less memory and is no slower
HELD = 2**24  # products in memory at a time; with fewer, the matrix products are too small to be fast
GATHER = 40  # gathering k vectors takes as long as products in float64, instead of float32, with this many times k
PART = 128  # vectors converted to float64 at a time: they stay in the processor's cache
PAIRS, SEEN = 2**16, 2**21  # candidates, and products, of the queries that are ranked together: also for the cache
GROUPS = 8  # times k: the number of groups of passages whose largest products bound the k-th
EPSILON = 2.0**-29  # rounding of float64 beside that of float32

Doubles = NDArray[np.float64]


def top(queries: Floats, passages: Floats, k: int, order: Ints, slack: Doubles) -> tuple[Ints, Floats]:
    """Positions and scores [b, k] of the best of `passages` [n, d] for `queries` [b, d]; ties by the lower `order` [n].

    1 <= k <= n. slack [b]: a bound on the rounding error of products in float32, and of a score.
    """
    found, scores = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
    n, doubles = len(passages), queries.astype(np.float64)
    wide = n < GATHER * k
    step, together = max(1, HELD // n), max(1, min(PAIRS // k, SEEN // n))
    held = np.empty((min(step, len(queries)), n), np.float64 if wide else np.float32)
    for first in range(0, len(queries), step):
        products = held[: len(queries) - first]
        if wide:
            _products(doubles[first : first + step], passages, products)
        else:
            np.matmul(queries[first : first + step], passages.T, out=products)
        for start in range(0, len(products), together):
            block = products[start : start + together]
            rows = slice(first + start, first + start + len(block))
            chosen, ends = _candidates(block.astype(np.float32, copy=False), k, slack[rows])
            near = block.ravel()[chosen] if wide else None
            chosen -= np.repeat(np.arange(len(block)) * n, np.diff(ends))
            found[rows], scores[rows] = best(doubles[rows], passages, k, (chosen, ends), order, slack[rows], near)
    return found, scores


def _products(queries: Doubles, passages: Floats, out: Doubles) -> None:
    """Inner products [b, n] in float64. Memory: also 4,096 passages in float64."""
    for start in range(0, len(passages), 4096):
        part = passages[start : start + 4096].astype(np.float64)
        np.matmul(queries, part.T, out=out[:, start : start + 4096])


def _candidates(products: Floats, k: int, slack: Doubles) -> tuple[Ints, Ints]:
    """Where `products` [b, n] can be among the k best of their row: flat positions, ascending, and their `ends` [b+1].

    The k-th largest of the groups' largest products is at most the k-th largest product, and is found sooner.
    """
    b, n = products.shape
    size = max(1, n // (GROUPS * k))
    largest = products
    if size > 1:  # a rest of the passages is in no group, which only lowers the bound
        largest = products[:, : n // size * size].reshape(b, size, n // size).max(axis=1)
    at = largest.shape[1] - k
    # two roundings: of a passage among the top k, and of one that seems to be
    least = np.partition(largest, at, axis=1)[:, at] - 2 * slack
    chosen = np.flatnonzero(products >= least.astype(np.float32)[:, None])
    return chosen, np.searchsorted(chosen, np.arange(b + 1) * n)


def best(
    queries: Doubles,
    passages: Floats,
    k: int,
    candidates: tuple[Ints, Ints],
    order: Ints,
    slack: Doubles,
    near: Doubles | None = None,
) -> tuple[Ints, Floats]:
    """Positions and scores [b, k] of the best candidates, as in `top`: at least k rows of `passages` for each query.

    candidates: rows [c], query by query, and where those of each query begin, and the last ends [b+1]. A row -1 is no
    passage, and has the score -inf. near [c]: the products in float64, if they are known.
    """
    rows, ends = candidates
    exact = rescore(queries, passages, candidates, slack, near)
    exact[rows < 0] = -np.inf
    counts = np.diff(ends)
    sortable = np.full((len(counts), counts.max(initial=0)), np.iinfo(np.int64).max)
    sortable[np.arange(sortable.shape[1]) < counts[:, None]] = keys(exact, order[rows])
    first = ends[:-1, None] + np.argsort(sortable, axis=1)[:, :k]
    return rows[first], exact[first]


def rescore(
    queries: Doubles, passages: Floats, candidates: tuple[Ints, Ints], slack: Doubles, near: Doubles | None = None
) -> Floats:
    """Inner products [c] of `queries` [b, d] with their candidates among `passages` [n, d], rounded once; as `best`."""
    rows, ends = candidates
    if near is None:
        near = np.empty(len(rows))
        part = np.empty((PART, passages.shape[1]), np.float32)
        wide = np.empty(part.shape)
        for query, low, high in zip(queries, ends.tolist(), ends[1:].tolist(), strict=False):
            for start in range(low, high, PART):
                c = min(PART, high - start)
                np.take(passages, rows[start : start + c], axis=0, out=part[:c], mode="clip")  # clip: without a copy
                wide[:c] = part[:c]
                np.matmul(wide[:c], query, out=near[start : start + c])
    error = np.repeat(2 * EPSILON * slack, np.diff(ends))  # of this sum, and of one in another order
    scores, above = (near - error).astype(np.float32), (near + error).astype(np.float32)
    doubtful = np.flatnonzero(scores != above)
    for start in range(0, len(doubtful), PART):
        some = doubtful[start : start + PART]
        query = queries[np.searchsorted(ends, some, side="right") - 1]
        # products of two float32 are exact in float64, and einsum adds them in an order that depends only on
        # d (tried up to 1,024)
        scores[some] = np.einsum("cd,cd->c", passages[rows[some]].astype(np.float64), query)
    return scores
