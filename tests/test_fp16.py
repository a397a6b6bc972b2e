"""`precision: fp16`: the scaled loss, skipped steps, exact resume, and ranks that skip together."""

from __future__ import annotations

import json
import logging
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from conftest import make_retriever
from forked import run_ranks
from steps import SCORING, TRAIN, build, gradients, take
from test_ranks import free_port
from torch import Tensor

from lead.config.schema import Train
from lead.device import allow_tf32, has_bf16, has_fp16, loss_scaler, number_format, without_tf32
from lead.errors import LeadError
from lead.methods.losses import Loss
from lead.models.microbatch import MicroBatchEncoder
from lead.train.data import TrainingData
from lead.train.exchange import Exchange
from lead.train.loop import Loop, clip_gradients
from lead.train.step import Encoded, Prepared, Step

CPU = torch.device("cpu")
OVERFLOWS = 2.0**127  # a factor with which some gradient of these models is not finite


def trained(step: Step, data: TrainingData, state: Path, scale: float | None = None, **train: Any) -> Loop:
    """A loop of 8 steps that has ended, with this first factor on the loss; it doubles after 3 good steps."""
    options = Train(**{**TRAIN, "steps": 8, "lr": 1e-3, **train})
    if scale is not None:
        step.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=3)
    run = Loop(step, data, None, options, state)
    run.run()
    return run


def weights(step: Step) -> dict[str, Tensor]:
    return {f"{n}.{k}": v for n, m in step.trained().items() for k, v in m.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


def lines(run: Loop) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.metrics.path.read_text().splitlines()]


def test_what_a_precision_means_on_this_cpu() -> None:
    formats = {p: number_format("cpu", p) for p in ("bf16", "fp16", "fp32")}
    assert formats == {
        "bf16": torch.bfloat16 if has_bf16("cpu") else torch.float32,
        "fp16": torch.float16 if has_fp16() else torch.float32,
        "fp32": torch.float32,
    }
    assert [loss_scaler(CPU, p).is_enabled() for p in formats] == [False, True, False]


def test_a_gpu_without_bf16_computes_in_fp16_with_a_scaled_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    for has, dtype in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr("lead.device.has_bf16", lambda kind, has=has: has)
        assert number_format("cuda", "bf16") == dtype and number_format("cuda", "fp16") == torch.float16
        assert number_format("cuda", "fp32") == torch.float32


def multiplies_in_tf32() -> bool:
    matmul: Any = torch.backends.cuda.matmul
    return bool(matmul.fp32_precision == "tf32" if hasattr(matmul, "fp32_precision") else matmul.allow_tf32)


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="PyTorch before 2.9")
def test_a_program_that_chose_tf32_by_the_newer_name_is_no_error_and_keeps_its_choice() -> None:
    """PyTorch raises where the older name is read after the newer one was set alone."""
    matmul: Any = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        for theirs in ("ieee", "tf32"):
            matmul.allow_tf32 = theirs == "ieee"
            matmul.fp32_precision = theirs
            with pytest.raises(RuntimeError):
                matmul.allow_tf32  # noqa: B018
            with warnings.catch_warnings(), without_tf32():
                warnings.simplefilter("error")
                assert not multiplies_in_tf32()
            assert matmul.fp32_precision == theirs
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                allow_tf32("bf16")
            assert multiplies_in_tf32() and matmul.allow_tf32
    finally:
        matmul.allow_tf32 = before == "tf32"
        matmul.fp32_precision = before


