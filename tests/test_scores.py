"""The similarity functions against loops: MaxSim and its own backward pass, and standardisation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lead.models import scores
from lead.models.scores import inner_product, max_sim, standardise


def naive_max_sim(q: Tensor, q_mask: Tensor, p: Tensor, p_mask: Tensor) -> Tensor:
    """Eq. 2 token by token; a passage without tokens scores 0."""
    rows = []
    for i in range(len(q)):
        row = []
        for j in range(len(p)):
            total = torch.zeros((), dtype=q.dtype)
            for x in range(q.shape[1]):
                products = [(q[i, x] * p[j, y]).sum() for y in range(p.shape[1]) if p_mask[j, y]]
                if q_mask[i, x] and products:
                    total = total + torch.stack(products).max()
            row.append(total)
        rows.append(torch.stack(row))
    return torch.stack(rows)


def case(seed: int = 0, dtype: Any = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """3 queries of 4 tokens, 5 passages of 6: with masks, a query and a passage fully masked, negative products."""
    g = torch.Generator().manual_seed(seed)
    q = torch.randn(3, 4, 8, generator=g, dtype=dtype).requires_grad_()
    p = torch.randn(5, 6, 8, generator=g, dtype=dtype).requires_grad_()
    q_mask, p_mask = torch.rand(3, 4, generator=g) < 0.7, torch.rand(5, 6, generator=g) < 0.6
    q_mask[0], q_mask[2], p_mask[1], p_mask[3] = True, False, True, False
    p_mask[4] = torch.tensor([False, True, False, False, False, False])  # one token: its product is often negative
    return q, q_mask, p, p_mask


@pytest.mark.parametrize("seed", range(4))
def test_max_sim_and_its_gradients_equal_the_triple_loop(seed: int) -> None:
    q, q_mask, p, p_mask = case(seed)
    got, want = max_sim(q, q_mask, p, p_mask), naive_max_sim(q, q_mask, p, p_mask)
    assert torch.allclose(got, want)
    assert (got[:, 3] == 0).all() and (got[2] == 0).all()
    weight = torch.randn(got.shape, generator=torch.Generator().manual_seed(9), dtype=got.dtype)
    for g, w in zip(
        torch.autograd.grad((got * weight).sum(), (q, p)),
        torch.autograd.grad((want * weight).sum(), (q, p)),
        strict=True,
    ):
        assert torch.allclose(g, w)


def test_max_sim_passes_gradcheck() -> None:
    q, q_mask, p, p_mask = case(1)
    assert torch.autograd.gradcheck(lambda q, p: max_sim(q, q_mask, p, p_mask), (q, p))


def test_a_masked_token_never_matters_nor_gets_gradient() -> None:
    q, q_mask, p, p_mask = case(2)
    with torch.no_grad():
        q2, p2 = q.clone(), p.clone()
        q2[~q_mask], p2[~p_mask] = 1e6, 1e6
    assert torch.equal(max_sim(q, q_mask, p, p_mask), max_sim(q2, q_mask, p2, p_mask))
    max_sim(q, q_mask, p, p_mask).sum().backward()
    assert q.grad is not None and p.grad is not None
    assert (q.grad[~q_mask] == 0).all() and (p.grad[~p_mask] == 0).all()


@pytest.mark.parametrize("block", [1, 4 * 5 * 6, 2 * 4 * 5 * 6 + 1])
def test_blocks_smaller_than_the_batch_change_nothing(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for size in (1 << 25, block):
        monkeypatch.setattr(scores, "MAX_SIM_BLOCK", size)
        q, q_mask, p, p_mask = case(3)
        s = max_sim(q, q_mask, p, p_mask)
        results.append((s, *torch.autograd.grad(s.square().sum(), (q, p))))
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b)


def test_in_case_of_a_tie_exactly_one_token_gets_the_gradient() -> None:
    q = torch.ones(1, 1, 2, requires_grad=True)
    p = torch.ones(1, 3, 2, requires_grad=True)
    max_sim(q, torch.ones(1, 1, dtype=torch.bool), p, torch.ones(1, 3, dtype=torch.bool)).sum().backward()
    assert p.grad is not None and p.grad.sum().item() == 2.0 and int((p.grad.abs().sum(-1) > 0).sum()) == 1


def test_inner_product_is_the_dot_product_of_every_pair() -> None:
    q, p = torch.randn(2, 3, 4), torch.randn(2, 5, 4)
    s = inner_product(q, p)
    for layer in range(2):
        for i in range(3):
            for j in range(5):
                assert float(s[layer, i, j]) == pytest.approx(
                    sum(float(a * b) for a, b in zip(q[layer, i], p[layer, j], strict=True)), abs=1e-5
                )


def test_standardised_scores_have_mean_0_and_variance_1_over_the_kept_candidates_only() -> None:
    s = torch.randn(3, 4, 7, dtype=torch.float64) * 5 + 3
    keep = torch.rand(4, 7) < 0.7
    keep[:, :2] = True
    z = standardise(s, keep)
    for layer in range(3):
        for q in range(4):
            kept = z[layer, q][keep[q]]
            assert float(kept.mean()) == pytest.approx(0, abs=1e-9)
            assert float(kept.var(unbiased=False)) == pytest.approx(1, abs=1e-4)
            assert torch.equal(kept.argsort(), s[layer, q][keep[q]].argsort())
    # what is masked changes nothing
    s2 = s.clone()
    s2[:, ~keep] = 1e6
    assert torch.allclose(standardise(s2, keep)[:, keep], z[:, keep])


def test_standardising_equal_scores_gives_zeros_and_finite_gradients() -> None:
    s = torch.full((1, 3), 2.0, requires_grad=True)
    z = standardise(s, torch.ones(1, 3, dtype=torch.bool))
    z[0, 0].backward()
    assert torch.equal(z.detach(), torch.zeros(1, 3)) and s.grad is not None and torch.isfinite(s.grad).all()
