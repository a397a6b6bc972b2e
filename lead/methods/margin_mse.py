"""Margin-MSE (Hofstaetter et al. 2020)."""

from __future__ import annotations

from torch import Tensor

from lead.methods.losses import Loss, Scored, contrastive_loss
from lead.models.features import Candidates


def margin_mse(scored: Scored) -> Loss:
    """Mean squared difference between the two models' margins.

    The margin is the positive's score minus a negative's, over every kept negative. Scores are logits: equal margins
    mean equal distributions. The original has no contrastive loss: `weights.stu` is 0 in its row of experiments.yaml.
    """
    return scored.loss(
        {
            "stu": contrastive_loss(scored.student_contrastive.final, scored.contrastive),
            "rep": margin_loss(scored.teacher.final, scored.student.final, scored.distillation),
        }
    )


def margin_loss(teacher: Tensor, student: Tensor, candidates: Candidates) -> Tensor:
    """Mean over queries of the mean over their negatives of the squared difference. Scores [Q, C] -> scalar."""

    def margins(s: Tensor) -> Tensor:
        return s.masked_fill(~candidates.positive, 0.0).sum(-1, keepdim=True) - s

    negative = candidates.keep & ~candidates.positive
    square = (margins(teacher) - margins(student)).square() * negative
    return (square.sum(-1) / negative.sum(-1).clamp(min=1)).mean()
