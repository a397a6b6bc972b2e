"""Choosing on dev while training: MRR@10 over a pool of passages small enough to encode often.

The pool is the relevant passages and top mined negatives of some dev queries; every one of them is ranked against the
whole pool. It orders checkpoints and settings; it is easier than the full collection and is never reported as a result.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import torch

from lead.models.features import Features, mask_columns
from lead.models.micro import MicroEncoder
from lead.models.retriever import Retriever
from lead.train.data import Queries


class DevPool:
    """Dev queries, evenly spaced, with their relevant passages and mined negatives as one pool."""

    def __init__(self, corpus: pa.Table, queries: Queries, n_queries: int, n_negatives: int):
        """`n_queries` of the split's queries, each adding its positives and its top `n_negatives` negatives."""
        rows = np.unique(np.linspace(0, len(queries) - 1, min(n_queries, len(queries))).astype(int))
        self.queries: list[str] = queries.texts.take(pa.array(rows)).to_pylist()
        members = [np.concatenate([queries.positives[r], queries.negatives[r][:n_negatives]]) for r in rows]
        pool = np.unique(np.concatenate(members))
        self.passages: list[str] = corpus["text"].take(pa.array(pool)).to_pylist()
        self.relevant = torch.from_numpy(np.stack([np.isin(pool, queries.positives[r]) for r in rows]))

    @torch.no_grad()
    def mrr(self, model: Retriever, encode: MicroEncoder) -> float:
        """MRR@10 of the model over the pool (dropout off)."""
        training = model.training
        model.eval()
        try:
            layers = (model.n_layers,)
            p = encode(model, model.tokenize("passage", self.passages), layers, "dev")
            ranks = []
            for start in range(0, len(self.queries), 32):
                q = encode(model, model.tokenize("query", self.queries[start : start + 32]), layers, "dev")
                ranks.append(self._ranks(model, q, p, self.relevant[start : start + 32]))
        finally:
            model.train(training)
        rank = torch.cat(ranks)
        return float(torch.where(rank <= 10, 1.0 / rank, torch.zeros(())).mean())

    @staticmethod
    def _ranks(model: Retriever, q: Features, p: Features, relevant: torch.Tensor) -> Any:
        """Rank, from 1, of the best relevant passage of each query; ties count against the model."""
        everything = torch.arange(relevant.shape[1]).expand(len(relevant), -1)
        candidates = mask_columns(everything, torch.zeros_like(relevant), torch.zeros(len(relevant), dtype=torch.long))
        s = model.score(q, p, candidates.to(q.x.device)).final.cpu()
        s = s.nan_to_num(nan=-torch.inf)  # a broken model ranks last, not first
        best = s.masked_fill(~relevant, -torch.inf).max(1, keepdim=True).values
        return 1 + ((s >= best) & ~relevant).sum(1).float()
