"""ColBERT: one vector a token, scored by MaxSim (eq. 2)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lead.config.schema import Markers
from lead.device import to_device
from lead.errors import LeadError
from lead.lists import Floats
from lead.models.base import Ranks, Scorer
from lead.models.bi_encoder import BiEncoder, Side
from lead.models.features import Candidates, Features, Scores
from lead.models.microbatch import MicroBatchEncoder
from lead.models.scores import max_sim
from lead.tokenizer import cut, prompted


class ColBERT(BiEncoder):
    """f_CB(q, p) = sum_x max_y E_Q(q)_x^T E_P(p)_y (eq. 2); at layer i the vectors are those of layer i."""

    kind = "cb"
    skipped: Tensor  # ids of tokens of passages that take no part

    def build(self) -> None:
        """Look up the tokens that mark queries and passages."""
        self.markers: dict[Side, int] = {}
        vocabulary = self.tokenizer.get_vocab()
        if chosen := Markers() if self.scoring.markers is True else self.scoring.markers:
            sides: tuple[tuple[Side, str], ...] = ("query", chosen.query), ("passage", chosen.passage)
            for side, token in sides:
                if token and token not in vocabulary:
                    raise LeadError(f"scoring.cb.markers: the tokenizer has no {token}; set markers: false")
                if token:
                    self.markers[side] = vocabulary[token]
        if self.scoring.skip and ("passage" not in self.markers or len(set(self.markers.values())) < len(self.markers)):
            raise LeadError("scoring.cb.skip: passages are told by their marker; give markers, or leave skip out")
        skipped = [vocabulary[token] for token in self.scoring.skip if token in vocabulary]
        self.register_buffer("skipped", torch.tensor(skipped, dtype=torch.long), persistent=False)
        if self.scoring.expand and self.tokenizer.mask_token_id is None:
            raise LeadError("scoring.cb.expand: the tokenizer has no [MASK]; set expand: false")

    # --- texts to tokens ---------------------------------------------------------------------------------------------
    def tokenize(self, side: Side, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, cut to this side's length, with this side's marker and, of queries, [MASK] tokens."""
        with self.tokenizing:
            read = prompted(getattr(self.prompts, side), texts)
            ids = cut(self.tokenizer, read, getattr(self.lengths, side) - (side in self.markers))
        if side in self.markers:
            ids = [[i[0], self.markers[side], *i[1:]] for i in ids]
        if side == "query" and self.scoring.expand:
            ids = [i + [self.tokenizer.mask_token_id] * (self.lengths.query - len(i)) for i in ids]
        return ids

    @property
    def tokenization(self) -> tuple[object, ...]:
        """And which tokens are added."""
        added = tuple(self.markers.items()), self.scoring.expand
        return *super().tokenization, *(added if any(added) else ())

    # --- tokens to scores --------------------------------------------------------------------------------------------
    def encode(self, ids: list[list[int]], layers: tuple[int, ...]) -> Features:
        """Token vectors x [L, n, T, d] and mask [n, T] of one padded micro-batch of texts at these layers, in fp32."""
        padded, mask = self.padded(ids, self.tokenizer.pad_token_id or 0)
        read = mask if self.scoring.attend else mask & ~self._expansion(padded, mask)
        states = self.states(padded, read.long(), layers)
        if len(self.skipped):
            passage = (padded[:, 1] == self.markers["passage"])[:, None] if padded.shape[1] > 1 else False
            mask = mask & ~(torch.isin(padded, self.skipped) & passage)
        if not self.scoring.special_tokens:
            mask = mask & (padded != self.tokenizer.cls_token_id) & (padded != self.tokenizer.sep_token_id)
        return Features(torch.stack(states), layers, mask)

    def _expansion(self, padded: Tensor, mask: Tensor) -> Tensor:
        """True at the [MASK] tokens that a query was expanded with [n, T]: those after the last token of its text."""
        places = torch.arange(padded.shape[1], device=padded.device)
        last = (places * (mask & (padded != self.tokenizer.mask_token_id))).amax(1)
        return mask & (places > last[:, None])

    def exchange(self, features: tuple[Features, ...], ranks: Ranks) -> tuple[Features, ...]:
        """The token vectors of all ranks' queries. Passages' token vectors, some 75 times more, stay on their rank."""
        queries, passages = features
        return ranks.features(queries), passages

    def score_batch(self, features: tuple[Features, ...], candidates: Candidates, ranks: Ranks) -> Scores:
        """Scores of candidates of the global batch; each rank scores its passages, and score columns travel."""
        queries, passages = features
        return self.score(queries, passages, candidates, ranks.columns)

    def similarity(self, queries: Tensor, passages: Tensor, masks: tuple[Tensor | None, Tensor | None]) -> Tensor:
        """MaxSim [Q, P] of token vectors [Q, X, d] and [P, Y, d]."""
        query_mask, passage_mask = masks
        assert query_mask is not None and passage_mask is not None
        return max_sim(queries, query_mask, passages, passage_mask)

    # --- reranking ---------------------------------------------------------------------------------------------------
    def scorer(self, queries: list[str], passages: list[str], encode: MicroBatchEncoder) -> Scorer:
        """MaxSim from token vectors of all passages and queries, which are encoded now and kept on the device.

        Memory: 2 T d bytes a passage.
        """

        def vectors(side: Side, texts: list[str], what: str, dtype: torch.dtype) -> list[Tensor]:
            """Token vectors [T, d] of each text."""
            out = [torch.empty(0)] * len(texts)
            for group, features in encode.batches(self, self.tokenize(side, texts), (self.n_layers,), what):
                of_tokens = self.vectors(features)[features.mask].to(dtype)
                for i, x in zip(group, of_tokens.split(features.mask.sum(1).tolist()), strict=True):
                    out[i] = x
            return out

        store = vectors("passage", passages, "passages", torch.half)
        asked = vectors("query", queries, "queries", torch.float)
        return lambda query, rows: _max_sim(asked[query], [store[i] for i in rows], self.device)


def _max_sim(query: Tensor, passages: list[Tensor], on: torch.device) -> Floats:
    """MaxSim [P] of one query's token vectors [X, d] and its passages' ([Y_i, d] each), in fp32."""
    padded = pad_sequence(passages, batch_first=True).float()
    if not len(query) or not padded.shape[1]:  # without special tokens, empty texts have no token
        return np.zeros(len(passages), np.float32)
    lengths = to_device(torch.tensor([len(p) for p in passages]), on)
    mask = torch.arange(padded.shape[1], device=on) < lengths[:, None]
    every = torch.ones(1, len(query), dtype=torch.bool, device=on)
    result: Floats = max_sim(query[None], every, padded, mask)[0].cpu().numpy()
    return result
