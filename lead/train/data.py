"""Training data: which queries, positives and negatives a step sees is a function of (seed, generation, step)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from lead.data.copies import repeated, rows_with_copies
from lead.data.texts import take_texts
from lead.errors import LeadError
from lead.models.features import Candidates, mask_columns
from lead.store.tables import read_table

log = logging.getLogger("lead")
RowNumbers = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Batch:
    """One step's texts, or a rank's part: Q queries and Q (1 + n) passages, each query's positive, then its negatives.

    The columns of `relevant` and of candidates are the P passages of the global batch.
    """

    queries: list[str]
    passages: list[str]
    relevant: torch.Tensor  # [Q, P] true where the passage, or another with its text, is known to be relevant
    positives: torch.Tensor  # [Q, most] corpus rows of all relevant passages, the drawn one first; padded with -1
    first: int = 0  # column in the global batch of the first passage here
    taught: torch.Tensor | None = None  # [Q, 1 + n] a teacher's scores of the passages of each query; NaN: unknown

    def candidates(self, which: str) -> Candidates:
        """`batch`: every passage of the batch (C = P); `own`: the query's positive and negatives (C = 1 + n)."""
        n, width = len(self.queries), len(self.passages) // len(self.queries)
        start = self.first + torch.arange(n) * width
        own = start[:, None] + torch.arange(width)
        index = own if which == "own" else torch.arange(self.relevant.shape[1]).expand(n, -1)
        return mask_columns(index, self.relevant, start)

    def own(self) -> torch.Tensor:
        """[Q, 1 + n] places in `passages` of each query's own."""
        return torch.arange(len(self.passages)).view(len(self.queries), -1)

    def shard(self, rank: int, world: int) -> Batch:
        """The part of one of `world` ranks: its queries and their passages, and all columns of `relevant`."""
        if world == 1:
            return self
        q, p = len(self.queries) // world, len(self.passages) // world
        rows, columns = slice(rank * q, (rank + 1) * q), slice(rank * p, (rank + 1) * p)
        taught = None if self.taught is None else self.taught[rows]
        parts = self.queries[rows], self.passages[columns], self.relevant[rows], self.positives[rows]
        return Batch(*parts, rank * p, taught)


class Batches(Protocol):
    """A stream of batches: which texts a step sees is a function of its number."""

    def batch(self, step: int) -> Batch:
        """The batch of this step (0-based). Several threads may ask at once."""


class Queries:
    """Judged queries of one split: texts, rows of relevant passages, rows of mined negatives.

    Memory: row numbers (8 bytes) of all judgements and negatives; texts stay in Arrow.
    """

    def __init__(
        self,
        corpus_ids: pa.ChunkedArray,
        queries: Path,
        qrels: Path,
        negatives: Path | None,
        relevance: int,
        depth: int,
        group: RowNumbers | None = None,
    ):
        """Read the split's Parquet files. Raises LeadError when no query can be trained on.

        `group` [passages]: which passages have the same text (`lead.data.copies.same_text`). A copy of a relevant
        passage is relevant too: it is in `positives`, behind the `judged` ones, and is never a negative.
        """
        table, judged = read_table(queries, "queries"), read_table(qrels, "qrels")
        judged = judged.filter(pc.greater_equal(judged["rel"], relevance))
        positives = _rows(table["qid"], corpus_ids, judged, f"qrels {qrels}")
        usable = np.array([len(p) > 0 for p in positives], dtype=bool)
        if not usable.any():
            raise LeadError(f"{queries}: no query has a relevant passage in {qrels} (relevance >= {relevance})")
        keep = np.flatnonzero(usable)
        self.texts, self.qids = (table[name].take(pa.array(keep)) for name in ("text", "qid"))
        self.scores: Callable[[int, RowNumbers], torch.Tensor] | None = None  # a teacher's, of a query and passages
        self.judged = [len(positives[i]) for i in keep]
        if group is not None:
            groups = repeated(group)
            positives = [rows_with_copies(rows, group, groups) for rows in positives]
        self.positives = [positives[i] for i in keep]
        self.negatives: list[RowNumbers] = [np.empty(0, np.int64)] * len(keep)
        if negatives is not None:
            mined = read_table(negatives, "ranked")
            mined = mined.filter(pc.less_equal(mined["rank"], depth))
            rows = _rows(table["qid"], corpus_ids, mined, f"negatives {negatives}")
            # all positives: an old list or a copy must not turn a positive into a negative
            self.negatives = [rows[i][~np.isin(rows[i], positives[i])] for i in keep]
            lacking = sum(len(n) == 0 for n in self.negatives)
            if lacking:
                log.info("%d of %d queries have no mined negative; theirs are drawn at random", lacking, len(keep))

    def __len__(self) -> int:
        return len(self.texts)

    def keep(self, rows: RowNumbers) -> None:
        """Leave out the other queries."""
        self.texts, self.qids = (column.take(pa.array(rows)) for column in (self.texts, self.qids))
        self.judged, self.positives, self.negatives = (
            [of[row] for row in rows] for of in (self.judged, self.positives, self.negatives)
        )


