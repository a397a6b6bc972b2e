"""Exact search over vectors by inner product (eq. 1, section 4.3), with results that depend on nothing but the vectors.

A float32 matrix product rounds differently with the CPU, the thread count, the batch and the position of a passage.
So faiss only proposes: it fetches somewhat more than k passages, their scores are computed again in float64, and a
bound on the rounding error tells whether a passage that was not fetched could belong to the top k. If so, more are.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from tqdm import tqdm

from lead.artifacts import SCHEMAS, read_table, write_table
from lead.config.stages import RetrieveSettings
from lead.errors import LeadError

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

BATCH = 1024  # queries; below about 512 the matrix product of a batch is too small for the BLAS to be fast
FETCHED = 2**25  # entries of the list that faiss returns for a batch, at most: bounds memory when k is large
ROW_GROUP = 2**24  # numbers in a row group of a vectors file: 64 MB in float32


def openblas_coretype(flags: Collection[str]) -> str | None:
    """Name the OpenBLAS kernels for a CPU with these flags (as in /proc/cpuinfo); None leaves the choice to OpenBLAS.

    >>> openblas_coretype(["sse4_2", "avx", "avx2"])
    'HASWELL'
    """
    if {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= set(flags):
        return "SKYLAKEX"
    return "HASWELL" if "avx2" in flags else None


def _cpu_flags() -> list[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return []
    return next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])


def _faiss() -> Any:
    """Import faiss, late because its OpenBLAS reads the environment when it is loaded.

    The OpenBLAS inside the wheel is older than many CPUs and falls back to kernels that are several times slower.
    """
    coretype = openblas_coretype(_cpu_flags())
    if coretype is not None:
        os.environ.setdefault("OPENBLAS_CORETYPE", coretype)
    import faiss

    return faiss


# --- vectors on disk -------------------------------------------------------------------------------------------------
def write_vectors(ids: Sequence[str], vectors: NDArray[Any], path: str | Path, fp16: bool = False) -> None:
    """Write `vectors` [n, d] and the ids of their n texts to Parquet, in single or half precision.

    Raises LeadError when a number is not finite, or too large for half precision.
    """
    with np.errstate(over="ignore"):  # reported below
        flat = np.ascontiguousarray(vectors, dtype=np.float16 if fp16 else np.float32).reshape(-1)
    if not np.isfinite(flat).all():
        remedy = "; set retrieval.fp16 to false" if fp16 and np.isfinite(vectors).all() else ""
        raise LeadError(f"cannot write {path}: vectors hold NaN or infinite numbers{remedy}")
    width = vectors.shape[1]
    column = pa.FixedSizeListArray.from_arrays(pa.array(flat), width)
    table = pa.table({"id": pa.array(ids, pa.string()), "vector": column})
    write_table(table, path, row_group_size=max(1, ROW_GROUP // width), use_dictionary=False)


def read_vectors(path: str | Path) -> tuple[list[str], Floats]:
    """Ids and vectors (float32 [n, d], C-contiguous) of a file written by `write_vectors`.

    Raises LeadError naming the file when it is missing, damaged, of another kind, or holds NaN or infinite numbers.
    """
    table = read_table(path)
    kind: Any = table.schema.field("vector").type if "vector" in table.column_names else pa.null()
    is_vectors = (
        table.column_names == ["id", "vector"]
        and pa.types.is_string(table.schema.field("id").type)
        and pa.types.is_fixed_size_list(kind)
        and kind.value_type in (pa.float16(), pa.float32())
    )
    if not is_vectors or table["id"].null_count or table["vector"].null_count:
        raise LeadError(f"{path} is not a table of vectors (id: string, vector: d floats); make it with lead encode")
    ids: list[str] = table["id"].to_pylist()
    vectors = np.empty((table.num_rows, kind.list_size), dtype=np.float32)
    chunks = table["vector"].chunks[::-1]
    del table  # so that popping a chunk frees it, and the corpus is never held twice
    start = 0
    while chunks:
        chunk = chunks.pop()
        block = vectors[start : start + len(chunk)]
        block[:] = chunk.flatten().to_numpy(zero_copy_only=False).reshape(block.shape)
        start += len(chunk)
        if not np.isfinite(block).all():
            raise LeadError(f"{path} holds NaN or infinite numbers: its model has diverged; train it with a lower lr")
    return ids, vectors


# --- lists -----------------------------------------------------------------------------------------------------------
def best(scores: NDArray[np.floating[Any]], order: Ints, k: int) -> Ints:
    """Find the k highest of `scores` [m], highest first; ties, also at the cut-off, go to the lower `order` [m]."""
    chosen = np.arange(scores.size)
    if scores.size > k:  # sort only what can be among the first k, with everything that ties with the k-th
        chosen = np.flatnonzero(scores >= np.partition(scores, scores.size - k)[scores.size - k])
    result: Ints = chosen[np.lexsort((order[chosen], -scores[chosen]))][:k]
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
    """Make a `ranked` table of m rows from positions in `qids` and `pids` [m], a query's rows together, best first."""
    columns = {"qid": qids.take(pa.array(queries)), "pid": pids.take(pa.array(passages))}
    return pa.table(columns | {"rank": ranks(queries), "score": scores}).cast(SCHEMAS["ranked"])


