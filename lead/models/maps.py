"""Query-passage maps (VIRT, Li et al. 2021): which passage tokens each query token looks at, and the other way round.

The one place where a distillation method sees more than scores, and so needs teacher and student to share a tokenizer.
A map is a pair of log-distributions [L, n, X, Y] of n query-passage pairs: over the passage's tokens for each query
token, and over the query's tokens for each passage token. Special tokens take no part, so that the tokens of a cross
encoder's pair and of a dual encoder's two texts are the same tokens.

`released`: the maps of the released code of LEAD instead (`distil.maps`). Special tokens take part, products are not
divided by sqrt(d), and a cross encoder's attention is softmaxed again and compared with the tokens one place before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from lead.models.features import Features, Pair, inverse


@dataclass(frozen=True)
class Maps:
    """Maps of n pairs at L layers, and keep [n, X, Y]: true where both tokens exist."""

    to_passage: Tensor
    to_query: Tensor
    keep: Tensor

    @staticmethod
    def join(pieces: list[Maps], groups: list[list[int]]) -> Maps:
        """Put the maps of micro-batches back into the order of the pairs; pad them to the longest texts."""
        x, y = (max(p.keep.shape[i] for p in pieces) for i in (1, 2))
        back = inverse(groups).to(pieces[0].keep.device)

        def joined(tensors: list[Tensor], axis: int) -> Tensor:
            padded = [pad(t, (0, y - t.shape[-1], 0, x - t.shape[-2])) for t in tensors]
            return torch.cat(padded, axis).index_select(axis, back)

        return Maps(
            joined([p.to_passage for p in pieces], 1),
            joined([p.to_query for p in pieces], 1),
            joined([p.keep for p in pieces], 0),
        )


class MapView(Protocol):
    """A model seen as maps, as `MicroBatchEncoder` reads it. Maps take two steps, so that gradients can be cached."""

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""

    @property
    def training(self) -> bool:
        """Whether dropout is on."""

    def encode(self, ids: Any, layers: tuple[int, ...]) -> Any:
        """What `maps` needs of one micro-batch of one input, at these layers."""

    def maps(self, encoded: tuple[Any, ...], own: Tensor) -> Maps:
        """Maps of all pairs of a batch, from its encoded inputs. own [Q, C]: places of each query's passages."""


class TokenModel(Protocol):
    """The part of a model that encodes texts apart which `TokenView` uses."""

    tokenizer: Any

    @property
    def device(self) -> torch.device:
        """Where its weights are."""

    @property
    def training(self) -> bool:
        """Whether dropout is on."""

    def padded(self, ids: list[list[int]], fill: int) -> tuple[Tensor, Tensor]:
        """Token ids as a matrix, and its mask."""

    def states(self, ids: Tensor, mask: Tensor, layers: tuple[int, ...], types: Tensor | None = None) -> list[Tensor]:
        """Outputs [n, T, d] of these layers."""

    def width_of(self, layer: int) -> int:
        """Numbers in an output of this layer, without padding."""


class TokenView:
    """A dual encoder or ColBERT seen as token vectors at every layer."""

    def __init__(self, model: TokenModel, released: bool = False) -> None:
        """`model`: its weights, mode and device do not change."""
        self.model, self.device, self.released = model, model.device, released

    @property
    def training(self) -> bool:
        """Whether dropout is on."""
        return self.model.training

    def encode(self, ids: list[list[int]], layers: tuple[int, ...]) -> Features:
        """Token vectors x [L, n, T, d], with a mask [n, T] that is false for the first and last token and padding."""
        padded, mask = self.model.padded(ids, self.model.tokenizer.pad_token_id or 0)
        # what the tokenizer put around the text, by place: a text may hold a literal [SEP]
        content = mask.clone()
        if not self.released:
            content[:, 0] = False
            content[torch.arange(len(ids)), mask.sum(1) - 1] = False
        return Features(torch.stack(self.model.states(padded, mask.long(), layers)), layers, content)

    def maps(self, encoded: tuple[Any, ...], own: Tensor) -> Maps:
        """Virtual maps, from the token vectors of queries and passages."""
        queries, passages = encoded
        widths = None if self.released else [self.model.width_of(layer) for layer in queries.layers]
        return virtual_maps(queries, passages, own, widths)


def virtual_maps(queries: Features, passages: Features, index: Tensor, widths: Sequence[int] | None) -> Maps:
    """Virtual interaction of a model that encodes texts apart: softmax of q_x . p_y / sqrt(d), both ways.

    index [Q, C]: the passages of each query; pairs are in its order, row by row. widths: d of each layer, without the
    zeros that vectors may be padded with; None: products are not divided. Memory: L Q C X Y numbers.
    """
    assert queries.mask is not None and passages.mask is not None
    q, q_mask = _content(queries.x, queries.mask)
    p, p_mask = _content(passages.x, passages.mask)
    (_, n, x, _), c = q.shape, index.shape[1]
    logits = torch.einsum("lqxd,lqcyd->lqcxy", q, p[:, index])
    if widths is not None:
        logits = logits / torch.tensor(widths, device=logits.device).sqrt().view(-1, 1, 1, 1, 1)
    keep = q_mask[:, None, :, None] & p_mask[index][:, :, None, :]
    shape = (n * c, x, p.shape[2])
    logits, keep = logits.reshape(len(q), *shape), keep.reshape(shape)
    return _maps(logits, keep)


