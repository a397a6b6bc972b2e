"""Alignment of vectors without labels (LEAF, Vujanic and Rueckstiess 2025; MSELoss of sentence-transformers)."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cosine_similarity

from lead.methods.losses import Loss


def align(teacher: Tensor, student: Tensor, loss: str) -> Loss:
    """The mean over n texts of the distance of two vectors [n, d]: `squared` distance, or 1 - `cosine`.

    For vectors of unit length the first is twice the second. For others it also makes their lengths equal, on which
    inner products depend.
    """
    cosine = cosine_similarity(student, teacher, dim=-1)
    distance = (student - teacher).square().sum(-1) if loss == "squared" else 1.0 - cosine
    total = distance.mean()
    return Loss(total, {"align": total}, {"cosine": cosine.detach().mean()})
