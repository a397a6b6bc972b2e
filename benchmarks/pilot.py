"""Variants of a training from finished warm-ups, compared on dev: what to try before a full run is worth its time.

    python benchmarks/pilot.py pydocs rd_cb lead_cb 'lead_cb:{"distil": {"joint": false}}'
    python benchmarks/pilot.py pydocs --gpu 1 --workers 7 --seeds 3 --steps 300 @benchmarks/lead_chance.txt

A variant is a run that trains or distils from another, or RUN:JSON with settings laid over the run's; @FILE: a variant
a line. Needs the models of its start and teacher, and the mined negatives. MRR@10 of dev queries against the whole
corpus, mean over seeds, with the standard error of the paired difference from the first variant. No evaluation query is
looked at, except with `--split test`, for what dev has chosen. results/ is not written to. `--workers` share one GPU.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from concurrent.futures import Future, ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from lead.commands import settings_class
from lead.config.load import load, merge, validate
from lead.data.copies import same_text
from lead.device import device
from lead.errors import LeadError
from lead.models.base import LayeredModel
from lead.models.bi_encoder import BiEncoder
from lead.models.microbatch import MicroBatchEncoder
from lead.plan.job import Job
from lead.plan.plan import Plan
from lead.plan.stage_settings import stage_settings
from lead.store.tables import read_table
from lead.train.data import Queries, TrainingData
from lead.train.dev import DevPool
from lead.train.loop import Loop
from lead.train.stages import make_step
from lead.train.step import Step

Tried = dict[str, Any]


def main() -> None:
    """Run each variant and print its MRR@10."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw, fromfile_prefix_chars="@")
    parser.add_argument("dataset")
    parser.add_argument("--gpu", type=int, default=0, help="GPUs granted (default 0)")
    parser.add_argument("--workers", type=int, default=1, help="trainings at once (default 1)")
    parser.add_argument("--steps", type=int, help="of variants whose JSON does not say (default: those of the run)")
    parser.add_argument("--seeds", type=int, default=1, help="seeds 1 to this (default 1)")
    parser.add_argument("--queries", type=int, default=1000, help="queries that are ranked, at most (default 1000)")
    parser.add_argument("--split", choices=("dev", "test"), default="dev", help="whose queries (default dev)")
    parser.add_argument("--out", type=Path, help="a file of what was measured: a JSON line a training")
    parser.add_argument("variants", nargs="+", metavar="RUN[:JSON]")
    args = parser.parse_args()
    try:
        for variant in args.variants:
            settings_of(args, variant, seed=1)
    except (LeadError, ValueError) as e:
        parser.error(f"{variant}: {e}")
    pairs = [(variant, seed) for variant in args.variants for seed in range(1, args.seeds + 1)]
    with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn")) as pool:
        try:
            show([pool.submit(attempt, args, *pair) for pair in pairs], args)
        finally:
            pool.shutdown(cancel_futures=True)


def show(trials: list[Future[Tried]], args: argparse.Namespace) -> None:
    """Print a line a variant, once all of its seeds are there. One that cannot be trained says why; others go on."""
    first: np.ndarray[Any, Any] | None = None
    for variant, start in zip(args.variants, range(0, len(trials), args.seeds), strict=True):
        of_variant: list[Tried] = []
        for trial in trials[start : start + args.seeds]:
            try:
                of_variant.append(trial.result())
            except Exception as e:  # of any kind: it must not cost the other variants
                print(f"{variant}: {e}", flush=True)
        if args.out is not None:
            with args.out.open("a") as file:
                file.writelines(json.dumps(tried) + "\n" for tried in of_variant)
        if len(of_variant) < args.seeds:
            if first is None:
                raise SystemExit("error: the first variant, from which all differ, could not be trained")
            continue
        after = np.array([tried["after"] for tried in of_variant])
        first = after if first is None else first
        gain = (after - first).mean(0)
        mean = {key: float(np.mean([tried[key] for tried in of_variant])) for key in ("before", "seconds")}
        each = f" ({', '.join(f'{value:.4f}' for value in after.mean(1))})" if args.seeds > 1 else ""
        error = gain.std(ddof=1) / len(gain) ** 0.5
        print(
            f"{variant}: {mean['before']:.4f} -> {after.mean():.4f}{each}, from the first "
            f"{gain.mean():+.4f} (s.e. {error:.4f}), {mean['seconds']:.0f} s",
            flush=True,
        )


