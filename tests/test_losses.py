"""Losses against numbers worked by hand and against slow loops written from equations 4 to 12."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from naive import naive_contrastive, naive_distribution, naive_kl, naive_lead, naive_weights
from torch import Tensor

from lead.config.schema import Distil, LossWeights
from lead.errors import LeadError
from lead.methods.contrastive import contrastive
from lead.methods.lead import layer_loss, layer_weights, lead
from lead.methods.losses import Loss, Scored, contrastive_loss, entropy, kl, log_distribution, response_loss, weighted
from lead.methods.rd import rd
from lead.models.features import Candidates, Scores, mask_columns

LN2, LN3 = math.log(2), math.log(3)


# --- cases -----------------------------------------------------------------------------------------------------------
def random_candidates(rng: np.random.Generator, q: int, c: int, masked: float = 0.3) -> Candidates:
    positive = torch.zeros(q, c, dtype=torch.bool)
    positive[torch.arange(q), torch.from_numpy(rng.integers(0, c, q))] = True
    keep = torch.from_numpy(rng.random((q, c)) >= masked) | positive
    return Candidates(torch.arange(c).expand(q, -1), keep, positive)


def random_scores(rng: np.random.Generator, *shape: int, size: float = 2.0) -> Tensor:
    return torch.from_numpy(rng.normal(0, size, shape)).requires_grad_()


def own(*positive_column: int, c: int, masked: tuple[tuple[int, int], ...] = ()) -> Candidates:
    """All of `c` candidates for each query, but those `masked` (query, candidate)."""
    q = len(positive_column)
    positive = torch.zeros(q, c, dtype=torch.bool)
    positive[torch.arange(q), torch.tensor(positive_column)] = True
    keep = torch.ones(q, c, dtype=torch.bool)
    for row, column in masked:
        keep[row, column] = False
    return Candidates(torch.arange(c).expand(q, -1), keep, positive)


# --- distributions and divergences -----------------------------------------------------------------------------------
def test_log_distribution_by_hand() -> None:
    s = torch.tensor([[LN2, 0.0, 0.0]])
    everything = torch.ones(1, 3, dtype=torch.bool)
    assert torch.allclose(log_distribution(s, everything).exp(), torch.tensor([[0.5, 0.25, 0.25]]))
    # tau divides the logits: 2 ln 2 / 2 = ln 2
    assert torch.allclose(log_distribution(2 * s, everything, 2.0).exp(), torch.tensor([[0.5, 0.25, 0.25]]))
    without_last = torch.tensor([[True, True, False]])
    assert torch.allclose(log_distribution(s, without_last), torch.tensor([[math.log(2 / 3), math.log(1 / 3), 0.0]]))


@pytest.mark.parametrize("tau", [0.5, 1.0, 4.0])
def test_log_distribution_equals_the_loops(tau: float) -> None:
    rng = np.random.default_rng(0)
    s, c = random_scores(rng, 3, 4, 7), random_candidates(rng, 4, 7)
    got = log_distribution(s, c.keep, tau).detach()
    for layer in range(3):
        for q in range(4):
            want = naive_distribution(s[layer, q], c.keep[q], tau)
            for column in range(7):
                expected = math.log(want[column].detach()) if column in want else 0.0
                assert float(got[layer, q, column]) == pytest.approx(expected, abs=1e-12)


def test_kl_by_hand_and_its_direction() -> None:
    keep = torch.ones(1, 2, dtype=torch.bool)
    p, q = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    assert float(kl(p, q, keep)) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert float(kl(q, p, keep)) == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))
    assert float(kl(p, p, keep)) == 0.0


def test_entropy_is_log_of_the_candidates_when_flat_and_zero_when_saturated() -> None:
    keep = torch.tensor([[True, True, True, False]])
    assert float(entropy(log_distribution(torch.zeros(1, 4), keep), keep)) == pytest.approx(LN3)
    assert float(entropy(log_distribution(torch.tensor([[900.0, 0, 0, 0]]), keep), keep)) == pytest.approx(0.0)


def test_contrastive_loss_by_hand_ignores_masked_candidates() -> None:
    s = torch.tensor([[LN2, 0.0, 50.0], [0.0, 0.0, 0.0]])
    c = own(0, 2, c=3, masked=((0, 2),))
    assert float(contrastive_loss(s, c)) == pytest.approx((math.log(3 / 2) + LN3) / 2)


# --- layer weights ---------------------------------------------------------------------------------------------------
def test_layer_weights_by_hand() -> None:
    # probability of the positive: layer 1: 1/2 and 1/4, layer 2: 1/4 and 1/4
    s = torch.tensor([[[LN2, 0.0, 0.0], [LN2, 0.0, 0.0]], [[0.0, LN2, 0.0], [0.0, LN2, 0.0]]])
    c = own(0, 2, c=3)
    assert torch.allclose(layer_weights(s, c), torch.tensor([[2 / 3, 0.5], [1 / 3, 0.5]]))
    # tau 1/2 squares the ratio of 2
    assert torch.allclose(layer_weights(s, c, tau=0.5)[:, 0], torch.tensor([0.8, 0.2]))
    # batch: the mean of the two queries' log-ratios, ln 2 and 0, is the log-ratio of both
    r = math.sqrt(2)
    assert torch.allclose(layer_weights(s, c, mode="batch"), torch.tensor([[r, r], [1.0, 1.0]]) / (1 + r))
    assert torch.equal(layer_weights(s, c, mode="uniform"), torch.full((2, 2), 0.5))
    # progress: the student gives 1/4 and 1/2 where the teacher gives 1/2 and 1/4: ratios of 2 and 1/2
    assert torch.allclose(layer_weights(s, c, mode="progress", student=s.flip(0))[:, 0], torch.tensor([0.8, 0.2]))
    # a student that assigns the probability of its teacher at every layer is behind nowhere
    assert torch.allclose(layer_weights(s, c, mode="progress", student=s), torch.full((2, 2), 0.5))


@pytest.mark.parametrize("mode", ["per_query", "batch", "uniform", "progress"])
@pytest.mark.parametrize("tau", [0.7, 1.0, 10.0])
def test_layer_weights_equal_the_loops_sum_to_one_and_carry_no_gradient(mode: Any, tau: float) -> None:
    rng = np.random.default_rng(1)
    s, student, c = *(random_scores(rng, 4, 5, 6) for _ in range(2)), random_candidates(rng, 5, 6)
    w = layer_weights(s, c, tau, mode, student)
    want = naive_weights(list(s), c, Distil(layer_weights=mode, layer_weights_tau=tau), list(student))
    assert w.shape == (4, 5) and not w.requires_grad
    assert torch.allclose(w.T, torch.tensor(want, dtype=torch.float64))
    assert torch.allclose(w.sum(0), torch.ones(5, dtype=torch.float64))


def test_per_query_weights_are_the_softmax_over_layers_of_the_positives_log_probability() -> None:
    rng = np.random.default_rng(2)
    s, c = random_scores(rng, 3, 4, 5), random_candidates(rng, 4, 5)
    log_probability = log_distribution(s, c.keep)[:, c.positive]  # [K, Q]
    assert torch.allclose(layer_weights(s, c, 2.0), torch.softmax(log_probability / 2.0, 0))


def test_the_layer_that_assigns_most_probability_to_the_positive_weighs_most() -> None:
    s = torch.zeros(3, 1, 4)
    s[1, 0, 2] = 3.0
    assert layer_weights(s, own(2, c=4)).argmax(0).item() == 1
    assert layer_weights(s, own(0, c=4)).argmin(0).item() == 1


# --- layer loss and response loss ------------------------------------------------------------------------------------
def test_uniform_weights_make_the_layer_loss_a_mean_of_the_layers_not_a_sum() -> None:
    rng = np.random.default_rng(3)
    t, s, c = random_scores(rng, 1, 4, 6), random_scores(rng, 1, 4, 6), random_candidates(rng, 4, 6)
    one = layer_loss(t, s, layer_weights(t, c, mode="uniform"), c.keep)
    t5, s5 = t.expand(5, -1, -1), s.expand(5, -1, -1)
    assert torch.allclose(layer_loss(t5, s5, layer_weights(t5, c, mode="uniform"), c.keep), one)


def test_layer_loss_by_hand_with_tau_on_both_sides() -> None:
    # at tau 2: t = (1/2, 1/2), s = (1/4, 3/4) in the first pair; the second pair agrees
    t = torch.tensor([[[0.0, 0.0]], [[1.0, 5.0]]])
    s = torch.tensor([[[0.0, 2 * LN3]], [[1.0, 5.0]]])
    w = torch.tensor([[0.25], [0.75]])
    want = 0.25 * (0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert float(layer_loss(t, s, w, own(0, c=2).keep, tau=2.0)) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("tau", [1.0, 3.0])
@pytest.mark.parametrize("both", [True, False])
def test_response_loss_equals_the_loops_in_one_direction_and_in_both(tau: float, both: bool) -> None:
    rng = np.random.default_rng(4)
    t, s, c = random_scores(rng, 5, 7), random_scores(rng, 5, 7), random_candidates(rng, 5, 7)
    want = 0.0
    for q in range(5):
        p, r = naive_distribution(t[q], c.keep[q], tau), naive_distribution(s[q], c.keep[q], tau)
        want += float((naive_kl(p, r) + (naive_kl(r, p) if both else 0)).detach()) / 5
    assert float(response_loss(t, s, c.keep, tau, both).detach()) == pytest.approx(want)


def test_detach_target_keeps_gradient_from_each_target_side_only() -> None:
    rng = np.random.default_rng(5)
    t, s, c = random_scores(rng, 3, 4), random_scores(rng, 3, 4), own(0, 1, 2, c=4)
    response_loss(t, s, c.keep, both=False, detach=True).backward()
    assert t.grad is None and s.grad is not None
    (only_t,) = torch.autograd.grad(response_loss(t, s, c.keep, both=True, detach=True), t)
    # what is left for the teacher is the cross-entropy with a constant student: softmax(t) - softmax(s), over Q
    assert torch.allclose(only_t, (torch.softmax(t, -1) - torch.softmax(s, -1)).detach() / 3)


# --- the whole -------------------------------------------------------------------------------------------------------
def leaf_scores(rng: np.random.Generator, layers: tuple[int, ...], q: int, c: int) -> tuple[Scores, dict[int, Tensor]]:
    """Scores of some layers and, unlike any of them, of the whole model."""
    s = random_scores(rng, len(layers), q, c)
    return Scores(s, layers, random_scores(rng, q, c)), {layer: s[i] for i, layer in enumerate(layers)}


def aligned(t: Scores, s: Scores, c: Candidates, pairs: list[tuple[int, int]], distil: Distil) -> Loss:
    """LEAD's loss where all losses have the same candidates."""
    return lead(Scored(c, t, s, c, s, distil, c, t, pairs))


