"""One training step: encode, score candidates, compute the loss, send gradients back (sections 3.3, 3.4)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from lead.config.methods import METHODS, STRATEGIES
from lead.config.schema import Distil, Train
from lead.device import allow_tf32, loss_scaler
from lead.methods.layers import Pairs, check_layers, select
from lead.methods.load import load_loss
from lead.methods.losses import Loss, Scored, positive_log_probability
from lead.models.base import LayeredModel
from lead.models.encoder import prepare_for_training
from lead.models.features import Candidates, Features, Scores
from lead.models.microbatch import Encoder, MicroBatchEncoder, padded_tokens
from lead.train.data import Batch
from lead.train.exchange import Exchange, check_shares

Inputs = dict[str, list[Any]]  # token ids by the name of an input: queries, passages; or pairs


@dataclass(frozen=True)
class Prepared:
    """A rank's part of a batch, with the token ids of every model's inputs, by the model's name."""

    batch: Batch
    inputs: dict[str, Inputs]


@dataclass(frozen=True)
class Encoded:
    """A model's features of a batch, and functions that pass gradients on where they were cached.

    features: one for each input; other ranks' are among them where the model needs them.
    """

    model: LayeredModel
    features: tuple[Features, ...]
    replays: tuple[Callable[[], None], ...]
    ranks: Exchange

    def score(self, candidates: Candidates) -> Scores:
        """Scores of the candidates at every encoded layer; other ranks' passages are among them."""
        return self.model.score_batch(self.features, candidates, self.ranks)


class Step:
    """Contrastive training. Computes a batch's loss and leaves gradients in the parameters.

    A step has two halves: `prepared = step.prepare(batch)`, then `step(prepared, number)`. Subclasses change the loss.
    """

    def __init__(self, student: LayeredModel, train: Train, seed: int):
        """`train`: how batches are encoded; `seed`: seeds dropout, with the number of the step."""
        self.student, self.train, self.seed = student, train, seed
        self.exchange = Exchange.here()
        check_shares(train.batch_size, self.exchange.world)
        self.device = student.device
        self.scaler = loss_scaler(self.device, train.precision)
        allow_tf32(train.precision)
        prepare_for_training(student.encoder, train.dropout)

    def trained(self) -> dict[str, LayeredModel]:
        """The models that receive gradients, by name; the first is the one that `select: best` looks at."""
        return {"model": self.student}

    def prepare(self, batch: Batch) -> Prepared:
        """Take this rank's part of the global batch and tokenize it for every model.

        It uses the CPU alone and draws nothing, so it may run in another thread, ahead of `__call__`. Each model lets
        one thread tokenize at a time: evaluating on dev or saving a model meanwhile is safe.
        """
        part = batch.shard(self.exchange.rank, self.exchange.world)
        return Prepared(part, self.inputs(part))

    def inputs(self, batch: Batch) -> dict[str, Inputs]:
        """Token ids of a rank's part of a batch, by the name of the model."""
        return {"student": self.student.tokenize_batch(batch.queries, batch.passages)}

    def __call__(self, prepared: Prepared, step: int) -> Loss:
        """Forward and backward. Gradients, times the factor of `scaler`, are added to `.grad` of the trained models.

        With several ranks each computes its part, and gradients are averaged at the end: one that is not finite on a
        rank is so on all, so that all skip the same steps.
        """
        loss, encoded = self.loss(prepared, step)
        self.scaler.scale(loss.total).backward()
        for model in encoded:
            for replay in model.replays:
                replay()
        self.exchange.average_gradients(list(self.trained().values()))
        return loss

    def loss(self, prepared: Prepared, step: int) -> tuple[Loss, list[Encoded]]:
        """The loss of this batch, and the encoded models whose cached gradients must be replayed after backward."""
        student = self.encode(self.student, "student", prepared.inputs["student"], (self.student.n_layers,), step)
        candidates = self.candidates_of(prepared, self.student.about.candidates)
        contrastive = load_loss(METHODS["contrastive"])
        return contrastive(student.score(candidates), candidates), [student]

    def candidates_of(self, prepared: Prepared, which: str) -> Candidates:
        """Candidates on the models' device. which: all passages of the `batch`, or each query's `own`."""
        return prepared.batch.candidates(which).to(self.device)

    def encode(
        self, model: LayeredModel, key: str, inputs: Inputs, layers: tuple[int, ...], step: int, frozen: bool = False
    ) -> Encoded:
        """Features of a batch at some layers, exchanged between ranks as the model needs. `key` seeds dropout."""
        features, replays = self.features(model, key, inputs, layers, step, frozen)
        return Encoded(model, model.exchange(features, self.exchange), replays, self.exchange)

    def features(
        self, view: Encoder, key: str, inputs: Inputs, layers: tuple[int, ...], step: int, frozen: bool
    ) -> tuple[tuple[Any, ...], tuple[Callable[[], None], ...]]:
        """Features of each input as `view` encodes it, and functions to call after backward.

        `frozen`: without a graph. Else with the graph of `cache_above` tokens, and cached gradients of the others.
        """
        micro = MicroBatchEncoder(
            self.train.micro_tokens, self.train.precision, (self.seed, step, key, self.exchange.rank)
        )
        tokens = sum(padded_tokens([len(i) for i in ids], self.train.micro_tokens) for ids in inputs.values())
        if frozen or tokens <= self.train.cache_above:
            with torch.no_grad() if frozen else nullcontext():
                return tuple(micro(view, ids, layers, part) for part, ids in inputs.items()), ()
        cached, keep = [], self.train.cache_above
        for part, ids in inputs.items():
            cached.append(micro.cached(view, ids, layers, part, keep))
            keep = max(0, keep - padded_tokens([len(i) for i in ids], self.train.micro_tokens))
        return tuple(f for f, _ in cached), tuple(replay for _, replay in cached)


