"""What a job costs: its work in floating point operations, from settings and sizes.

A rough model: a transformer layer of width d computes 24 d^2 operations for a token, training three times as much.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from lead.config.folders import LocatedSplit, locate
from lead.config.load import Tree
from lead.config.phases import align_steps
from lead.config.schema import Lengths
from lead.config.sources import BeirSource, FilesSource, HfSource, PydocsSource
from lead.data.files import read_qrels
from lead.data.layout import CORPUS, QUERIES
from lead.data.unlabelled import read_texts
from lead.errors import LeadError
from lead.plan.datasets import PlannedDataset
from lead.plan.job import Job
from lead.plan.plan import Plan
from lead.plan.stage_settings import stage_settings
from lead.pretrained import encoder_width, own_length, pretrained_layers
from lead.terminal.look import Look, look

TRAININGS = ("train", "align", "distil")  # stages that train a model, and starts of the names of their rules


class Shape(NamedTuple):
    """Sizes of a dataset: passages and queries by split (None: not known), mean tokens of each after the cut."""

    passages: int | None
    queries: Mapping[str, int]
    passage: float
    query: float


def shape(job: Job) -> Shape:
    """Sizes of the dataset of a run, as far as its files tell: what was prepared, else its source."""
    lengths = _lengths(job.origin) if job.method.has_model else job.settings.lengths
    corpus, queries = _looks(job.dataset.collection)
    counts, passages = {split: found.count for split, found in queries.items()}, passages_of(job.dataset.collection)
    if (drawn := job.dataset.data.queries) is not None and passages is not None:
        counts.setdefault("train", min(drawn.model_dump()["number"], passages))
    if "train" in counts:
        counts.setdefault("dev", round(counts["train"] * job.settings.dev_share))
    asked = queries.get("train") or queries.get("test")
    return Shape(
        passages,
        counts,
        corpus.mean(lengths.passage) if corpus else lengths.passage,
        asked.mean(lengths.query) if asked else lengths.query,
    )


def _lengths(origin: Job) -> Lengths:
    """Where a model cuts texts: a ready one as its folder says, unless its row gives lengths."""
    own = own_length(origin.encoder.reference) if origin.is_ready and "lengths" not in origin.row.settings else None
    return origin.settings.lengths if own is None else Lengths(query=own, passage=own)


def passages_of(dataset: PlannedDataset) -> int | None:
    """Passages of a collection: as prepared, else as its files, or its dataset file, tell; None where nothing does."""
    corpus, source = _looks(dataset)[0], dataset.data.source
    if corpus is not None:
        return corpus.count
    return dataset.data.expect.passages or (source.passages if isinstance(source, PydocsSource) else None)


def _looks(dataset: PlannedDataset) -> tuple[Look | None, dict[str, Look]]:
    folder = Path(dataset.folder) / "data"
    return _looked(dataset, folder, (folder / "report.json").exists())


@functools.cache
def _looked(dataset: PlannedDataset, folder: Path, prepared: bool) -> tuple[Look | None, dict[str, Look]]:
    if prepared:
        with contextlib.suppress(LeadError, OSError):  # files are missing: prepare runs again
            found = {s: look([folder / f"queries.{s}.parquet"], QUERIES) for s in ("train", "dev", "test")}
            return look([folder / "corpus.parquet"], CORPUS), found
    source = dataset.source
    if isinstance(source, FilesSource | BeirSource | HfSource) and source.on_disk:
        try:
            located = locate(source)
            return look(located.corpus, CORPUS), {split: _asked(files) for split, files in located.splits.items()}
        except (LeadError, OSError):  # prepare says what is wrong
            pass
    return None, {}


def _asked(files: LocatedSplit) -> Look:
    """The queries of a split: those that are judged, since a file of queries may serve several splits."""
    found, (qrels, _) = look(files.queries, QUERIES), read_qrels(files.qrels)
    return replace(found, count=min(found.count, len(qrels["qid"].unique())))


def per_token(job: Job) -> float | None:
    """Operations of a run's encoder for a token; None where only the hub knows the encoder."""
    layers, width = pretrained_layers(job.encoder), encoder_width(job.encoder.reference)
    return None if layers is None or width is None else 24.0 * layers * width**2


