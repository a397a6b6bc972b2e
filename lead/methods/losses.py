"""The parts of losses: distributions (eqs. 4, 5), the response loss (eq. 9), contrastive losses (10, 11).

A loss is a pure function of scores. It sees no architecture, tokenizer or device. Shapes: scores s [.., Q, C] of C
candidates for each of Q queries; `keep` [Q, C] is false for candidates that do not take part; `positive` [Q, C] is true
at the one positive of each query. Every loss is a mean over queries.

The other equations: 6 to 8 and 12 in lead.py; 1 to 3 in lead/models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lead.config.schema import Distil, LossWeights
from lead.errors import LeadError
from lead.models.features import Candidates, Scores


def log_distribution(s: Tensor, keep: Tensor, tau: float = 1.0) -> Tensor:
    """log t_i or log s_i, the layer feature (eqs. 4, 5): log-softmax of s/tau over the kept candidates, [.., Q, C].

    0 where not kept, so that sums need no special case: multiply probabilities by `keep`.
    """
    return (s / tau).masked_fill(~keep, -torch.inf).log_softmax(-1).masked_fill(~keep, 0.0)


def kl(log_target: Tensor, log_other: Tensor, keep: Tensor) -> Tensor:
    """D_KL(target, other) of each query, [.., Q], from two results of `log_distribution`."""
    return (log_target.exp() * keep * (log_target - log_other)).sum(-1)


def entropy(log_p: Tensor, keep: Tensor) -> Tensor:
    """Entropy in nats, [.., Q], of a `log_distribution`: near 0 one-hot, near log C flat; both teach little."""
    return -(log_p.exp() * keep * log_p).sum(-1)


def contrastive_loss(s: Tensor, candidates: Candidates) -> Tensor:
    """L_tch and L_stu (eqs. 10, 11): minus the log-probability of the positive. s [Q, C] -> scalar."""
    return -positive_log_probability(s, candidates).mean()


def positive_log_probability(s: Tensor, candidates: Candidates) -> Tensor:
    """Log of the probability that scores s [.., Q, C] give to the positive, [.., Q]: -D_KL(y, t) of a one-hot y."""
    return (log_distribution(s, candidates.keep) * candidates.positive).sum(-1)


def response_loss(
    teacher: Tensor, student: Tensor, keep: Tensor, tau: float = 1.0, both: bool = True, detach: bool = False
) -> Tensor:
    """L_rep (eq. 9): D_KL(t_N/tau, s_M/tau), and D_KL(s_M/tau, t_N/tau) too if `both`. Scores [Q, C] -> scalar."""
    t, s = log_distribution(teacher, keep, tau), log_distribution(student, keep, tau)
    loss = kl(t.detach() if detach else t, s, keep)
    if both:
        loss = loss + kl(s.detach() if detach else s, t, keep)
    return loss.mean()


@dataclass(frozen=True)
class Loss:
    """The total that is minimised, its parts, and what is logged besides: names and scalars (or small vectors)."""

    total: Tensor
    parts: dict[str, Tensor]
    watch: dict[str, Tensor]


def unchanged(x: Tensor) -> Tensor:
    """The mean over ranks where there is only one process."""
    return x


@dataclass(frozen=True)
class Scored:
    """A batch as both models score it: everything that a loss of distillation sees.

    distillation: the candidates that both models score; teacher, student: their scores of them, at the aligned layers
    and the last. contrastive: the candidates of L_stu (eq. 11), and the student's scores of them. teacher_candidates:
    those of L_tch (eq. 10), and the teacher's scores of them; None where the teacher is frozen. pairs: the K aligned
    layers (a_i, b_i); none for a method that sees final scores only. mean_over_ranks: mean of a tensor over the ranks
    that share the batch.
    """

    distillation: Candidates
    teacher: Scores
    student: Scores
    contrastive: Candidates
    student_contrastive: Scores
    distil: Distil
    teacher_candidates: Candidates | None = None
    teacher_contrastive: Scores | None = None
    pairs: Sequence[tuple[int, int]] = ()
    mean_over_ranks: Callable[[Tensor], Tensor] = unchanged

    def loss(self, parts: dict[str, Tensor], **watch: Tensor) -> Loss:
        """The weighted sum of `parts`. Both models' entropies are watched, and `watch`."""
        entropies = {
            "student_entropy": entropies_of(self.student, self.distillation),
            "teacher_entropy": entropies_of(self.teacher, self.distillation),
        }
        return Loss(weighted(parts, self.distil), parts, entropies | watch)


def weighted(parts: dict[str, Tensor], distil: Distil) -> Tensor:
    """The total: each part times its factor in `distil.weights`. Raises LeadError for a part without a factor."""
    if unknown := sorted(set(parts) - set(LossWeights.model_fields)):
        raise LeadError(
            f"distil.weights has no factor for the loss part '{unknown[0]}'; name the part one of "
            f"{', '.join(LossWeights.model_fields)}, or add a key to LossWeights (lead/config/schema.py)"
        )
    for name, part in parts.items():
        if part.dim():
            raise LeadError(f"loss part '{name}' is no scalar but {list(part.shape)}; take its mean over queries")
    return torch.stack([getattr(distil.weights, name) * part for name, part in parts.items()]).sum()


def entropies_of(scores: Scores, candidates: Candidates) -> Tensor:
    """Mean entropy [L + 1] of each layer feature and, last, of the final scores' distribution."""
    s = torch.cat([scores.s, scores.final[None]]).detach()
    return entropy(log_distribution(s, candidates.keep), candidates.keep).mean(-1)