class DistilStep(Step):
    """Distillation with a loss that sees scores: of aligned layers (LEAD, eq. 12), or of whole models only (RD, ..)."""

    def __init__(
        self, student: LayeredModel, teacher: LayeredModel, train: Train, distil: Distil, seed: int, method: str
    ):
        """`method`: a row of METHODS. A teacher that it does not train is put in eval mode and never builds a graph.

        Raises LeadError when the two models do not fit the method, or its record lacks a part.
        """
        super().__init__(student, train, seed)
        self.teacher, self.distil, self.method = teacher, distil, METHODS[method]
        self.loss_of = load_loss(self.method)
        if self.method.sees == "layers":
            check_layers(distil.layers, teacher.n_layers, student.n_layers)
            if distil.layer_normalise is not None:
                for model in (student, teacher):
                    model.set_scoring(layer_normalise=distil.layer_normalise)
        self.joint = self.method.moves_teacher(distil)
        teacher.train(self.joint).requires_grad_(self.joint)
        if self.joint:
            prepare_for_training(teacher.encoder, train.dropout)
        self.alike = teacher.tokenization == student.tokenization

    def trained(self) -> dict[str, LayeredModel]:
        """Student, and the teacher under joint training."""
        return {"student": self.student} | ({"teacher": self.teacher} if self.joint else {})

    def inputs(self, batch: Batch) -> dict[str, Inputs]:
        """Token ids for both models; made once where both tokenize alike."""
        student = super().inputs(batch)["student"]
        teacher = student if self.alike else self.teacher.tokenize_batch(batch.queries, batch.passages)
        return {"student": student, "teacher": teacher}

    def loss(self, prepared: Prepared, step: int) -> tuple[Loss, list[Encoded]]:
        """The method's loss of the scores of both models, at the layer pairs of this step if it sees layers."""
        n, m = self.teacher.n_layers, self.student.n_layers
        pairs = self.pairs(step)
        late = bool(pairs) and STRATEGIES[self.distil.layers.strategy].scores  # chosen when all layers are scored
        student = self.encode(
            self.student, "student", prepared.inputs["student"], tuple(sorted({m, *(b for _, b in pairs)})), step
        )
        taught = tuple(range(1, n + 1)) if late else tuple(sorted({n, *(a for a, _ in pairs)}))
        teacher = self.encode(self.teacher, "teacher", prepared.inputs["teacher"], taught, step, frozen=not self.joint)
        contrastive, distillation = self.candidates(prepared)
        s = student.score(distillation)
        s_contrastive = s if contrastive is distillation else student.score(contrastive)
        t = teacher.score(distillation)
        if late:  # by the whole batch: all ranks must agree
            mean = self.exchange.mean(positive_log_probability(t.s.detach(), distillation).mean(1))
            pairs = self.pairs(step, mean.tolist())
        candidates_of_teacher, t_contrastive = (
            self._of_teacher(prepared, teacher, distillation, t) if self.joint else (None, None)
        )
        scored = Scored(
            distillation=distillation,
            teacher=t,
            student=s,
            contrastive=contrastive,
            student_contrastive=s_contrastive,
            distil=self.distil,
            teacher_candidates=candidates_of_teacher,
            teacher_contrastive=t_contrastive,
            pairs=pairs,
            mean_over_ranks=self.exchange.mean,
        )
        return self.loss_of(scored), [student, teacher]

    def pairs(self, step: int, log_probability: list[float] | None = None) -> Pairs:
        """The layer pairs of this step; none for a method that does not see layers."""
        if self.method.sees != "layers":
            return []
        n, m = self.teacher.n_layers, self.student.n_layers
        return select(self.distil.layers, n, m, self.seed, step, log_probability)

    def candidates(self, prepared: Prepared) -> tuple[Candidates, Candidates]:
        """Of the student's contrastive loss, and of the distillation losses; the same object if they agree.

        A CE teacher scores a query's own list only. The student's contrastive loss keeps the whole batch all the same,
        so that teachers are comparable (`contrastive_candidates: own` is the released code's way).
        """
        names = self.distil.contrastive_candidates, self.teacher.about.at_most(self.distil.candidates)
        contrastive, distillation = (self.candidates_of(prepared, name) for name in names)
        return contrastive, contrastive if names[0] == names[1] else distillation

    def _of_teacher(
        self, prepared: Prepared, teacher: Encoded, distillation: Candidates, scores: Scores
    ) -> tuple[Candidates, Scores]:
        """Candidates of the teacher's contrastive loss, which student options do not change, and its scores of them."""
        candidates = self.candidates_of(prepared, self.teacher.about.candidates)
        same = distillation.index.shape == candidates.index.shape
        return candidates, scores if same else teacher.score(candidates)
