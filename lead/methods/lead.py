"""LEAD: layer-wise alignment of score distributions, joint training (sections 3.3, 3.4): eqs. 6 to 8 and 12."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lead.methods.losses import (
    Loss,
    Scored,
    contrastive_loss,
    kl,
    log_distribution,
    positive_log_probability,
    response_loss,
    unchanged,
)
from lead.models.features import Candidates


def lead(scored: Scored) -> Loss:
    """L_total = L_lyr + L_rep + L_stu + L_tch (eq. 12), each with its factor in `distil.weights`.

    Without joint training, L_tch and D_KL(s_M, t_N) are removed (section 4.6); the caller freezes the teacher.
    """
    distil, candidates, teacher, student = scored.distil, scored.distillation, scored.teacher, scored.student
    t = teacher.at(*(a for a, _ in scored.pairs))
    s = student.at(*(b for _, b in scored.pairs))
    tau_w = distil.layer_weights_tau or distil.tau
    w = layer_weights(t, candidates, tau_w, distil.layer_weights, s, scored.mean_over_ranks)
    keep, tau, detach = candidates.keep, distil.tau, distil.detach_target
    parts = {
        "lyr": layer_loss(t, s, w, keep, tau, detach),
        "rep": response_loss(teacher.final, student.final, keep, tau, distil.joint, detach),
        "stu": contrastive_loss(scored.student_contrastive.final, scored.contrastive),
    }
    if distil.joint:
        assert scored.teacher_contrastive is not None and scored.teacher_candidates is not None
        parts["tch"] = contrastive_loss(scored.teacher_contrastive.final, scored.teacher_candidates)
    return scored.loss(parts, layer_weights=w.mean(1), pairs=torch.tensor(list(scored.pairs)))


def layer_loss(
    teacher: Tensor, student: Tensor, w: Tensor, keep: Tensor, tau: float = 1.0, detach: bool = False
) -> Tensor:
    """L_lyr (eqs. 6, 8): sum over K pairs of w_i D_KL(t_{a_i}/tau, s_{b_i}/tau). Scores [K, Q, C], w [K, Q]."""
    t = log_distribution(teacher.detach() if detach else teacher, keep, tau)
    return (w * kl(t, log_distribution(student, keep, tau), keep)).sum(0).mean()


def layer_weights(
    teacher: Tensor,
    candidates: Candidates,
    tau: float = 1.0,
    mode: str = "per_query",
    student: Tensor | None = None,
    mean_over_ranks: Callable[[Tensor], Tensor] = unchanged,
) -> Tensor:
    """w (eq. 7) of K layers with scores `teacher` [K, Q, C] -> [K, Q], each column summing to 1, without gradient.

    Layers that assign a higher probability to the positive get a larger weight. `per_query` follows eq. 7; `batch` is
    the released code (D_KL averaged over the batch first; `mean_over_ranks` takes the mean over the ranks that share
    it); `uniform` is 1/K. `progress` (ours) subtracts the log-probability that the student's layers, with scores
    `student` [K, Q, C], assign to the positive already: a pair weighs more, the further the student is behind.
    """
    log_p = positive_log_probability(teacher.detach(), candidates)  # [K, Q]
    if mode == "uniform":
        return torch.full_like(log_p, 1.0 / len(log_p))
    if mode == "progress":
        assert student is not None
        log_p = log_p - positive_log_probability(student.detach(), candidates)
    if mode == "batch":
        log_p = mean_over_ranks(log_p.mean(1, keepdim=True)).expand_as(log_p)
    return (log_p / tau).softmax(0)
