"""The training step: who receives gradients, and that every way of batching gives the same ones."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from conftest import make_bert, make_retriever
from test_losses import naive_hard, naive_lead
from torch import Tensor

from lead.artifacts import read_table
from lead.config.schema import Distil, Layers, LossWeights, Train
from lead.errors import LeadError
from lead.layers import select
from lead.models.features import Candidates
from lead.models.micro import MicroEncoder
from lead.models.retriever import Retriever
from lead.train.data import Batch, Queries, TrainingData
from lead.train.dev import DevPool
from lead.train.loop import Loop, make_optimizer, schedule
from lead.train.step import DistilStep, LeadStep, Step

SCORING = {"normalise": "unit", "scale": 5.0, "layer_normalise": "unit", "layer_scale": 3.0}
TRAIN = {"batch_size": 4, "negatives": 2, "precision": "fp32", "micro_tokens": 60, "dev_queries": 0, "warmup": 0.2}


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of 6 layers and another width than the tiny model's."""
    return make_bert(tmp_path_factory.mktemp("teacher"), layers=6, hidden=16, seed=1)


@pytest.fixture(scope="module")
def data(tiny_collection: Path) -> TrainingData:
    corpus = read_table(tiny_collection / "corpus.parquet", "corpus")
    files = [tiny_collection / f"{name}.parquet" for name in ("queries.train", "qrels.train", "negatives")]
    return TrainingData(corpus, Queries(corpus["pid"], files[0], files[1], files[2], 1, 10), 4, 2, seed=5)


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
    side = [step.encode(step.teacher, "teacher", data.batch(0), (6,), s, frozen=True) for s in (0, 1)]
    assert not side[0].passages.x.requires_grad and side[0].passages.x.grad_fn is None
    assert torch.equal(side[0].passages.x, side[1].passages.x)  # another step, the same outputs: no dropout
    step(data.batch(0), 0)
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
    step(data.batch(0), 0)
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
    step(data.batch(0), 0)
    for name, reached in (("teacher", 4), ("student", 3)):
        for key, g in gradients(step).items():
            if key.startswith(f"{name}.encoder.encoder.layer."):
                assert (float(g.abs().sum()) > 0) == (int(key.split(".")[4]) < reached) or ".key.bias" in key, key


# --- the step against a naive one ------------------------------------------------------------------------------------
def naive_scores(model: Retriever, batch: Batch) -> tuple[Tensor, dict[int, Tensor]]:
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


@pytest.mark.parametrize("cache_above", [1, 10**9], ids=["cached", "with-graph"])
@pytest.mark.parametrize("candidates", ["batch", "own"])
@pytest.mark.parametrize("kind", ["de", "cb"])
def test_a_lead_step_without_dropout_equals_a_naive_one_on_the_whole_batch(
    tiny_model: Path, teacher_folder: Path, data: TrainingData, kind: str, candidates: Any, cache_above: int
) -> None:
    distil = Distil(layers=Layers(k=3), candidates=candidates, tau=2.0, layer_weights_tau=1.5)
    step = build(tiny_model, teacher_folder, kind, "lead", distil, dropout=0.0, cache_above=cache_above)
    assert isinstance(step, LeadStep)
    batch = data.batch(2)
    loss = step(batch, 2)
    got = gradients(step)
    step.student.zero_grad(), step.teacher.zero_grad()

    (s, s_layers), (t, t_layers) = naive_scores(step.student, batch), naive_scores(step.teacher, batch)
    hard, _ = naive_candidates(batch, own=False)
    soft, columns = naive_candidates(batch, own=candidates == "own")
    want = naive_lead(
        t, s, pick(t, columns), pick(s, columns),
        {i: pick(x, columns) for i, x in t_layers.items()}, {i: pick(x, columns) for i, x in s_layers.items()},
        hard, soft, select(distil.layers, 6, 4, 3, 2), distil,
    )  # fmt: skip
    for name, part in {**loss.parts, "total": loss.total}.items():
        assert float(part.detach()) == pytest.approx(float(want[name].detach()), rel=1e-3, abs=1e-5), name
    want["total"].backward()
    compare(got, gradients(step), 2e-3)


def compare(got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float) -> None:
    """Equal up to `tolerance` of the largest gradient of the same model."""
    assert set(got) == set(want)
    for model in {k.split(".")[0] for k in want}:
        size = max(float(g.abs().max()) for k, g in want.items() if k.startswith(model))
        assert size > 0
        for k, g in want.items():
            if k.startswith(model):
                assert float((got[k] - g).abs().max()) <= tolerance * size, k