def _content(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Token vectors [L, n, T, d] of content tokens only, moved to the front, and their mask."""
    order = (~mask).int().argsort(dim=1, stable=True)[:, : max(1, int(mask.sum(1).max()))]
    expanded = order[None, :, :, None].expand(len(x), -1, -1, x.shape[-1])
    return x.gather(2, expanded), mask.gather(1, order)


def _maps(logits: Tensor, keep: Tensor) -> Maps:
    lowest = torch.finfo(logits.dtype).min / 2  # finite: a row without tokens must not become NaN
    hidden = logits.masked_fill(~keep, lowest)
    return Maps(hidden.log_softmax(-1), hidden.log_softmax(-2), keep)


class AttentionView:
    """A cross encoder seen as its attention between the two segments. It is never trained: only a teacher is one."""

    def __init__(
        self,
        encoder: nn.Module,
        padded: Callable[[list[Pair]], tuple[Tensor, Tensor, Tensor | None]],
        released: int | None = None,
    ) -> None:
        """`encoder` is set to eager attention, the only one that returns its probabilities.

        padded: from pairs to token ids, mask and token types, [n, T] each. released: most tokens of a passage, for the
        maps of the released code; None: ours.
        """
        encoder.set_attn_implementation("eager")  # type: ignore[operator]
        self.encoder, self.padded, self.released = encoder, padded, released

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return next(self.encoder.parameters()).device

    @property
    def training(self) -> bool:
        """Whether dropout is on."""
        return self.encoder.training

    def encode(self, pairs: list[Pair], layers: tuple[int, ...]) -> Maps:
        """Maps of one micro-batch: attention probabilities, averaged over heads, within the block query x passage.

        A row restricted to the block is brought to sum 1, which weighs each head by what it attends to in the block: no
        second softmax is taken (the released code takes one, which leaves rows nearly uniform).
        """
        ids, mask, types = self.padded(pairs)
        extra = {} if types is None else {"token_type_ids": types}
        out: Any = self.encoder(input_ids=ids, attention_mask=mask.long(), output_attentions=True, **extra)
        attention = torch.stack([out.attentions[i - 1].float().mean(1) for i in layers])  # [L, n, T, T]
        x, y = (max(1, *(len(getattr(p, side)) for p in pairs)) for side in ("query", "passage"))
        block, back = (attention.new_zeros(len(layers), len(pairs), x, y) for _ in range(2))
        keep = torch.zeros(len(pairs), x, y, dtype=torch.bool, device=ids.device)
        for n, pair in enumerate(pairs):
            q, p = pair.query, pair.passage
            block[:, n, : len(q), : len(p)] = attention[:, n, q.start : q.stop, p.start : p.stop]
            back[:, n, : len(q), : len(p)] = attention[:, n, p.start : p.stop, q.start : q.stop].transpose(1, 2)
            keep[n, : len(q), : len(p)] = True
        tiny = torch.finfo(torch.float32).tiny
        if self.released is not None:
            return released_attention(block, keep, self.released)
        return Maps(
            _maps(block.clamp(min=tiny).log(), keep).to_passage, _maps(back.clamp(min=tiny).log(), keep).to_query, keep
        )

    def maps(self, encoded: tuple[Any, ...], own: Tensor) -> Maps:
        """The maps of the pairs: each query's own passages are the pairs of a batch already."""
        (maps,) = encoded
        assert isinstance(maps, Maps)
        return maps


def released_attention(block: Tensor, keep: Tensor, longest: int) -> Maps:
    """What the released code compares a cross encoder's attention with: it has two errors (docs/experiments.md).

    block [L, n, X, Y]: attention from query to passage; keep [n, X, Y]. The probabilities go through a second softmax.
    They lie in a table that begins at the first token of the texts, and the student's at its [CLS]: row and column i of
    one is i + 1 of the other. Two rows are left over, and hold 1 / longest in each of as many columns. Only the
    direction to the passage exists, so both maps are that one.
    """
    x, y = keep.any(2).sum(1), keep.any(1).sum(1)  # tokens of each text, without special ones
    rows, columns = (torch.arange(size + 2, device=keep.device) for size in keep.shape[1:])
    again = pad(block.masked_fill(~keep, torch.finfo(block.dtype).min / 2).softmax(-1) * keep, (0, 2, 0, 2))
    left_over = (rows >= x[:, None])[:, :, None]
    again = torch.where(left_over, torch.full_like(again, 1 / longest), again)
    seen = (rows < x[:, None] + 2)[:, :, None] & (columns < y[:, None] + 2)[:, None, :]
    log = again.clamp(min=torch.finfo(torch.float32).tiny).log()
    return Maps(log, log, seen)
