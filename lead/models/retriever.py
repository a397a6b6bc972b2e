"""Dual encoder and ColBERT: how token vectors become a score at every layer (section 3.2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from lead.errors import LeadError
from lead.models.base import Kind, LayeredModel
from lead.models.features import Candidates, Features, Scores
from lead.models.scores import inner_product, max_sim, standardise
from lead.tokenizer import cut

Side = Literal["query", "passage"]
Columns = Callable[[Tensor], Tensor]


class Retriever(LayeredModel):
    """Dual encoder (DE) or ColBERT (CB) with tied query and passage encoders, E_Q = E_P."""

    kinds: ClassVar[tuple[Kind, ...]] = ("de", "cb")

    def build(self) -> None:
        """Look up the tokens that mark queries and passages."""
        self.markers: dict[Side, int] = {}
        if self.kind == "cb" and self.scoring.markers:
            vocabulary = self.tokenizer.get_vocab()
            for side, token in (("query", "[unused0]"), ("passage", "[unused1]")):
                if token not in vocabulary:
                    raise LeadError(f"scoring.cb.markers: the tokenizer has no {token}; set markers: false")
                self.markers[side] = vocabulary[token]  # type: ignore[index]
        if self.kind == "cb" and self.scoring.expand and self.tokenizer.mask_token_id is None:
            raise LeadError("scoring.cb.expand: the tokenizer has no [MASK]; set expand: false")

    # --- texts to tokens ---------------------------------------------------------------------------------------------
    def tokenize(self, side: Side, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, cut to this side's length; both special tokens survive the cut."""
        ids = cut(self.tokenizer, texts, getattr(self.lengths, side) - (side in self.markers))
        if side in self.markers:
            ids = [[i[0], self.markers[side], *i[1:]] for i in ids]
        if side == "query" and self.kind == "cb" and self.scoring.expand:
            ids = [i + [self.tokenizer.mask_token_id] * (self.lengths.query - len(i)) for i in ids]
        return ids

    # --- tokens to features ------------------------------------------------------------------------------------------
    def encode(self, ids: list[list[int]], layers: tuple[int, ...]) -> Features:
        """Features of one padded micro-batch of texts at these layers (1..N), in fp32."""
        padded, mask = self.padded(ids, self.tokenizer.pad_token_id or 0)
        states = self.states(padded, mask.long(), layers)
        if self.kind == "cb":
            if not self.scoring.special_tokens:
                special = torch.tensor([self.tokenizer.cls_token_id, self.tokenizer.sep_token_id], device=self.device)
                mask = mask & ~torch.isin(padded, special)
            return Features(torch.stack(states), layers, mask)
        if self.scoring.pooling == "cls":
            return Features(torch.stack([h[:, 0] for h in states]), layers)
        share = (mask.float() / mask.sum(1, keepdim=True)).unsqueeze(-1)
        # a product and a sum, not a matrix product, which autocast would do in bf16
        return Features(torch.stack([(h * share).sum(1) for h in states]), layers)

    # --- features to scores ------------------------------------------------------------------------------------------
    def score(
        self, queries: Features, passages: Features, candidates: Candidates, columns: Columns = lambda s: s
    ) -> Scores:
        """Scores of each query's candidates at every encoded layer, the last one among them: f or g of eqs. 4 and 5.

        `columns`: where ranks hold the passages, what brings scores of all queries and these passages to scores of this
        rank's queries and all passages.
        """
        if queries.layers != passages.layers:
            raise ValueError(f"queries have layers {queries.layers}, passages {passages.layers}")
        if queries.layers[-1] != self.n_layers:
            raise ValueError(f"layers {queries.layers} lack the last, {self.n_layers}, which gives the final scores")
        features = [
            self._similarity(queries, passages, n, candidates, self.scoring.layer_normalise, columns)
            for n in range(len(queries.layers))
        ]
        if (self.scoring.normalise == "none") == (self.scoring.layer_normalise == "none"):
            final = features[-1]  # the same vectors, scaled another way
        else:
            final = self._similarity(queries, passages, -1, candidates, self.scoring.normalise, columns)
        s = torch.stack(features)
        if self.scoring.layer_normalise == "standard":
            s = standardise(s, candidates.keep)
        return Scores(self.scoring.layer_scale * s, queries.layers, self.scoring.scale * final)

    def _similarity(
        self, queries: Features, passages: Features, n: int, candidates: Candidates, normalise: str, columns: Columns
    ) -> Tensor:
        """f_DE (eq. 1) or f_CB (eq. 2) [Q, C] of the n-th encoded layer, on raw vectors or on those of unit length."""
        q, p = queries.x[n], passages.x[n]
        if normalise != "none":
            q, p = normalize(q, dim=-1), normalize(p, dim=-1)
        if self.kind == "de":
            s = inner_product(q, p)
        else:
            assert queries.mask is not None and passages.mask is not None
            s = max_sim(q, queries.mask, p, passages.mask)
        return torch.gather(columns(s), 1, candidates.index)

    def vectors(self, features: Features) -> Tensor:
        """Last-layer vectors whose inner products (MaxSim for CB) are the model's scores up to the factor `scale`."""
        x = features.x[-1, ..., : self.size]
        return normalize(x, dim=-1) if self.scoring.normalise == "unit" else x
