"""Dual encoder: one vector a text, scored by inner products (eq. 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from lead.models.base import Ranks, Scorer
from lead.models.bi_encoder import BiEncoder, Side
from lead.models.features import Features
from lead.models.microbatch import MicroBatchEncoder
from lead.models.scores import inner_product


class DualEncoder(BiEncoder):
    """f_DE(q, p) = E_Q(q)^T E_P(p) (eq. 1); at layer i the vectors are those of layer i."""

    kind = "de"

    def encode(self, ids: list[list[int]], layers: tuple[int, ...]) -> Features:
        """Vectors x [L, n, d] of one padded micro-batch of texts at these layers (1..N), in fp32."""
        padded, mask = self.padded(ids, self.tokenizer.pad_token_id or 0)
        states = self.states(padded, mask.long(), layers)
        if self.scoring.pooling == "cls":
            return Features(torch.stack([h[:, 0] for h in states]), layers)
        if self.scoring.pooling == "last":
            rows, last = torch.arange(len(ids), device=mask.device), mask.sum(1) - 1
            return Features(torch.stack([h[rows, last] for h in states]), layers)
        share = (mask.float() / mask.sum(1, keepdim=True)).unsqueeze(-1)
        # a product and a sum, not a matrix product, which autocast would do in bf16
        return Features(torch.stack([(h * share).sum(1) for h in states]), layers)

    def reads_first_token(self) -> bool:
        """With pooling `cls`."""
        return self.scoring.pooling == "cls"

    def exchange(self, features: tuple[Features, ...], ranks: Ranks) -> tuple[Features, ...]:
        """The vectors of all ranks' passages, [L, P, d]. Queries stay."""
        queries, passages = features
        return queries, ranks.features(passages)

    def scorer(self, queries: list[str], passages: list[str], encode: MicroBatchEncoder) -> Scorer:
        """Inner products of vectors of all queries and passages, which are encoded now and kept on the CPU."""

        def vectors(side: Side, texts: list[str]) -> Tensor:
            last = (self.n_layers,)
            parts = [
                (group, self.vectors(features).cpu())
                for group, features in encode.batches(self, self.tokenize(side, texts), last, side)
            ]
            out = torch.empty(len(texts), self.size)
            for group, x in parts:
                out[group] = x
            return out

        q, p = vectors("query", queries), vectors("passage", passages)
        return lambda query, rows: (p[torch.from_numpy(rows)] @ q[query]).numpy()

    def similarity(self, queries: Tensor, passages: Tensor, masks: tuple[Tensor | None, Tensor | None]) -> Tensor:
        """Inner products [Q, P] of vectors [Q, d] and [P, d]."""
        return inner_product(queries, passages)
