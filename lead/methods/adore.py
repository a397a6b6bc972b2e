"""ADORE's loss (Zhan et al. 2021), over the top of each step's own search."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from lead.methods.losses import Loss
from lead.models.features import Candidates, Scores


def lambda_rank(student: Scores, candidates: Candidates) -> Loss:
    """ADORE's loss (Zhan et al. 2021): the mean over a query's negatives of |1/r+ - 1/r-| log(1 + exp(s- - s+)).

    r+, r-: ranks of positive and negative among the kept candidates by these scores. The weight, without gradient, is
    the change of the reciprocal rank if the two changed places (LambdaRank, Burges et al. 2006).
    """
    s, positive = student.final, candidates.positive
    ranked = s.detach().masked_fill(~candidates.keep, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    reciprocal = 1.0 / (1.0 + ranked.argsort(-1))

    def of_positive(x: Tensor) -> Tensor:
        return x.masked_fill(~positive, 0.0).sum(-1, keepdim=True)

    negative = candidates.keep & ~positive
    pairs = (of_positive(reciprocal) - reciprocal).abs() * softplus(s - of_positive(s)) * negative
    loss = (pairs.sum(-1) / negative.sum(-1).clamp(min=1)).mean()
    return Loss(loss, {"stu": loss}, {"reciprocal_rank": of_positive(reciprocal).mean()})
