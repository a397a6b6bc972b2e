"""Variants of distillation from finished warm-ups, compared on dev: what to try before a full run is worth its time.

    python benchmarks/pilot.py pydocs rd_cb lead_cb 'lead_cb:{"distil": {"joint": false}}'
    python benchmarks/pilot.py pydocs --gpu 1 --steps 300 @benchmarks/lead_chance.txt

A variant is a run, or RUN:JSON with settings laid over the run's; @FILE: a variant a line. Needs the models of its
student and teacher and the mined negatives. MRR@10 of dev queries against the whole corpus, with the standard error of
the paired difference from the first variant. No evaluation query is looked at; results/ is not written to.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch

from lead.config.load import load, merge
from lead.config.stages import DistilSettings
from lead.device import device
from lead.models.base import LayeredModel
from lead.models.bi_encoder import BiEncoder
from lead.models.microbatch import MicroBatchEncoder
from lead.plan.plan import Plan
from lead.plan.stage_settings import stage_settings
from lead.store.tables import read_table
from lead.train.data import Queries, TrainingData
from lead.train.dev import DevPool
from lead.train.loop import Loop
from lead.train.stages import make_step


def main() -> None:
    """Run each variant and print its MRR@10 on dev."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw, fromfile_prefix_chars="@")
    parser.add_argument("dataset")
    parser.add_argument("--gpu", type=int, default=0, help="GPUs granted (default 0)")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--queries", type=int, default=1000, help="dev queries, at most")
    parser.add_argument("variants", nargs="+", metavar="RUN[:JSON]")
    args = parser.parse_args()
    plan = Plan(load("config/config.yaml"))
    data = Path(plan.results) / args.dataset / "data"
    corpus = read_table(data / "corpus.parquet", "corpus")
    encode = MicroBatchEncoder(16384)
    first: torch.Tensor | None = None
    on = device(args.gpu)
    for variant in args.variants:
        run, _, text = variant.partition(":")
        change = json.loads(text or "{}")
        job = plan[args.dataset, run]
        train = {"train": {"steps": args.steps, "dev_queries": 0}}
        settings = DistilSettings.model_validate(merge(merge(stage_settings(job, "distil"), train), change))
        negatives = Path(job.negatives)
        splits = [
            Queries(corpus["pid"], data / f"queries.{s}.parquet", data / f"qrels.{s}.parquet", negatives, 1, 100)
            for s in ("train", "dev")
        ]
        pool = DevPool(corpus, splits[1], args.queries, None)
        student, teacher = BiEncoder.load(job.start[0]).to(on), LayeredModel.load(job.teacher).to(on)
        before = pool.mrr(student, encode)
        step = make_step(settings, student, teacher)
        sizes = settings.train.batch_size, settings.train.negatives
        stream = TrainingData(corpus, splits[0], *sizes, settings.seed, settings.generation)
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as state:
            Loop(step, stream, None, settings.train, Path(state)).run()
        seconds = time.monotonic() - started
        after = pool.reciprocal_ranks(student, encode)
        first = after if first is None else first
        gain = after - first
        print(
            f"{variant}: {before:.4f} -> {float(after.mean()):.4f}, from the first "
            f"{float(gain.mean()):+.4f} (s.e. {float(gain.std()) / len(gain) ** 0.5:.4f}), {seconds:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