OPTIONS = [
    Distil(),
    Distil(joint=False),
    Distil(detach_target=True),
    Distil(tau=2.0, layer_weights_tau=3.0),
    Distil(layer_weights="batch", layer_weights_tau=10.0),
    Distil(layer_weights="uniform", tau=0.5),
    Distil(layer_weights="progress", tau=2.0),
    Distil(weights=LossWeights(lyr=0.5, rep=2.0, tch=3.0, stu=0.25)),
]


@pytest.mark.parametrize("distil", OPTIONS, ids=[str(i) for i in range(len(OPTIONS))])
@pytest.mark.parametrize("separate", [False, True], ids=["same-candidates", "own-candidates"])
def test_lead_equals_the_loops_in_every_part_and_every_gradient(distil: Distil, separate: bool) -> None:
    rng = np.random.default_rng(6)
    pairs = [(2, 1), (5, 2), (6, 4)]
    t_distillation, t_map = leaf_scores(rng, (2, 5, 6, 8), 4, 6)
    s_distillation, s_map = leaf_scores(rng, (1, 2, 4), 4, 6)
    distillation = random_candidates(rng, 4, 6)
    t_contrastive, s_contrastive, contrastive = t_distillation, s_distillation, distillation
    if separate:
        t_contrastive, s_contrastive = leaf_scores(rng, (2, 5, 6, 8), 4, 9)[0], leaf_scores(rng, (1, 2, 4), 4, 9)[0]
        contrastive = random_candidates(rng, 4, 9)
    got = lead(
        Scored(
            distillation,
            t_distillation,
            s_distillation,
            contrastive,
            s_contrastive,
            distil,
            contrastive,
            t_contrastive,
            pairs,
        )
    )
    want = naive_lead(
        t_contrastive.final,
        s_contrastive.final,
        t_distillation.final,
        s_distillation.final,
        t_map,
        s_map,
        contrastive,
        distillation,
        pairs,
        distil,
    )
    assert (
        set(got.parts) | {"total"} == set(want) == {"total", "lyr", "rep", "stu"} | ({"tch"} if distil.joint else set())
    )
    for name, part in {**got.parts, "total": got.total}.items():
        assert float(part.detach()) == pytest.approx(float(want[name].detach()), rel=1e-9), name
    leaves = [leaf for x in (s_distillation, t_distillation, s_contrastive, t_contrastive) for leaf in (x.s, x.final)]
    grads = torch.autograd.grad(got.total, leaves, allow_unused=True, retain_graph=True)
    expected = torch.autograd.grad(want["total"], leaves, allow_unused=True)
    for g, e in zip(grads, expected, strict=True):
        assert (g is None) == (e is None)
        assert g is None or torch.allclose(g, e, atol=1e-10)


