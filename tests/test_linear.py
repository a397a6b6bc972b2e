"""A linear layer after the encoder, section 4.7: layer n + 1, with as many outputs, fewer or more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_bert
from steps import TRAIN, gradients, take

from lead.config.schema import Distil, Layers, Lengths, Linear, ModelRef, Scoring, Train
from lead.errors import LeadError
from lead.models.base import LayeredModel
from lead.train.data import TrainingData
from lead.train.step import DistilStep

QUERIES = ["array shape", "graph edge of a vertex path and a long cycle with the degree", "", "token"]
PASSAGES = ["the array shape " * 20, "tree node leaf", "token", ""]


def linear_model(folder: Path, kind: str, **linear: Any) -> Any:
    ref = ModelRef(reference=f"path:{folder}", linear=Linear(**linear))
    return LayeredModel.pretrained(ref, kind, Scoring(), Lengths(query=8, passage=24)).eval()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["de", "cb", "ce"])
def test_an_appended_linear_layer_is_layer_n_plus_1_and_starts_as_the_identity(tiny_model: Path, kind: str) -> None:
    torch.manual_seed(1)
    model = linear_model(tiny_model, kind)
    tokens = model.tokenize(QUERIES, PASSAGES) if kind == "ce" else model.tokenize("passage", PASSAGES)
    x = model.encode(tokens, (1, 4, 5)).x
    assert model.n_layers == 5 and torch.allclose(x[1], x[2], atol=1e-6) and not torch.allclose(x[0], x[1])
    model.linear.weight.mul_(2)
    model.linear.bias.add_(1)
    again = model.encode(tokens, (1, 4, 5)).x
    assert torch.equal(again[:2], x[:2])
    if kind == "de":
        assert torch.allclose(again[2], 2 * x[1] + 1, atol=1e-5)


@torch.no_grad()
def test_a_smaller_linear_layer_makes_smaller_vectors(tiny_model: Path, tmp_path: Path) -> None:
    model = linear_model(tiny_model, "de", size=8)
    f = model.encode(model.tokenize("passage", PASSAGES), (2, 5))
    assert f.x.shape[-1] == 32 and not f.x[1, :, 8:].any() and f.x[0, :, 8:].any()
    assert model.vectors(f).shape == (4, 8) and torch.equal(model.vectors(f), f.x[1, :, :8])
    model.save(tmp_path / "m")
    again = LayeredModel.load(tmp_path / "m").eval()
    assert again.size == 8 and torch.equal(again.encode(model.tokenize("passage", PASSAGES), (2, 5)).x, f.x)
    with pytest.raises(LeadError, match=r"linear.size of a cross encoder must be its width, 32"):
        linear_model(tiny_model, "ce", size=8)


@torch.no_grad()
def test_a_larger_linear_layer_pads_the_other_layers(tiny_model: Path, tmp_path: Path) -> None:
    model = linear_model(tiny_model, "de", size=40)
    f = model.encode(model.tokenize("passage", PASSAGES), (2, 5))
    plain = linear_model(tiny_model, "de").encode(model.tokenize("passage", PASSAGES), (2, 5))
    assert model.vectors(f).shape == (4, 40) and torch.equal(f.x[0, :, :32], plain.x[0]) and not f.x[0, :, 32:].any()
    model.save(tmp_path / "m")
    again = LayeredModel.load(tmp_path / "m").eval()
    assert again.size == 40 and torch.equal(again.encode(model.tokenize("passage", PASSAGES), (2, 5)).x, f.x)


def test_lead_aligns_the_linear_layer_like_any_other(tiny_model: Path, tmp_path: Path, data: TrainingData) -> None:
    student, teacher = linear_model(tiny_model, "de", size=8), linear_model(make_bert(tmp_path / "t", 6), "cb")
    distil = Distil(layers=Layers(strategy="pairs", pairs=[[3, 2], [7, 5]]))
    step = DistilStep(student.train(), teacher, Train(**{**TRAIN, "cache_above": 1}), distil, 3, "lead")
    take(step, data.batch(0), 0)
    got = gradients(step)
    for name in ("student.linear.weight", "teacher.linear.weight"):
        assert float(got[name].abs().sum()) > 0
