"""The loop: schedule, optimizer, clipping, losses that are not finite, and that it trains."""

from __future__ import annotations

import json
import logging
import math
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from conftest import make_retriever
from steps import TRAIN, build, lead_step

from lead.config.schema import Distil, Layers, Train
from lead.errors import LeadError, Preempted
from lead.models.microbatch import MicroBatchEncoder
from lead.store.tables import read_table
from lead.train.ahead import LookAhead
from lead.train.data import Batch, Queries, TrainingData
from lead.train.dev import DevPool
from lead.train.loop import Loop, make_optimizer, schedule
from lead.train.metrics import Metrics
from lead.train.step import DistilStep, Step


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


def lines(run: Loop) -> list[dict[str, Any]]:
    """The metrics that a training has written so far."""
    return [json.loads(line) for line in run.metrics.path.read_text().splitlines()]


def loop(step: Step, data: TrainingData, tmp_path: Path, dev: DevPool | None = None, **train: Any) -> Loop:
    return Loop(step, data, dev, Train(**{**TRAIN, "steps": 3, **train}), tmp_path / "state")


def test_an_update_clips_each_model_by_its_own_norm_and_follows_the_schedule(
    tiny_model: Path, teacher_folder: Path, data: TrainingData, tmp_path: Path
) -> None:
    step = lead_step(tiny_model, teacher_folder)
    run = loop(step, data, tmp_path, clip=0.01, steps=10, lr=1e-3, warmup=0.2)
    step(step.prepare(data.batch(0)), 0)
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


@pytest.mark.parametrize(("who", "method", "part"), [("model", "contrastive", "stu"), ("teacher", "lead", "lyr")])
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
    with pytest.raises(LeadError, match="step 1: the gradient of the model is not finite"):
        run.run()
    assert all(torch.equal(v, before[k]) for k, v in step.student.state_dict().items())


