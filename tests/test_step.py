"""The training step: who receives gradients, and that every way of batching gives the same ones."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_retriever
from naive import naive_contrastive, naive_lead
from steps import TRAIN, build, compare, encoded, gradients, lead_step, naive_candidates, naive_scores, pick, take
from torch import Tensor

from lead.config.schema import Distil, Layers, LossWeights, Train
from lead.methods.layers import select
from lead.models.bi_encoder import BiEncoder
from lead.train.data import TrainingData
from lead.train.exchange import Exchange
from lead.train.step import DistilStep


# --- who receives gradients ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", ["rd", "lead"])
def test_a_frozen_teacher_has_no_graph_no_gradient_and_no_dropout(
    tiny_model: Path, teacher_folder: Path, data: TrainingData, method: str
) -> None:
    step = build(tiny_model, teacher_folder, "de", method, Distil(layers=Layers(k=3), joint=False), dropout=0.3)
    assert isinstance(step, DistilStep)
    before = {k: v.clone() for k, v in step.teacher.state_dict().items()}
    assert step.trained() == {"student": step.student}
    assert not step.teacher.training and not any(p.requires_grad for p in step.teacher.parameters())
    side = [encoded(step, step.teacher, "teacher", data.batch(0), (6,), s, frozen=True) for s in (0, 1)]
    assert not side[0].features[1].x.requires_grad and side[0].features[1].x.grad_fn is None
    assert torch.equal(side[0].features[1].x, side[1].features[1].x)  # another step, the same outputs: no dropout
    take(step, data.batch(0), 0)
    assert all(p.grad is None for p in step.teacher.parameters())
    assert all(p.grad is not None for p in step.student.parameters() if p.requires_grad)
    assert not step.teacher.training
    assert all(torch.equal(v, before[k]) for k, v in step.teacher.state_dict().items())


@pytest.mark.parametrize("part", ["tch", "rep", "lyr", "stu"])
@pytest.mark.parametrize("detach", [False, True])
def test_under_joint_training_each_part_alone_reaches_whom_it_should(
    tiny_model: Path, teacher_folder: Path, data: TrainingData, part: str, detach: bool
) -> None:
    only = LossWeights(**{name: float(name == part) for name in ("lyr", "rep", "tch", "stu")})
    step = lead_step(tiny_model, teacher_folder, weights=only, detach_target=detach)
    assert set(step.trained()) == {"student", "teacher"}
    take(step, data.batch(0), 0)
    got = gradients(step)
    size = {
        name: sum(float(g.abs().sum()) for k, g in got.items() if k.startswith(name)) for name in ("teacher", "student")
    }
    # with detached targets the layer loss leaves the teacher alone; L_rep still reaches it through KL(s, t)
    assert (size["teacher"] > 1e-6) == (part in ("tch", "rep") or (part == "lyr" and not detach))
    assert (size["student"] > 1e-6) == (part != "tch")


def test_layers_above_the_highest_one_aligned_get_no_gradient_from_the_layer_loss(
    tiny_model: Path, teacher_folder: Path, data: TrainingData
) -> None:
    step = lead_step(
        tiny_model,
        teacher_folder,
        layers=Layers(strategy="pairs", pairs=[[2, 1], [4, 3]]),
        weights=LossWeights(lyr=1.0, rep=0.0, tch=0.0, stu=0.0),
    )
    take(step, data.batch(0), 0)
    for name, reached in (("teacher", 4), ("student", 3)):
        for key, g in gradients(step).items():
            if key.startswith(f"{name}.encoder.encoder.layer."):
                assert (float(g.abs().sum()) > 0) == (int(key.split(".")[4]) < reached) or ".key.bias" in key, key


def test_informative_layers_are_those_of_the_batch_at_hand(
    tiny_model: Path, teacher_folder: Path, data: TrainingData
) -> None:
    step = lead_step(tiny_model, teacher_folder, layers=Layers(k=2, strategy="informative"), joint=False)
    model = step.teacher
    assert isinstance(model, BiEncoder)
    chosen = set()
    for number in range(6):
        batch = data.batch(number)
        _, layers = naive_scores(model, batch)
        candidates, _ = naive_candidates(batch, own=False)
        probability = {i: -float(naive_contrastive(s, candidates).detach()) for i, s in layers.items()}
        want = sorted(sorted(probability, key=lambda i: probability[i])[-2:])
        pairs = step.loss(step.prepare(batch), number)[0].watch["pairs"].tolist()
        assert pairs == [[want[0], 3], [want[1], 4]]
        chosen.add(tuple(want))
    assert len(chosen) > 1  # it follows the batch


# --- the step against a naive one ------------------------------------------------------------------------------------
@pytest.mark.parametrize("cache_above", [1, 10**9], ids=["cached", "with-graph"])
@pytest.mark.parametrize("candidates", ["batch", "own"])
@pytest.mark.parametrize("kind", ["de", "cb"])
def test_a_lead_step_without_dropout_equals_a_naive_one_on_the_whole_batch(
    tiny_model: Path, teacher_folder: Path, data: TrainingData, kind: str, candidates: Any, cache_above: int
) -> None:
    distil = Distil(layers=Layers(k=3), candidates=candidates, tau=2.0, layer_weights_tau=1.5)
    step = build(tiny_model, teacher_folder, kind, "lead", distil, dropout=0.0, cache_above=cache_above)
    assert isinstance(step, DistilStep)
    batch = data.batch(2)
    loss = take(step, batch, 2)
    got = gradients(step)
    step.student.zero_grad(), step.teacher.zero_grad()

    (s, s_layers), (t, t_layers) = naive_scores(step.student, batch), naive_scores(step.teacher, batch)
    contrastive, _ = naive_candidates(batch, own=False)
    distillation, columns = naive_candidates(batch, own=candidates == "own")
    want = naive_lead(
        t, s, pick(t, columns), pick(s, columns),
        {i: pick(x, columns) for i, x in t_layers.items()}, {i: pick(x, columns) for i, x in s_layers.items()},
        contrastive, distillation, select(distil.layers, 6, 4, 3, 2), distil,
    )  # fmt: skip
    for name, part in {**loss.parts, "total": loss.total}.items():
        assert float(part.detach()) == pytest.approx(float(want[name].detach()), rel=1e-3, abs=1e-5), name
    want["total"].backward()
    compare(got, gradients(step), 2e-3)


def test_a_contrastive_step_equals_a_naive_one(tiny_model: Path, teacher_folder: Path, data: TrainingData) -> None:
    step = build(tiny_model, teacher_folder, "cb", "contrastive", dropout=0.0)
    batch = data.batch(1)
    loss, got = take(step, batch, 1), gradients(step)
    step.student.zero_grad()
    want = naive_contrastive(naive_scores(step.student, batch)[0], naive_candidates(batch, own=False)[0])
    assert float(loss.total.detach()) == pytest.approx(float(want.detach()), rel=1e-4)
    want.backward()
    compare(got, gradients(step), 2e-3)


# --- micro-batches ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", ["contrastive", "rd", "lead"])
@pytest.mark.parametrize("kind", ["de", "cb"])
def test_cached_gradients_equal_those_with_the_graph_with_dropout_on(
    tiny_model: Path, teacher_folder: Path, data: TrainingData, kind: str, method: str
) -> None:
    results = []
    for cache_above in (1, 10**9):
        step = build(tiny_model, teacher_folder, kind, method, dropout=0.2, cache_above=cache_above)
        torch.manual_seed(cache_above)  # whatever happened before must not matter
        loss = take(step, data.batch(1), 1)
        results.append((loss, gradients(step)))
    (a, cached), (b, graph) = results
    assert a.total.item() == b.total.item()
    if method != "lead":
        cached, graph = only_student(cached), only_student(graph)
    compare(cached, graph, 1e-5)
    # dropout was on, and is not a detail
    off = build(tiny_model, teacher_folder, kind, method, dropout=0.0)
    assert take(off, data.batch(1), 1).total.item() != a.total.item()


def only_student(grads: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: g for k, g in grads.items() if k.startswith("student")}


@pytest.mark.parametrize("method", ["contrastive", "lead"])
@pytest.mark.parametrize("kind", ["de", "cb"])
def test_micro_batches_without_dropout_equal_one_whole_batch(
    tiny_model: Path, teacher_folder: Path, data: TrainingData, kind: str, method: str
) -> None:
    results = []
    for micro_tokens, cache_above in ((30, 1), (30, 10**9), (10**6, 10**9)):
        options = {"dropout": 0.0, "micro_tokens": micro_tokens, "cache_above": cache_above}
        step = build(tiny_model, teacher_folder, kind, method, **options)
        loss = take(step, data.batch(1), 1)
        results.append((float(loss.total.detach()), gradients(step)))
    for total, grads in results[:2]:
        assert total == pytest.approx(results[2][0], rel=1e-5)
        compare(grads, results[2][1], 1e-3)


def test_dropout_is_a_function_of_seed_and_step_and_differs_between_the_models(
    tiny_model: Path, teacher_folder: Path, data: TrainingData
) -> None:
    step = build(tiny_model, teacher_folder, "de", "contrastive", dropout=0.2)
    model, batch = step.student, data.batch(0)
    torch.manual_seed(0)
    first = encoded(step, model, "student", batch, (4,), 7).features[0].x
    torch.manual_seed(1)
    assert torch.equal(encoded(step, model, "student", batch, (4,), 7).features[0].x, first)
    assert not torch.equal(encoded(step, model, "student", batch, (4,), 8).features[0].x, first)
    assert not torch.equal(encoded(step, model, "teacher", batch, (4,), 7).features[0].x, first)
    step.exchange = Exchange(rank=1)
    assert not torch.equal(encoded(step, model, "student", batch, (4,), 7).features[0].x, first)


# --- prepared batches ------------------------------------------------------------------------------------------------
def test_a_batch_prepared_in_another_thread_while_models_tokenize_gives_the_same_step(
    tiny_model: Path, teacher_folder: Path, data: TrainingData, tmp_path: Path
) -> None:
    """A tokenizer that two threads use at once raises 'Already borrowed', or cuts at the other's length."""
    step = build(tiny_model, teacher_folder, "de", "lead", dropout=0.0)
    assert isinstance(step, DistilStep)
    want = [step.prepare(data.batch(i)).inputs for i in range(40)]
    with ThreadPoolExecutor(1) as ahead:
        prepared = [ahead.submit(step.prepare, data.batch(i)) for i in range(40)]
        for _ in range(100):
            for model in (step.student, step.teacher):
                assert len(model.tokenize("passage", ["array " * 99])[0]) == 24
                assert len(model.tokenize("query", ["array " * 99])[0]) == 8
        step.student.save(tmp_path / "m")
    assert [p.result().inputs for p in prepared] == want


def test_texts_are_tokenized_once_where_both_models_tokenize_alike(
    tiny_model: Path, teacher_folder: Path, data: TrainingData
) -> None:
    batch = data.batch(0)
    for scoring, kind, alike in (
        ({}, "de", True),
        ({}, "cb", True),
        ({"expand": True}, "cb", False),
        ({}, "ce", False),
    ):
        student, teacher = make_retriever(tiny_model), make_retriever(teacher_folder, kind, **scoring)
        step = DistilStep(student, teacher, Train(**TRAIN), Distil(layers=Layers(k=3)), 3, "lead")
        inputs = step.prepare(batch).inputs
        assert (inputs["teacher"] is inputs["student"]) == alike == step.alike
        assert inputs["teacher"] == teacher.tokenize_batch(batch.queries, batch.passages)
    teacher = make_retriever(teacher_folder)
    teacher.tokenizer.add_tokens(["shap"])
    assert teacher.tokenization != make_retriever(tiny_model).tokenization