def test_total_is_the_sum_of_the_parts_with_their_weights() -> None:
    rng = np.random.default_rng(7)
    t, s, c = leaf_scores(rng, (1, 3), 2, 5)[0], leaf_scores(rng, (1, 2), 2, 5)[0], own(0, 1, c=5)
    plain = aligned(t, s, c, [(1, 2)], Distil())
    assert torch.allclose(plain.total, sum(plain.parts.values()))
    weighed = aligned(t, s, c, [(1, 2)], Distil(weights=LossWeights(lyr=2.0, rep=0.0, tch=5.0, stu=0.0)))
    assert torch.allclose(weighed.total, 2 * plain.parts["lyr"] + 5 * plain.parts["tch"])


def test_without_joint_training_neither_the_teachers_loss_nor_the_reverse_kl_is_left() -> None:
    rng = np.random.default_rng(8)
    t, s, c = leaf_scores(rng, (3,), 2, 5)[0], leaf_scores(rng, (2,), 2, 5)[0], own(0, 1, c=5)
    loss = aligned(t, s, c, [(3, 2)], Distil(joint=False))
    assert "tch" not in loss.parts
    assert torch.allclose(loss.parts["rep"], response_loss(t.final, s.final, c.keep, both=False))
    assert not torch.allclose(loss.parts["rep"], response_loss(t.final, s.final, c.keep, both=True))


