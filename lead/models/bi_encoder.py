"""Models that encode queries and passages apart, with one encoder: the parent of dual encoder and ColBERT."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from lead.models.base import Columns, LayeredModel
from lead.models.features import Candidates, Features, Scores
from lead.models.maps import MapView, TokenView
from lead.models.scores import standardise
from lead.tokenizer import cut, prompted

Side = Literal["query", "passage"]


class BiEncoder(LayeredModel):
    """A model with tied query and passage encoders, E_Q = E_P. A subclass says how two texts' vectors make a score."""

    def similarity(self, queries: Tensor, passages: Tensor, masks: tuple[Tensor | None, Tensor | None]) -> Tensor:
        """Scores [Q, P] at one layer, in fp32, from vectors of queries and passages and their masks. Overridden."""
        raise NotImplementedError

    # --- texts to tokens ---------------------------------------------------------------------------------------------
    def tokenize(self, side: Side, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, cut to this side's length; both special tokens survive the cut."""
        with self.tokenizing:
            return cut(self.tokenizer, prompted(getattr(self.prompts, side), texts), getattr(self.lengths, side))

    def tokenize_batch(self, queries: list[str], passages: list[str]) -> dict[str, list[Any]]:
        """Token ids of the `queries` and of the `passages`."""
        return {"queries": self.tokenize("query", queries), "passages": self.tokenize("passage", passages)}

    # --- features to scores ------------------------------------------------------------------------------------------
    def score(
        self, queries: Features, passages: Features, candidates: Candidates, columns: Columns = lambda s: s
    ) -> Scores:
        """Scores of each query's candidates at every encoded layer, the last one among them: f or g of eqs. 4 and 5.

        `columns`: where ranks hold the passages, it brings scores of all queries and these passages to scores of this
        rank's queries and all passages.
        """
        if queries.layers != passages.layers:
            raise ValueError(f"queries have layers {queries.layers}, passages {passages.layers}")
        if queries.layers[-1] != self.n_layers:
            raise ValueError(f"layers {queries.layers} lack the last, {self.n_layers}, which gives the final scores")

        def at(n: int, normalise: str) -> Tensor:
            """Scores [Q, C] of the n-th encoded layer, of raw vectors or of vectors of unit length."""
            q, p = queries.x[n], passages.x[n]
            if normalise != "none":
                q, p = normalize(q, dim=-1), normalize(p, dim=-1)
            s = self.similarity(q, p, (queries.mask, passages.mask))
            return torch.gather(columns(s), 1, candidates.index)

        features = [at(n, self.scoring.layer_normalise) for n in range(len(queries.layers))]
        if (self.scoring.normalise == "none") == (self.scoring.layer_normalise == "none"):
            final = features[-1]  # the same vectors, scaled another way
        else:
            final = at(-1, self.scoring.normalise)
        s = torch.stack(features)
        if self.scoring.layer_normalise == "standard":
            s = standardise(s, candidates.keep)
        return Scores(self.scoring.layer_scale * s, queries.layers, self.scoring.scale * final)

    def vectors(self, features: Features) -> Tensor:
        """Last-layer vectors whose inner products (MaxSim for CB) are the model's scores up to the factor `scale`."""
        x = features.x[-1, ..., : self.size]
        return normalize(x, dim=-1) if self.scoring.normalise == "unit" else x

    def map_view(self, released: bool = False) -> MapView:
        """Token vectors at every layer, whose softmaxed products are the maps."""
        return TokenView(self, released)
