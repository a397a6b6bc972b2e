"""One training step: encode, score candidates, compute the loss, send gradients back (sections 3.3, 3.4)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from lead.config.schema import Distil, Train
from lead.methods import losses
from lead.methods.layers import informative, select
from lead.methods.losses import Loss
from lead.models.base import LayeredModel
from lead.models.cross_encoder import CrossEncoder
from lead.models.encoder import prepare_for_training
from lead.models.features import Candidates, Features, Scores
from lead.models.microbatch import MicroBatchEncoder, padded_tokens
from lead.models.retriever import Retriever
from lead.train.data import Batch
from lead.train.exchange import Exchange, check_shares


@dataclass(frozen=True)
class Encoded:
    """A model's encoded batch, and what passes gradients on when they were cached.

    features: queries and passages of DE and CB; pairs of CE, for each query's own candidates only.
    """

    model: LayeredModel
    features: tuple[Features, ...]
    replays: tuple[Callable[[], None], ...] = ()
    exchange: Exchange = field(default_factory=Exchange)

    def score(self, candidates: Candidates) -> Scores:
        """Scores of the candidates at every encoded layer; other ranks' passages are among them."""
        if self.model.kind != "cb" or self.exchange.world == 1:
            return self.model.score(*self.features, candidates)
        return self.model.score(*self.features, candidates, self.exchange.columns)


class Step:
    """Computes a batch's loss and leaves gradients in the parameters. Subclasses say which loss."""

    def __init__(self, student: LayeredModel, train: Train, seed: int):
        """`train`: batch encoding settings; `seed`: seeds dropout with the step number."""
        self.student, self.train, self.seed = student, train, seed
        self.exchange = Exchange.here()
        check_shares(train.batch_size, self.exchange.world)
        self.device = student.device
        prepare_for_training(student.encoder, train.dropout)

    def trained(self) -> dict[str, LayeredModel]:
        """The models that receive gradients, by name; the first is the one that `select: best` looks at."""
        return {"model": self.student}

    def prepare(self, batch: Batch) -> Batch:
        """What can be made of a batch beside the step before, in another thread."""
        return batch

    def loss(self, batch: Batch, step: int) -> tuple[Loss, list[Encoded]]:
        """The loss of this batch, and the sides whose cached gradients must be replayed."""
        side = self.encode(self.student, "student", batch, (self.student.n_layers,), step)
        candidates = batch.candidates(widest(self.student)).to(self.device)
        return losses.contrastive(side.score(candidates), candidates), [side]

    def __call__(self, batch: Batch, step: int) -> Loss:
        """Forward and backward. Gradients are added to `.grad` of the trained models' parameters.

        `batch` is the global one; with several ranks each computes its part, and gradients are averaged at the end.
        """
        loss, sides = self.loss(batch.shard(self.exchange.rank, self.exchange.world), step)
        loss.total.backward()
        for side in sides:
            for replay in side.replays:
                replay()
        self.exchange.average_gradients(list(self.trained().values()))
        return loss

    def encode(
        self, model: LayeredModel, name: str, batch: Batch, layers: tuple[int, ...], step: int, frozen: bool = False
    ) -> Encoded:
        """Encode a batch; above `cache_above` tokens with cached gradients, else with the graph."""
        micro = MicroBatchEncoder(
            self.train.micro_tokens, self.train.precision, (self.seed, step, name, self.exchange.rank)
        )
        if not isinstance(model, CrossEncoder):
            side = self.features(micro, model, model, texts(model, batch), layers, frozen)
            queries, passages = side.features
            gather = self.exchange.features
            shared = (gather(queries), passages) if model.kind == "cb" else (queries, gather(passages))
            return replace(side, features=shared, exchange=self.exchange)
        repeated = [q for q in batch.queries for _ in range(batch.own().shape[1])]
        pairs = model.tokenize(repeated, batch.passages)
        return self.features(micro, model, model, {"pairs": pairs}, layers, frozen)

    def features(
        self,
        micro: MicroBatchEncoder,
        view: Any,
        model: LayeredModel,
        inputs: dict[str, list[Any]],
        layers: tuple[int, ...],
        frozen: bool,
    ) -> Encoded:
        """Features of each of `inputs` as `view` encodes it: without a graph, with one, or with cached gradients."""
        tokens = sum(padded_tokens([len(i) for i in ids], self.train.micro_tokens) for ids in inputs.values())
        if frozen or tokens <= self.train.cache_above:
            with torch.no_grad() if frozen else nullcontext():
                return Encoded(model, tuple(micro(view, ids, layers, part) for part, ids in inputs.items()))
        cached = [micro.cached(view, ids, layers, part) for part, ids in inputs.items()]
        return Encoded(model, tuple(f for f, _ in cached), tuple(replay for _, replay in cached))


