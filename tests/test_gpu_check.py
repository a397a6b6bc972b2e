"""`make gpu-check`: the very same code with tiny sizes, on the CPU and on a GPU; what it says where a package lacks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "benchmarks/gpu_check.py"
GPU = pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")])


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", GPU])
def test_all_parts_run_and_agree_with_the_cpu(tmp_path: Path, device: str) -> None:
    """Losses and gradients, training, resuming, encoding, reranking, search; then every measurement."""
    command = [sys.executable, str(SCRIPT), "--tiny", "--device", device, "--out", str(tmp_path)]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads((tmp_path / "gpu-check.json").read_text())
    assert found["failed"] == [] and not any("left out" in part for part in found.values() if isinstance(part, dict))
    assert sum(part.get("passed", False) for part in found.values() if isinstance(part, dict)) == 5
    for name in ("step, micro-batches of 32,768", "step, padded fp32", "encoding, student", "reranking, ce"):
        assert 0 < found[name]["MFU"] < 1, name
    training = found["check: training and resuming"]
    assert all(training[p]["same bits"] for p in ("bf16", "fp16")) or device == "cuda"
    assert "| search | queries a second" in (tmp_path / "gpu-check.md").read_text()


def test_packages_that_lack_are_named_all_at_once(tmp_path: Path) -> None:
    """An interpreter without site-packages has none of them."""
    done = subprocess.run([sys.executable, "-I", "-S", str(SCRIPT)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: gpu-check needs torch, transformers, ") and "pydantic" in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_one_line_says_what_to_do() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("error: PyTorch sees no GPU here")