def test_rd_is_the_students_contrastive_loss_and_one_kl() -> None:
    rng = np.random.default_rng(9)
    t, s = leaf_scores(rng, (8,), 3, 4)[0], leaf_scores(rng, (4,), 3, 4)[0]
    s_contrastive, contrastive, distillation = (
        leaf_scores(rng, (4,), 3, 9)[0],
        random_candidates(rng, 3, 9),
        random_candidates(rng, 3, 4),
    )
    loss = rd(Scored(distillation, t, s, contrastive, s_contrastive, Distil(tau=2.0)))
    one_way = Distil(tau=2.0, joint=False)
    want = naive_lead(
        s_contrastive.final, s_contrastive.final, t.final, s.final, {}, {}, contrastive, distillation, [], one_way
    )
    assert set(loss.parts) == {"stu", "rep"}
    assert float(loss.total.detach()) == pytest.approx(float((want["stu"] + want["rep"]).detach()))
    loss = rd(
        Scored(distillation, t, s, contrastive, s_contrastive, Distil(tau=2.0, weights=LossWeights(stu=0.1, rep=0.9)))
    )
    assert float(loss.total.detach()) == pytest.approx(float((0.1 * want["stu"] + 0.9 * want["rep"]).detach()))


def test_a_part_without_a_factor_is_one_line() -> None:
    with pytest.raises(LeadError, match="no factor for the loss part 'margin'; name the part one of lyr, rep"):
        weighted({"stu": torch.zeros(()), "margin": torch.zeros(())}, Distil())