def _rows(qids: pa.ChunkedArray, corpus_ids: pa.ChunkedArray, pairs: pa.Table, what: str) -> list[RowNumbers]:
    """For each query the corpus rows of its pairs (qid, pid), in the order of the file."""
    query = pc.index_in(pairs["qid"], value_set=qids)
    passage = pc.index_in(pairs["pid"], value_set=corpus_ids)
    known = pc.and_(pc.is_valid(query), pc.is_valid(passage))
    if len(pairs) and not pc.any(known).as_py():
        raise LeadError(f"{what}: no id is found in the corpus and queries; these files do not belong together")
    q = query.filter(known).to_numpy(zero_copy_only=False).astype(np.int64)
    p = passage.filter(known).to_numpy(zero_copy_only=False).astype(np.int64)
    order = np.argsort(q, kind="stable")
    return np.split(p[order], np.cumsum(np.bincount(q, minlength=len(qids)))[:-1])


class TrainingData:
    """The stream of batches. Every epoch is a new permutation of train queries, seeded by (seed, generation, epoch).

    `generation`: the number of earlier trainings of the model. With the seed alone, a model would first see the batches
    of its own warm-up again, and a teacher knows these best.
    """

    def __init__(
        self, corpus: pa.Table, queries: Queries, batch_size: int, negatives: int, seed: int, generation: int = 0
    ):
        """`corpus`: Parquet schema `corpus`. Raises LeadError when a batch cannot be filled."""
        if batch_size > len(queries):
            raise LeadError(f"train.batch_size: {batch_size} is more than the {len(queries)} train queries; lower it")
        fewest = len(corpus) - max(len(set(p.tolist())) for p in queries.positives)
        if fewest < negatives:
            raise LeadError(
                f"train.negatives: {negatives} is more than the {fewest} passages not relevant to a query; lower it"
            )
        self.corpus, self.queries = corpus, queries
        self.batch_size, self.n, self.seed, self.generation = batch_size, negatives, seed, generation
        self._permutations: dict[int, RowNumbers] = {}

    def _permutation(self, epoch: int) -> RowNumbers:
        known = self._permutations  # another thread may put a new dictionary in its place
        if epoch not in known:
            rng = np.random.default_rng([self.seed, 0xE90C, epoch, self.generation])
            known = {e: p for e, p in known.items() if e >= epoch - 1} | {epoch: rng.permutation(len(self.queries))}
            self._permutations = known
        return known[epoch]

    def _query_rows(self, step: int) -> list[int]:
        positions = range(step * self.batch_size, (step + 1) * self.batch_size)
        places = (divmod(position, len(self.queries)) for position in positions)
        return [int(self._permutation(epoch)[offset]) for epoch, offset in places]

    def batch(self, step: int) -> Batch:
        """The batch of this step (0-based): one positive and n negatives drawn for each query.

        Several threads may ask at once.
        """
        rng = np.random.default_rng([self.seed, 0xBA7C, step, self.generation])
        rows = self._query_rows(step)
        passages: list[int] = []
        for row in rows:
            positives, mined = self.queries.positives[row], self.queries.negatives[row]
            drawn = list(rng.choice(mined, min(self.n, len(mined)), replace=False)) if len(mined) else []
            while len(drawn) < self.n:
                other = int(rng.integers(len(self.corpus)))
                if other not in positives and other not in drawn:
                    drawn.append(other)
            passages += [int(rng.choice(positives[: self.queries.judged[row]])), *map(int, drawn)]
        column = np.array(passages)
        known = [self.queries.positives[row] for row in rows]
        relevant = np.stack([np.isin(column, k) for k in known])
        positives = np.full((len(rows), max(map(len, known))), -1)
        for q, (k, drawn) in enumerate(zip(known, column[:: 1 + self.n], strict=True)):
            positives[q, : len(k)] = sorted(k, key=lambda p: p != drawn)
        return Batch(
            self.queries.texts.take(pa.array(rows)).to_pylist(),
            take_texts(self.corpus["text"], passages),
            torch.from_numpy(relevant),
            torch.from_numpy(positives),
            taught=self._taught(rows, column),
        )

    def _taught(self, rows: list[int], column: RowNumbers) -> torch.Tensor | None:
        """A teacher's scores [Q, 1 + n] of the drawn passages [Q (1 + n)], where they are known."""
        scores = self.queries.scores
        if scores is None:
            return None
        return torch.stack([scores(row, own) for row, own in zip(rows, column.reshape(len(rows), -1), strict=True)])
