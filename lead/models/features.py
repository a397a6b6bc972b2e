"""What passes between the models and the losses: tokens of pairs, features of texts, candidates of queries, scores."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from lead.device import to_device


@dataclass(frozen=True, slots=True)
class Pair:
    """A query and a passage for a cross encoder.

    ids: token ids of [q; p] with all special tokens. types: token types. query, passage: places of their own tokens.
    """

    ids: list[int]
    types: list[int]
    query: range
    passage: range

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Features:
    """The output of some layers for n texts or pairs.

    x: DE [L, n, d], one vector a text; CB [L, n, T, d], one a token; CE [L, n], one number a pair. mask: CB [n, T],
    true where a token takes part in MaxSim. layers: the L layer numbers, 1..N, ascending.
    """

    x: Tensor
    layers: tuple[int, ...]
    mask: Tensor | None = None

    @staticmethod
    def join(pieces: list[Features], groups: list[list[int]]) -> Features:
        """Put the features of micro-batches back into the order of the texts; pad token axes to the longest."""
        back = to_device(inverse(groups), pieces[0].x.device)
        if pieces[0].mask is None:
            return Features(torch.cat([p.x for p in pieces], 1)[:, back], pieces[0].layers)
        masks = [p.mask for p in pieces if p.mask is not None]
        longest = max(m.shape[1] for m in masks)
        x = torch.cat([pad(p.x, (0, 0, 0, longest - p.x.shape[2])) for p in pieces], 1)[:, back]
        mask = torch.cat([pad(m, (0, longest - m.shape[1])) for m in masks])[back]
        return Features(x, pieces[0].layers, mask)


def inverse(groups: list[list[int]]) -> Tensor:
    """The place of each text among the texts of all groups, taken one after another."""
    order = torch.tensor([i for group in groups for i in group])
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order))
    return back


@dataclass(frozen=True)
class Candidates:
    """The passages a query's distribution is over: P+ and P- of eqs. 4, 5, 10 and 11.

    index [Q, C]: column in the passages of the (global) batch. keep [Q, C]: false for passages that must not take part
    (another relevant passage of the query). positive [Q, C]: true at the one drawn positive.
    """

    index: Tensor
    keep: Tensor
    positive: Tensor

    def to(self, device: torch.device) -> Candidates:
        """The same on another device."""
        return Candidates(*(to_device(x, device) for x in (self.index, self.keep, self.positive)))


@dataclass(frozen=True)
class Scores:
    """Scores in fp32 of every query's candidates: all that a loss ever sees.

    s [L, Q, C]: at each of L layers, for layer features (eqs. 4, 5). final [Q, C]: of the whole model, f or g of the
    contrastive and response losses. It differs from the last layer's entry of s where layer features have their own
    normalisation or scale.
    """

    s: Tensor
    layers: tuple[int, ...]
    final: Tensor

    def at(self, *layers: int) -> Tensor:
        """Scores [len(layers), Q, C] of these layer numbers. Raises ValueError for a layer that was not scored."""
        return torch.stack([self.s[self.layers.index(i)] for i in layers])  # a list as index would wait for a GPU


def mask_columns(index: Tensor, relevant: Tensor, positive_column: Tensor) -> Candidates:
    """Candidates from the columns a query sees and which of them are relevant to it.

    index [Q, C] columns; relevant [Q, P] true where a passage of the batch is known to be relevant to the query, by id
    or by text; positive_column [Q] the column of the drawn positive. Every other relevant passage is masked out: it is
    neither the answer of this step nor wrong (the released code counts it as wrong).
    """
    positive = index == positive_column[:, None]
    # a passage that occurs twice in the batch is positive at its first column only; `relevant` masks the other
    positive &= positive.cumsum(1) == 1
    keep = ~torch.gather(relevant, 1, index) | positive
    return Candidates(index, keep, positive)
