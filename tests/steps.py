"""Training steps of tiny models, for the tests of the step and of the loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from conftest import make_retriever
from torch import Tensor

from lead.config.schema import Distil, Layers, Train
from lead.train.step import DistilStep, LeadStep, Step

SCORING = {"normalise": "unit", "scale": 5.0, "layer_normalise": "unit", "layer_scale": 3.0}
TRAIN = {"batch_size": 4, "negatives": 2, "precision": "fp32", "micro_tokens": 60, "dev_queries": 0, "warmup": 0.2}


def gradients(step: Step) -> dict[str, Tensor]:
    """Gradients by model and parameter; zeros where there is none."""
    models = {"student": step.student, **({"teacher": step.teacher} if isinstance(step, DistilStep) else {})}
    return {
        f"{name}.{key}": torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, model in models.items()
        for key, p in model.named_parameters()
    }


def build(
    tiny_model: Path, teacher_folder: Path, kind: str, method: str, distil: Distil | None = None, **train: Any
) -> Step:
    """A step with a `kind` student of 4 layers; teachers are ColBERT."""
    options = Train(**{**TRAIN, **train})
    student = make_retriever(tiny_model, kind, **SCORING).train()
    if method == "contrastive":
        return Step(student, options, seed=3)
    distil = distil or Distil(layers=Layers(k=3))
    teacher = make_retriever(teacher_folder, "cb", **SCORING)
    joint = method == "lead" and distil.joint
    return (LeadStep if method == "lead" else DistilStep)(student, teacher, options, distil, 3, joint)


def lead_step(tiny_model: Path, teacher_folder: Path, **distil: Any) -> LeadStep:
    step = build(tiny_model, teacher_folder, "de", "lead", Distil(**{"layers": Layers(k=3), **distil}), dropout=0.0)
    assert isinstance(step, LeadStep)
    return step
