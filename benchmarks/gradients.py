"""Which part of a distillation loss points where held-out queries want to go.

    python benchmarks/gradients.py pydocs lead_cb

At the start of a run, over some batches: the student's mean gradient of each part of the loss, and its cosine with
the mean gradient of the contrastive loss on dev queries. A part whose cosine is zero teaches the student nothing that
carries over to new queries; one whose gradient is small beside another's is not heard. Each part has its weight of
`distil.weights`; batches are those of the run's first steps. `signal` is the norm of the mean gradient over what noise
alone would leave of it: at 1 there is nothing but noise, and cosines mean nothing.

Needs the models of the run's student and teacher and the mined negatives; results/ is not written to.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from lead.config.load import load, merge
from lead.config.stages import DistilSettings
from lead.data.copies import same_text
from lead.methods.losses import contrastive_loss
from lead.models.base import LayeredModel
from lead.models.bi_encoder import BiEncoder
from lead.plan.plan import Plan
from lead.plan.stage_settings import stage_settings
from lead.store.tables import read_table
from lead.train.data import Queries, TrainingData
from lead.train.stages import make_step


class Mean:
    """The mean of gradients, and how much of its norm is noise."""

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0
        self.square, self.n = 0.0, 0

    def add(self, g: Tensor) -> None:
        """Count one batch's gradient."""
        self.total, self.square, self.n = self.total + g, self.square + float(g.square().sum()), self.n + 1

    @property
    def mean(self) -> Tensor:
        """The mean gradient, flat."""
        return torch.as_tensor(self.total) / self.n

    def signal(self) -> float:
        """Norm of the mean over the norm that n independent gradients without a common part would leave."""
        return float(self.mean.norm()) * self.n / self.square**0.5


def gradient(loss: Tensor, model: LayeredModel) -> Tensor:
    """Gradient of a scalar in all parameters of the model, flat; the graph is kept."""
    parameters = list(model.parameters())
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return torch.cat(
        [torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in zip(parameters, found, strict=True)]
    )


def main() -> None:
    """Print one line for each part of the run's loss."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("run")
    parser.add_argument("--batches", type=int, default=48, help="of train and of dev queries")
    parser.add_argument("--config", default="config/config.yaml")
    args = parser.parse_args()
    plan = Plan(load(args.config))
    job = plan[args.dataset, args.run]
    uncached = {"train": {"cache_above": 2**31 - 1}}
    settings = DistilSettings.model_validate(merge(stage_settings(job, "distil"), uncached))
    data = Path(plan.results) / args.dataset / "data"
    corpus = read_table(data / "corpus.parquet", "corpus")
    negatives, group, depth = Path(job.negatives), same_text(corpus["text"]), settings.train.negatives_depth
    train, dev = (
        TrainingData(
            corpus,
            Queries(corpus["pid"], *files, negatives, settings.relevance, depth, group),
            settings.train.batch_size,
            settings.train.negatives,
            settings.seed,
            settings.generation,
        )
        for files in ((data / f"queries.{s}.parquet", data / f"qrels.{s}.parquet") for s in ("train", "dev"))
    )
    student = BiEncoder.load(job.start[0])
    step = make_step(settings, student, LayeredModel.load(job.teacher))
    parts: dict[str, Mean] = {}
    for i in range(args.batches):
        loss, _ = step.loss(step.prepare(train.batch(i)), i)
        for name, part in loss.parts.items():
            weight = getattr(settings.distil.weights, name)
            if name != "tch" and weight:  # the student has no part in the teacher's contrastive loss
                parts.setdefault(name, Mean()).add(gradient(weight * part, student))
    held_out = Mean()
    for i in range(args.batches):
        prepared = step.prepare(dev.batch(i))
        candidates = step.candidates_of(prepared, "batch")
        encoded = step.encode(student, "student", prepared.inputs["student"], (student.n_layers,), i)
        held_out.add(gradient(contrastive_loss(encoded.score(candidates).final, candidates), student))
    for name, g in (parts | {"dev": held_out}).items():
        cosine = float(torch.nn.functional.cosine_similarity(g.mean, held_out.mean, dim=0))
        print(f"{name:4s} norm {float(g.mean.norm()):.3f}  signal {g.signal():.2f}  cosine with dev {cosine:+.3f}")


if __name__ == "__main__":
    main()
