"""Which device a stage runs on: what it was granted, never more, and never one that another stage here is using."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import logging
import os
import tempfile
from functools import cache
from pathlib import Path
from typing import IO

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
    return torch.device("cuda", lease([str(name) for name in names]))


def autocast(on: torch.device, precision: str) -> torch.autocast:
    """The context in which encoders compute: bf16 for `precision: bf16` where the device has it, else fp32."""
    return torch.autocast(on.type, torch.bfloat16, enabled=precision == "bf16" and has_bf16(on.type))


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
        log.info("this %s has no bf16 instructions: precision bf16 means fp32 here", kind.upper())
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
