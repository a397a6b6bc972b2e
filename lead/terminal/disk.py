"""What a job's files take on disk. Roughly: 4 bytes a weight or a number."""

from __future__ import annotations

from collections.abc import Mapping

from lead.plan.checks import width_of
from lead.plan.job import Job
from lead.plan.plan import Plan
from lead.pretrained import encoder_width, local_weights, pretrained_layers
from lead.terminal.cost import TRAININGS, aligned_texts, passages_of, shape


def disk(plan: Plan, rule: str, wildcards: Mapping[str, str]) -> tuple[float, float]:
    """Bytes that a job's outputs take, and those that it needs while it runs."""
    run = wildcards.get("run")
    if run is None or run not in plan.rows or not plan.rows.method(run).has_model:
        passages = passages_of(plan.datasets[wildcards["dataset"]].collection) if rule == "prepare" else None
        return 300.0 * (passages or 3000), 0.0  # texts are compressed
    job = plan[wildcards["dataset"], run]
    if rule == "pretrained":
        return _weights(job), 0.0
    if rule.partition("_")[0] in TRAININGS:
        size = _weights(job) + (_weights(job.other(job.row.teacher)) if rule == "distil_joint" else 0)
        taught = 4.0 * _width(job) * (aligned_texts(job) or 0) if rule == "align" else 0.0  # the teacher's vectors
        return size, 3 * size * job.settings.train.checkpoint_keep + taught
    vector = (2.0 if job.settings.retrieval.fp16 else 4.0) * _width(job)
    if rule in ("encode_passages", "index"):  # an index holds the vectors, or less
        return vector * (shape(job).passages or 0) / len(job.dataset.shards), 0.0
    if rule == "encode_queries":
        return vector * shape(job).queries.get(wildcards["split"], 0) or 1e6, 0.0
    return 1e6, 0.0


def _width(job: Job) -> int:
    return width_of(job) or encoder_width(job.encoder.reference) or 768


def _weights(job: Job) -> float:
    """Bytes of a model's weights: those of its pretrained encoder, but for the layers that it does not keep."""
    file = None if job.encoder.reference.startswith("hub:") else local_weights(job.encoder.reference)
    if file is None:
        return 4e8
    size, width = float(file.stat().st_size), encoder_width(job.encoder.reference) or 768
    every = pretrained_layers(job.encoder.model_copy(update={"layers": None, "linear": None})) or 0
    kept = len(job.encoder.layers) if job.encoder.layers else every
    return size - 48.0 * width**2 * (every - kept)