def alphabetical(ids: pa.Array) -> Ints:
    """Return the place of each of `ids` [m] when sorted as strings: 0 for the first."""
    places = np.empty(len(ids), dtype=np.int64)
    places[pc.sort_indices(ids).to_numpy()] = np.arange(len(ids))
    return places


# --- search ----------------------------------------------------------------------------------------------------------
def search(queries: Floats, passages: Floats, k: int, order: Ints) -> Iterator[tuple[Ints, Ints, Floats]]:
    """Exact top k of `passages` [n, d] for `queries` [m, d], a batch of b queries at a time.

    Yields (queries [b], passages [b, k], scores [b, k]): the positions of the batch's queries, those of their best
    passages, and the inner products, correct to the last bit of float32. Scores fall along a row; equal scores are
    ordered by `order` [n], also at the cut-off, so the order of `passages` does not matter. k is at most n.
    """
    k = min(k, len(passages))
    # |fl(q.p) - q.p| <= d u |q| |p| in any order of summation, u = 2**-24; the rest is room for rounding the true score
    longest = max((float(np.linalg.norm(block, axis=1).max()) for block in _blocks(passages)), default=0.0)
    slack = 1.01 * (queries.shape[1] + 2) * 2.0**-24 * longest * np.linalg.norm(queries, axis=1)
    with tqdm(total=len(queries), desc="search", unit="query", disable=None) as progress:
        for start in range(0, len(queries), BATCH):
            batch = slice(start, start + BATCH)
            found, scores = _search_batch(queries[batch], passages, k, order, slack[batch])
            progress.update(len(found))
            yield np.arange(start, start + len(found)), found, scores


