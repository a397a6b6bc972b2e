"""Which device a stage runs on: what it was granted, never more."""

from __future__ import annotations

import torch

from lead.errors import LeadError


def device(gpu: int) -> torch.device:
    """`cpu` for 0 GPUs granted, else the first visible GPU. Raises LeadError when a GPU is granted but absent."""
    if gpu == 0:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise LeadError(f"--gpu {gpu}: no GPU is visible to PyTorch here; use --gpu 0 (Snakemake: --resources gpu=0) or a CUDA build")
    return torch.device("cuda", 0)
