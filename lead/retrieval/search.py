"""Search over vectors by inner product (eq. 1, section 4.3). The lists depend only on the vectors and ids.

The rounding of a float32 matrix product depends on the CPU, the threads, the batch and the position of a passage.
So such products only propose candidates: those of lead.retrieval.exact for a small corpus, those of faiss otherwise.
Their scores are computed again in float64. A bound on the rounding error shows which passages could belong to the top
k; where faiss proposed too few, it proposes more. With an approximate index (`retrieval.index`) scores are exact too,
but passages may be missed: `recall` measures the share that is found.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tqdm import tqdm

from lead.errors import LeadError
from lead.lists import Floats, Ints, alphabetical, ranked_table
from lead.retrieval.engine import Engine, approximate_engine, exact_engine, search_gpu
from lead.retrieval.exact import PAIRS, SMALL, best, top
from lead.store.vectors import read_vectors

log = logging.getLogger("lead")

BATCH = 1024  # queries; below about 512 the matrix product is too small for a fast BLAS
FETCHED = 2**23  # candidates of a batch, at most: bounds memory (some 36 bytes each) when k is large
RECALL_QUERIES = 256  # evenly spaced queries of each file, for the recall of an approximate index


# --- search ----------------------------------------------------------------------------------------------------------
def search(
    queries: Floats, passages: Floats, k: int, order: Ints, engine: Engine | None = None
) -> Iterator[tuple[Ints, Ints, Floats]]:
    """Top k of `passages` [n, d] for `queries` [m, d], a batch of b queries at a time.

    Yields (queries [b], passages [b, k], scores [b, k]): positions of the batch's queries, positions of their best
    passages, and the inner products, correct to the last bit of float32. Scores fall along a row. `order` [n] breaks
    ties, also at the cut-off, so the order of `passages` does not matter. k is at most n. engine: proposes candidates
    (default: exact, on the CPU). An approximate engine may find fewer than k; the row then ends with passages -1,
    scores -inf. Raises LeadError if float32 cannot hold scores of such vectors.
    """
    engine = engine or exact_engine(passages)
    k = min(k, len(passages))
    # |fl(q.p) - q.p| <= d u |q| |p| in any order of summation, u = 2**-24; the rest is room for rounding the true score
    slack = np.full(len(queries), np.inf)  # of an approximate engine: it need not read all passages
    if engine.exact:
        with np.errstate(over="ignore"):
            longest = np.sqrt(np.einsum("nd,nd->n", passages, passages).max(initial=0))
            bound = longest * np.linalg.norm(queries, axis=1)
        if not np.isfinite(bound).all():
            raise LeadError(
                "float32 cannot hold scores of vectors as long as these; train with `scoring: {de: {normalise: unit}}`"
            )
        slack = 1.01 * (queries.shape[1] + 2) * 2.0**-24 * bound.astype(np.float64)
    with tqdm(total=len(queries), desc="search", unit="query", disable=None, delay=1) as progress:
        for start in range(0, len(queries), BATCH):
            batch = slice(start, start + BATCH)
            found, scores = _search_batch(queries[batch], passages, k, order, slack[batch], engine)
            progress.update(len(found))
            yield np.arange(start, start + len(found)), found, scores


def _search_batch(
    queries: Floats, passages: Floats, k: int, order: Ints, slack: NDArray[Any], engine: Engine
) -> tuple[Ints, Floats]:
    """Passages and scores [b, k] for `queries` [b, d]; `slack` [b] bounds the error of scores in float32."""
    if engine.on_cpu and 0 < k and len(passages) <= SMALL:
        return top(queries, passages, k, order, slack)
    found = np.empty((len(queries), k), dtype=np.int64)
    scores = np.empty((len(queries), k), dtype=np.float32)
    rows = np.arange(len(queries) if k else 0)
    fetch = k + k // 8 + 64 if engine.exact else 2 * k  # an approximate index may have another order
    while rows.size:
        fetch = min(fetch, len(passages))
        unsure = [rows[:0]]
        for part in np.array_split(rows, -(-rows.size * fetch // FETCHED)):
            products, candidates = engine.propose(queries[part], fetch)
            for start in range(0, len(part), together := max(1, PAIRS // fetch)):
                some, chosen = part[start : start + together], candidates[start : start + together]
                flat = chosen.ravel(), np.arange(len(some) + 1) * fetch
                doubles = queries[some].astype(np.float64)
                found[some], scores[some] = best(doubles, passages, k, flat, order, slack[some])
            # the score of another passage is at most that of the last proposed one, + slack
            if engine.exact and fetch < len(passages):
                unsure.append(part[products[:, -1] + slack[part] >= scores[part, -1]])
        rows, fetch = np.concatenate(unsure), 2 * fetch
    return found, scores


def search_file(
    passages: Path,
    queries: Sequence[Path],
    k: int,
    index: Path | None = None,
    parameters: str | None = None,
    gpu: int = 0,
) -> tuple[Iterator[pa.Table], dict[str, Any] | None]:
    """Search the vectors of a corpus, or of one shard, for each query in the files `queries`.

    Returns `ranked` tables of depth k, one for each batch of queries. With an approximate `index`, it also returns the
    index's name and `recall`. Scores are exact and ids break ties. Memory: the passages' vectors and their index, and
    all query vectors.

    Raises LeadError if the widths of vectors differ, or two files of queries hold the same id.
    """
    pids, vectors = read_vectors(passages)
    names, seen = pa.array(pids, pa.string()), dict[str, Path]()
    asked = [(path, *read_vectors(path)) for path in queries]
    for path, qids, query_vectors in asked:
        check_distinct(qids, path, seen)
        if len(vectors) and len(query_vectors) and query_vectors.shape[1] != vectors.shape[1]:
            raise LeadError(
                f"{path} holds vectors of width {query_vectors.shape[1]}, {passages} of width {vectors.shape[1]}; "
                "encode both with the same model"
            )
    order, engine, about = alphabetical(names), _exact_engine(vectors, search_gpu(gpu)), None
    if index is not None:
        exact = engine
        engine, name = approximate_engine(index, passages, parameters)
        none = np.empty((0, min(k, len(vectors))), np.int64)
        found, truth = (
            np.concatenate([none, *(f for _, _, q in asked for _, f, _ in search(_sample(q), vectors, k, order, by))])
            for by in (engine, exact)
        )
        about = {"index": name, "parameters": parameters, **recall(found, truth, k)}
        log.info("index %s, %s: recall %s on %d queries", name, parameters, about["recall"], about["queries"])

    def tables() -> Iterator[pa.Table]:
        for _, qids, query_vectors in asked:
            ids = pa.array(qids, pa.string())
            for batch, found, scores in search(query_vectors, vectors, k, order, engine):
                real = found >= 0
                yield ranked_table(ids, names, batch[np.nonzero(real)[0]], found[real], scores[real])

    return tables(), about


def _exact_engine(vectors: Floats, gpu: int | None) -> Engine:
    """On the CPU, or on this GPU; torch is imported for a GPU only."""
    if gpu is None:
        return exact_engine(vectors)
    from lead.retrieval.torch_index import exact_engine_on

    return exact_engine_on(vectors, gpu)


def _sample(queries: Floats) -> Floats:
    """At most RECALL_QUERIES of `queries` [m, d], evenly spaced."""
    return queries[np.unique(np.linspace(0, len(queries) - 1, min(len(queries), RECALL_QUERIES)).astype(int))]


def recall(found: Ints, truth: Ints, k: int) -> dict[str, Any]:
    """Recall of m queries at c = 10, 100 and k: the mean share of the exact top c in the found top c; and m.

    found, truth: [m, min(k, n)] positions of passages, best first, -1 for none. n passages may be fewer than c.
    """
    shares = {}
    for c in sorted({min(10, k), min(100, k), k}):
        hits = [np.isin(t[:c], f[:c][f[:c] >= 0]).mean() for f, t in zip(found, truth, strict=True) if len(t)]
        shares[str(c)] = round(float(np.mean(hits)), 4) if hits else None
    return {"queries": len(truth), "recall": shares}


def check_distinct(qids: Sequence[str], path: Path, seen: dict[str, Path]) -> None:
    """Add `qids` of file `path` to `seen`. LeadError if one is there already: its two lists would become one."""
    for qid in qids:
        if qid in seen:
            raise LeadError(
                f"query {qid!r} is in {seen[qid]} and in {path}; give every query an id that no other query has"
            )
        seen[qid] = path