def aligned_texts(job: Job) -> int | None:
    """Texts that a run is aligned on: passages, train queries, and those of files; None if not known."""
    passages = shape(job).passages
    return None if passages is None else passages + sum(map(_count, job.texts)) + _aligned_queries(job)


def _aligned_queries(job: Job) -> int:
    return shape(job).queries.get("train", 0) + sum(map(_count, job.more_queries))


@functools.cache
def _count(path: str) -> int:
    """Texts in a file to align on; none where it cannot be read, which the stage says."""
    try:
        return sum(batch.num_rows for batch in read_texts([Path(path)]))
    except LeadError:
        return 0


def steps_of(job: Job) -> int | None:
    """Steps of a run that trains; None where it is told in epochs of texts or queries whose number is not known."""
    aligned, train = job.method.stage == "align", job.settings.train
    said: Tree = stage_settings(job, "align") if aligned else {"epochs": train.epochs}
    if said["epochs"] is None:
        return train.steps
    seen = aligned_texts(job) if aligned else shape(job).queries.get("train")
    if not seen:
        return None
    if aligned:
        return align_steps(said["epochs"], said.get("between"), max(1, seen // train.batch_size))
    return math.ceil(said["epochs"] * seen / train.batch_size)


def step_work(job: Job) -> float | None:
    """Operations of a step of a run that trains. The teacher of an alignment has encoded the passages before."""
    train = job.settings.train
    passages = train.batch_size * (1 + train.negatives) if job.row.passages is None else 0

    def tokens(model: Job) -> float:
        of = shape(model)
        if job.method.stage == "align":
            share = _aligned_queries(job) / max(1, aligned_texts(job) or 0)
            return train.batch_size * (share * of.query + (1 - share) * of.passage)
        if model.kind is not None and model.kind.candidates == "own":
            return passages * (of.query + of.passage)
        return train.batch_size * of.query + passages * of.passage

    def work(model: Job, trained: bool) -> float:
        each, n = per_token(model), tokens(model)
        if each is None:
            return math.nan
        return each * (3 * n + max(0, n - train.cache_above) if trained else n)

    total = work(job, True)
    if job.row.teacher is not None and job.method.distils:
        total += work(job.other(job.row.teacher), job.method.moves_teacher(job.settings.distil))
    return None if math.isnan(total) else total


def job_work(plan: Plan, rule: str, wildcards: Mapping[str, str]) -> float | None:
    """Operations of a job of the workflow; 0 for one that computes no encoder, None where sizes are not known."""
    run = wildcards.get("by", wildcards.get("run"))  # negatives of `run` are denoised `by` a model
    if (
        run is None
        or run not in plan.rows
        or rule.partition("_")[0] in ("evaluate", "retrieve", "mine", "index", "gather", "pretrained")
    ):
        return 0.0
    job = plan[wildcards["dataset"], run]
    if rule.partition("_")[0] in TRAININGS:
        work, steps = step_work(job), steps_of(job)
        return None if work is None or steps is None else work * steps
    each, of = per_token(job), shape(job)
    if each is None:
        return None
    if rule == "encode_passages":
        return None if of.passages is None else each * of.passage * of.passages / len(job.dataset.shards)
    if rule == "encode_queries":
        return each * of.query * of.queries.get(wildcards.get("split", "test"), 1000)
    if rule in ("rerank", "score", "denoise") and job.kind is not None:
        s = job.settings.retrieval
        asked = of.queries.get("test" if rule == "rerank" else "train", 1000)
        asked += of.queries.get("dev", 0) if rule == "denoise" else 0
        depth = s.cross_depth or s.rerank_depth if job.kind.candidates == "own" else s.rerank_depth
        if rule != "rerank":  # the positive, and negatives
            depth = 1 + (job.settings.denoise.depth if rule == "denoise" else job.settings.train.negatives_depth)
        pairs = asked * min(depth, of.passages or depth)
        if job.kind.candidates != "own":  # each passage is encoded once
            return each * of.passage * min(pairs, of.passages or pairs)
        return each * (of.query + of.passage) * pairs
    return 0.0