def test_a_contrastive_step_equals_a_naive_one(tiny_model: Path, teacher_folder: Path, data: TrainingData) -> None:
    step = build(tiny_model, teacher_folder, "cb", "contrastive", dropout=0.0)
    batch = data.batch(1)
    loss, got = step(batch, 1), gradients(step)
    step.student.zero_grad()
    want = naive_hard(naive_scores(step.student, batch)[0], naive_candidates(batch, own=False)[0])
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
        loss = step(data.batch(1), 1)
        results.append((loss, gradients(step)))
    (a, cached), (b, graph) = results
    assert a.total.item() == b.total.item()
    if method != "lead":
        cached, graph = only_student(cached), only_student(graph)
    compare(cached, graph, 1e-5)
    # dropout was on, and is not a detail
    off = build(tiny_model, teacher_folder, kind, method, dropout=0.0)
    assert off(data.batch(1), 1).total.item() != a.total.item()


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
        loss = step(data.batch(1), 1)
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
    first = step.encode(model, "student", batch, (4,), 7).queries.x
    torch.manual_seed(1)
    assert torch.equal(step.encode(model, "student", batch, (4,), 7).queries.x, first)
    assert not torch.equal(step.encode(model, "student", batch, (4,), 8).queries.x, first)
    assert not torch.equal(step.encode(model, "teacher", batch, (4,), 7).queries.x, first)


# --- the loop --------------------------------------------------------------------------------------------------------
def test_schedule_rises_to_1_over_the_warmup_share_and_falls_to_0_after_the_last_step() -> None:
    got = [schedule(s, 10, 0.4) for s in range(11)]
    assert got == pytest.approx([0.25, 0.5, 0.75, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0])
    assert [schedule(s, 4, 0.0) for s in range(4)] == pytest.approx([1, 0.75, 0.5, 0.25])
    assert [schedule(s, 4, 1.0) for s in range(4)] == pytest.approx([0.25, 0.5, 0.75, 1])


def test_biases_and_layer_norms_do_not_decay_and_every_parameter_is_in_one_group(tiny_model: Path) -> None:
    models = {"student": make_retriever(tiny_model), "teacher": make_retriever(tiny_model)}
    train = Train(**TRAIN, lr=1e-3, teacher_lr=1e-5, weight_decay=0.1)
    group_of = {id(p): g for g in make_optimizer(models, train).param_groups for p in g["params"]}
    assert sum(len(list(m.parameters())) for m in models.values()) == len(group_of)
    for name, model in models.items():
        for key, p in model.named_parameters():
            group = group_of[id(p)]
            assert group["weight_decay"] == (0.0 if key.endswith("bias") or "LayerNorm" in key else 0.1)
            assert group["peak"] == (1e-3 if name == "student" else 1e-5)


def loop(step: Step, data: TrainingData, tmp_path: Path, dev: DevPool | None = None, **train: Any) -> Loop:
    return Loop(step, data, dev, Train(**{**TRAIN, "steps": 3, **train}), tmp_path / "state")


def test_an_update_clips_each_model_by_its_own_norm_and_follows_the_schedule(
    tiny_model: Path, teacher_folder: Path, data: TrainingData, tmp_path: Path
) -> None:
    step = lead_step(tiny_model, teacher_folder)
    run = loop(step, data, tmp_path, clip=0.01, steps=10, lr=1e-3, warmup=0.2)
    step(data.batch(0), 0)
    norm = {
        name: math.sqrt(sum(float(p.grad.double().square().sum()) for p in model.parameters() if p.grad is not None))
        for name, model in step.trained().items()
    }
    seen: dict[str, float] = {}

    def clipped(*_: Any) -> None:
        for name, model in step.trained().items():
            seen[name] = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None))

    run.optimizer.register_step_pre_hook(clipped)
    assert run._update(0) == pytest.approx(norm, rel=1e-4)
    assert min(norm.values()) > 0.01 and seen == pytest.approx({"student": 0.01, "teacher": 0.01}, rel=1e-3)
    assert {g["lr"] for g in run.optimizer.param_groups} == {5e-4}
    assert all(p.grad is None for m in step.trained().values() for p in m.parameters())