def settings_of(args: argparse.Namespace, variant: str, seed: int) -> tuple[Job, Any]:
    """The run of a variant, and its checked settings. Raises LeadError, or ValueError for what is not JSON."""
    run, _, change = variant.partition(":")
    job = planned()[args.dataset, run]
    stage, row = job.stages[0], job.row
    if stage not in ("train", "distil") or not job.start or row.passages or row.scores:
        raise LeadError(f"{run} does not train a model of another run with labels or a teacher's layers")
    length = {} if args.steps is None else {"steps": args.steps, "epochs": None}
    given = {"train": {**length, "dev_queries": 0, "select": "last"}}
    if not isinstance(changes := json.loads(change or "{}"), dict):
        raise LeadError("after the colon: an object of settings")
    changed = merge(merge(stage_settings(job, stage), given), changes)
    return job, validate(settings_class(stage), merge(changed, {"seed": seed}), variant)


def attempt(args: argparse.Namespace, variant: str, seed: int) -> Tried:
    """Train a variant with a seed, and rank the queries before and after it."""
    job, settings = settings_of(args, variant, seed)
    train = settings.train
    on, encode = granted(args.gpu), MicroBatchEncoder(16384)
    corpus, queries = texts(args.dataset, job.negatives, settings.relevance, train.negatives_depth)
    pool = ranked(args.dataset, args.split, args.queries, settings.relevance)
    if train.epochs is not None:
        train.steps = math.ceil(train.epochs * len(queries) / train.batch_size)
    student = BiEncoder.load(job.start[0]).to(on)
    before = zero_shot(args.dataset, args.split, args.queries, settings.relevance, job.start[0], on)
    if job.stages[0] == "distil":
        step: Step = make_step(settings, student, LayeredModel.load(job.teacher).to(on))
    else:
        step = Step(student, train, seed)
    stream = TrainingData(corpus, queries, train.batch_size, train.negatives, seed, settings.generation)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as state:
        Loop(step, stream, None, train, Path(state)).run()
    seconds = time.monotonic() - started
    after = pool.reciprocal_ranks(student, encode).tolist()
    found = {"steps": train.steps, "before": before, "after": after, "seconds": seconds}
    return {"dataset": args.dataset, "split": args.split, "variant": variant, "seed": seed, **found}


# What a worker keeps for its next variant.
granted = cache(device)


@cache
def planned() -> Plan:
    """The plan of config/config.yaml."""
    return Plan(load("config/config.yaml"))


@cache
def collection(dataset: str) -> tuple[Path, pa.Table, Any]:
    """The folder of a dataset's data, its corpus, and which passages are equal."""
    data = Path(planned().results) / dataset / "data"
    corpus = read_table(data / "corpus.parquet", "corpus")
    return data, corpus, same_text(corpus["text"])


def of_split(dataset: str, split: str, negatives: Path | None, relevance: int, depth: int) -> Queries:
    """The judged queries of a split."""
    data, corpus, group = collection(dataset)
    files = data / f"queries.{split}.parquet", data / f"qrels.{split}.parquet"
    return Queries(corpus["pid"], *files, negatives, relevance, depth, group)


@cache
def texts(dataset: str, negatives: str, relevance: int, depth: int) -> tuple[pa.Table, Queries]:
    """The corpus and the train queries."""
    return collection(dataset)[1], of_split(dataset, "train", Path(negatives), relevance, depth)


@cache
def ranked(dataset: str, split: str, most: int, relevance: int) -> DevPool:
    """Up to `most` queries of a split, which rank the whole corpus."""
    return DevPool(collection(dataset)[1], of_split(dataset, split, None, relevance, 0), most, None)


@cache
def zero_shot(dataset: str, split: str, most: int, relevance: int, start: str, on: torch.device) -> float:
    """MRR@10 of the model that training starts from."""
    return ranked(dataset, split, most, relevance).mrr(BiEncoder.load(start).to(on), MicroBatchEncoder(16384))


if __name__ == "__main__":
    main()
