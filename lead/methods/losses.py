"""The losses of the paper: pure functions of scores. No architecture, tokenizer or device is seen here.

Shapes: scores s [.., Q, C] of C candidates for each of Q queries; `keep` [Q, C] is false for candidates that do not
take part; `positive` [Q, C] is true at the one positive of each query. Every loss is a mean over queries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from lead.config.schema import Distil
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
    """Entropy in nats, [.., Q], of a `log_distribution`: near 0 saturated, near log C flat; neither teaches."""
    return -(log_p.exp() * keep * log_p).sum(-1)


def hard_loss(s: Tensor, candidates: Candidates) -> Tensor:
    """L_tch and L_stu (eqs. 10, 11): -log of the probability given to the positive. s [Q, C] -> scalar."""
    return -positive_log_probability(s, candidates).mean()


def positive_log_probability(s: Tensor, candidates: Candidates) -> Tensor:
    """Log of the probability that scores s [.., Q, C] give to the positive, [.., Q]: -D_KL(y, t) of a one-hot y."""
    return (log_distribution(s, candidates.keep) * candidates.positive).sum(-1)


def _alone(x: Tensor) -> Tensor:
    """The mean over ranks of a process that has no others."""
    return x


def layer_weights(
    s: Tensor,
    candidates: Candidates,
    tau: float = 1.0,
    mode: str = "per_query",
    student: Tensor | None = None,
    over_ranks: Callable[[Tensor], Tensor] = _alone,
) -> Tensor:
    """w (eq. 7) of K teacher layers with scores s [K, Q, C] -> [K, Q], each column summing to 1, without gradient.

    A layer weighs more the more it believes in the positive. `per_query` is the equation; `batch` is the released code
    (D_KL averaged over the batch first; `over_ranks` takes the mean over those that share it); `uniform` is 1/K.
    `progress` (ours) takes away what the layers that learn from them, with scores `student` [K, Q, C], believe already:
    a pair weighs more the further the student is behind.
    """
    w = positive_log_probability(s.detach(), candidates)  # [K, Q]
    if mode == "uniform":
        return torch.full_like(w, 1.0 / len(w))
    if mode == "progress":
        assert student is not None
        w = w - positive_log_probability(student.detach(), candidates)
    if mode == "batch":
        w = over_ranks(w.mean(1, keepdim=True)).expand_as(w)
    return (w / tau).softmax(0)


def layer_loss(
    teacher: Tensor, student: Tensor, w: Tensor, keep: Tensor, tau: float = 1.0, detach: bool = False
) -> Tensor:
    """L_lyr (eqs. 6, 8): sum over K pairs of w_i D_KL(t_{a_i}/tau, s_{b_i}/tau). Scores [K, Q, C], w [K, Q]."""
    t = log_distribution(teacher.detach() if detach else teacher, keep, tau)
    return (w * kl(t, log_distribution(student, keep, tau), keep)).sum(0).mean()


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
    """A total to descend, its parts, and what to watch: names to scalars (or small vectors) for the log."""

    total: Tensor
    parts: dict[str, Tensor]
    watch: dict[str, Tensor]


def contrastive(student: Scores, candidates: Candidates) -> Loss:
    """Hard labels only: warm-up, and the control `student_more`."""
    loss = hard_loss(student.final, candidates)
    return Loss(loss, {"stu": loss}, {"student_entropy": _entropies(student, candidates)})


def lambda_rank(student: Scores, candidates: Candidates) -> Loss:
    """ADORE's loss (Zhan et al. 2021): the mean over a query's negatives of |1/r+ - 1/r-| log(1 + exp(s- - s+)).

    r+, r-: ranks of positive and negative among the kept candidates by these scores. Their weight, without gradient, is
    what changing places would do to the reciprocal rank (LambdaRank, Burges et al. 2006).
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


def rd(
    student: Scores, teacher: Scores, hard: Candidates, soft: Candidates, student_soft: Scores, distil: Distil
) -> Loss:
    """RD, response-based distillation (section 4.2): L_stu + D_KL(t_N/tau, s_M/tau) with a frozen teacher."""
    parts = {
        "stu": hard_loss(student.final, hard),
        "rep": response_loss(teacher.final, student_soft.final, soft.keep, distil.tau, both=False),
    }
    return Loss(weighted(parts, distil), parts, _watch(student_soft, teacher, soft))


