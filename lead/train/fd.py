"""FD, the feature-based baseline (section 4.2: VIRT, Li et al. 2021): query-passage maps instead of scores."""

from __future__ import annotations

import torch
from torch import Tensor

from lead.config.checks import check_maps
from lead.config.schema import Distil, Train
from lead.errors import LeadError
from lead.methods.losses import Loss
from lead.models.base import LayeredModel
from lead.models.encoder import depth
from lead.tokenizer import same_tokens
from lead.train.data import Batch
from lead.train.step import DistilStep, Encoded, Prepared


def map_layers(strategy: str, n: int, m: int) -> list[tuple[int, int]]:
    """(teacher layer, student layer) for every student layer: evenly spread over the teacher, or its last m.

    >>> map_layers("even", 12, 6), map_layers("last", 6, 3)
    ([(2, 1), (4, 2), (6, 3), (8, 4), (10, 5), (12, 6)], [(4, 1), (5, 2), (6, 3)])
    """
    if strategy == "last":
        return [(n - m + i, i) for i in range(1, m + 1)]
    return [(i * n // m, i) for i in range(1, m + 1)]


class FdStep(DistilStep):
    """L_stu + L_virt with a frozen teacher, on each query's own pairs."""

    def __init__(
        self, student: LayeredModel, teacher: LayeredModel, train: Train, distil: Distil, seed: int, method: str = "fd"
    ) -> None:
        """Raises LeadError when the two models cannot be aligned."""
        super().__init__(student, teacher, train, distil, seed, method)
        read = [(model.lengths, model.prompts) for model in (student, teacher)]
        same = same_tokens(student.tokenizer, teacher.tokenizer) and read[0] == read[1]
        n, m = depth(teacher.encoder), depth(student.encoder)
        check_maps(same, n, m, *((model.about, model.scoring) for model in (teacher, student)))
        self.aligned = map_layers(distil.map_layers, n, m)
        self.released = distil.maps == "released"
        self.views = student.map_view(self.released), teacher.map_view(self.released)

    def loss(self, prepared: Prepared, step: int) -> tuple[Loss, list[Encoded]]:
        """The student's contrastive loss, and the squared difference of maps in both directions."""
        inputs, pairs = prepared.inputs, self.map_pairs(prepared.batch).to(self.device)
        student = self.encode(self.student, "student", inputs["student"], (self.student.n_layers,), step)
        candidates = self.candidates_of(prepared, self.distil.contrastive_candidates)
        s_view, t_view = self.views
        taught, learning = (tuple(layers) for layers in zip(*self.aligned, strict=True))
        s, replays = self.features(s_view, "maps", inputs["student"], learning, step, frozen=False)
        t, _ = self.features(t_view, "maps", inputs["teacher"], taught, step, frozen=True)
        s_maps, t_maps = s_view.maps(s, pairs), t_view.maps(t, pairs)
        if not torch.equal(s_maps.keep, t_maps.keep):
            raise LeadError(
                f"method fd: teacher and student do not see the same tokens in the batch of step {step + 1}"
            )
        loss = self.loss_of(student.score(candidates), candidates, t_maps, s_maps, self.distil)
        return loss, [student, Encoded(self.student, s, replays, self.exchange)]

    def map_pairs(self, batch: Batch) -> Tensor:
        """[Q, C]: the passages whose maps with a query are compared: its own; in the released code every passage.

        A cross encoder has read a query's own pairs only. Other ranks' passages are left out; the released code has
        them too.
        """
        if not self.released or self.teacher.about.candidates == "own":
            return batch.own()
        return torch.arange(len(batch.passages)).expand(len(batch.queries), -1)
