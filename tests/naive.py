"""The equations once more, one scalar at a time, slowly: what the losses are tested against."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lead.config.schema import Distil
from lead.models.features import Candidates

LN2, LN3 = math.log(2), math.log(3)


def naive_distribution(row: Tensor, keep: Tensor, tau: float = 1.0) -> dict[int, Tensor]:
    """Eqs. 4 and 5 for one query: {candidate: probability} over the kept candidates."""
    e = {c: torch.exp(row[c] / tau) for c in range(len(row)) if keep[c]}
    total = sum(e.values())
    return {c: v / total for c, v in e.items()}


def naive_kl(p: dict[int, Tensor], q: dict[int, Tensor]) -> Tensor:
    return sum((p[c] * torch.log(p[c] / q[c]) for c in p), torch.zeros((), dtype=torch.float64))


def naive_contrastive(s: Tensor, candidates: Candidates) -> Tensor:
    """Eqs. 10 and 11, averaged over queries."""
    losses = []
    for q in range(len(s)):
        (y,) = [c for c in range(s.shape[1]) if candidates.positive[q, c]]
        losses.append(-torch.log(naive_distribution(s[q], candidates.keep[q])[y]))
    return sum(losses) / len(losses)


def naive_weights(
    teacher: list[Tensor], candidates: Candidates, distil: Distil, student: list[Tensor] | None = None
) -> list[list[float]]:
    """Eq. 7: weights[q][i] of layer i, plain numbers (no gradient). `student`: of the mode `progress`."""
    k, (n, c) = len(teacher), candidates.keep.shape
    divergence = []  # D_KL(y, t_ai) of a one-hot y: only its one term survives
    for q in range(n):
        (y,) = [j for j in range(c) if candidates.positive[q, j]]
        divergence.append(
            [math.log(1 / float(naive_distribution(t[q].detach(), candidates.keep[q])[y])) for t in teacher]
        )
        if distil.layer_weights == "progress":
            assert student is not None
            for i, s in enumerate(student):
                divergence[q][i] += math.log(float(naive_distribution(s[q].detach(), candidates.keep[q])[y]))
    if distil.layer_weights == "batch":
        mean = [sum(d[i] for d in divergence) / n for i in range(k)]
        divergence = [mean] * n
    weights = []
    for d in divergence:
        e = [math.exp(-x / (distil.layer_weights_tau or distil.tau)) for x in d]
        weights.append([1 / k] * k if distil.layer_weights == "uniform" else [x / sum(e) for x in e])
    return weights


def naive_lead(
    t_contrastive: Tensor,
    s_contrastive: Tensor,
    t_distillation: Tensor,
    s_distillation: Tensor,
    t_layers: dict[int, Tensor],
    s_layers: dict[int, Tensor],
    contrastive: Candidates,
    distillation: Candidates,
    pairs: list[tuple[int, int]],
    distil: Distil,
) -> dict[str, Tensor]:
    """The four parts of eq. 12 and their weighted `total`.

    f and g of the whole models on the contrastive and on the distillation candidates; of each layer
    (by number) on the latter.
    """
    n = len(t_contrastive)
    w = naive_weights([t_layers[a] for a, _ in pairs], distillation, distil, [s_layers[b] for _, b in pairs])
    lyr = rep = torch.zeros((), dtype=torch.float64)
    for q in range(n):

        def p(scores: Tensor, q: int = q) -> dict[int, Tensor]:
            return naive_distribution(scores[q], distillation.keep[q], distil.tau)

        def target(scores: Tensor, q: int = q) -> dict[int, Tensor]:
            return p(scores.detach() if distil.detach_target else scores, q)

        for i, (a, b) in enumerate(pairs):
            lyr = lyr + w[q][i] * naive_kl(target(t_layers[a]), p(s_layers[b])) / n
        rep = rep + naive_kl(target(t_distillation), p(s_distillation)) / n
        if distil.joint:
            rep = rep + naive_kl(target(s_distillation), p(t_distillation)) / n
    parts = {"lyr": lyr, "rep": rep, "stu": naive_contrastive(s_contrastive, contrastive)}
    if distil.joint:
        parts["tch"] = naive_contrastive(t_contrastive, contrastive)
    total = sum(getattr(distil.weights, name) * part for name, part in parts.items())
    return parts | {"total": total}
