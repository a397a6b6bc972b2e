"""One training step: encode, score candidates, compute the loss, send gradients back (sections 3.3, 3.4)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from lead import losses
from lead.config.schema import Distil, Train
from lead.layers import select
from lead.losses import Loss
from lead.models.encoder import prepare_for_training
from lead.models.features import Candidates, Features, Scores
from lead.models.micro import MicroEncoder, padded_tokens
from lead.models.retriever import Retriever
from lead.train.data import Batch


@dataclass(frozen=True)
class Side:
    """A model's encoded batch, and what passes gradients on when they were cached."""

    model: Retriever
    queries: Features
    passages: Features
    replays: tuple[Callable[[], None], ...] = ()

    def score(self, candidates: Candidates) -> Scores:
        """Scores of the candidates at every encoded layer."""
        return self.model.score(self.queries, self.passages, candidates)


class Step:
    """Computes a batch's loss and leaves gradients in the parameters. Subclasses say which loss."""

    def __init__(self, student: Retriever, train: Train, seed: int):
        """`train`: batch encoding settings; `seed`: seeds dropout with the step number."""
        self.student, self.train, self.seed = student, train, seed
        self.device = next(student.parameters()).device
        prepare_for_training(student.encoder, train.dropout)

    def trained(self) -> dict[str, Retriever]:
        """The models that receive gradients, by name."""
        return {"student": self.student}

    def loss(self, batch: Batch, step: int) -> tuple[Loss, list[Side]]:
        """The loss of this batch, and the sides whose cached gradients must be replayed."""
        side = self.encode(self.student, "student", batch, (self.student.n_layers,), step)
        candidates = batch.candidates("batch").to(self.device)
        return losses.contrastive(side.score(candidates), candidates), [side]

    def __call__(self, batch: Batch, step: int) -> Loss:
        """Forward and backward. Gradients are added to `.grad` of the trained models' parameters."""
        loss, sides = self.loss(batch, step)
        loss.total.backward()
        for side in sides:
            for replay in side.replays:
                replay()
        return loss

    def encode(
        self, model: Retriever, name: str, batch: Batch, layers: tuple[int, ...], step: int, frozen: bool = False
    ) -> Side:
        """Encode queries and passages; above `cache_above` tokens with cached gradients, else with the graph."""
        micro = MicroEncoder(self.train.micro_tokens, self.train.precision, (self.seed, step, name))
        queries, passages = model.tokenize("query", batch.queries), model.tokenize("passage", batch.passages)
        tokens = sum(padded_tokens([len(i) for i in ids], self.train.micro_tokens) for ids in (queries, passages))
        if frozen or tokens <= self.train.cache_above:
            with torch.no_grad() if frozen else nullcontext():
                return Side(model, micro(model, queries, layers, "queries"), micro(model, passages, layers, "passages"))
        q, replay_queries = micro.cached(model, queries, layers, "queries")
        p, replay_passages = micro.cached(model, passages, layers, "passages")
        return Side(model, q, p, (replay_queries, replay_passages))


class DistilStep(Step):
    """RD: frozen teacher, final scores only."""

    def __init__(self, student: Retriever, teacher: Retriever, train: Train, distil: Distil, seed: int, joint: bool):
        """A teacher that is not trained jointly is put in eval mode for good and never builds a graph."""
        super().__init__(student, train, seed)
        self.teacher, self.distil, self.joint = teacher, distil, joint
        teacher.train(joint).requires_grad_(joint)
        if joint:
            prepare_for_training(teacher.encoder, train.dropout)

    def trained(self) -> dict[str, Retriever]:
        """Student, and the teacher under joint training."""
        return super().trained() | ({"teacher": self.teacher} if self.joint else {})

    def loss(self, batch: Batch, step: int) -> tuple[Loss, list[Side]]:
        """L_stu + D_KL(t_N, s_M)."""
        student = self.encode(self.student, "student", batch, (self.student.n_layers,), step)
        teacher = self.encode(self.teacher, "teacher", batch, (self.teacher.n_layers,), step, frozen=True)
        hard, soft = self.candidates(batch)
        s_hard, s_soft = _both(student, hard, soft)
        return losses.rd(s_hard, teacher.score(soft), hard, soft, s_soft, self.distil), [student]

    def candidates(self, batch: Batch) -> tuple[Candidates, Candidates]:
        """Of the hard losses (always the whole batch) and of the distillation losses; the same object if they agree."""
        hard = batch.candidates("batch").to(self.device)
        return hard, hard if self.distil.candidates == "batch" else batch.candidates("own").to(self.device)


class LeadStep(DistilStep):
    """LEAD (eq. 12): K pairs of layers, re-weighted, with or without joint training."""

    def loss(self, batch: Batch, step: int) -> tuple[Loss, list[Side]]:
        """L_lyr + L_rep + L_tch + L_stu over the layer pairs of this step."""
        n, m = self.teacher.n_layers, self.student.n_layers
        pairs = select(self.distil.layers, n, m, self.seed, step)
        student = self.encode(self.student, "student", batch, tuple(sorted({m, *(b for _, b in pairs)})), step)
        teacher = self.encode(
            self.teacher, "teacher", batch, tuple(sorted({n, *(a for a, _ in pairs)})), step, frozen=not self.joint
        )
        hard, soft = self.candidates(batch)
        s_hard, s_soft = _both(student, hard, soft)
        t_hard, t_soft = _both(teacher, hard, soft)
        loss = losses.lead(s_hard, t_hard, hard, soft, s_soft, t_soft, pairs, self.distil)
        return loss, [student, teacher] if self.joint else [student]


def _both(side: Side, hard: Candidates, soft: Candidates) -> tuple[Scores, Scores]:
    """Scores of the hard and of the soft candidates, computed once where they are the same."""
    s_soft = side.score(soft)
    return (s_soft if hard is soft else side.score(hard)), s_soft
