"""The similarity functions f and g of section 3.2, as pure functions of vectors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

# floats of the [queries, X, P, Y] block that max_sim holds at a time. Each block reads all passages again, which takes
# a GPU longer than the products of a small one
MAX_SIM_BLOCK, MAX_SIM_BLOCK_GPU = 1 << 25, 1 << 28


def inner_product(queries: Tensor, passages: Tensor) -> Tensor:
    """f_DE (eq. 1): inner products [.., Q, P] of query vectors [.., Q, d] and passage vectors [.., P, d]."""
    return queries @ passages.transpose(-1, -2)


def max_sim(queries: Tensor, query_mask: Tensor, passages: Tensor, passage_mask: Tensor) -> Tensor:
    """f_CB (eq. 2): for each query token its best passage token, summed over query tokens.

    queries [Q, X, d], query_mask [Q, X], passages [P, Y, d], passage_mask [P, Y] (true: takes part) -> [Q, P]. A
    passage without tokens scores 0. Memory: a block of queries at a time; for the gradient only the index of each
    maximum is kept, [Q, X, P] integers.
    """
    return _MaxSim.apply(queries, query_mask, passages, passage_mask)


class _MaxSim(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, query_mask: Tensor, passages: Tensor, passage_mask: Tensor) -> Tensor:
        (n, x, d), (p, y, _) = queries.shape, passages.shape
        flat = passages.reshape(p * y, d)
        empty = ~passage_mask.any(1)
        scores = queries.new_empty(n, p)
        best = torch.empty(n, x, p, dtype=torch.int32, device=queries.device)
        for i in _blocks(queries, passages):
            products = (queries[i].reshape(-1, d) @ flat.T).view(-1, x, p, y)
            value, index = products.masked_fill_(~passage_mask, -torch.inf).max(-1)
            value = value.masked_fill(empty, 0.0)
            scores[i] = (value * query_mask[i, :, None]).sum(1)
            best[i] = index.to(torch.int32)
        ctx.save_for_backward(queries, query_mask, passages, empty, best)
        return scores

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor, None]:
        # the gradient of max_y q.p_y is that of q.p_best: a sparse matrix W [Q X, P Y], one entry a (token, passage).
        # Two products with it are faster than gathers and, unlike atomic additions, always sum in the same order.
        queries, query_mask, passages, empty, best = ctx.saved_tensors
        (_, x, d), (p, y, _) = queries.shape, passages.shape
        flat = passages.reshape(p * y, d)
        grad_queries, grad_flat = torch.zeros_like(queries), torch.zeros_like(flat)
        for i in _blocks(queries, passages):
            weight = (grad[i].masked_fill(empty, 0.0)[:, None, :] * query_mask[i, :, None]).unsqueeze(-1)
            w = (
                queries.new_zeros(*weight.shape[:-1], y)
                .scatter_(-1, best[i].long().unsqueeze(-1), weight)
                .view(-1, p * y)
            )
            grad_queries[i] = (w @ flat).view(-1, x, d)
            grad_flat += w.T @ queries[i].reshape(-1, d)
        return grad_queries, None, grad_flat.view(p, y, d), None


def _blocks(queries: Tensor, passages: Tensor) -> Iterator[slice]:
    """Queries [Q, X, d] in blocks whose products with all passages [P, Y, d] are held at a time."""
    (n, x, _), (p, y, _) = queries.shape, passages.shape
    most = MAX_SIM_BLOCK_GPU if queries.is_cuda else MAX_SIM_BLOCK
    size = max(1, most // max(1, x * p * y))
    return (slice(start, start + size) for start in range(0, n, size))


def standardise(scores: Tensor, keep: Tensor) -> Tensor:
    """Scores [.., Q, C] with zero mean and unit variance over each query's kept candidates (keep [Q, C]).

    It gives every layer a distribution that is neither flat nor one-hot, for vectors of any size and angle.
    """
    n = keep.sum(-1, keepdim=True).clamp(min=1)
    mean = (scores * keep).sum(-1, keepdim=True) / n
    centred = (scores - mean) * keep
    variance = centred.square().sum(-1, keepdim=True) / n
    return centred / (variance + 1e-6).sqrt()