def test_tf32_is_for_scores_of_half_precision_encoders_only() -> None:
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        for precision, allowed in (("bf16", True), ("fp16", True), ("fp32", False)):
            allow_tf32(precision)
            assert torch.backends.cuda.matmul.allow_tf32 is allowed
            with without_tf32():
                assert multiplies_in_tf32() is False
            assert torch.backends.cuda.matmul.allow_tf32 is allowed
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.skipif(has_fp16(), reason="this CPU computes in fp16")
@pytest.mark.parametrize("cache_above", [10**9, 1])
def test_a_scaled_loss_changes_no_bit_of_the_weights(
    tiny_model: Path, teacher_folder: Path, data: TrainingData, tmp_path: Path, cache_above: int
) -> None:
    """The factor is a power of two. Also through cached gradients and into a jointly trained teacher."""
    runs = {}
    for precision in ("fp32", "fp16"):
        step = build(tiny_model, teacher_folder, "de", "lead", precision=precision, cache_above=cache_above)
        runs[precision] = trained(step, data, tmp_path / precision, precision=precision)
    assert equal(*(weights(run.step) for run in runs.values()))
    scales = [line.pop("loss_scale") for line in lines(runs["fp16"])]
    assert scales == [65536.0] * 8
    for a, b in zip(*(lines(run) for run in runs.values()), strict=True):
        assert {**a, "seconds": 0} == {**{k: v for k, v in b.items() if k != "loss_scale"}, "seconds": 0}


