"""What a run is on disk: its model's layers and weights, its vectors, and what its stages took."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lead.errors import LeadError
from lead.plan.job import Job
from lead.pretrained import LAYERS
from lead.store.tables import read_json

WEIGHTS = "*.safetensors"


@dataclass(frozen=True)
class Facts:
    """Of a run; None where its files do not tell.

    title: of its kind of model. layers: of the transformer. parameters: of the whole model. size: numbers in a vector,
    of a text or, in a ColBERT, of a token. index: bytes of what is searched; None for a reranker, which has no index.
    reranks: the run whose list it orders anew. speed: the measured file of `lead speed`. encoded: passages a second of
    the stage that encoded them, its start included.
    """

    title: str
    layers: int | None = None
    parameters: int | None = None
    size: int | None = None
    index: int | None = None
    reranks: str | None = None
    speed: dict[str, Any] | None = None
    encoded: float | None = None

    @property
    def milliseconds(self) -> float | None:
        """Median milliseconds of a query, asked alone; None if not measured."""
        return None if self.speed is None else float(self.speed["query_ms"]["median"])

    @property
    def texts_a_second(self) -> float | None:
        """Passages encoded in a second, as `lead speed` measured; None if not measured."""
        return None if self.speed is None or "texts_per_second" not in self.speed else self.speed["texts_per_second"]


def facts(job: Job, passages: int | None) -> Facts:
    """What the files of a run tell. passages: how many its corpus has."""
    with contextlib.suppress(LeadError):
        speed = read_json(Path(job.dataset.folder) / "speed" / f"{job.run}.json")
        return _facts(job, passages, speed)
    return _facts(job, passages, None)


def _facts(job: Job, passages: int | None, speed: dict[str, Any] | None) -> Facts:
    if job.kind is None:
        return Facts(job.method.about, speed=speed)
    model = model_facts(Path(job.model))
    searches = job.kind.ranks_by == "search"
    index, took = (_bytes([*job.vectors(), *job.indexes()]), _encoding(job)) if searches else (None, None)
    return Facts(
        job.kind.title,
        model.layers,
        model.parameters,
        model.size if job.kind.vectors else None,
        index,
        None if searches else job.reranked,
        speed,
        passages / took if passages and took else None,
    )


@dataclass(frozen=True)
class ModelFacts:
    """Of a model's folder; None for what is not there. size: numbers in a vector. cut: tokens of queries, passages."""

    layers: int | None = None
    parameters: int | None = None
    size: int | None = None
    cut: tuple[int, int] | None = None
    linear: bool = False

    @property
    def aligned(self) -> int | None:
        """Layers as pairs of layers count them: a linear layer is the last of them."""
        return None if self.layers is None else self.layers + self.linear


def model_facts(folder: Path) -> ModelFacts:
    """What the files of a model's folder tell."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        own = json.loads((folder / "lead.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ModelFacts()
    size, lengths = own.get("linear", {}).get("size") or config.get("hidden_size"), own.get("lengths", {})
    linear = "linear" in own
    cut = (lengths["query"], lengths["passage"]) if {"query", "passage"} <= lengths.keys() else None
    layers = next((config[key] for key in LAYERS if key in config), None)
    return ModelFacts(layers, _parameters(folder), size, cut, linear)


def _parameters(folder: Path) -> int | None:
    from safetensors import SafetensorError, safe_open

    count = 0
    try:
        for file in folder.glob(WEIGHTS):
            with safe_open(file, "numpy") as weights:
                for name in weights.keys():  # noqa: SIM118
                    each = 1
                    for length in weights.get_slice(name).get_shape():
                        each *= length
                    count += each
    except (OSError, SafetensorError):
        return None
    return count or None


def _bytes(paths: list[str]) -> int | None:
    """Bytes of these files and folders; None if one is missing."""
    if not paths or not all(Path(path).exists() for path in paths):
        return None
    files = [f for p in map(Path, paths) for f in ([p] if p.is_file() else p.rglob("*")) if f.is_file()]
    return sum(file.stat().st_size for file in files)


def _encoding(job: Job) -> float | None:
    """Seconds of all stages that encoded its passages; None if one of them is not known."""
    run, folder = job.row.passages or job.run, Path(job.dataset.collection.folder)
    times = [timing(folder / "timings" / f"encode.{run}.passages{shard}.tsv") for shard in job.dataset.shards]
    seconds = [took[0] for took in times if took is not None]
    return sum(seconds) if len(seconds) == len(times) else None


def timing(file: Path) -> tuple[float, float | None] | None:
    """Seconds and peak memory in MB of a stage, from the file that Snakemake wrote; None for a file without them."""
    try:
        header, values = (line.split("\t") for line in file.read_text(encoding="utf-8").splitlines()[:2])
        named = dict(zip(header, values, strict=True))
        memory = named.get("max_rss", "")
        return float(named["s"]), float(memory) if memory.replace(".", "", 1).isdigit() else None
    except (OSError, ValueError, KeyError):
        return None
