"""FD, feature-based distillation (section 4.2: VIRT, Li et al. 2021): query-passage maps instead of scores."""

from __future__ import annotations

from torch import Tensor

from lead.config.schema import Distil
from lead.methods.losses import Loss, contrastive_loss, weighted
from lead.models.features import Candidates, Scores
from lead.models.maps import Maps


def fd(student: Scores, candidates: Candidates, teacher_maps: Maps, student_maps: Maps, distil: Distil) -> Loss:
    """L_stu + L_virt in both directions of attention, with a frozen teacher. `student`: scores of `candidates`.

    The released code has the direction to the passage only.
    """
    t, s = teacher_maps, student_maps
    parts = {
        "stu": contrastive_loss(student.final, candidates),
        "map": map_loss(t.to_passage, s.to_passage, s.keep),
    }
    if distil.maps == "virt":
        parts["map"] = parts["map"] + map_loss(t.to_query, s.to_query, s.keep)
    return Loss(weighted(parts, distil), parts, {})


def map_loss(teacher: Tensor, student: Tensor, keep: Tensor) -> Tensor:
    """L_virt of one direction of attention (VIRT, Li et al. 2021): squared L2 distance of two maps, scalar.

    Log-maps [L, n, X, Y] of L layers and n pairs, distributions over Y (or over X, for the other direction); keep
    [n, X, Y] is true where both tokens exist. Summed over a pair's X and Y, as the released code does, then averaged
    over pairs and layers.
    """
    return ((teacher.exp() - student.exp()) * keep).square().sum((-2, -1)).mean()