def margin_mse(
    student: Scores, teacher: Scores, hard: Candidates, soft: Candidates, student_soft: Scores, distil: Distil
) -> Loss:
    """Margin-MSE (Hofstaetter et al. 2020): mean squared difference between the two models' margins.

    The margin is the positive's score minus a negative's, over every kept negative of `soft`. Scores are logits: equal
    margins mean equal distributions. The original has no hard loss: `weights.stu` is 0 in its row.
    """
    parts = {
        "stu": hard_loss(student.final, hard),
        "rep": _margin_loss(teacher.final, student_soft.final, soft),
    }
    return Loss(weighted(parts, distil), parts, _watch(student_soft, teacher, soft))


def _margin_loss(teacher: Tensor, student: Tensor, candidates: Candidates) -> Tensor:
    def margins(s: Tensor) -> Tensor:
        return s.masked_fill(~candidates.positive, 0.0).sum(-1, keepdim=True) - s

    negative = candidates.keep & ~candidates.positive
    square = (margins(teacher) - margins(student)).square() * negative
    return (square.sum(-1) / negative.sum(-1).clamp(min=1)).mean()


def map_loss(teacher: Tensor, student: Tensor, keep: Tensor) -> Tensor:
    """L_virt of one direction of attention (VIRT, Li et al. 2021): squared L2 distance of two maps, scalar.

    Log-maps [L, n, X, Y] of L layers and n pairs, distributions over Y (or over X, for the other direction); keep
    [n, X, Y] is true where both tokens exist. Summed over a pair's X and Y, as the released code does, then averaged
    over pairs and layers.
    """
    return ((teacher.exp() - student.exp()) * keep).square().sum((-2, -1)).mean()


RESPONSES = {"rd": rd, "margin_mse": margin_mse}


def lead(
    student: Scores,
    teacher: Scores,
    hard: Candidates,
    soft: Candidates,
    student_soft: Scores,
    teacher_soft: Scores,
    pairs: Sequence[tuple[int, int]],
    distil: Distil,
    teacher_hard: Candidates | None = None,
    over_ranks: Callable[[Tensor], Tensor] = _alone,
) -> Loss:
    """L_total (eq. 12) over K pairs (a_i, b_i) of teacher and student layers.

    `student`, `teacher`: last-layer scores of the candidates `hard` and `teacher_hard` (None: `hard` too); `.._soft`:
    scores at all aligned layers (and the last) of the `soft` candidates. Without joint training, L_tch
    and D_KL(s_M, t_N) are removed (section 4.6); that the teacher is frozen is the caller's business.
    """
    t = teacher_soft.at(*(a for a, _ in pairs))
    s = student_soft.at(*(b for _, b in pairs))
    w = layer_weights(t, soft, distil.layer_weights_tau or distil.tau, distil.layer_weights, s, over_ranks)
    parts = {
        "lyr": layer_loss(t, s, w, soft.keep, distil.tau, distil.detach_target),
        "rep": response_loss(
            teacher_soft.final, student_soft.final, soft.keep, distil.tau, distil.joint, distil.detach_target
        ),
        "stu": hard_loss(student.final, hard),
    }
    if distil.joint:
        parts["tch"] = hard_loss(teacher.final, teacher_hard or hard)
    return Loss(
        weighted(parts, distil),
        parts,
        _watch(student_soft, teacher_soft, soft) | {"layer_weights": w.mean(1), "pairs": torch.tensor(list(pairs))},
    )


def weighted(parts: dict[str, Tensor], distil: Distil) -> Tensor:
    """The total: each part times its factor in `distil.weights`."""
    return torch.stack([getattr(distil.weights, name) * part for name, part in parts.items()]).sum()


def _entropies(scores: Scores, candidates: Candidates) -> Tensor:
    """Mean entropy [L + 1] of each layer feature and, last, of the final scores' distribution."""
    s = torch.cat([scores.s, scores.final[None]]).detach()
    return entropy(log_distribution(s, candidates.keep), candidates.keep).mean(-1)


def _watch(student: Scores, teacher: Scores, candidates: Candidates) -> dict[str, Tensor]:
    return {"student_entropy": _entropies(student, candidates), "teacher_entropy": _entropies(teacher, candidates)}
