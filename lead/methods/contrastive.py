"""Contrastive training, without a teacher: warm-up, and the control `student_more`."""

from __future__ import annotations

from lead.methods.losses import Loss, contrastive_loss, entropies_of
from lead.models.features import Candidates, Scores


def contrastive(student: Scores, candidates: Candidates) -> Loss:
    """L_stu alone (eq. 11; for a teacher's warm-up the same is L_tch, eq. 10)."""
    loss = contrastive_loss(student.final, candidates)
    return Loss(loss, {"stu": loss}, {"student_entropy": entropies_of(student, candidates)})
