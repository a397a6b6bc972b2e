"""Cross-batch exchange between ranks: what must travel so that every query sees every passage.

Each kind of model says what it needs (`LayeredModel.exchange` and `score_batch`). DE: vectors of the passages at the
aligned layers, [L, P, d]. ColBERT: token vectors of the queries, and score columns; passages' token vectors, some 75
times more, never leave their rank. CE: nothing. Gradients travel back the same way.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import pad

from lead.errors import LeadError, Preempted
from lead.imports import import_transformers, importing
from lead.models.features import Features
from lead.train.signals import STOPPING, heeded, stopped

PATIENCE = timedelta(hours=3)  # of a rank with another; NCCL's own is 10 minutes, gloo's 30
OF_AGENT = (*STOPPING, "SIGQUIT")  # signals that end torchrun's agent, which passes them on to the ranks


class _Gather(torch.autograd.Function):
    """Tensors of all ranks joined along an axis; the gradient of a rank's own is the sum of what all ranks return."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: int, exchange: Exchange) -> Tensor:
        ctx.axis, ctx.exchange, ctx.size = axis, exchange, x.shape[axis]
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(exchange.world)]
        dist.all_gather(parts, x.contiguous())
        exchange.count(x)
        return torch.cat(parts, axis)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        grad = grad.contiguous()
        dist.all_reduce(grad)
        ctx.exchange.count(grad)
        return grad.narrow(ctx.axis, ctx.exchange.rank * ctx.size, ctx.size), None, None


@dataclass
class Exchange:
    """The place of a process among the ranks that share a global batch. One process alone exchanges nothing."""

    rank: int = 0
    world: int = 1
    sent: int = 0  # bytes that this rank has sent to the others

    @classmethod
    def here(cls) -> Exchange:
        """The place of this process: as torchrun started it, or alone."""
        return cls(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else cls()

    def count(self, x: Tensor) -> None:
        """Add the bytes of `x`, which this rank sends to the others, to `sent`."""
        self.sent += x.numel() * x.element_size()

    def gather(self, x: Tensor, axis: int) -> Tensor:
        """`x` of all ranks, of equal shape, joined along an axis, with gradients."""
        if self.world == 1:
            return x
        joined: Tensor = _Gather.apply(x, axis, self)
        return joined

    def features(self, x: Features) -> Features:
        """Features of all ranks' texts; token axes are padded to the longest anywhere, masks travel along."""
        if self.world == 1:
            return x
        if x.mask is None:
            return Features(self.gather(x.x, 1), x.layers)
        longest = torch.tensor(x.mask.shape[1], device=x.x.device)
        dist.all_reduce(longest, dist.ReduceOp.MAX)
        more = int(longest) - x.mask.shape[1]
        mask = self.gather(pad(x.mask, (0, more)).to(torch.uint8), 0).bool()
        return Features(self.gather(pad(x.x, (0, 0, 0, more)), 1), x.layers, mask)

    def columns(self, s: Tensor) -> Tensor:
        """From scores [Q, p] of all queries and this rank's passages: [q, P], this rank's queries and all passages."""
        if self.world == 1:
            return s
        rows = s.shape[0] // self.world
        return self.gather(s, 1).narrow(0, self.rank * rows, rows)

    def total(self, x: Tensor) -> Tensor:
        """`x` summed over ranks, without gradients."""
        if self.world > 1:
            dist.all_reduce(x)
            self.count(x)
        return x

    def average_gradients(self, models: list[nn.Module]) -> None:
        """One all-reduce of all gradients at the end of a step: the mean over ranks."""
        if self.world == 1:
            return
        parameters = [p for m in models for p in m.parameters() if p.requires_grad]
        for p in parameters:
            if p.grad is None:  # a rank whose loss does not reach it must still take part
                p.grad = torch.zeros_like(p)
        grads = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.reshape(-1) for g in grads])
        dist.all_reduce(flat)
        self.count(flat)
        flat /= self.world
        for g, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            g.copy_(part.view_as(g))

    def mean(self, values: Tensor) -> Tensor:
        """Values averaged over ranks, for the log and for stopping together."""
        if self.world == 1:
            return values
        values = values.detach().clone()
        dist.all_reduce(values)
        return values / self.world

    def told(self, text: str) -> str:
        """The first rank's `text`, of at most 4,096 bytes."""
        if self.world == 1:
            return text
        data = torch.zeros(4096, dtype=torch.uint8)
        data[: len(text.encode())] = torch.tensor(list(text.encode()), dtype=torch.uint8)
        data = data.to("cuda" if dist.get_backend() == "nccl" else "cpu")
        dist.broadcast(data, 0)
        return bytes(data.tolist()).rstrip(b"\0").decode()

    def wait(self) -> None:
        """Wait until every rank is here."""
        if self.world > 1:
            dist.barrier()


