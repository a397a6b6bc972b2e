"""RD, response-based distillation (section 4.2)."""

from __future__ import annotations

from lead.methods.losses import Loss, Scored, contrastive_loss, response_loss


def rd(scored: Scored) -> Loss:
    """L_stu + D_KL(t_N/tau, s_M/tau), with a frozen teacher."""
    keep, tau = scored.distillation.keep, scored.distil.tau
    return scored.loss(
        {
            "stu": contrastive_loss(scored.student_contrastive.final, scored.contrastive),
            "rep": response_loss(scored.teacher.final, scored.student.final, keep, tau, both=False),
        }
    )
