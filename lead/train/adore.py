"""ADORE (Zhan et al. 2021): a query encoder learns against passages whose vectors do not change.

Only queries are encoded, so every step can search all passages. Its negatives are the passages that the query encoder
of this step ranks too high, not those that another model found earlier.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from lead.config.schema import Train
from lead.errors import LeadError
from lead.methods.adore import lambda_rank
from lead.methods.losses import Loss
from lead.models.base import LayeredModel
from lead.models.dual_encoder import DualEncoder
from lead.models.features import Candidates, Features
from lead.store.tables import read_table
from lead.store.vectors import read_vectors
from lead.train.data import Batch
from lead.train.exchange import Exchange
from lead.train.step import Encoded, Inputs, Prepared, Step

BLOCK = 1 << 26  # scores that a search holds at a time: bounds the passages of a block


class FixedPassages:
    """Vectors of all passages of a corpus, shared among the ranks: each of w ranks holds every w-th.

    Memory of a rank: 4 d / w bytes a passage on the model's device, and, while reading, one file. Every rank must take
    part in a call, with inputs of the same shape.
    """

    def __init__(self, files: Sequence[Path], corpus: Path, model: LayeredModel) -> None:
        """`files`: vectors of `corpus` by `lead encode`, in order. Raises LeadError when they do not fit each other."""
        model.must_rank_by("search", "--passages: the model", "; give vectors to a dual encoder only")
        self.exchange, self.layer, self.width = Exchange.here(), model.n_layers, model.wide
        rank, world = self.exchange.rank, self.exchange.world
        pids = read_table(corpus, columns=["pid"])["pid"]
        self.vectors = torch.empty(len(range(rank, len(pids), world)), model.size, device=model.device)
        self.size, start, filled = len(pids), 0, 0
        for file in files:
            ids, vectors = read_vectors(file)
            if vectors.shape[1] != model.size:
                raise LeadError(
                    f"--passages: {file} holds vectors of width {vectors.shape[1]}, the model's have {model.size}; "
                    "encode the passages with the model that training starts from"
                )
            if ids != pids.slice(start, len(ids)).to_pylist():
                raise LeadError(f"--passages: {file} is not of the passages in {corpus}, in their order; encode again")
            own = torch.from_numpy(vectors[(rank - start) % world :: world])
            self.vectors[filled : filled + len(own)] = own
            start, filled = start + len(ids), filled + len(own)
        if start < len(pids):
            raise LeadError(f"--passages: {start} vectors for the {len(pids)} passages of {corpus}; give all shards")

    @torch.no_grad()
    def search(self, queries: Tensor, k: int) -> Tensor:
        """Corpus rows [q, k], best first, of the k passages with the highest inner products with queries [q, d]."""
        everyone = self.exchange.gather(queries, 0)
        scores = everyone.new_full((len(everyone), k), -torch.inf)
        rows = torch.zeros(scores.shape, dtype=torch.long, device=scores.device)
        size = max(1, BLOCK // len(everyone))
        for first in range(0, len(self.vectors), size):
            block = self.vectors[first : first + size]
            found = (everyone @ block.T).topk(min(k, len(block)))
            here = (first + found.indices) * self.exchange.world + self.exchange.rank
            scores, rows = _top(k, torch.cat([scores, found.values], 1), torch.cat([rows, here], 1))
        rows = _top(k, self.exchange.gather(scores, 1), self.exchange.gather(rows, 1))[1]
        return rows.narrow(0, self.exchange.rank * len(queries), len(queries))

    def features(self, rows: Tensor) -> Features:
        """Last-layer features [1, P, width] of the passages in these corpus rows [P]."""
        everyone = self.exchange.gather(rows.to(self.vectors.device), 0)
        here = everyone % self.exchange.world == self.exchange.rank
        x = self.vectors.new_zeros(len(everyone), self.vectors.shape[1])
        x[here] = self.vectors[everyone[here] // self.exchange.world]
        x = self.exchange.total(x).narrow(0, self.exchange.rank * len(rows), len(rows))
        return Features(pad(x, (0, self.width - x.shape[1]))[None], (self.layer,))


def _top(k: int, scores: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The k highest scores of each query and their rows, best first."""
    best = scores.topk(k)
    return best.values, rows.gather(1, best.indices)


class AdoreStep(Step):
    """Queries are encoded, all passages searched, and `lambda_rank` taken over the top of the lists."""

    student: DualEncoder

    def __init__(self, student: LayeredModel, train: Train, seed: int, index: FixedPassages) -> None:
        """`index`: the passages; `train.negatives_depth`: how many negatives of a search count (200 in the paper)."""
        super().__init__(student, train, seed)
        self.index = index

    def inputs(self, batch: Batch) -> dict[str, Inputs]:
        """Token ids of the queries; passages are vectors already."""
        return {"student": {"queries": self.student.tokenize("query", batch.queries)}}

    def loss(self, prepared: Prepared, step: int) -> tuple[Loss, list[Encoded]]:
        """The pairwise loss of each query's positive against the top of its search."""
        layers, positives = (self.student.n_layers,), prepared.batch.positives.to(self.device)
        (queries,), replays = self.features(
            self.student, "student", prepared.inputs["student"], layers, step, frozen=False
        )
        rows, candidates = self.candidates(self.student.vectors(queries).detach(), positives)
        scores = self.student.score(queries, self.index.features(rows.flatten()), candidates)
        return lambda_rank(scores, candidates), [Encoded(self.student, (queries,), replays, self.exchange)]

    def candidates(self, queries: Tensor, positives: Tensor) -> tuple[Tensor, Candidates]:
        """Corpus rows [Q, C] and candidates over them: the drawn positive, then what a search finds.

        queries [Q, d]; positives [Q, most], padded with -1. No passage known to be relevant is kept as a negative.
        """
        n = self.train.negatives_depth
        found = self.index.search(queries, min(n + positives.shape[1], self.index.size))
        negative = (found[:, :, None] != positives[:, None, :]).all(-1)
        rows = torch.cat([positives[:, :1], found], 1)
        positive = torch.zeros_like(rows, dtype=torch.bool)
        positive[:, 0] = True
        keep = torch.cat([positive[:, :1], negative & (negative.cumsum(1) <= n)], 1)
        index = torch.arange(rows.numel(), device=rows.device).view_as(rows)
        return rows, Candidates(index, keep, positive)
