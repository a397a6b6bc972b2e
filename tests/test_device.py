"""Devices: what was granted, and distinct ones for concurrent stages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lead.device import autocast, device, has_bf16, lease, to_cpu, to_device
from lead.errors import LeadError

HOLD = """
import sys
from pathlib import Path
from lead.device import lease
print(lease(["a", "b"], Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


def test_no_gpu_granted_is_the_cpu() -> None:
    assert device(0) == torch.device("cpu")


def test_bf16_is_used_where_the_cpu_has_it_and_only_for_precision_bf16() -> None:
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    if "avx2" in flags:  # an x86 CPU: PyTorch's matrix products in bf16 need AVX-512
        assert has_bf16("cpu") == all(flag in flags for flag in ("avx512vl", "avx512bw", "avx512dq"))
    a, b = torch.ones(2, 2), torch.ones(2, 2)
    for precision, expected in (
        ("fp32", torch.float32),
        ("bf16", torch.bfloat16 if has_bf16("cpu") else torch.float32),
    ):
        with autocast(torch.device("cpu"), precision):
            assert (a @ b).dtype == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_gpu_granted_but_absent_is_one_clear_line() -> None:
    with pytest.raises(LeadError, match="--gpu 1: PyTorch sees no GPU"):
        device(1)


def test_concurrent_processes_lease_distinct_devices_and_give_them_back(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    holders = []
    for expected in ("0", "1"):
        holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        holders.append(holder)
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == expected
    holders[0].communicate("")
    assert lease(["a", "b"], tmp_path) == 0
    holders[1].communicate("")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_tensors_go_to_a_gpu_and_back_those_that_repeat_a_row_too() -> None:
    """The candidates of a batch are one row, expanded: pinned memory with its strides could not be written to."""
    for x in (torch.arange(12).view(3, 4), torch.arange(4).expand(3, -1), torch.arange(12).view(3, 4).T):
        there = to_device(x, torch.device("cuda"))
        assert there.is_cuda and torch.equal(to_cpu(there)(), x)
