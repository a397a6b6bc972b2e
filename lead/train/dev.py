"""Evaluation on dev while training: MRR@10 over a small pool of passages, which can be encoded often.

The pool holds the relevant passages and the top mined negatives of some dev queries. Each query ranks the whole pool; a
cross encoder, whose pairs are expensive, ranks each query's own passages. MRR@10 orders the checkpoints of one run. The
pool is easier than the full collection and understates differences between models (docs/experiments.md), so this number
is never reported.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import pyarrow as pa
import torch

from lead.data.texts import take_texts
from lead.models.base import LayeredModel
from lead.models.bi_encoder import BiEncoder
from lead.models.cross_encoder import CrossEncoder
from lead.models.features import mask_columns
from lead.models.microbatch import MicroBatchEncoder
from lead.train.adore import FixedPassages
from lead.train.data import Queries


class DevPool:
    """Dev queries, evenly spaced, with their relevant passages and mined negatives as one pool."""

    def __init__(
        self,
        corpus: pa.Table,
        queries: Queries,
        n_queries: int,
        n_negatives: int | None,
        index: FixedPassages | None = None,
    ):
        """`n_queries` of the split's queries, each adding its positives and its top `n_negatives` negatives.

        `n_negatives` None: the pool is the whole corpus; a cross encoder still ranks each query's own passages.
        `index`: the vectors of passages that the model does not encode itself.
        """
        rows = np.unique(np.linspace(0, len(queries) - 1, min(n_queries, len(queries))).astype(int))
        self.queries: list[str] = queries.texts.take(pa.array(rows)).to_pylist()
        members = [np.concatenate([queries.positives[r], queries.negatives[r][:n_negatives]]) for r in rows]
        pool = np.arange(len(corpus)) if n_negatives is None else np.unique(np.concatenate(members))
        self.passages: list[str] = take_texts(corpus["text"], pool)
        self.fixed = None if index is None else index.features(torch.from_numpy(pool))
        self.own = [np.searchsorted(pool, np.unique(m)).tolist() for m in members]  # each query's rows of the pool
        self.relevant = torch.from_numpy(np.stack([np.isin(pool, queries.positives[r]) for r in rows]))

    def mrr(self, model: LayeredModel, encode: MicroBatchEncoder) -> float:
        """MRR@10 of the model over the pool (dropout off)."""
        return float(self.reciprocal_ranks(model, encode).mean())

    @torch.no_grad()
    def reciprocal_ranks(self, model: LayeredModel, encode: MicroBatchEncoder) -> torch.Tensor:
        """1 / rank of the first relevant passage of each query [Q], 0 below rank 10."""
        training = model.training
        model.eval()
        try:
            if model.about.candidates == "own":
                s, seen = self._pairs(cast(CrossEncoder, model), encode)
            else:
                s, seen = self._matrix(cast(BiEncoder, model), encode), torch.ones_like(self.relevant)
        finally:
            model.train(training)
        s = s.nan_to_num(nan=-torch.inf)  # a broken model ranks last, not first
        best = s.masked_fill(~self.relevant, -torch.inf).max(1, keepdim=True).values
        rank = 1 + ((s >= best) & ~self.relevant & seen).sum(1).float()  # ties count against the model
        return torch.where(rank <= 10, 1.0 / rank, torch.zeros(()))

    def _pairs(self, model: CrossEncoder, encode: MicroBatchEncoder) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores [Q, P] of each query's own passages, 0 elsewhere; and seen [Q, P], true at its own."""
        seen = torch.zeros_like(self.relevant)
        for row, own in enumerate(self.own):
            seen[row, own] = True
        queries = [self.queries[row] for row, own in enumerate(self.own) for _ in own]
        pairs = model.tokenize(queries, [self.passages[p] for own in self.own for p in own])
        s = torch.zeros(self.relevant.shape)
        s[seen] = encode(model, pairs, (model.n_layers,), "dev").x[-1].cpu()
        return s, seen

    def _matrix(self, model: BiEncoder, encode: MicroBatchEncoder) -> torch.Tensor:
        """Scores [Q, P] of every passage of the pool."""
        layers = (model.n_layers,)
        p = self.fixed or encode(model, model.tokenize("passage", self.passages), layers, "dev")
        rows = []
        for start in range(0, len(self.queries), 32):
            q = encode(model, model.tokenize("query", self.queries[start : start + 32]), layers, "dev")
            relevant = self.relevant[start : start + 32]
            everything = torch.arange(relevant.shape[1]).expand(len(relevant), -1)
            nothing = torch.zeros(len(relevant), dtype=torch.long)
            candidates = mask_columns(everything, torch.zeros_like(relevant), nothing)
            rows.append(model.score(q, p, candidates.to(model.device)).final.cpu())
        return torch.cat(rows)
