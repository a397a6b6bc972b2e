"""Cross encoder: query and passage through one encoder, the projection w shared by all layers (eq. 3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, relu

from lead.config.schema import Lengths
from lead.lists import Floats, Ints
from lead.models.base import LayeredModel, Scorer
from lead.models.features import Candidates, Features, Pair, Scores
from lead.models.maps import AttentionView, MapView
from lead.models.microbatch import MicroBatchEncoder
from lead.models.scores import standardise
from lead.tokenizer import blank, prompted

# of a trained head, by `scoring.head`
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "relu": relu, "gelu": gelu}


class CrossEncoder(LayeredModel):
    """f_CE(q, p) = w^T E_CE([q; p]) (eq. 3); at layer i the same w projects the first token's output of layer i.

    With a trained head, w^T a(D x + c) + b stands for w^T x, at every layer: D, c, w and b are shared as w is.
    """

    kind = "ce"

    def build(self) -> None:
        """Add w, at random: seed torch first. With a trained head, add D, c and b too."""
        self.activation = ACTIVATIONS.get(self.scoring.head)
        if self.activation is not None:
            self.dense = nn.Linear(self.width, self.width)
        self.w = nn.Linear(self.width, 1, bias=self.activation is not None)
        self.n_types = int(getattr(self.encoder.config, "type_vocab_size", 0) or 0)
        if self.activation is not None and "token_type_ids" not in self.tokenizer.model_input_names:
            self.n_types = 1  # whoever trained the head did not tell the two segments apart

    @classmethod
    def longest(cls, lengths: Lengths, tokenizer: Any) -> dict[str, int]:
        """The pair: both texts are cut as if each stood alone, with two special tokens of its own."""
        special = tokenizer.num_special_tokens_to_add(pair=True)
        return {"query + lengths.passage": lengths.query + lengths.passage - 4 + special}

    # --- texts to tokens ---------------------------------------------------------------------------------------------
    def tokenize(self, queries: list[str], passages: list[str]) -> list[Pair]:
        """Pairs [CLS] q [SEP] p [SEP], or as the tokenizer builds them.

        Both are cut as a dual encoder cuts them (`lengths`, which counts its own special tokens): the teacher reads
        what the student reads, and the total is at most lengths.query + lengths.passage - 1 for two-separator models.
        """
        queries, passages = prompted(self.prompts.query, queries), prompted(self.prompts.passage, passages)
        with self.tokenizing:
            backend = self.tokenizer.backend_tokenizer
            backend.no_truncation()
            backend.no_padding()
            cut = {}
            for texts, limit in ((queries, self.lengths.query - 2), (passages, self.lengths.passage - 2)):
                distinct = [t for t in dict.fromkeys(texts) if (t, limit) not in cut]
                for text, encoding in zip(
                    distinct, backend.encode_batch(distinct, add_special_tokens=False), strict=True
                ):
                    encoding.truncate(limit, direction=self.tokenizer.truncation_side)
                    cut[text, limit] = encoding
            pairs = []
            for q, p in zip(queries, passages, strict=True):
                built = backend.post_process(cut[q, self.lengths.query - 2], cut[p, self.lengths.passage - 2], True)
                content = [i for i, special in enumerate(built.special_tokens_mask) if not special]
                n = len(cut[q, self.lengths.query - 2])
                spans = (range(part[0], part[-1] + 1) if part else range(0) for part in (content[:n], content[n:]))
                pairs.append(Pair(built.ids or [blank(self.tokenizer)], built.type_ids or [0], *spans))
            return pairs

    def tokenize_batch(self, queries: list[str], passages: list[str]) -> dict[str, list[Any]]:
        """The `pairs` of each query and its own passages, row by row."""
        repeated = [q for q in queries for _ in range(len(passages) // len(queries))]
        return {"pairs": self.tokenize(repeated, passages)}

    @property
    def tokenization(self) -> tuple[object, ...]:
        """And that queries and passages are read together."""
        return "pairs", *super().tokenization

    def reads_first_token(self) -> bool:
        """Always."""
        return True

    def padded_pairs(self, pairs: list[Pair]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Token ids, mask and, for encoders that know two segments, token types [n, T] of pairs."""
        ids, mask = self.padded([p.ids for p in pairs], self.tokenizer.pad_token_id or 0)
        return ids, mask, self.padded([p.types for p in pairs], 0)[0] if self.n_types > 1 else None

    # --- pairs to scores ---------------------------------------------------------------------------------------------
    def encode(self, pairs: list[Pair], layers: tuple[int, ...]) -> Features:
        """Projections x [L, n] of one padded micro-batch of pairs at these layers (1..N), in fp32."""
        ids, mask, types = self.padded_pairs(pairs)
        first = torch.stack([h[:, 0] for h in self.states(ids, mask.long(), layers, types)])
        with torch.autocast(ids.device.type, enabled=False):  # scores are fp32
            projected = first if self.activation is None else self.activation(self.dense(first))
            return Features(self.w(projected).squeeze(-1), layers)

    def score(self, pairs: Features, candidates: Candidates) -> Scores:
        """Scores of the candidates, whose pairs were encoded in the order of `candidates.index`, row by row."""
        if pairs.layers[-1] != self.n_layers:
            raise ValueError(f"layers {pairs.layers} lack the last, {self.n_layers}, which gives the final scores")
        if pairs.x.shape[1] != candidates.index.numel():
            raise ValueError(f"{pairs.x.shape[1]} pairs were encoded, not the {candidates.index.numel()} candidates")
        s = pairs.x.view(-1, *candidates.index.shape)
        features = standardise(s, candidates.keep) if self.scoring.layer_normalise == "standard" else s
        return Scores(self.scoring.layer_scale * features, pairs.layers, self.scoring.scale * s[-1])

    def scorer(self, queries: list[str], passages: list[str], encode: MicroBatchEncoder) -> Scorer:
        """Scores of pairs, encoded when they are asked for: a query's list is sorted by length and cut into batches."""
        fitted = encode.fitted(self)

        def score(query: int, rows: Ints) -> Floats:
            texts = [passages[i] for i in rows]
            pairs = self.tokenize([queries[query]] * len(texts), texts)
            result: Floats = fitted(self, pairs, (self.n_layers,), "rerank").x[-1].cpu().numpy()
            return result

        return score

    def map_view(self, released: bool = False) -> MapView:
        """Its attention between query and passage."""
        return AttentionView(self.encoder, self.padded_pairs, self.lengths.passage if released else None)
