"""Micro-batches: grouping, joining, precision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import make_retriever
from encoders import ALL, TEXTS, features

from lead.models.features import Features
from lead.models.microbatch import MicroBatchEncoder, micro_batches, padded_tokens


def test_micro_batches_hold_every_text_once_and_stay_within_the_limit() -> None:
    g = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 30, (200,), generator=g).tolist()
    groups = micro_batches(lengths, 64)
    assert sorted(i for group in groups for i in group) == list(range(200))
    assert all(len(group) * max(lengths[i] for i in group) <= 64 for group in groups)
    assert padded_tokens(lengths, 64) == sum(len(group) * max(lengths[i] for i in group) for group in groups)
    assert micro_batches([100], 10) == [[0]]


@pytest.mark.parametrize("kind", ["de", "cb"])
def test_micro_batches_are_joined_in_the_order_of_the_texts(tiny_model: Path, kind: str) -> None:
    model = make_retriever(tiny_model, kind).eval()
    ids = model.tokenize("passage", TEXTS)
    whole = features(model, TEXTS, ALL)
    with torch.no_grad():
        f = MicroBatchEncoder(10, "fp32")(model, ids, ALL, "passages")
    assert len(micro_batches([len(i) for i in ids], 10)) > 2
    if kind == "de":
        assert torch.allclose(f.x, whole.x, atol=1e-5)
    else:
        assert f.mask is not None and whole.mask is not None and torch.equal(f.mask, whole.mask)
        assert torch.allclose(f.x[:, f.mask], whole.x[:, whole.mask], atol=1e-5)
        assert torch.isfinite(f.x).all()


def test_join_pads_token_axes_to_the_longest() -> None:
    a = Features(torch.ones(1, 1, 2, 3), (1,), torch.ones(1, 2, dtype=torch.bool))
    b = Features(2 * torch.ones(1, 2, 4, 3), (1,), torch.ones(2, 4, dtype=torch.bool))
    f = Features.join([a, b], [[1], [2, 0]])
    assert f.mask is not None and f.mask.tolist() == [[True] * 4, [True, True, False, False], [True] * 4]
    assert f.x[0, :, 0, 0].tolist() == [2, 1, 2] and f.x[0, 1, 2:].abs().sum() == 0


def test_bf16_features_are_stored_in_fp32_and_near_fp32(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lead.device.has_bf16", lambda kind: True)  # a CPU without it emulates it, slowly
    model = make_retriever(tiny_model).eval()
    ids = model.tokenize("passage", TEXTS)
    with torch.no_grad():
        a, b = (MicroBatchEncoder(4096, precision)(model, ids, ALL, "p").x for precision in ("bf16", "fp32"))
    assert a.dtype == torch.float32 and not torch.equal(a, b) and torch.allclose(a, b, atol=0.2)


@pytest.mark.parametrize("keep", [0, 15, 10**9])
def test_micro_batches_with_a_graph_and_without_give_the_gradients_of_one_graph(tiny_model: Path, keep: int) -> None:
    """Dropout on. The graph of the first micro-batches is kept; of the others, gradients are cached."""
    model = make_retriever(tiny_model, "cb").train()
    ids = model.tokenize("passage", TEXTS)
    micro = MicroBatchEncoder(10, "fp32", (7,))
    found = []
    for cached in (False, True):
        model.zero_grad()
        f, replay = micro.cached(model, ids, ALL, "p", keep) if cached else (micro(model, ids, ALL, "p"), None)
        (f.x.square() * torch.arange(f.x.shape[1])[:, None, None]).sum().backward()
        if replay is not None:
            replay()
        found.append((f.x.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    (x, want), (y, got) = found
    assert len(micro_batches([len(i) for i in ids], 10)) > 2 and torch.equal(x, y) and len(want) == len(got) > 20
    for a, b in zip(got, want, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()) + 1e-6)