def test_contrastive_is_the_contrastive_loss_alone() -> None:
    rng = np.random.default_rng(10)
    s, c = leaf_scores(rng, (4,), 3, 6)[0], random_candidates(rng, 3, 6)
    loss = contrastive(s, c)
    assert float(loss.total.detach()) == pytest.approx(float(naive_contrastive(s.final, c).detach())) and set(
        loss.parts
    ) == {"stu"}


@pytest.mark.parametrize("size", [0.0, 1.0, 1e4])
def test_nothing_is_nan_when_candidates_are_masked_or_scores_saturate(size: float) -> None:
    rng = np.random.default_rng(11)

    def scores(*layers: int) -> Scores:
        x = (random_scores(rng, len(layers) + 1, 4, 6).detach() * size).float()
        return Scores(x[:-1].clone().requires_grad_(), layers, x[-1].clone().requires_grad_())

    t, s = scores(1, 2, 3), scores(1, 2)
    c = random_candidates(rng, 4, 6, masked=1.0)  # only the positive is left
    c.keep[:2] = True
    loss = aligned(t, s, c, [(1, 1), (3, 2)], Distil())
    loss.total.backward()
    assert all(torch.isfinite(v).all() for v in [loss.total, *loss.parts.values(), *loss.watch.values()])
    for grad in (t.s.grad, s.s.grad, t.final.grad, s.final.grad):
        assert grad is not None and torch.isfinite(grad).all()
        assert (grad[..., ~c.keep] == 0).all()


# --- candidates ------------------------------------------------------------------------------------------------------
def test_other_relevant_passages_are_masked_and_the_drawn_positive_is_not() -> None:
    # passages of the batch: query 0 has columns 0..2, query 1 has 3..5; column 4 is query 0's positive once more,
    # column 5 answers query 0 too, and column 1 answers query 1
    relevant = torch.tensor([[1, 0, 0, 0, 1, 1], [0, 1, 0, 1, 0, 0]], dtype=torch.bool)
    c = mask_columns(torch.arange(6).expand(2, -1), relevant, torch.tensor([0, 3]))
    assert c.keep.tolist() == [[True, True, True, True, False, False], [True, False, True, True, True, True]]
    assert c.positive.tolist() == [[True] + [False] * 5, [False] * 3 + [True, False, False]]


def test_scores_are_looked_up_by_layer_number() -> None:
    s = Scores(torch.arange(3.0).view(3, 1, 1), (2, 5, 6), torch.full((1, 1), 9.0))
    assert s.at(6, 2).flatten().tolist() == [2.0, 0.0]
    with pytest.raises(ValueError):
        s.at(1)


def test_a_part_that_is_no_scalar_is_refused_by_name() -> None:
    with pytest.raises(LeadError, match=r"loss part 'rep' is no scalar but \[3\]; take its mean over queries"):
        weighted({"stu": torch.tensor(1.0), "rep": torch.ones(3)}, Distil())