def texts(model: LayeredModel, batch: Batch) -> dict[str, list[Any]]:
    """Token ids of a batch for a model that encodes queries and passages apart."""
    assert isinstance(model, Retriever)
    return {
        "queries": model.tokenize("query", batch.queries),
        "passages": model.tokenize("passage", batch.passages),
    }


def widest(model: LayeredModel) -> str:
    """The most candidates a model can score at once: the whole batch, or for CE, whose pairs cost, the query's own."""
    return "own" if model.kind == "ce" else "batch"


class DistilStep(Step):
    """Response-based distillation, final scores only: RD, or one of `losses.RESPONSES`; the teacher is frozen."""

    def __init__(
        self,
        student: LayeredModel,
        teacher: LayeredModel,
        train: Train,
        distil: Distil,
        seed: int,
        joint: bool,
        method: str = "rd",
    ):
        """A teacher that is not trained jointly is put in eval mode for good and never builds a graph."""
        super().__init__(student, train, seed)
        self.teacher, self.distil, self.joint, self.method = teacher, distil, joint, method
        teacher.train(joint).requires_grad_(joint)
        if joint:
            prepare_for_training(teacher.encoder, train.dropout)

    def trained(self) -> dict[str, LayeredModel]:
        """Student, and the teacher under joint training."""
        return {"student": self.student} | ({"teacher": self.teacher} if self.joint else {})

    def loss(self, batch: Batch, step: int) -> tuple[Loss, list[Encoded]]:
        """The student's hard loss and what its final scores learn from the teacher's."""
        student = self.encode(self.student, "student", batch, (self.student.n_layers,), step)
        teacher = self.encode(self.teacher, "teacher", batch, (self.teacher.n_layers,), step, frozen=True)
        hard, soft = self.candidates(batch)
        s_hard, s_soft = _both(student, hard, soft)
        respond = losses.RESPONSES[self.method]
        return respond(s_hard, teacher.score(soft), hard, soft, s_soft, self.distil), [student]

    def candidates(self, batch: Batch) -> tuple[Candidates, Candidates]:
        """Of the student's hard loss, and of the distillation losses; the same object if they agree.

        A CE teacher scores a query's own list only. The student's hard loss keeps the whole batch all the same, so that
        teachers are comparable (`contrastive_candidates: own` is the released code's way).
        """
        own = self.distil.candidates == "own" or widest(self.teacher) == "own"
        names = self.distil.contrastive_candidates, "own" if own else "batch"
        hard, soft = (batch.candidates(name).to(self.device) for name in names)
        return hard, hard if names[0] == names[1] else soft


class LeadStep(DistilStep):
    """LEAD (eq. 12): K pairs of layers, re-weighted, with or without joint training."""

    def loss(self, batch: Batch, step: int) -> tuple[Loss, list[Encoded]]:
        """L_lyr + L_rep + L_tch + L_stu over the layer pairs of this step."""
        n, m, layers = self.teacher.n_layers, self.student.n_layers, self.distil.layers
        late = layers.strategy == "informative"  # chosen when all of the teacher's layers have been scored
        pairs = informative([0.0] * n, layers.k, m) if late else select(layers, n, m, self.seed, step)
        student = self.encode(self.student, "student", batch, tuple(sorted({m, *(b for _, b in pairs)})), step)
        taught = range(1, n + 1) if late else sorted({n, *(a for a, _ in pairs)})
        teacher = self.encode(self.teacher, "teacher", batch, tuple(taught), step, frozen=not self.joint)
        hard, soft = self.candidates(batch)
        s_hard, s_soft = _both(student, hard, soft)
        # the teacher's own hard loss does not depend on the student's options
        t_hard_candidates = batch.candidates(widest(self.teacher)).to(self.device)
        t_soft = teacher.score(soft)
        if late:  # by the whole batch: all ranks must agree
            believed = self.exchange.mean(losses.positive_log_probability(t_soft.s.detach(), soft).mean(1))
            pairs = informative(believed.tolist(), layers.k, m)
        t_hard = t_soft if soft.index.shape == t_hard_candidates.index.shape else teacher.score(t_hard_candidates)
        over_ranks = self.exchange.mean
        loss = losses.lead(
            s_hard, t_hard, hard, soft, s_soft, t_soft, pairs, self.distil, t_hard_candidates, over_ranks
        )
        return loss, [student, teacher] if self.joint else [student]


def _both(side: Encoded, hard: Candidates, soft: Candidates) -> tuple[Scores, Scores]:
    """Scores of the hard and of the soft candidates, computed once where they are the same."""
    s_soft = side.score(soft)
    return (s_soft if hard is soft else side.score(hard)), s_soft