@pytest.mark.parametrize(("who", "method", "part"), [("student", "contrastive", "stu"), ("teacher", "lead", "lyr")])
def test_a_loss_that_is_not_finite_stops_training_and_names_the_part(
    tiny_model: Path, teacher_folder: Path, data: TrainingData, tmp_path: Path, who: str, method: str, part: str
) -> None:
    step = build(tiny_model, teacher_folder, "de", method)
    with torch.no_grad():
        next(step.trained()[who].parameters()).fill_(torch.nan)
    with pytest.raises(LeadError, match=f"step 1: .*{part}.*nan"):
        loop(step, data, tmp_path).run()


def test_gradients_that_are_not_finite_stop_training_before_the_weights_change(
    tiny_model: Path, teacher_folder: Path, data: TrainingData, tmp_path: Path
) -> None:
    step = build(tiny_model, teacher_folder, "de", "contrastive")
    run = loop(step, data, tmp_path)
    before = {k: v.clone() for k, v in step.student.state_dict().items()}
    next(step.student.parameters()).register_hook(lambda g: g * torch.inf)
    with pytest.raises(LeadError, match="step 1: the gradient of the student is not finite"):
        run.run()
    assert all(torch.equal(v, before[k]) for k, v in step.student.state_dict().items())


def test_training_lowers_the_loss_and_raises_mrr_on_dev(
    tiny_model: Path, tiny_collection: Path, data: TrainingData, tmp_path: Path
) -> None:
    corpus = read_table(tiny_collection / "corpus.parquet", "corpus")
    files = [tiny_collection / f"{name}.parquet" for name in ("queries.train", "qrels.train", "negatives")]
    dev = DevPool(corpus, Queries(corpus["pid"], files[0], files[1], files[2], 1, 10), 48, 4)
    wide = TrainingData(corpus, data.queries, 12, 2, seed=5)
    model = make_retriever(tiny_model, pooling="mean", normalise="unit", scale=20.0)
    step = Step(model, Train(**{**TRAIN, "micro_tokens": 1000, "dropout": 0.0}), 1)
    run = loop(step, wide, tmp_path, dev, steps=30, lr=1e-3, select="best", dev_every=15)
    run.run()
    losses = [line["loss"]["total"] for line in run.lines if "loss" in line]
    mrr = [line["dev_mrr10"]["student"] for line in run.lines if "dev_mrr10" in line]
    assert len(losses) == 30 and len(mrr) == 3
    assert sum(losses[-8:]) < 0.8 * sum(losses[:8])
    assert max(mrr) > mrr[0] + 0.1
    # the weights kept are the best on dev
    assert dev.mrr(step.student, run.encoder) == pytest.approx(max(mrr), abs=1e-3)


def test_dev_mrr_equals_a_ranking_by_hand_with_ties_against_the_model(tiny_model: Path, tiny_collection: Path) -> None:
    corpus = read_table(tiny_collection / "corpus.parquet", "corpus")
    files = [tiny_collection / f"{name}.parquet" for name in ("queries.dev", "qrels.dev", "negatives")]
    queries = Queries(corpus["pid"], files[0], files[1], files[2], 1, 10)
    dev = DevPool(corpus, queries, 10, 5)
    model = make_retriever(tiny_model, "cb").train()
    got = dev.mrr(model, MicroEncoder(60, "fp32"))
    assert model.training
    qrels = {(r["qid"], r["pid"]) for r in read_table(files[1]).to_pylist()}
    qids, pids = read_table(files[0])["qid"].to_pylist(), corpus["pid"].to_pylist()
    mined = [r["pid"] for r in read_table(files[2]).to_pylist() if r["qid"] in qids and r["rank"] <= 5]
    pool = {pid for _, pid in qrels} | set(mined)
    pool_pids = [pid for pid in pids if pid in pool]
    assert dev.passages == corpus["text"].take(pa.array([pids.index(p) for p in pool_pids])).to_pylist()
    model.eval()
    with torch.no_grad():
        q = model.encode(model.tokenize("query", dev.queries), (4,))
        p = model.encode(model.tokenize("passage", dev.passages), (4,))
    assert q.mask is not None and p.mask is not None
    total = 0.0
    for i, qid in enumerate(qids):
        s = [float((q.x[0, i][q.mask[i]] @ p.x[0, j][p.mask[j]].T).max(1).values.sum()) for j in range(len(pool_pids))]
        best = max(s[j] for j, pid in enumerate(pool_pids) if (qid, pid) in qrels)
        rank = 1 + sum(s[j] >= best for j, pid in enumerate(pool_pids) if (qid, pid) not in qrels)
        total += 1 / rank if rank <= 10 else 0.0
    assert got == pytest.approx(total / 10, abs=1e-6)