def join_ranks(on: torch.device) -> None:
    """Join the other ranks if torchrun started this process. `on`: its device."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        gpu = on if on.type == "cuda" else None  # or a barrier of NCCL might take the GPU of another stage
        # ranks may wait for long while the first one copies a large corpus; one that dies ends all (`launch`)
        dist.init_process_group("nccl" if gpu else "gloo", timeout=PATIENCE, device_id=gpu)


def check_shares(batch_size: int, ranks: int) -> None:
    """Refuse ranks that cannot share a batch equally. Raises LeadError."""
    if ranks < 1 or batch_size % ranks:
        raise LeadError(f"train.batch_size: {batch_size} queries cannot be shared equally by {ranks} ranks")


def _rank(run: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> None:
    """Run the stage as one of the ranks, in a fork of the process that launches them."""
    os.setsid()  # the terminal's Ctrl-C is for the agent, which passes it on
    for number in heeded(OF_AGENT):  # what the agent does with them is not for its ranks
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    try:
        status = run(arguments)
    except KeyboardInterrupt:
        status = 130
    if status:
        sys.exit(status)


def launch(ranks: int, arguments: Sequence[str], fork: tuple[Callable[[Sequence[str]], int], str] | None) -> None:
    """Run `lead ARGUMENTS` in this many processes with torchrun's agent. Raises LeadError as soon as one of them dies.

    fork: what runs the arguments and returns an exit status, and the module of the stage. That and transformers are
    imported here, once, and ranks are forks of this process. None: ranks are programs of their own, as GPUs need.
    """
    if fork is not None:
        with importing():
            importlib.import_module(fork[1])
        import_transformers()
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for noisy in ("torch.distributed.elastic", "torch.distributed.launcher"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        run_id=str(os.getpid()),  # without one torchrun draws it, and warns
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        signals_to_handle=",".join(number.name for number in heeded(OF_AGENT)),
        start_method="spawn" if fork is None else "fork",
    )
    with tempfile.TemporaryDirectory() as errors:
        os.environ["LEAD_ERRORS"] = errors
        try:
            if fork is None:
                elastic_launch(config, sys.executable)("-m", "lead", *arguments)
            else:
                elastic_launch(config, _rank)(fork[0], arguments)
        except SignalException as e:  # passed on to the ranks, which have 30 s to save their state
            raise stopped(e.sigval) from e
        except ChildFailedError as e:
            rank, failure = min(e.failures.items(), key=lambda item: item[1].timestamp)
            said = Path(errors, str(rank))
            how = f"signal {-failure.exitcode}" if failure.exitcode < 0 else f"exit status {failure.exitcode}"
            what = said.read_text(encoding="utf-8") if said.exists() else f"died with {how}; its messages are above"
            if failure.exitcode == Preempted.status:
                raise Preempted(what) from e
            raise LeadError(f"rank {rank} of {ranks}: {what} (the other ranks were stopped)") from e
        finally:
            del os.environ["LEAD_ERRORS"]