def test_a_step_whose_gradient_overflows_is_skipped_logged_and_halves_the_factor(
    tiny_model: Path, data: TrainingData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    step = build(tiny_model, tiny_model, "de", "contrastive", precision="fp16")
    before = {k: v.clone() for k, v in weights(step).items()}
    with caplog.at_level(logging.INFO, "lead"):
        one = trained(step, data, tmp_path / "one", OVERFLOWS, steps=1, precision="fp16")
    assert equal(before, weights(step)) and "step 1 is skipped: a gradient overflowed" in caplog.text
    (line,) = lines(one)
    assert line["gradient_norm"] == {"model": None} and line["loss_scale"] == OVERFLOWS / 2
    many = trained(build(tiny_model, tiny_model, "de", "contrastive"), data, tmp_path / "many", OVERFLOWS)
    norms = [line["gradient_norm"]["model"] for line in lines(many)]
    assert None in norms and norms[-1] is not None and not equal(before, weights(many.step))


def test_a_training_that_goes_on_has_the_factor_and_the_steps_since_it_grew(
    tiny_model: Path, data: TrainingData, tmp_path: Path
) -> None:
    ended = {}
    for name, every in (("whole", 100), ("cut", 5)):
        step = build(tiny_model, tiny_model, "de", "contrastive", precision="fp16", dropout=0.1)
        options = {"checkpoint_every": every, "precision": "fp16", "dropout": 0.1}
        run = trained(step, data, tmp_path / name, OVERFLOWS, **options)
        if name == "cut":  # as if it had been killed after step 7: all but the checkpoint of step 5 is lost
            step = build(tiny_model, tiny_model, "de", "contrastive", precision="fp16", dropout=0.1)
            run = trained(step, data, tmp_path / name, **options)
        ended[name] = run
    whole, cut = (ended[name] for name in ("whole", "cut"))
    assert equal(weights(whole.step), weights(cut.step))
    assert whole.step.scaler.state_dict() != {} and [{**line, "seconds": 0} for line in lines(whole)] == [
        {**line, "seconds": 0} for line in lines(cut)
    ]


def test_a_gradient_that_is_never_finite_ends_training_with_one_line(
    tiny_model: Path, data: TrainingData, tmp_path: Path
) -> None:
    step = build(tiny_model, tiny_model, "de", "contrastive", precision="fp16")
    next(step.student.parameters()).register_hook(lambda grad: grad * torch.nan)
    with pytest.raises(LeadError, match=r"step 3: the gradient of the model is not finite; lower train.lr"):
        trained(step, data, tmp_path, 2.0**-12, precision="fp16")


def test_finite_gradients_with_squares_that_overflow_are_clipped_and_not_skipped(
    tiny_model: Path, data: TrainingData, tmp_path: Path
) -> None:
    """Their sum is above what float32 holds. One tensor has nearly all of the norm, so it is clipped to the same."""
    ended = {}
    for factor in (1e10, 1e28):
        step = build(tiny_model, tiny_model, "de", "contrastive", precision="fp16", dropout=0.0)
        weight = next(step.student.parameters())
        weight.register_hook(lambda grad, factor=factor: grad * factor)
        before = weight.detach().clone()
        (line,) = lines(trained(step, data, tmp_path / str(factor), steps=1, precision="fp16", dropout=0.0))
        assert line["loss_scale"] == 65536.0
        ended[factor] = line["gradient_norm"]["model"], weight.detach() - before
    (small, a), (large, b) = ended.values()
    assert large == pytest.approx(small * 1e18, rel=1e-3) and large**2 > torch.finfo(torch.float32).max
    assert a.abs().max() > 0 and torch.allclose(a, b, rtol=1e-3)


def test_a_norm_that_float32_does_not_hold_is_clipped_and_what_is_not_finite_is_left() -> None:
    model = torch.nn.Linear(4, 4, bias=False)
    model.weight.grad = torch.full((4, 4), 3e38)
    assert clip_gradients(model, 1.0) == pytest.approx(1.2e39)
    assert torch.allclose(model.weight.grad, torch.full((4, 4), 0.25))
    model.weight.grad[0, 0] = torch.inf
    assert clip_gradients(model, 1.0) == torch.inf and model.weight.grad[0, 0] == torch.inf


def test_emulated_fp16_gives_nearly_the_gradients_of_fp32(
    tiny_model: Path, teacher_folder: Path, data: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU computes, on the CPU."""
    monkeypatch.setattr("lead.device.has_fp16", lambda: True)
    found = {}
    for precision in ("fp32", "fp16"):
        step = build(tiny_model, teacher_folder, "de", "lead", precision=precision, dropout=0.0)
        if step.scaler.is_enabled():  # with the usual factor this step would be skipped: some gradients are large
            step.scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        loss = take(step, data.batch(0), 0)
        scale = step.scaler.get_scale()
        found[precision] = float(loss.total.detach()), {k: g / scale for k, g in gradients(step).items()}
    (a, exact), (b, near) = found["fp32"], found["fp16"]
    assert a != b and b == pytest.approx(a, rel=0.01)
    all_exact, all_near = (torch.cat([g.flatten() for g in of.values()]) for of in (exact, near))
    assert float((all_near - all_exact).norm()) <= 0.02 * float(all_exact.norm())  # not finite: not smaller


def test_fp16_vectors_are_near_those_of_fp32(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lead.device.has_fp16", lambda: True)
    model = make_retriever(tiny_model).eval()
    ids = model.tokenize("passage", ["a matrix and its shape", "the stride of an array"])
    with torch.no_grad():
        a, b = (MicroBatchEncoder(4096, precision)(model, ids, (4,), "p").x for precision in ("fp16", "fp32"))
    assert a.dtype == torch.float32 and not torch.equal(a, b) and torch.allclose(a, b, atol=0.02)


class Overflowing(Step):
    """The loss of the last rank is huge in the second step."""

    def loss(self, prepared: Prepared, step: int) -> tuple[Loss, list[Encoded]]:
        loss, encoded = super().loss(prepared, step)
        huge = step == 1 and self.exchange.rank == self.exchange.world - 1
        return replace(loss, total=loss.total * (1e38 if huge else 1.0)), encoded


def overflow_on_one(rank: int, port: int, folder: Path, data: TrainingData, out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    assert Exchange.here().rank == rank
    train = Train(**{**TRAIN, "steps": 3, "precision": "fp16", "lr": 1e-3})
    step = Overflowing(make_retriever(folder, "de", **SCORING).train(), train, 3)
    step.scaler = torch.amp.GradScaler(
        "cpu", init_scale=1024.0
    )  # gradients overflow with the default, 65536, on some CPUs
    norms: list[Any] = []
    run = Loop(step, data, None, train, out / "state")
    update = run._update
    run._update = lambda s: norms.append(update(s)) or norms[-1]  # type: ignore[method-assign,func-returns-value]
    run.run()
    torch.save((norms, step.scaler.state_dict(), weights(step)), out / f"{rank}.pt")
    dist.destroy_process_group()


def test_ranks_skip_the_same_steps(tiny_model: Path, data: TrainingData, tmp_path: Path) -> None:
    run_ranks(overflow_on_one, (free_port(), tiny_model, data, tmp_path), 2)
    (a, scale, left), (b, other, right) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert a == b and [norm["model"] is None for norm in a] == [False, True, False]
    assert scale == other and scale["scale"] == 512.0 and equal(left, right)
