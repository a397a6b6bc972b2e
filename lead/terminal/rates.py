"""The seconds that jobs take on this machine: measured by trainings that were done here, else by a few steps."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lead.errors import LeadError
from lead.plan.job import Job
from lead.plan.plan import Plan
from lead.pretrained import check_hub, encoder_width, pretrained_layers, resolve
from lead.terminal.cost import TRAININGS, job_work, passages_of, per_token, shape, step_work, steps_of

START = 8.0  # seconds of a process that imports torch and loads a model, until some were seen
STEPS = 4  # steps that are measured, after one that is not
NEWEST = 8  # trainings that tell the rate


class Cost(NamedTuple):
    """Seconds of a job, and by how much they may be wrong: a factor. how: where they come from."""

    seconds: float
    factor: float
    how: str


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


def _quota() -> float:
    """Cores that a container may use at a time (cgroup v2); infinity where nothing says so."""
    try:
        microseconds, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").split()
        return int(microseconds) / int(period)
    except (OSError, ValueError):  # "max": no limit
        return math.inf


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
    threads = min(torch.get_num_threads(), _quota())
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
