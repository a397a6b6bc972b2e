"""Exact search by the products of each query with all passages: for a corpus whose products fit into memory.

A rounded product decides which passages can be among the top k. Their scores are inner products in float64, rounded
once, the same whatever the CPU, the threads and the batch: a matrix product in float64 gives them, except for the few
(one in a million) that lie so near the middle of two float32 numbers that its own rounding could decide. These are
added up in a fixed order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lead.lists import Floats, Ints, descending

SMALL = 2**16  # passages; with more, faiss takes less memory and is no slower
HELD = 2**24  # products in memory at a time; with fewer, the matrix products are too small to be fast
GATHER = 24  # gathering k vectors takes as long as products in float64, instead of float32, with this many times k
PART = 256  # vectors converted to float64 at a time: they stay in the processor's cache
EPSILON = 2.0**-29  # rounding of float64 beside that of float32

Doubles = NDArray[np.float64]


def top(queries: Floats, passages: Floats, k: int, order: Ints, slack: Doubles) -> tuple[Ints, Floats]:
    """Positions and scores [b, k] of the best of `passages` [n, d] for `queries` [b, d]; ties by the lower `order` [n].

    1 <= k <= n. slack [b]: a bound on the rounding error of products in float32, and of a score.
    """
    found, scores = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
    n, doubles = len(passages), queries.astype(np.float64)
    wide = n < GATHER * k
    for start in range(0, len(queries), step := max(1, HELD // n)):
        products = (
            _products(doubles[start : start + step], passages) if wide else queries[start : start + step] @ passages.T
        )
        for row, of_query in enumerate(products, start):
            # two roundings: of a passage among the top k, and of one that seems to be
            least = of_query.dtype.type(np.partition(of_query, n - k)[n - k] - 2 * slack[row])
            chosen = np.flatnonzero(of_query >= least)
            near = of_query[chosen] if wide else None
            exact = rescore(doubles[row], passages, chosen, slack[row], near)
            best = descending(exact, order[chosen])[:k]
            found[row], scores[row] = chosen[best], exact[best]
    return found, scores


def _products(queries: Doubles, passages: Floats) -> Doubles:
    """Inner products [b, n] in float64. Memory: also 4,096 passages in float64."""
    out = np.empty((len(queries), len(passages)))
    for start in range(0, len(passages), 4096):
        part = passages[start : start + 4096].astype(np.float64)
        np.matmul(queries, part.T, out=out[:, start : start + 4096])
    return out


def rescore(query: Doubles, passages: Floats, rows: Ints, slack: float, near: Doubles | None = None) -> Floats:
    """Inner products [c] of a query [d] with these rows of `passages` [n, d], rounded once.

    slack: as in `top`. near [c]: the products in float64, if they are known.
    """
    if near is None:
        near = np.empty(len(rows))
        for start in range(0, len(rows), PART):
            part = np.take(passages, rows[start : start + PART], axis=0)
            np.matmul(part.astype(np.float64), query, out=near[start : start + PART])
    error = 2 * EPSILON * slack  # of this sum, and of one in another order
    scores, above = (near - error).astype(np.float32), (near + error).astype(np.float32)
    doubtful = np.flatnonzero(scores != above)
    # products of two float32 are exact in float64, and einsum adds them in an order that depends only on d
    scores[doubtful] = np.einsum("cd,d->c", passages[rows[doubtful]].astype(np.float64), query)
    return scores
