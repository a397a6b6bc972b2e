"""Dual encoder: one vector a text, scored by inner products (eq. 1)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from lead.models.base import Ranks, Scorer
from lead.models.bi_encoder import BiEncoder, Side
from lead.models.features import Features
from lead.models.interchange import Interchange
from lead.models.microbatch import MicroBatchEncoder
from lead.models.scores import inner_product


def pooled(states: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """One vector [n, d] of each text from the vectors of its tokens, states [n, T, d]. mask [n, T]: true at a token."""
    if pooling == "cls":
        return states[:, 0]
    if pooling == "last":
        # not len(), which an exported graph would take as fixed
        return states[torch.arange(states.shape[0], device=mask.device), mask.sum(1) - 1]
    share = (mask.float() / mask.sum(1, keepdim=True)).unsqueeze(-1)
    # a product and a sum, not a matrix product, which autocast would do in bf16
    return (states * share).sum(1)


class DualEncoder(BiEncoder):
    """f_DE(q, p) = E_Q(q)^T E_P(p) (eq. 1); at layer i the vectors are those of layer i."""

    kind = "de"

    def encode(self, ids: list[list[int]], layers: tuple[int, ...]) -> Features:
        """Vectors x [L, n, d] of one padded micro-batch of texts at these layers (1..N), in fp32."""
        padded, mask = self.padded(ids, self.tokenizer.pad_token_id or 0)
        states = self.states(padded, mask.long(), layers)
        return Features(torch.stack([pooled(h, mask, self.scoring.pooling) for h in states]), layers)

    def reads_first_token(self) -> bool:
        """With pooling `cls`."""
        return self.scoring.pooling == "cls"

    def interchange(self) -> Interchange | None:
        """What other libraries must know to make its vectors; None for a subclass that encodes in a way of its own."""
        if type(self).encode is not DualEncoder.encode:
            return None
        return Interchange(self.encoder, self.linear, self.scoring, self.lengths, self.prompts)

    def write_others(self, folder: Path) -> None:
        """Write what sentence-transformers needs to make its vectors, and README.md."""
        if (interchange := self.interchange()) is not None:
            interchange.write(folder)

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
