"""What a job costs: its work in floating point operations, from settings and sizes, and the seconds that they take.

A rough model: a transformer layer of width d computes 24 d^2 operations for a token, training three times as much.
Rates are measured on this machine: by trainings that were done here, else by a few steps of the run's own encoder.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lead.config.folders import locate
from lead.config.load import Tree
from lead.config.phases import align_steps
from lead.config.schema import Lengths
from lead.config.sources import BeirSource, FilesSource, HfSource, PydocsSource
from lead.data.layout import CORPUS, QUERIES
from lead.data.unlabelled import read_texts
from lead.errors import LeadError
from lead.plan.datasets import PlannedDataset
from lead.plan.job import Job
from lead.plan.plan import Plan
from lead.plan.stage_settings import stage_settings
from lead.pretrained import check_hub, encoder_width, own_length, pretrained_layers, resolve
from lead.terminal.look import Look, look

START = 8.0  # seconds of a process that imports torch and loads a model, until some were seen
STEPS = 4  # steps that are measured, after one that is not
NEWEST = 8  # trainings that tell the rate
TRAININGS = ("train", "align", "distil")  # stages that train a model, and starts of the names of their rules


class Cost(NamedTuple):
    """Seconds of a job, and by how much they may be wrong: a factor. how: where they come from."""

    seconds: float
    factor: float
    how: str


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
            # a file of queries may serve several splits; this is an upper bound
            return look(located.corpus, CORPUS), {s: look(f.queries, QUERIES) for s, f in located.splits.items()}
        except (LeadError, OSError):  # prepare says what is wrong
            pass
    return None, {}


# --- work ------------------------------------------------------------------------------------------------------------
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


# --- rates -----------------------------------------------------------------------------------------------------------
def step_seconds(metrics: Path) -> tuple[int, float | None]:
    """The last step in a file of metrics, and the median seconds of its last steps; 0 and None for an empty file."""
    step, seconds = 0, []
    try:
        with metrics.open("rb") as file:
            file.seek(max(0, metrics.stat().st_size - (1 << 16)))
            for line in file:
                try:
                    value = json.loads(line)
                except ValueError:  # cut at its start or its end
                    continue
                step = max(step, int(value.get("step", 0)))
                if "seconds" in value:
                    seconds.append(float(value["seconds"]))
    except OSError:
        return 0, None
    return step, statistics.median(seconds[-50:]) if seconds else None


class Rates:
    """Operations a second of this machine."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.measured: float | None = None
        self.how = ""
        self._from_metrics()
        encoded = Path(plan.results).glob("*/timings/encode.*.queries.*.tsv")  # little more than a start
        starts = [s for path in sorted(encoded, key=_age)[:NEWEST] if (s := _seconds(path)) is not None]
        self.start = statistics.median(starts) if starts else START

    def _from_metrics(self) -> None:
        files = sorted(Path(self.plan.results).glob("*/metrics/*.jsonl"), key=_age)
        found = []
        for path in files[:NEWEST]:
            dataset, run = path.parts[-3], path.stem
            if dataset not in self.plan.datasets or run not in self.plan.rows:
                continue
            try:
                work = step_work(self.plan[dataset, run])
            except LeadError:
                continue
            _, seconds = step_seconds(path)
            if work and seconds:
                found.append(work / seconds)
        if found:
            self.measured, self.how = statistics.median(found), f"the steps of {len(found)} trainings here"

    def learn(self, job: Job, seconds: float) -> None:
        """Take the seconds of a step of a training that runs, where nothing else is known."""
        if self.measured is None and (work := step_work(job)):
            self.measured, self.how = work / seconds, f"the steps of {job.run}"

    def measure(self, job: Job, gpu: int = 0) -> None:
        """Measure with a few steps of the run's own encoder, unless trainings here tell. Its weights must be here."""
        if self.measured is not None:
            return
        reference = job.encoder.reference
        check_hub(reference)
        each = per_token(job.origin)
        whole = job.encoder.model_copy(update={"layers": None, "linear": None})
        layers, width = pretrained_layers(whole), encoder_width(reference)
        if each is None or layers is None or width is None:
            return
        of = shape(job)
        tokens = measured_tokens(reference, max(4, round(of.passage)), job.settings.train, gpu)
        self.measured = tokens * 24 * layers * width**2
        self.how = f"{STEPS} steps of {reference} just now"

    def cost(self, rule: str, wildcards: Mapping[str, str], timing: str | None = None) -> Cost | None:
        """Seconds of a job. `timing`: the file that Snakemake writes its seconds to. None where nothing is known."""
        try:
            if timing and (before := _seconds(Path(timing))) is not None and self._as_long(rule, wildcards):
                return Cost(before, 1.3, "it took that before")
            work = job_work(self.plan, rule, wildcards)
        except LeadError:
            return None
        if work == 0.0:
            small = self._small(rule, wildcards)
            return None if small is None else Cost(small, 2.0, "by size")
        if work is None or self.measured is None:
            return None
        # encoding without gradients keeps the same rate
        return Cost(self.start + work / self.measured, 1.6, self.how)

    def _as_long(self, rule: str, wildcards: Mapping[str, str]) -> bool:
        """Whether a job that was done before had as many steps as it has today, if it trains."""
        if rule.partition("_")[0] not in TRAININGS:
            return True
        job = self.plan[wildcards["dataset"], wildcards["run"]]
        step, _ = step_seconds(Path(job.dataset.folder) / "metrics" / f"{job.run}.jsonl")
        return step in (0, steps_of(job))

    def _small(self, rule: str, wildcards: Mapping[str, str]) -> float | None:
        """Seconds of a job without an encoder: its start, and the corpus as it goes by."""
        each = {"prepare": 60, "bm25": 300, "tokenize": 300, "mine": 600, "retrieve": 100, "index": 300}
        stage = rule.partition("_")[0]
        if stage == "pretrained":  # it loads a model and writes it
            return self.start
        if stage not in each:
            return 4.0
        passages = passages_of(self.plan.datasets[wildcards["dataset"]].collection)
        shards = len(self.plan.datasets[wildcards["dataset"]].shards) if "shard" in wildcards else 1
        return None if passages is None else 4 + each[stage] * passages / shards / 1e6


