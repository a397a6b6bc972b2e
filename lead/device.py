"""Which device a stage runs on: what it was granted, never more, and never one that another stage here is using."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import IO, Any

import torch

from lead.errors import LeadError

log = logging.getLogger("lead")

_leases: list[IO[str]] = []  # open for the life of the process: closing a file gives its lease back


def device(gpu: int) -> torch.device:
    """`cpu` for 0 GPUs granted, else a free visible GPU. Raises LeadError when a GPU is granted but absent."""
    if gpu == 0:
        return torch.device("cpu")
    if gpu < 0:
        raise LeadError(f"--gpu {gpu}: give the number of GPUs granted, 0 for none")
    if not torch.cuda.is_available():
        raise LeadError(
            f"--gpu {gpu}: PyTorch sees no GPU here; use --gpu 0 (Snakemake: --resources gpu=0) or a CUDA build"
        )
    names = [torch.cuda.get_device_properties(i).uuid for i in range(torch.cuda.device_count())]
    on = torch.device("cuda", lease([str(name) for name in names]))
    torch.cuda.set_device(on)  # or pinned memory, events and NCCL would use the first, which may be another stage's
    # cuDNN's attention, the first choice of recent PyTorch on an H100, makes a plan for each shape, in tens of
    # milliseconds. Our micro-batches hardly ever have the same shape
    torch.backends.cuda.enable_cudnn_sdp(False)
    return on


def autocast(on: torch.device, precision: str) -> torch.autocast:
    """The context in which encoders compute with this `precision`: in the number format of `number_format`."""
    dtype = number_format(on.type, precision)
    half = dtype != torch.float32
    return torch.autocast(on.type, dtype if half else torch.bfloat16, enabled=half)


def number_format(kind: str, precision: str) -> torch.dtype:
    """What encoders compute in on devices of this type (`cpu`, `cuda`): bfloat16, float16 or float32.

    Where a GPU has no bf16 (V100 and older), `bf16` means float16; where a CPU has none, it means float32, and so does
    `fp16` on a CPU without float16.
    """
    if precision == "bf16" and has_bf16(kind):
        return torch.bfloat16
    if precision == "fp32" or (kind == "cpu" and (precision == "bf16" or not has_fp16())):
        return torch.float32
    return torch.float16


def loss_scaler(on: torch.device, precision: str) -> torch.amp.GradScaler:
    """What keeps gradients within float16: their loss is scaled up, and a step whose gradients overflow is skipped.

    It does nothing where the precision is `fp32`, and where it is `bf16` and the device has bf16. With `fp16` on a CPU
    that computes it in float32 it works all the same: its factor is a power of two, so numbers are those of `fp32`.
    """
    scaled = precision == "fp16" or number_format(on.type, precision) == torch.float16
    return torch.amp.GradScaler(on.type, enabled=scaled)


def allow_tf32(precision: str) -> None:
    """Let a GPU multiply float32 matrices in TF32, unless the precision is `fp32`.

    This is for scores. TF32 has the 10 bits of float16, more than the vectors of a bf16 encoder carry; sums stay
    float32. MaxSim at the paper's size would take nearly as long in float32 as both encoders in bf16.
    """
    with warnings.catch_warnings():
        # PyTorch 2.9 and later have `fp32_precision`, and some of them warn where the older name is set. But
        # torch.compile refuses a program that sets the new one alone, and this sets both
        warnings.simplefilter("ignore")
        torch.backends.cuda.matmul.allow_tf32 = precision != "fp32"


@contextlib.contextmanager
def without_tf32() -> Iterator[None]:
    """A block in which a GPU multiplies float32 matrices in float32. Afterwards all is as the caller had set it."""
    matmul: Any = torch.backends.cuda.matmul
    # where there is `fp32_precision`, a program that set it may not read the other
    name, no = ("fp32_precision", "ieee") if hasattr(matmul, "fp32_precision") else ("allow_tf32", False)
    before = getattr(matmul, name)
    setattr(matmul, name, no)
    try:
        yield
    finally:
        setattr(matmul, name, before)


def to_device(x: torch.Tensor, on: torch.device) -> torch.Tensor:
    """A CPU tensor on a device. To a GPU it goes through pinned memory, so that nobody waits for what runs there."""
    if on.type != "cuda":
        return x.to(on)
    # contiguous: pinned memory has the tensor's strides, and an expanded tensor cannot be written to
    return x.contiguous().pin_memory().to(on, non_blocking=True)


def to_cpu(x: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Begin to copy a tensor to the CPU; the function that is returned waits for this copy alone, and returns it."""
    if x.device.type == "cpu":
        return lambda: x
    copy = torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)
    done = torch.cuda.Event()
    done.record(torch.cuda.current_stream(x.device))  # of its device, which need not be the current one

    def wait() -> torch.Tensor:
        done.synchronize()
        return copy

    return wait


@cache
def has_bf16(kind: str) -> bool:
    """Whether devices of this type (`cpu`, `cuda`) multiply matrices in bf16 with instructions of their own.

    A CPU without AVX-512 emulates bf16, at a tenth of the speed of fp32.
    """
    if kind == "cpu":
        has = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    else:
        has = torch.cuda.is_bf16_supported(including_emulation=False)
    if not has:
        means = "fp32" if kind == "cpu" else "fp16, with a scaled loss,"
        log.info("this %s has no bf16 instructions: precision bf16 means %s here", kind.upper(), means)
    return has


@cache
def has_fp16() -> bool:
    """Whether the CPU multiplies matrices in float16 with instructions of its own. Emulation takes 50 times as long."""
    has = bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    if not has:
        log.info("this CPU has no fp16 instructions: precision fp16 means fp32 here, with a scaled loss")
    return has


def keep_freed_memory() -> None:
    """Let this process keep the memory that its tensors free (glibc; elsewhere nothing happens).

    By default glibc gives every freed block above 32 MB, and a free end of the heap, back at once. In training on the
    CPU, the page faults of the same tensors, made anew in every step, took 8 % of the time.
    """
    m_trim_threshold, m_mmap_threshold = -1, -3
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        if not mallopt(m_mmap_threshold, 1 << 30):
            mallopt(m_mmap_threshold, 32 << 20)  # the most that an older glibc takes
        mallopt(m_trim_threshold, -1)  # never


def lease(names: list[str], folder: Path | None = None) -> int:
    """Position of the first of these devices that no other process has leased; it is held until this process ends.

    Snakemake's local executor counts GPUs but does not say which: two jobs with one GPU each would both take the first.
    If all are taken (somebody granted more than there are), the first is shared, but not by the ranks of one job: NCCL
    does not allow it. Raises LeadError then.
    """
    for position, name in enumerate(names):
        path = (folder or Path(tempfile.gettempdir())) / f"lead-gpu-{os.getuid()}-{name}.lock"
        file = path.open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            continue
        _leases.append(file)
        return position
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise LeadError(
            f"{os.environ['WORLD_SIZE']} ranks, but only {len(names)} GPUs, or some are taken; ask for fewer"
        )
    return 0
