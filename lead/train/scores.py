"""Distillation from scores of pairs that are known already: a teacher that was asked once, or one from elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from lead.config.methods import METHODS
from lead.config.schema import Distil, Train
from lead.data.scores import read_scores
from lead.errors import LeadError
from lead.methods.load import load_loss
from lead.methods.losses import Loss, Scored
from lead.models.base import LayeredModel
from lead.models.features import Scores
from lead.train.data import Queries, RowNumbers
from lead.train.step import Encoded, Prepared, Step

log = logging.getLogger("lead")


class PairScores:
    """Scores of pairs of train queries and passages. Memory: 12 bytes a pair, and one file while it is read."""

    def __init__(
        self, files: Sequence[Path], weights: Sequence[float], queries: Queries, pids: pa.ChunkedArray
    ) -> None:
        """The weighted sum of the scores in `files`, of the pairs that all of them hold. Raises LeadError."""
        self.passages = len(pids)
        self.keys: RowNumbers = np.empty(0, np.int64)
        self.scores: NDArray[np.float32] = np.empty(0, np.float32)
        for n, (file, weight) in enumerate(zip(files, weights, strict=True)):
            table = read_scores(file)
            q, p = pc.index_in(table["qid"], value_set=queries.qids), pc.index_in(table["pid"], value_set=pids)
            known = pc.and_(pc.is_valid(q), pc.is_valid(p))
            rows = (column.filter(known).to_numpy().astype(np.int64) for column in (q, p))
            keys = next(rows) * self.passages + next(rows)
            order = np.argsort(keys)
            keys, s = keys[order], weight * table["score"].filter(known).to_numpy()[order]
            if n:
                keys, old, new = np.intersect1d(self.keys, keys, assume_unique=True, return_indices=True)
                s = self.scores[old] + s[new]
            self.keys, self.scores = keys, s.astype(np.float32)
        if not len(self.keys):
            raise LeadError(f"{', '.join(map(str, files))}: no scored pair is one of this dataset's train queries")

    def of(self, query: int, passages: RowNumbers) -> NDArray[np.float32]:
        """Scores [P] of the passages in these corpus rows [P] for a train query; NaN where there is none."""
        keys = query * self.passages + passages
        at = np.searchsorted(self.keys, keys).clip(max=len(self.keys) - 1)
        return np.where(self.keys[at] == keys, self.scores[at], np.float32(np.nan))

    def restrict(self, queries: Queries) -> None:
        """Let positives and negatives be drawn among scored pairs only, and queries that have a scored positive.

        A negative that is drawn at random, where too few are scored, has no score: it is masked in distillation.
        Raises LeadError if no query is left.
        """
        total = len(queries)
        kept, lost = [], 0
        for row in range(total):
            positives, n, negatives = queries.positives[row], queries.judged[row], queries.negatives[row]
            known = ~np.isnan(self.of(row, positives))
            known[n:] = False  # copies are no judged positives
            scored = ~np.isnan(self.of(row, negatives))
            lost += int((~scored).sum())
            queries.positives[row] = np.concatenate([positives[known], positives[~known]])
            queries.judged[row], queries.negatives[row] = int(known.sum()), negatives[scored]
            if queries.judged[row]:
                kept.append(row)
        if not kept:
            raise LeadError("--scores: no train query has a relevant passage with a score; score positives too")
        log.info("%d of %d train queries have a scored positive; %d negatives without a score are left out",
                 len(kept), total, lost)  # fmt: skip
        self.rows = np.array(kept)
        queries.keep(self.rows)


class ScoresStep(Step):
    """A method that sees scores, with scores of each query's own passages in the place of a teacher."""

    def __init__(self, student: LayeredModel, train: Train, distil: Distil, seed: int, method: str) -> None:
        """Raises LeadError for a method that sees more than scores."""
        super().__init__(student, train, seed)
        if METHODS[method].sees != "scores":
            raise LeadError(
                f"method {method} needs a teacher's {METHODS[method].sees}, which a file of scores does not hold; use "
                "rd or margin_mse, or give a model as `teacher`"
            )
        self.distil, self.loss_of = distil, load_loss(METHODS[method])

    def trained(self) -> dict[str, LayeredModel]:
        """The student."""
        return {"student": self.student}

    def loss(self, prepared: Prepared, step: int) -> tuple[Loss, list[Encoded]]:
        """The method's loss of the student's scores and the given ones."""
        student = self.encode(self.student, "student", prepared.inputs["student"], (self.student.n_layers,), step)
        own = self.candidates_of(prepared, "own")
        which = self.distil.contrastive_candidates
        contrastive = own if which == "own" else self.candidates_of(prepared, which)
        assert prepared.batch.taught is not None
        taught = prepared.batch.taught.to(self.device)
        known = replace(own, keep=own.keep & ~taught.isnan())
        t = taught.nan_to_num(nan=0.0)
        scored = Scored(
            distillation=known,
            teacher=Scores(t[None], (1,), t),
            student=student.score(known),
            contrastive=contrastive,
            student_contrastive=student.score(contrastive),
            distil=self.distil,
            mean_over_ranks=self.exchange.mean,
        )
        return self.loss_of(scored), [student]


def taught_by(files: Sequence[Path], weights: Sequence[float] | None, queries: Queries, pids: pa.ChunkedArray) -> None:
    """Give train queries the scores in `files`. `weights`: a number for each; None: 1. Raises LeadError."""
    scores = PairScores(files, weights or [1.0] * len(files), queries, pids)
    scores.restrict(queries)
    queries.scores = lambda row, passages: torch.from_numpy(scores.of(int(scores.rows[row]), passages))