def _age(path: Path) -> float:
    return -path.stat().st_mtime


def _seconds(file: Path) -> float | None:
    try:
        header, values = (line.split("\t") for line in file.read_text(encoding="utf-8").splitlines()[:2])
        return float(values[header.index("s")])
    except (OSError, ValueError):
        return None


def measured_tokens(reference: str, length: int, train: Any, gpu: int) -> float:
    """Tokens a second of a whole training, a third of which is the forward pass, times three.

    On a CPU, seconds are those that its processor worked, shared by its threads: what else runs on the machine does not
    count. On a GPU the clock tells. The fastest step counts.
    """
    import torch

    from lead.device import autocast, device
    from lead.models.encoder import hidden_states, load_encoder

    on = device(gpu)
    encoder = load_encoder(resolve(reference), reference).train().to(on)
    known = int(encoder.get_input_embeddings().num_embeddings)  # type: ignore[operator]
    n = max(1, min(train.batch_size * (1 + train.negatives), 4096 // length))
    ids = torch.randint(min(1000, known - 1), known, (n, length), generator=torch.Generator().manual_seed(0)).to(on)
    threads = torch.get_num_threads()
    clock = time.monotonic if on.type == "cuda" else lambda: time.process_time() / threads
    times = []
    for _ in range(1 + STEPS):
        begun = clock()
        with autocast(on, train.precision):
            (x,) = hidden_states(encoder, ids, torch.ones_like(ids), (int(encoder.config.num_hidden_layers),))  # type: ignore[union-attr,arg-type]
        x.float().square().mean().backward()
        encoder.zero_grad(set_to_none=True)
        if on.type == "cuda":
            torch.cuda.synchronize()
        times.append(clock() - begun)
    return 3 * n * length / min(times[1:])
