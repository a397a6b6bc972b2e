"""Encoding many texts in micro-batches sorted by length, with the graph or with cached gradients (GradCache).

Both ways run the same micro-batches, each with its own dropout seed. With the same split the gradients are therefore
equal, dropout included. With another split (`micro_tokens`) they are equal apart from rounding where there is no
dropout; with dropout other units are dropped, so they are equal in distribution only.
Memory: with the graph, activations of all texts; cached, those of one micro-batch (`micro_tokens` padded tokens) and of
those that keep their graph.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from lead.device import autocast

CACHED = 2048  # padded tokens at a time on a CPU without gradients: more leave its cache, and new memory costs time


class Encoder(Protocol):
    """A model, or a view of it, that turns tokenized texts or pairs into features at some layers."""

    @property
    def device(self) -> torch.device:
        """Where its weights are."""

    @property
    def training(self) -> bool:
        """Whether dropout is on."""

    def encode(self, ids: Any, layers: tuple[int, ...]) -> Any:
        """`Features` of one micro-batch, or another class with a static `join`."""


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


class _Cached(torch.autograd.Function):
    """Features without a graph; their gradient is put aside."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, start: Tensor, aside: list[Tensor]) -> Tensor:
        ctx.aside = aside  # `start` needs a gradient, so that there is one of x
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None]:
        ctx.aside.append(grad)
        return None, None, None


@dataclass(frozen=True)
class MicroBatchEncoder:
    """How the texts of a step are encoded: sizes, precision, and the key that seeds dropout.

    A micro-batch's dropout seed is a function of `key`, the part (queries, passages, ..) and the micro-batch's number.
    """

    micro_tokens: int
    precision: str = "bf16"
    key: tuple[object, ...] = ()

    def __call__(self, model: Encoder, ids: Sequence[Any], layers: tuple[int, ...], part: str) -> Any:
        """Features of all texts, in their order, with the graph if gradients are enabled. `part` seeds dropout too."""
        groups = micro_batches([len(i) for i in ids], self.micro_tokens)
        pieces = [self._encode(model, ids, layers, part, n, group) for n, group in enumerate(groups)]
        return type(pieces[0]).join(pieces, groups)

    def cached(
        self, model: Encoder, ids: Sequence[Any], layers: tuple[int, ...], part: str, keep: int = 0
    ) -> tuple[Any, Callable[[], None]]:
        """Features of all texts, in their order, and a function to call after backward.

        The first micro-batches, of at most `keep` padded tokens together, keep their graph. Of the others the gradients
        of the features are cached, and the function encodes them again with these.
        """
        groups = micro_batches([len(i) for i in ids], self.micro_tokens)
        pieces, later = [], list[tuple[int, list[int], list[Tensor]]]()
        for n, group in enumerate(groups):
            keep -= len(group) * len(ids[group[-1]])
            if keep >= 0:
                pieces.append(self._encode(model, ids, layers, part, n, group))
                continue
            with torch.no_grad():
                piece = self._encode(model, ids, layers, part, n, group)
            later.append((n, group, []))
            pieces.append(replace(piece, x=_Cached.apply(piece.x, torch.zeros((), requires_grad=True), later[-1][2])))

        def replay() -> None:
            for n, group, (grad,) in later:
                torch.autograd.backward(self._encode(model, ids, layers, part, n, group).x, grad)

        return type(pieces[0]).join(pieces, groups), replay

    def fitted(self, model: Encoder) -> MicroBatchEncoder:
        """The same for encoding without gradients: on a CPU with at most `CACHED` tokens at a time."""
        if model.device.type != "cpu":
            return self
        return replace(self, micro_tokens=min(self.micro_tokens, CACHED))

    def batches(
        self, model: Encoder, ids: Sequence[Any], layers: tuple[int, ...], part: str
    ) -> Iterator[tuple[list[int], Any]]:
        """Yield the texts' positions and features of one micro-batch after another, with a progress bar.

        Memory: one micro-batch.
        """
        with tqdm(total=len(ids), desc=part, disable=None, unit="text", delay=1) as bar:
            fitted = self.fitted(model)
            for group in micro_batches([len(i) for i in ids], fitted.micro_tokens):
                yield group, fitted(model, [ids[i] for i in group], layers, part)
                bar.update(len(group))

    def _encode(
        self, model: Encoder, ids: Sequence[Any], layers: tuple[int, ...], part: str, n: int, group: list[int]
    ) -> Any:
        if model.training:
            torch.manual_seed(_seed(self.key, part, n))
        with autocast(model.device, self.precision):
            return model.encode([ids[i] for i in group], layers)