@pytest.mark.parametrize("what", ["loss part `stu` is nan", "the gradient of the model is not finite"])
def test_training_that_diverges_names_the_last_good_checkpoint_and_keeps_it(
    tiny_model: Path, teacher_folder: Path, data: TrainingData, tmp_path: Path, what: str
) -> None:
    step = build(tiny_model, teacher_folder, "de", "contrastive")
    run = loop(step, data, tmp_path, steps=6, checkpoint_every=2)

    def diverge(parameters: Any, _: Any, __: Any) -> None:
        if len(lines(run)) == 4:
            weight = next(step.student.parameters())
            weight.register_hook(lambda g: g * torch.inf)
            if "nan" in what:
                torch.nn.init.constant_(weight, torch.nan)

    run.optimizer.register_step_post_hook(lambda *a: diverge(*a))
    good = tmp_path / "state" / "step-00000004"
    with pytest.raises(LeadError, match=f"step 6: .*{what}.*last good checkpoint: {good}"):
        run.run()
    again = loop(build(tiny_model, teacher_folder, "de", "contrastive"), data, tmp_path, steps=6, checkpoint_every=2)
    again.run()
    assert [line["step"] for line in lines(again)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("damage", [lambda p: p.write_bytes(p.read_bytes()[:-9]), lambda p: shutil.rmtree(p.parent)])
def test_training_starts_over_when_the_best_weights_so_far_cannot_be_read(
    tiny_model: Path, teacher_folder: Path, tiny_collection: Path, data: TrainingData, tmp_path: Path,
    damage: Any, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    corpus = read_table(tiny_collection / "corpus.parquet", "corpus")
    files = [tiny_collection / f"{name}.parquet" for name in ("queries.dev", "qrels.dev", "negatives")]
    dev = DevPool(corpus, Queries(corpus["pid"], files[0], files[1], files[2], 1, 10), 4, 2)
    weights = []
    for what in ("undisturbed", "stopped", "again"):
        step = build(tiny_model, teacher_folder, "de", "contrastive")
        run = loop(step, data, tmp_path / what[:1], dev, steps=4, checkpoint_every=2, dev_queries=4, select="best")
        if what == "stopped":
            run.optimizer.register_step_post_hook(
                lambda *_, run=run: setattr(run.told, "signal", {1: signal.SIGTERM}.get(len(lines(run))))
            )
            with pytest.raises(Preempted):
                run.run()
            damage(tmp_path / "s/state/best/model/model.safetensors")
            (tmp_path / "s").rename(tmp_path / "a")
            continue
        run.run()
        weights.append({k: v.clone() for k, v in step.student.state_dict().items()})
    assert "training starts over" in caplog.text and "best/model" in caplog.text
    assert all(torch.equal(v, weights[1][k]) for k, v in weights[0].items())


@pytest.mark.parametrize("method", ["rd", "lead"])
def test_a_frozen_teacher_stays_in_eval_mode_all_along(
    tiny_model: Path, teacher_folder: Path, data: TrainingData, tiny_collection: Path, tmp_path: Path, method: str
) -> None:
    """With dropout its scores would be noise; `Loop` puts what it trains into train mode, before and after dev."""
    corpus = read_table(tiny_collection / "corpus.parquet", "corpus")
    files = [tiny_collection / f"{name}.parquet" for name in ("queries.train", "qrels.train", "negatives")]
    dev = DevPool(corpus, Queries(corpus["pid"], files[0], files[1], files[2], 1, 10), 6, 4)
    step = build(tiny_model, teacher_folder, "de", method, Distil(layers=Layers(k=3), joint=False), dropout=0.2)
    assert isinstance(step, DistilStep)
    modes, ask = [], step.loss

    def watched(batch: Batch, s: int) -> Any:
        modes.append((step.student.training, any(m.training for m in step.teacher.modules())))
        return ask(batch, s)

    step.loss = watched  # type: ignore[method-assign]
    loop(step, data, tmp_path, dev, dropout=0.2, dev_queries=6, dev_every=1).run()
    assert modes == [(True, False)] * 3


def test_training_lowers_the_loss_and_raises_mrr_on_dev(
    tiny_model: Path, tiny_collection: Path, data: TrainingData, tmp_path: Path
) -> None:
    corpus = read_table(tiny_collection / "corpus.parquet", "corpus")
    files = [tiny_collection / f"{name}.parquet" for name in ("queries.train", "qrels.train", "negatives")]
    dev = DevPool(corpus, Queries(corpus["pid"], files[0], files[1], files[2], 1, 10), 48, 4)
    wide = TrainingData(corpus, data.queries, 12, 2, seed=5)
    model = make_retriever(tiny_model, pooling="mean", normalise="unit", scale=20.0)
    step = Step(model, Train(**{**TRAIN, "micro_tokens": 1000, "dropout": 0.0}), 1)
    run = loop(step, wide, tmp_path, dev, steps=30, lr=1e-3, select="best", dev_queries=1, dev_every=15)
    run.run()
    losses = [line["loss"]["total"] for line in lines(run) if "loss" in line]
    mrr = [line["dev_mrr10"]["model"] for line in lines(run) if "dev_mrr10" in line]
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
    got = dev.mrr(model, MicroBatchEncoder(60, "fp32"))
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


# --- what a training says of itself ----------------------------------------------------------------------------------
def test_metrics_are_in_the_state_folder_step_by_step_and_no_checkpoint_holds_them(
    tiny_model: Path, teacher_folder: Path, data: TrainingData, tmp_path: Path
) -> None:
    run = loop(build(tiny_model, teacher_folder, "de", "contrastive"), data, tmp_path, steps=5, checkpoint_every=2)
    seen: list[list[int]] = []
    run.optimizer.register_step_post_hook(lambda *_: seen.append([line["step"] for line in lines(run)]))
    run.run()
    assert seen == [list(range(1, n)) for n in range(1, 6)]
    assert set(json.loads((tmp_path / "state/step-00000004/state.json").read_text())["extra"]) == {"best"}
    run.metrics.publish(tmp_path / "metrics.jsonl")
    assert (tmp_path / "metrics.jsonl").read_bytes() == run.metrics.path.read_bytes()


@pytest.mark.parametrize(
    "left", [b"", b'{"step": 3, "loss": {"to', b'{"step": 3, "loss": 1}\n{"step": 4}\n', b"\0\0\n"]
)
def test_metrics_are_cut_back_to_the_checkpoint(tmp_path: Path, left: bytes) -> None:
    good = (
        b'{"step": 0, "dev_mrr10": {"model": 0.5}}\n{"step": 1}\n{"step": 2}\n{"step": 2, "dev_mrr10": {"model": 1}}\n'
    )
    metrics = Metrics(tmp_path / "metrics.jsonl")
    metrics.path.write_bytes(good + left)
    metrics.resume(2)
    metrics.append({"step": 3})
    metrics.close()
    assert metrics.path.read_bytes() == good + b'{"step": 3}\n'
    metrics.resume(0)
    assert metrics.path.read_bytes() == good.splitlines(keepends=True)[0]
    metrics.resume(-1)  # no checkpoint: all is written again
    assert metrics.path.read_bytes() == b""
    metrics.close()


def test_metrics_on_a_full_disk_are_one_line() -> None:
    metrics = Metrics(Path("/dev/full"))
    metrics._file = metrics.path.open("ab", buffering=0)
    with pytest.raises(LeadError, match="cannot write /dev/full: No space left on device"):
        metrics.append({"step": 1})
    metrics.close()


def test_the_start_that_no_later_step_beats_is_kept_and_said_to_be(
    tiny_model: Path, teacher_folder: Path, tiny_collection: Path, data: TrainingData, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    corpus = read_table(tiny_collection / "corpus.parquet", "corpus")
    files = [tiny_collection / f"{name}.parquet" for name in ("queries.dev", "qrels.dev", "negatives")]
    dev = DevPool(corpus, Queries(corpus["pid"], files[0], files[1], files[2], 1, 10), 4, 2)
    step = build(tiny_model, teacher_folder, "de", "contrastive")
    start = {k: v.clone() for k, v in step.student.state_dict().items()}
    with caplog.at_level("INFO", "lead"):
        run = loop(step, data, tmp_path, dev, steps=4, lr=1e-9, dev_queries=4, dev_every=2, select="best")
        run.run()
    first, *_, last = (line["dev_mrr10"]["model"] for line in lines(run) if "dev_mrr10" in line)
    assert first == last  # such small steps change no rank
    (said,) = [r for r in caplog.records if "select: best" in r.getMessage()]
    assert said.levelno == logging.WARNING
    assert (
        f"the weights of step 0, those before training: MRR@10 on dev {first:.4f}, after the last step (4)"
        in caplog.text
    )
    assert all(torch.equal(v, start[k]) for k, v in step.student.state_dict().items())


# --- looking ahead ---------------------------------------------------------------------------------------------------
def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("look-ahead")]


def test_looking_ahead_changes_no_bit(
    tiny_model: Path, teacher_folder: Path, data: TrainingData, tmp_path: Path
) -> None:
    steps = [build(tiny_model, teacher_folder, "de", "lead", dropout=0.2) for _ in range(2)]
    loop(steps[0], data, tmp_path, steps=6, lr=1e-3).run()
    assert not threads()
    plain = loop(steps[1], data, tmp_path / "never used", steps=6, lr=1e-3)
    for s in range(6):
        steps[1](steps[1].prepare(data.batch(s)), s)
        plain._update(s)
    for name, model in steps[0].trained().items():
        other = steps[1].trained()[name].state_dict()
        assert all(torch.equal(v, other[k]) for k, v in model.state_dict().items())


def test_the_values_come_in_order_and_no_more_than_two_ahead() -> None:
    made: list[int] = []

    def make(step: int) -> int:
        made.append(step)
        return step * step

    with LookAhead(make, range(3, 9)) as ahead:
        for step in range(3, 9):
            assert ahead.take() == step * step
            ahead.settle()
            assert made == list(range(3, min(step + 3, 9)))
    assert not threads()


def test_a_mistake_in_the_thread_is_raised_as_itself_at_its_step_and_leaves_no_thread(
    tiny_model: Path, teacher_folder: Path, data: TrainingData, tmp_path: Path
) -> None:
    class Broken(TrainingData):
        def batch(self, step: int) -> Batch:
            if step == 2:
                raise LeadError("a damaged page")
            return super().batch(step)

    broken = Broken(data.corpus, data.queries, 4, 2, seed=5)
    run = loop(build(tiny_model, teacher_folder, "de", "contrastive"), broken, tmp_path)
    with pytest.raises(LeadError, match="^a damaged page$"):
        run.run()
    assert [line["step"] for line in lines(run)] == [1, 2] and not threads()
