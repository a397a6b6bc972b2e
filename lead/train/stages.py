"""The stages `lead train` (contrastive loss: warm-up, controls, ADORE) and `lead distil` (LEAD, RD, FD, Margin-MSE)."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import torch

from lead.config.methods import METHODS
from lead.config.schema import Train
from lead.config.stages import DistilSettings, TrainSettings
from lead.data.copies import same_text
from lead.data.texts import mapped
from lead.device import device
from lead.errors import LeadError
from lead.models.base import LayeredModel
from lead.models.bi_encoder import BiEncoder
from lead.pretrained import local_weights
from lead.store.atomic import check_replaceable
from lead.train.adore import AdoreStep, FixedPassages
from lead.train.data import Queries, TrainingData
from lead.train.dev import DevPool
from lead.train.exchange import Exchange, join_ranks
from lead.train.fd import FdStep
from lead.train.loop import Loop
from lead.train.scores import ScoresStep, taught_by
from lead.train.state import open_state, state_key, state_name
from lead.train.step import DistilStep, Step

log = logging.getLogger("lead")

EPOCHS = 3  # of a train set, above which training is warned of


def train(
    *,
    settings: TrainSettings,
    gpu: int,
    corpus: Path,
    queries: Path,
    qrels: Path,
    dev_queries: Path,
    dev_qrels: Path,
    negatives: Path | None,
    start: Path | None,
    passages: list[Path] | None = None,
    out: Path,
    state: Path,
    metrics: Path,
) -> None:
    """Train with the contrastive loss alone (eqs. 10, 11), from a pretrained encoder or from a model folder.

    `passages`: files of their vectors, which do not change; only queries are learnt (ADORE).

    Memory of a rank: the model with gradients and two moments (16 bytes a parameter), activations of
    `train.micro_tokens` tokens, the ids of the corpus, 8 bytes a judgement and negative, and while these are read their
    ids; with `passages`, `lead.train.adore.FixedPassages`. Texts are mapped (lead.data.texts).
    """
    if (settings.model is None) == (start is None):
        raise LeadError("lead train needs one of settings.model (a pretrained encoder) and --start (a model folder)")
    check_replaceable(out)
    on = device(gpu)
    join_ranks(on)
    if start is not None:
        model: LayeredModel = LayeredModel.load(start)
    else:
        assert settings.model is not None
        torch.manual_seed(settings.seed)
        model = LayeredModel.pretrained(settings.model, settings.kind, settings.scoring, settings.lengths)
    if not passages:
        check_candidates(settings.train, model.about.candidates)
    files: dict[str, Path | None] = _files(corpus, queries, qrels, dev_queries, dev_qrels, negatives)
    files["start"] = start if settings.model is None else local_weights(settings.model.reference)
    files |= {f"passages {i}": path for i, path in enumerate(passages or [], start=1)}
    model.to(on)
    index = FixedPassages(passages, corpus, model) if passages else None
    shared = model, settings.train, settings.seed
    loop = _loop(AdoreStep(*shared, index) if index else Step(*shared), settings, files, state, index)
    loop.complete({out: model}, metrics)


def distil(
    *,
    settings: DistilSettings,
    gpu: int,
    corpus: Path,
    queries: Path,
    qrels: Path,
    dev_queries: Path,
    dev_qrels: Path,
    negatives: Path | None,
    start: Path,
    teacher: Path | None,
    scores: list[Path] | None = None,
    out: Path,
    teacher_out: Path | None,
    state: Path,
    metrics: Path,
) -> None:
    """Distil the model in `teacher` into the one in `start`; a jointly trained teacher is written to `teacher_out`.

    `scores`: instead of `teacher`, files of scores of train queries' passages (`lead score`), whose sum, weighted by
    `settings.score_weights`, teaches. Memory of a rank: as `train`, for both models (a frozen teacher is its parameters
    alone), and the scores of a batch's queries for its passages at the aligned layers.
    """
    if (teacher is None) == (not scores):
        raise LeadError("lead distil needs one of --teacher (a model folder) and --scores (files of scores)")
    joint = teacher is not None and METHODS[settings.method].moves_teacher(settings.distil)
    if joint != (teacher_out is not None):
        raise LeadError(
            "lead distil: --teacher-out is for joint training (method lead, distil.joint: true), and only for it"
        )
    for folder in (out, teacher_out):
        if folder is not None:
            check_replaceable(folder)
    on = device(gpu)
    join_ranks(on)
    student = BiEncoder.load(start).to(on)
    files = _files(corpus, queries, qrels, dev_queries, dev_qrels, negatives) | {"start": start, "teacher": teacher}
    teacher_model = None if teacher is None else LayeredModel.load(teacher).to(on)
    if teacher_model is None:
        check_candidates(settings.train, "own", "a file of scores as teacher")
        files |= {f"scores {i}": path for i, path in enumerate(scores or [], start=1)}
        step: Step = ScoresStep(student, settings.train, settings.distil, settings.seed, settings.method)
    else:
        _check_distil_candidates(settings, teacher_model)
        step = make_step(settings, student, teacher_model)
    loop = _loop(step, settings, files, state, scores=scores)
    models: dict[Path, LayeredModel] = {out: student}
    if teacher_out is not None and teacher_model is not None:
        models[teacher_out] = teacher_model
    loop.complete(models, metrics)


def make_step(settings: DistilSettings, student: BiEncoder, teacher: LayeredModel) -> DistilStep:
    """The step of the settings' method. Raises LeadError when the two models do not fit it."""
    step = FdStep if METHODS[settings.method].sees == "maps" else DistilStep
    return step(student, teacher, settings.train, settings.distil, settings.seed, settings.method)


