"""Encoding many texts in length-sorted micro-batches, with the graph or with cached gradients (GradCache).

Both ways run the same micro-batches, each with its own dropout seed. With the same split the gradients are therefore
equal, dropout included. With another split (`micro_tokens`) they are equal apart from rounding where there is no
dropout; with dropout other units are dropped, so they are equal in distribution only.
Memory: with the graph, activations of all texts; cached, those of one micro-batch (`micro_tokens` padded tokens).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from lead.device import autocast
from lead.models.base import LayeredModel
from lead.models.features import Features


def micro_batches(lengths: list[int], max_tokens: int) -> list[list[int]]:
    """Indices of texts grouped by length; no group's padded size exceeds `max_tokens` (a long text stands alone).

    >>> micro_batches([5, 2, 9, 2], 10)
    [[1, 3], [0], [2]]
    """
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if not groups or (len(groups[-1]) + 1) * lengths[i] > max_tokens:
            groups.append([])
        groups[-1].append(i)
    return groups


def padded_tokens(lengths: list[int], max_tokens: int) -> int:
    """Tokens that encoding these texts computes, padding included."""
    return sum(len(g) * lengths[g[-1]] for g in micro_batches(lengths, max_tokens))


def _seed(*parts: object) -> int:
    """A 63-bit seed from anything printable, the same in every process."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little") >> 1


@dataclass(frozen=True)
class MicroBatchEncoder:
    """How the texts of a step are encoded: sizes that do not depend on the device, and the key that seeds dropout.

    A micro-batch's dropout seed is a function of `key`, the part (queries, passages, ..) and the micro-batch's number.
    """

    micro_tokens: int
    precision: str = "bf16"
    key: tuple[object, ...] = ()

    def __call__(self, model: LayeredModel, ids: Sequence[Any], layers: tuple[int, ...], part: str) -> Features:
        """Features of all texts, in their order, with the graph if gradients are enabled."""
        groups = micro_batches([len(i) for i in ids], self.micro_tokens)
        pieces = [self._encode(model, ids, layers, part, n, group) for n, group in enumerate(groups)]
        return join(pieces, groups)

    def cached(
        self, model: LayeredModel, ids: Sequence[Any], layers: tuple[int, ...], part: str
    ) -> tuple[Features, Callable[[], None]]:
        """Features whose x is a leaf, and a function for after backward: it encodes again and passes gradients on."""
        with torch.no_grad():
            features = self(model, ids, layers, part)
        features.x.requires_grad_()

        def replay() -> None:
            assert features.x.grad is not None
            for n, group in enumerate(micro_batches([len(i) for i in ids], self.micro_tokens)):
                piece = self._encode(model, ids, layers, part, n, group).x
                grad = features.x.grad[:, group]
                torch.autograd.backward(piece, grad[:, :, : piece.shape[2]] if piece.dim() == 4 else grad)

        return features, replay

    def _encode(
        self, model: LayeredModel, ids: Sequence[Any], layers: tuple[int, ...], part: str, n: int, group: list[int]
    ) -> Features:
        if model.training:
            torch.manual_seed(_seed(self.key, part, n))
        with autocast(model.device, self.precision):
            return model.encode([ids[i] for i in group], layers)


def join(pieces: list[Features], groups: list[list[int]]) -> Features:
    """Features of micro-batches put back into the order of the texts, token axes padded to the longest."""
    order = torch.tensor([i for group in groups for i in group])
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order))
    back = back.to(pieces[0].x.device)
    if pieces[0].mask is None:
        return Features(torch.cat([p.x for p in pieces], 1)[:, back], pieces[0].layers)
    masks = [p.mask for p in pieces if p.mask is not None]
    longest = max(m.shape[1] for m in masks)
    x = torch.cat([pad(p.x, (0, 0, 0, longest - p.x.shape[2])) for p in pieces], 1)[:, back]
    mask: Tensor = torch.cat([pad(m, (0, longest - m.shape[1])) for m in masks])[back]
    return Features(x, pieces[0].layers, mask)
