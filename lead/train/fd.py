"""FD, the feature-based baseline (section 4.2: VIRT, Li et al. 2021): query-passage maps instead of scores."""

from __future__ import annotations

from typing import cast

import torch

from lead.config.schema import Distil, Train
from lead.device import autocast
from lead.errors import LeadError
from lead.methods import losses
from lead.methods.losses import Loss
from lead.models.base import LayeredModel
from lead.models.cross_encoder import CrossEncoder
from lead.models.encoder import depth
from lead.models.maps import AttentionView, Maps, TokenView, join_maps, same_tokenizer, virtual_maps
from lead.models.microbatch import MicroBatchEncoder, micro_batches
from lead.models.retriever import Retriever
from lead.train.data import Batch
from lead.train.step import DistilStep, Encoded, texts


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

    def __init__(self, student: LayeredModel, teacher: LayeredModel, train: Train, distil: Distil, seed: int) -> None:
        """Raises LeadError when the two models do not read the same tokens."""
        super().__init__(student, teacher, train, distil, seed, joint=False)
        if not same_tokenizer(student, teacher):
            raise LeadError(
                "method fd compares maps over tokens, so teacher and student must have the same tokenizer and lengths; "
                "use rd or lead, which compare scores"
            )
        n, m = depth(teacher.encoder), depth(student.encoder)
        if m > n:
            raise LeadError(
                f"method fd: the student has {m} transformer layers, the teacher only {n}; it needs as many"
            )
        if any(m.kind == "cb" and (m.scoring.markers or m.scoring.expand) for m in (student, teacher)):
            raise LeadError("method fd: scoring.cb.markers and expand add tokens to ColBERT's texts; set both to false")
        self.pairs = map_layers(distil.map_layers, n, m)
        self.attention = AttentionView(teacher) if isinstance(teacher, CrossEncoder) else None

    def loss(self, batch: Batch, step: int) -> tuple[Loss, list[Encoded]]:
        """The student's hard loss, and the squared difference of maps in both directions."""
        side = self.encode(self.student, "student", batch, (self.student.n_layers,), step)
        hard = batch.candidates(self.distil.contrastive_candidates).to(self.device)
        s, s_replays = self._virtual(self.student, batch, tuple(b for _, b in self.pairs), step, frozen=False)
        t = self._teacher_maps(batch, tuple(a for a, _ in self.pairs), step)
        if not torch.equal(s.keep, t.keep):
            raise LeadError(
                f"method fd: teacher and student do not see the same tokens in the batch of step {step + 1}"
            )
        parts = {
            "stu": losses.hard_loss(side.score(hard).final, hard),
            "map": losses.map_loss(t.to_passage, s.to_passage, s.keep)
            + losses.map_loss(t.to_query, s.to_query, s.keep),
        }
        return Loss(losses.weighted(parts, self.distil), parts, {}), [side, s_replays]

    def _teacher_maps(self, batch: Batch, layers: tuple[int, ...], step: int) -> Maps:
        if self.attention is None:
            return self._virtual(self.teacher, batch, layers, step, frozen=True)[0]
        model = cast(CrossEncoder, self.teacher)
        queries = [q for q in batch.queries for _ in range(batch.own().shape[1])]
        pairs = model.tokenize(queries, batch.passages)
        groups = micro_batches([len(p) for p in pairs], self.train.micro_tokens)
        with torch.no_grad(), autocast(model.device, self.train.precision):
            return join_maps([self.attention.encode([pairs[i] for i in group], layers) for group in groups], groups)

    def _virtual(
        self, model: LayeredModel, batch: Batch, layers: tuple[int, ...], step: int, frozen: bool
    ) -> tuple[Maps, Encoded]:
        """Maps of a model that encodes texts apart, and what passes gradients on when they were cached."""
        assert isinstance(model, Retriever)
        micro = MicroBatchEncoder(
            self.train.micro_tokens, self.train.precision, (self.seed, step, "maps", self.exchange.rank)
        )
        side = self.features(micro, TokenView(model), model, texts(model, batch), layers, frozen)
        queries, passages = side.features
        return virtual_maps(queries, passages, batch.own().to(self.device)), side