def check_candidates(train: Train, which: str, key: str = "") -> None:
    """Refuse a loss with a single candidate for each query: it is always 0. Raises LeadError.

    `which`: the candidates, a query's `own` or those of the whole `batch`. `key`: the setting that says so.
    """
    if train.negatives == 0 and (which == "own" or train.batch_size == 1):
        why = "train.batch_size: 1" if which == "batch" else key or "candidates that are each query's own"
        raise LeadError(
            f"train.negatives: 0 with {why} leaves one candidate for each query, from which no loss can learn; "
            "set train.negatives to 1 or more"
        )


def _check_distil_candidates(settings: DistilSettings, teacher: LayeredModel) -> None:
    distil = settings.distil
    check_candidates(
        settings.train, distil.contrastive_candidates, f"distil.contrastive_candidates: {distil.contrastive_candidates}"
    )
    if METHODS[settings.method].sees != "maps":  # maps are compared over tokens
        which = teacher.about.at_most(distil.candidates)
        asked = which == distil.candidates
        check_candidates(
            settings.train, which, f"distil.candidates: {which}" if asked else f"{teacher.about.a} as teacher"
        )


def _files(
    corpus: Path, queries: Path, qrels: Path, dev_queries: Path, dev_qrels: Path, negatives: Path | None
) -> dict[str, Path | None]:
    """The inputs that every training has, by name."""
    return {
        "corpus": corpus,
        "queries": queries,
        "qrels": qrels,
        "dev_queries": dev_queries,
        "dev_qrels": dev_qrels,
        "negatives": negatives,
    }


def _loop(
    step: Step,
    settings: TrainSettings | DistilSettings,
    files: dict[str, Path | None],
    state: Path,
    index: FixedPassages | None = None,
    scores: list[Path] | None = None,
) -> Loop:
    """The loop over the data in `files`.

    `index`: passages whose vectors do not change, where each step finds its negatives itself. `scores`: a teacher's.
    """
    corpus, queries, qrels, dev_queries, dev_qrels, negatives = list(files.values())[:6]
    assert corpus and queries and qrels and dev_queries and dev_qrels
    train, relevance = settings.train, settings.relevance
    passages = mapped(corpus, state / "corpus.arrow", Exchange.here())
    group = same_text(passages["text"])
    judged = Queries(passages["pid"], queries, qrels, negatives, relevance, train.negatives_depth, group)
    if scores and isinstance(settings, DistilSettings):
        taught_by(scores, settings.score_weights, judged, passages["pid"])
    drawn = 0 if index else train.negatives
    data = TrainingData(passages, judged, train.batch_size, drawn, settings.seed, settings.generation)
    dev = None
    if train.dev_queries:
        depth = train.negatives_depth
        dev_judged = Queries(passages["pid"], dev_queries, dev_qrels, negatives, relevance, depth, group)
        dev = DevPool(passages, dev_judged, train.dev_queries, train.dev_negatives, index)
    if train.epochs is not None:
        train = train.model_copy(update={"steps": math.ceil(train.epochs * len(judged) / train.batch_size)})
    _say_epochs(train, len(judged))
    key = state_key(settings, files)
    if Exchange.here().rank == 0:
        open_state(state, settings, key)
    return Loop(step, data, dev, train, state / state_name(key))


def _say_epochs(train: Train, queries: int) -> None:
    """Say how often each train query is seen; warn where it is so often that a small set is memorised."""
    epochs = train.steps * train.batch_size / queries
    log.info("%d train queries, %.2f epochs of %d steps", queries, epochs, math.ceil(queries / train.batch_size))
    if epochs > EPOCHS:
        log.warning(
            "train.%s: %d steps of %d queries are %.1f epochs of the %d train queries; more than about %d tend to "
            "overfit: set train.epochs: %d",
            "steps" if train.epochs is None else "epochs",
            train.steps,
            train.batch_size,
            epochs,
            queries,
            EPOCHS,
            EPOCHS,
        )
