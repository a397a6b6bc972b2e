"""Training steps of tiny models, for the tests of the step and of the loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from conftest import make_retriever
from torch import Tensor

from lead.config.schema import Distil, Layers, Train
from lead.methods.losses import Loss
from lead.models.base import LayeredModel
from lead.models.bi_encoder import BiEncoder
from lead.models.features import Candidates
from lead.train.data import Batch
from lead.train.step import DistilStep, Encoded, Step

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
    return DistilStep(student, teacher, options, distil, 3, method)


def lead_step(tiny_model: Path, teacher_folder: Path, **distil: Any) -> DistilStep:
    step = build(tiny_model, teacher_folder, "de", "lead", Distil(**{"layers": Layers(k=3), **distil}), dropout=0.0)
    assert isinstance(step, DistilStep)
    return step


def take(step: Step, batch: Batch, number: int) -> Loss:
    """Both halves of a step."""
    return step(step.prepare(batch), number)


def encoded(
    step: Step, model: LayeredModel, key: str, batch: Batch, layers: tuple[int, ...], number: int, frozen: bool = False
) -> Encoded:
    return step.encode(model, key, model.tokenize_batch(batch.queries, batch.passages), layers, number, frozen)


def naive_scores(model: BiEncoder, batch: Batch) -> tuple[Tensor, dict[int, Tensor]]:
    """The whole model's scores [Q, P] and {layer: [Q, P]}: one padded pass, scored pair by pair, with the graph."""
    states = {}
    for side, texts in (("query", batch.queries), ("passage", batch.passages)):
        limit = getattr(model.lengths, side)
        tokens = model.tokenizer(texts, padding=True, truncation=True, max_length=limit, return_tensors="pt")
        out = model.encoder(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], output_hidden_states=True
        )
        states[side] = out.hidden_states, tokens["attention_mask"].bool()
    (q, q_mask), (p, p_mask) = states["query"], states["passage"]
    scores = {}
    for layer in range(1, model.n_layers + 1):
        rows = []
        for i in range(len(batch.queries)):
            row = []
            for j in range(len(batch.passages)):
                x, y = q[layer][i][q_mask[i]], p[layer][j][p_mask[j]]
                x, y = x / x.norm(dim=-1, keepdim=True), y / y.norm(dim=-1, keepdim=True)
                row.append(x[0] @ y[0] if model.kind == "de" else (x @ y.T).max(1).values.sum())
            rows.append(torch.stack(row))
        scores[layer] = torch.stack(rows).double()
    return 5.0 * scores[model.n_layers], {layer: 3.0 * s for layer, s in scores.items()}  # the scales of SCORING


def naive_candidates(batch: Batch, own: bool) -> tuple[Candidates, list[list[int]]]:
    """Candidates and each query's columns: its positive is the first of its own passages."""
    width = len(batch.passages) // len(batch.queries)
    columns, keep, positive = [], [], []
    for q in range(len(batch.queries)):
        mine = q * width
        columns.append(list(range(mine, mine + width)) if own else list(range(len(batch.passages))))
        keep.append([c == mine or not bool(batch.relevant[q, c]) for c in columns[-1]])
        positive.append([c == mine for c in columns[-1]])
    return Candidates(torch.tensor(columns), torch.tensor(keep), torch.tensor(positive)), columns


def pick(scores: Tensor, columns: list[list[int]]) -> Tensor:
    return torch.stack([scores[q, c] for q, c in enumerate(columns)])


def compare(got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float) -> None:
    """Equal up to `tolerance` of the largest gradient of the same model."""
    assert set(got) == set(want)
    for model in {k.split(".")[0] for k in want}:
        size = max(float(g.abs().max()) for k, g in want.items() if k.startswith(model))
        assert size > 0
        for k, g in want.items():
            if k.startswith(model):
                assert float((got[k] - g).abs().max()) <= tolerance * size, k