def _search_batch(queries: Floats, passages: Floats, k: int, order: Ints, slack: NDArray[Any]) -> tuple[Ints, Floats]:
    """Passages and scores [b, k] for `queries` [b, d]; `slack` [b] bounds the error of faiss's scores."""
    found = np.empty((len(queries), k), dtype=np.int64)
    scores = np.empty((len(queries), k), dtype=np.float32)
    rows = np.arange(len(queries) if k else 0)
    fetch = k + k // 8 + 64
    while rows.size:
        fetch = min(fetch, len(passages))
        unsure: list[int] = []
        for part in np.array_split(rows, -(-rows.size * fetch // FETCHED)):
            for row, candidates, lowest in _propose(queries, passages, part, fetch):
                exact = _products(queries[row], passages[candidates])
                top = best(exact, order[candidates], k)
                found[row], scores[row] = candidates[top], exact[top]
                # a passage that was not fetched scores at most lowest + slack
                if fetch < len(passages) and exact[top[-1]] <= lowest + slack[row]:
                    unsure.append(row)
        rows, fetch = np.array(unsure, dtype=np.int64), 2 * fetch
    return found, scores


def _blocks(vectors: Floats) -> Iterator[Floats]:
    return (vectors[start : start + 2**16] for start in range(0, len(vectors), 2**16))


def _propose(queries: Floats, passages: Floats, rows: Ints, fetch: int) -> Iterator[tuple[int, Ints, float]]:
    """Yield, for each of `rows` of `queries`: the row, the `fetch` passages faiss puts first, the lowest score."""
    faiss = _faiss()
    # what IndexFlatIP.search calls, without the copy of all passages that an index would hold
    products, candidates = faiss.knn(queries[rows], passages, fetch, metric=faiss.METRIC_INNER_PRODUCT)
    return zip(rows.tolist(), candidates, products[:, -1].tolist(), strict=True)


def _products(query: Floats, passages: Floats) -> Floats:
    """Inner products of `query` [d] with each of `passages` [c, d], rounded once.

    Products of two float32 are exact in float64, and NumPy sums each row in an order that depends on d alone.
    """
    result: Floats = (passages.astype(np.float64) * query.astype(np.float64)).sum(axis=1).astype(np.float32)
    return result


def search_files(passages: Sequence[Path], queries: Sequence[Path], k: int) -> Iterator[pa.Table]:
    """Search the vectors in the shards `passages` for those in each file of `queries`; `ranked` tables of depth k.

    Scores are exact and ties go by id, so neither the number of shards nor their order matters. Memory: one shard, all
    vectors of queries, 12 k bytes a query, and the ids of all passages. Raises LeadError when files hold vectors of
    different widths, two shards the same passage, or two files of queries the same id.
    """
    shards = [read_table(path, columns=["id"])["id"].combine_chunks() for path in passages]
    pids = pa.concat_arrays([pa.array([], pa.string()), *shards])
    if len(passages) > 1 and pc.count_distinct(pids).as_py() != len(pids):
        raise LeadError(f"{passages[0]} and its other shards hold a passage twice; encode the shards again")
    order, starts = alphabetical(pids), np.cumsum([0, *map(len, shards)])
    seen: dict[str, Path] = {}
    asked = [(path, *read_vectors(path)) for path in queries]
    tops = []
    for path, qids, vectors in asked:
        check_distinct(qids, path, seen)
        tops.append(Top(len(vectors), min(k, len(pids))))
    for file, start in zip(passages, starts, strict=False):
        _, vectors = read_vectors(file)
        for (path, _, query_vectors), top in zip(asked, tops, strict=True):
            if len(vectors) and len(query_vectors) and query_vectors.shape[1] != vectors.shape[1]:
                raise LeadError(
                    f"{path} holds vectors of width {query_vectors.shape[1]}, {file} of width {vectors.shape[1]}; "
                    "encode both with the same model"
                )
            for batch, found, scores in search(query_vectors, vectors, k, order[start : start + len(vectors)]):
                top.merge(batch, found + start, scores, order)
    for (_, qids, _), top in zip(asked, tops, strict=True):
        names, depth = pa.array(qids, pa.string()), top.found.shape[1]
        for first in range(0, len(qids), BATCH):
            rows = np.arange(first, min(first + BATCH, len(qids)))
            found, scores = top.found[rows], top.scores[rows]
            yield ranked_table(names, pids, np.repeat(rows, depth), found.ravel(), scores.ravel())


class Top:
    """The best k passages so far of each of m queries: positions and scores [m, k], best first."""

    def __init__(self, m: int, k: int) -> None:
        """Empty lists; they fill as shards are merged."""
        self.found = np.full((m, k), -1, dtype=np.int64)
        self.scores = np.full((m, k), -np.inf, dtype=np.float32)

    def merge(self, rows: Ints, found: Ints, scores: Floats, order: Ints) -> None:
        """Merge another shard's lists [b, c] of the queries `rows` [b]. Ties go to the lower `order` of a position."""
        k = self.found.shape[1]
        for row, new, values in zip(rows.tolist(), found, scores, strict=True):
            if self.found[row, 0] < 0:
                self.found[row, : len(new)], self.scores[row, : len(new)] = new, values
                continue
            old = self.found[row] >= 0
            both = np.concatenate([self.found[row, old], new])
            all_scores = np.concatenate([self.scores[row, old], values])
            top = best(all_scores, order[both], k)
            self.found[row, : len(top)], self.scores[row, : len(top)] = both[top], all_scores[top]


def check_distinct(qids: Sequence[str], path: Path, seen: dict[str, Path]) -> None:
    """Add `qids` of file `path` to `seen`; LeadError when one is there already: its two lists would become one."""
    for qid in qids:
        if qid in seen:
            raise LeadError(
                f"query {qid!r} is in {seen[qid]} and in {path}; give the queries of each split ids of their own"
            )
        seen[qid] = path


def retrieve(*, settings: RetrieveSettings, passages: list[Path], queries: Path, out: Path) -> None:
    """Rank the whole corpus for each query by the inner product of their vectors (section 4.3) and keep the top."""
    tables = search_files(passages, [queries], settings.depth)
    write_table(pa.concat_tables([SCHEMAS["ranked"].empty_table(), *tables]), out, "ranked")
