"""The training loop: AdamW, linear schedule with warm-up, clipping, metrics, dev, checkpoints, exact resume."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lead.config.schema import Train
from lead.device import keep_freed_memory
from lead.errors import LeadError
from lead.methods.losses import Loss
from lead.models.base import LayeredModel
from lead.models.microbatch import MicroBatchEncoder
from lead.store.checksums import check_folder
from lead.train import checkpoint
from lead.train.ahead import LookAhead
from lead.train.data import Batches
from lead.train.dev import DevPool
from lead.train.metrics import Metrics
from lead.train.signals import Told, noted, stopped
from lead.train.state import remove_states
from lead.train.step import Prepared, Step

log = logging.getLogger("lead")

SMALLEST_SCALE = 2.0**-14  # of a loss: where gradients overflow even so, 31 steps in a row, fp16 is not the reason


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


def clip_gradients(model: nn.Module, most: float) -> float:
    """Scale a model's gradients down to a norm of at most `most`; return the norm before.

    It is finite exactly if all gradients are: where their squares overflow in float32, they are summed in float64.
    Gradients that are not finite are left as they are.
    """
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    total = nn.utils.get_total_norm(gradients)
    norm = float(total)
    if math.isfinite(norm):
        nn.utils.clip_grads_with_norm_(model.parameters(), most, total)
        return norm
    norm = float(torch.stack([torch.linalg.vector_norm(g, dtype=torch.float64) for g in gradients]).norm())
    if math.isfinite(norm):
        for g in gradients:
            g.mul_(most / norm)
    return norm


class Loop:
    """Runs a `Step` for `train.steps` steps. What a kill must not lose is in `state`: checkpoints and metrics."""

    def __init__(self, step: Step, data: Batches, dev: DevPool | None, train: Train, state: Path):
        """`state`: folder for checkpoints, created when needed, removed by `complete`."""
        self.step, self.data, self.dev, self.train, self.state = step, data, dev, train, state
        self.models, self.exchange = step.trained(), step.exchange
        self.main = self.exchange.rank == 0  # the rank that looks at dev, logs and writes
        self.optimizer = make_optimizer(self.models, train)
        self.encoder = MicroBatchEncoder(train.micro_tokens, train.precision)
        self.metrics = Metrics(state / "metrics.jsonl")
        self.selected = next(iter(self.models))  # the model whose MRR on dev `select: best` goes by
        self.best: tuple[float, int] = (-1.0, 0)  # MRR@10 and step of the weights in state/best
        self.mrr = math.nan  # of the last evaluation
        self.told = Told()
        self.waited = 0.0  # seconds, for batches and their tokens

    def run(self) -> None:
        """Train to the last step, from the newest checkpoint if there is one. The models keep the final weights.

        SIGTERM, SIGUSR1, SIGINT and SIGHUP end it after the step at hand, with a checkpoint: raises Preempted.
        """
        with noted(self.told, self.main, self.exchange.world > 1), contextlib.closing(self.metrics):
            self._run()

    def complete(self, models: Mapping[Path, LayeredModel], metrics: Path) -> None:
        """Train, then write each of the models to its folder and the metrics, and remove all states of this output.

        Every rank returns when all is written.
        """
        self.run()
        if self.main:
            for folder, model in models.items():
                model.save(folder)
            self.metrics.publish(metrics)
            remove_states(self.state.parent)
        self.exchange.wait()

    def _run(self) -> None:
        if self.step.device.type == "cpu":
            keep_freed_memory()
        first = self._restore()
        if self.main:
            self.metrics.resume(first or -1)  # without a checkpoint the line of step 0 is written again
            log.info("metrics, a line a step: %s", self.metrics.path)
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
        steps = range(first, self.train.steps)
        bar = tqdm(
            steps,
            initial=first,
            total=self.train.steps,
            disable=None if self.main else True,
            unit="step",
            mininterval=1,
        )
        started, next_note = time.monotonic(), time.monotonic() + 30
        with LookAhead(self._prepare, steps) as batches:
            for s in bar:
                begun = time.monotonic()
                batch = batches.take()
                self.waited += time.monotonic() - begun
                loss = self.step(batch, s)
                line, stop = self._line(s + 1, loss)  # raises before the weights are touched
                line["gradient_norm"] = self._update(s)
                if self.step.scaler.is_enabled():
                    line["loss_scale"] = self.step.scaler.get_scale()
                line["seconds"] = round(time.monotonic() - begun, 3)
                self._log(line)
                bar.set_postfix_str(" ".join(f"{k} {v:.3f}" for k, v in line["loss"].items()))
                if bar.disable and self.main and time.monotonic() > next_note:  # not a terminal: a line now and then
                    left = (time.monotonic() - started) / (s + 1 - first) * (self.train.steps - s - 1)
                    total = line["loss"]["total"]
                    log.info("step %d of %d, loss %.3f, about %.0f s left", s + 1, self.train.steps, total, left)
                    next_note = time.monotonic() + 30
                done = s + 1 == self.train.steps
                if done or (self.train.dev_every and (s + 1) % self.train.dev_every == 0):
                    batches.settle()  # a tokenizer is not to be used by two threads at once
                    self._evaluate(s + 1)
                if not done and (stop or (s + 1) % self.train.checkpoint_every == 0):
                    self._checkpoint(s + 1)
                if stop and not done:
                    raise stopped(self.told.signal, f" after step {s + 1}")
        log.info("steps waited %.1f of %.1f s for batches and their tokens", self.waited, time.monotonic() - started)
        if self.train.select == "best" and self.dev is not None:
            self._take_best()

    def _prepare(self, s: int) -> Prepared:
        """What a step computes on; called in a thread beside the steps before."""
        return self.step.prepare(self.data.batch(s))

    def _log(self, line: dict[str, Any]) -> None:
        if self.main:
            self.metrics.append(line)

    def _take_best(self) -> None:
        """Load the weights that were best on dev, and say whose they are where they are not the last."""
        for name, model in self.models.items():
            model.load_state_dict(LayeredModel.load(self.state / "best" / name).state_dict())
        self.exchange.wait()  # the first rank removes the state next
        (mrr, step), steps = self.best, self.train.steps
        if self.main and step < steps:
            log.log(
                logging.INFO if step else logging.WARNING,
                "select: best keeps the weights of step %d%s: MRR@10 on dev %.4f, after the last step (%d) %.4f",
                step,
                "" if step else ", those before training",
                mrr,
                steps,
                self.mrr,
            )

    def _update(self, s: int) -> dict[str, float | None]:
        """Clip, step, clear; return each model's norm. Raises LeadError when a gradient is not finite.

        With a scaled loss such a step is skipped (its norm is None) and the factor halved, as long as it is not tiny.
        """
        scaler, norms = self.step.scaler, dict[str, float | None]()
        scaler.unscale_(self.optimizer)
        for name, model in self.models.items():
            norm = clip_gradients(model, self.train.clip)
            if not math.isfinite(norm) and not (scaler.is_enabled() and scaler.get_scale() > SMALLEST_SCALE):
                raise LeadError(
                    f"step {s + 1}: the gradient of the {name} is not finite; lower train.lr, or set precision: fp32 "
                    f"({self._last_good()})"
                )
            norms[name] = round(norm, 4) if math.isfinite(norm) else None
        factor = schedule(s, self.train.steps, self.train.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        scaler.step(self.optimizer)
        scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if None in norms.values() and self.main:
            log.info(
                "step %d is skipped: a gradient overflowed; the loss is scaled by %g now", s + 1, scaler.get_scale()
            )
        return norms

    def _line(self, step: int, loss: Loss) -> tuple[dict[str, Any], bool]:
        """A line of the log, and whether a rank was told to stop. Raises LeadError when a loss part is not finite."""
        parts = {**loss.parts, "total": loss.total}
        told = torch.tensor(float(self.told.signal is not None), device=loss.total.device)
        # one collective and one wait for the parts
        *values, stop = self.exchange.mean(torch.stack([*(v.detach() for v in parts.values()), told])).tolist()
        for name, value in zip(parts, values, strict=True):
            if not math.isfinite(value):
                or_else = ", or set precision: fp32" if self.step.scaler.is_enabled() else ""
                raise LeadError(
                    f"step {step}: loss part `{name}` is {value}; lower train.lr{or_else} ({self._last_good()})"
                )
        line = {
            "step": step,
            "loss": {k: round(v, 6) for k, v in zip(parts, values, strict=True)},
            **{k: _rounded(self.exchange.mean(v) if v.is_floating_point() else v) for k, v in loss.watch.items()},
            "lr": self.train.lr * schedule(step - 1, self.train.steps, self.train.warmup),
        }
        return line, stop > 0

    def _evaluate(self, step: int) -> None:
        if self.dev is None or not self.main:
            self.exchange.wait()
            return
        scores = {name: round(self.dev.mrr(model, self.encoder), 6) for name, model in self.models.items()}
        log.info("step %d: MRR@10 on the dev pool: %s", step, ", ".join(f"{k} {v:.4f}" for k, v in scores.items()))
        self._log({"step": step, "dev_mrr10": scores})
        self.mrr = scores[self.selected]
        if self.train.select == "best" and self.mrr > self.best[0]:
            self.best = (self.mrr, step)
            for name, model in self.models.items():
                model.save(self.state / "best" / name)
        self.exchange.wait()

    def _checkpoint(self, step: int) -> None:
        if self.main:
            self.metrics.sync()
            scaler = self.step.scaler
            extra = {"best": self.best} | ({"scaler": scaler.state_dict()} if scaler.is_enabled() else {})
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
        found = None
        try:
            if self.train.select == "best" and self.dev is not None and any(self.state.glob("step-*")):
                for name in self.models:
                    check_folder(self.state / "best" / name)
            found = checkpoint.restore(self.state, dict(self.models), self.optimizer)
        except LeadError as e:
            log.warning("training starts over: %s", e)
        if found is None:
            if self.main:
                checkpoint.clear(self.state)
            return 0
        step, extra = found
        mrr, best_step = extra["best"]
        self.best = (float(mrr), int(best_step))
        if "scaler" in extra:
            self.step.scaler.load_state_dict(extra["scaler"])
        log.info("going on from the checkpoint of step %d of %d", step, self.train.steps)
        return step


def _rounded(value: Tensor) -> Any:
    return value.double().round(decimals=4).tolist() if value.is_floating_point() else value.tolist()
