"""The stages `lead train` (hard labels: warm-up, controls, ADORE) and `lead distil` (LEAD, RD, FD, Margin-MSE)."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch

from lead.config.stages import DistilSettings, TrainSettings
from lead.data.copies import same_text
from lead.data.texts import mapped
from lead.device import device
from lead.errors import LeadError
from lead.methods.layers import check_layers
from lead.models.base import LayeredModel
from lead.models.retriever import Retriever
from lead.pretrained import local_weights
from lead.store.atomic import check_replaceable
from lead.store.checksums import identity
from lead.store.provenance import code
from lead.train.adore import AdoreStep, FixedPassages
from lead.train.data import Queries, TrainingData
from lead.train.dev import DevPool
from lead.train.exchange import Exchange, join_ranks
from lead.train.fd import FdStep
from lead.train.loop import Loop
from lead.train.step import DistilStep, LeadStep, Step

log = logging.getLogger("lead")


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
    """Train with hard labels alone (eqs. 10, 11), from a pretrained encoder or from a model folder.

    `passages`: their vectors stay as they are in these files, and only queries are learnt (ADORE).

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
    weights = start if settings.model is None else local_weights(settings.model.reference)
    files = [corpus, queries, qrels, dev_queries, dev_qrels, negatives, weights, *(passages or [])]
    model.to(on)
    index = FixedPassages(passages, corpus, model) if passages else None
    shared = model, settings.train, settings.seed
    loop = _loop(AdoreStep(*shared, index) if index else Step(*shared), settings, files, state, index)
    loop.run()
    if loop.main:
        model.save(out)
        loop.write_metrics(metrics)
        _clear(state)
    loop.exchange.wait()


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
    teacher: Path,
    out: Path,
    teacher_out: Path | None,
    state: Path,
    metrics: Path,
) -> None:
    """Distil the model in `teacher` into the one in `start`; a jointly trained teacher is written to `teacher_out`.

    Memory of a rank: as `train`, for both models (a frozen teacher is its parameters alone), and the scores of a
    batch's queries for its passages at the aligned layers.
    """
    joint = settings.method == "lead" and settings.distil.joint
    if joint != (teacher_out is not None):
        raise LeadError(
            "lead distil: --teacher-out is for joint training (method lead, distil.joint: true), and only for it"
        )
    for folder in (out, teacher_out):
        if folder is not None:
            check_replaceable(folder)
    on = device(gpu)
    join_ranks(on)
    student, master = Retriever.load(start).to(on), LayeredModel.load(teacher).to(on)
    step = make_step(settings, student, master)
    files = [corpus, queries, qrels, dev_queries, dev_qrels, negatives, start, teacher]
    loop = _loop(step, settings, files, state)
    loop.run()
    if loop.main:
        student.save(out)
        if teacher_out is not None:
            master.save(teacher_out)
        loop.write_metrics(metrics)
        _clear(state)
    loop.exchange.wait()


def make_step(settings: DistilSettings, student: Retriever, teacher: LayeredModel) -> DistilStep:
    """The step of the settings' method. Raises LeadError when the two models do not fit it."""
    shared = student, teacher, settings.train, settings.distil, settings.seed
    if settings.method == "fd":
        return FdStep(*shared)
    if settings.method != "lead":
        return DistilStep(*shared, joint=False, method=settings.method)
    check_layers(settings.distil.layers, teacher.n_layers, student.n_layers)
    return LeadStep(*shared, joint=settings.distil.joint)


def _clear(state: Path) -> None:
    """Remove the training states in a folder, and the folder if nothing else is in it."""
    for old in state.glob("[0-9a-f]" * 16):
        shutil.rmtree(old, ignore_errors=True)
    with contextlib.suppress(OSError):
        state.rmdir()


def _loop(
    step: Step,
    settings: TrainSettings | DistilSettings,
    files: list[Path | None],
    state: Path,
    index: FixedPassages | None = None,
) -> Loop:
    """The loop over the data in `files` (corpus, queries, qrels, dev queries, dev qrels, negatives, ..).

    `index`: passages whose vectors do not change, where each step finds its negatives itself.
    """
    corpus, queries, qrels, dev_queries, dev_qrels, negatives = files[:6]
    assert corpus and queries and qrels and dev_queries and dev_qrels
    train, relevance = settings.train, settings.relevance
    passages = mapped(corpus, state / "corpus.arrow", Exchange.here())
    group = same_text(passages["text"])
    judged = Queries(passages["pid"], queries, qrels, negatives, relevance, train.negatives_depth, group)
    drawn = 0 if index else train.negatives
    data = TrainingData(passages, judged, train.batch_size, drawn, settings.seed, settings.generation)
    dev = None
    if train.dev_queries:
        depth = train.negatives_depth
        dev_judged = Queries(passages["pid"], dev_queries, dev_qrels, negatives, relevance, depth, group)
        dev = DevPool(passages, dev_judged, train.dev_queries, train.dev_negatives, index)
    log.info("%d train queries, %.2f epochs", len(judged), train.steps * train.batch_size / len(judged))
    return Loop(step, data, dev, train, state / state_key(settings.model_dump(), files))


def state_key(settings: dict[str, Any], files: list[Path | None]) -> str:
    """Key of a training state: settings, contents of the inputs, code. Only where all agree is a state resumed."""
    key = {"settings": settings, "inputs": [identity(f) if f else None for f in files], "code": code()}
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
