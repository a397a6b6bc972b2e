"""The training loop: AdamW, linear schedule with warm-up, clipping, log, dev, checkpoints, exact resume."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lead.config.schema import Train
from lead.device import keep_freed_memory
from lead.errors import LeadError, Preempted
from lead.methods.losses import Loss
from lead.models.base import LayeredModel
from lead.models.microbatch import MicroBatchEncoder
from lead.store.atomic import atomic_file
from lead.store.tables import check_folder
from lead.train import checkpoint
from lead.train.data import TrainingData
from lead.train.dev import DevPool
from lead.train.step import Step

log = logging.getLogger("lead")


def schedule(step: int, steps: int, warmup: float) -> float:
    """Factor on the learning rate of this step (0-based): linear up over `warmup` x steps, then linear down to 0.

    >>> [round(schedule(s, 10, 0.2), 3) for s in (0, 1, 2, 9)]
    [0.5, 1.0, 1.0, 0.125]
    """
    rising = math.ceil(steps * warmup)
    if step < rising:
        return (step + 1) / rising
    return (steps - step) / max(1, steps - rising)


def make_optimizer(models: dict[str, LayeredModel], train: Train) -> torch.optim.AdamW:
    """AdamW with a group for each model and for weights with and without decay (biases and LayerNorm have none)."""
    groups: list[dict[str, Any]] = []
    for name, model in models.items():
        lr = train.teacher_lr if name == "teacher" and train.teacher_lr is not None else train.lr
        parameters = [p for p in model.parameters() if p.requires_grad]
        for decay, members in (
            (train.weight_decay, [p for p in parameters if p.dim() > 1]),
            (0.0, [p for p in parameters if p.dim() <= 1]),
        ):
            groups.append({"params": members, "lr": lr, "peak": lr, "weight_decay": decay})
    return torch.optim.AdamW(groups, fused=True)


@contextlib.contextmanager
def _told_by_signals(loop: Loop) -> Iterator[None]:
    """SIGTERM and SIGUSR1 are noted instead of killing; handlers are Python's main thread's business only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(*_: object) -> None:
        loop.told = True

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Loop:
    """Runs a `Step` for `train.steps` steps. Everything that a kill must not lose is in `state`."""

    def __init__(self, step: Step, data: TrainingData, dev: DevPool | None, train: Train, state: Path):
        """`state`: folder for checkpoints, created when needed, kept until the caller removes it."""
        self.step, self.data, self.dev, self.train, self.state = step, data, dev, train, state
        self.models, self.exchange = step.trained(), step.exchange
        self.main = self.exchange.rank == 0  # the rank that looks at dev, logs and writes
        self.optimizer = make_optimizer(self.models, train)
        self.encoder = MicroBatchEncoder(train.micro_tokens, train.precision)
        self.lines: list[dict[str, Any]] = []
        self.best = -1.0
        self.told = False  # by a signal to stop

    def run(self) -> None:
        """Train to the last step, from the newest checkpoint if there is one. The models keep the final weights.

        SIGTERM and SIGUSR1 (a scheduler that wants its machine back) end it after the step at hand, with a checkpoint:
        raises Preempted.
        """
        with _told_by_signals(self):
            self._run()

    def _run(self) -> None:
        if self.step.device.type == "cpu":
            keep_freed_memory()
        first = self._restore()
        self.exchange.wait()
        for name, model in self.models.items():
            model.train()
            log.info(
                "%s: %d layers, %.1f M parameters",
                name,
                model.n_layers,
                sum(p.numel() for p in model.parameters()) / 1e6,
            )
        if first == 0:
            self._evaluate(0)
        bar = tqdm(
            range(first, self.train.steps),
            initial=first,
            total=self.train.steps,
            disable=None if self.main else True,
            unit="step",
            mininterval=1,
        )
        started, next_note = time.monotonic(), time.monotonic() + 30
        for s in bar:
            begun = time.monotonic()
            loss = self.step(self.step.prepare(self.data.batch(s)), s)
            line, stop = self._line(s + 1, loss)  # raises before the weights are touched
            line["gradient_norm"] = self._update(s)
            line["seconds"] = round(time.monotonic() - begun, 3)
            self.lines.append(line)
            bar.set_postfix_str(" ".join(f"{k} {v:.3f}" for k, v in line["loss"].items()))
            if bar.disable and self.main and time.monotonic() > next_note:  # not a terminal: a line now and then
                left = (time.monotonic() - started) / (s + 1 - first) * (self.train.steps - s - 1)
                log.info(
                    "step %d of %d, loss %.3f, about %.0f s left", s + 1, self.train.steps, line["loss"]["total"], left
                )
                next_note = time.monotonic() + 30
            done = s + 1 == self.train.steps
            if done or (self.train.dev_every and (s + 1) % self.train.dev_every == 0):
                self._evaluate(s + 1)
            if not done and (stop or (s + 1) % self.train.checkpoint_every == 0):
                self._checkpoint(s + 1)
            if stop and not done:
                raise Preempted(f"stopped by a signal after step {s + 1}; started again, it goes on from there")
        if self.train.select == "best" and self.dev is not None:
            for name, model in self.models.items():
                model.load_state_dict(LayeredModel.load(self.state / "best" / name).state_dict())

    def _update(self, s: int) -> dict[str, float]:
        """Clip, step, clear. Raises LeadError when a gradient is not finite."""
        norms = {}
        for name, model in self.models.items():
            norm = float(nn.utils.clip_grad_norm_(model.parameters(), self.train.clip))
            if not math.isfinite(norm):
                raise LeadError(
                    f"step {s + 1}: the gradient of the {name} is not finite; lower train.lr, or set precision: fp32 "
                    f"({self._last_good()})"
                )
            norms[name] = round(norm, 4)
        factor = schedule(s, self.train.steps, self.train.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norms

    def _line(self, step: int, loss: Loss) -> tuple[dict[str, Any], bool]:
        """A line of the log, and whether a rank was told to stop. Raises LeadError when a loss part is not finite."""
        parts = {**loss.parts, "total": loss.total}
        told = torch.tensor(float(self.told), device=loss.total.device)
        # one collective and one wait for the parts
        *values, stop = self.exchange.mean(torch.stack([*(v.detach() for v in parts.values()), told])).tolist()
        for name, value in zip(parts, values, strict=True):
            if not math.isfinite(value):
                raise LeadError(f"step {step}: loss part `{name}` is {value}; lower train.lr ({self._last_good()})")
        line = {
            "step": step,
            "loss": {k: round(v, 6) for k, v in zip(parts, values, strict=True)},
            **{k: _rounded(v) for k, v in loss.watch.items()},
            "lr": self.train.lr * schedule(step - 1, self.train.steps, self.train.warmup),
        }
        return line, stop > 0

    def _evaluate(self, step: int) -> None:
        if self.dev is None or not self.main:
            self.exchange.wait()
            return
        scores = {name: round(self.dev.mrr(model, self.encoder), 6) for name, model in self.models.items()}
        log.info("step %d: MRR@10 on the dev pool: %s", step, ", ".join(f"{k} {v:.4f}" for k, v in scores.items()))
        self.lines.append({"step": step, "dev_mrr10": scores})
        if self.train.select == "best" and scores["student"] > self.best:
            self.best = scores["student"]
            for name, model in self.models.items():
                model.save(self.state / "best" / name)
        self.exchange.wait()

    def _checkpoint(self, step: int) -> None:
        if not self.main:
            self.exchange.wait()
            return
        extra = {"lines": self.lines, "best": self.best}
        checkpoint.save(self.state, step, dict(self.models), self.optimizer, extra, self.train.checkpoint_keep)
        self.exchange.wait()

    def _last_good(self) -> str:
        """The newest checkpoint, for a message."""
        newest = max(self.state.glob("step-*"), default=None)
        return f"last good checkpoint: {newest}" if newest else "no checkpoint yet"

    def _restore(self) -> int:
        """Steps done: those of the newest checkpoint that can be read, and 0, everything removed, where none can.

        With `select: best` a checkpoint is of no use without the best weights so far.
        """
        try:
            if self.train.select == "best" and self.dev is not None and any(self.state.glob("step-*")):
                for name in self.models:
                    check_folder(self.state / "best" / name)
        except LeadError as e:
            log.warning("training starts over: %s", e)
            if self.main:
                shutil.rmtree(self.state, ignore_errors=True)
            return 0
        found = checkpoint.restore(self.state, dict(self.models), self.optimizer)
        if found is None:
            if self.main:
                shutil.rmtree(self.state, ignore_errors=True)
            return 0
        step, extra = found
        self.lines, self.best = extra["lines"], extra["best"]
        log.info("going on from the checkpoint of step %d of %d", step, self.train.steps)
        return step

    def write_metrics(self, path: Path) -> None:
        """JSON lines: one a step (loss parts, entropies, layer weights, gradient norms), one an evaluation on dev."""
        with atomic_file(path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in self.lines))


def _rounded(value: Tensor) -> Any:
    return value.double().round(decimals=4).tolist() if value.is_floating_point() else value.tolist()
