"""Checkpoints: what is saved is what is restored, damage is stepped over, nothing is pickled."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lead.errors import LeadError
from lead.train import checkpoint


def model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))


def make(seed: int = 0) -> tuple[dict[str, nn.Module], torch.optim.Optimizer]:
    models = {"student": model(seed), "teacher": model(seed + 1)}
    groups = [{"params": list(m.parameters()), "lr": 0.01, "peak": 0.01, "weight_decay": 0.1} for m in models.values()]
    return models, torch.optim.AdamW(groups, fused=True)


def steps(models: dict[str, nn.Module], optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for s in range(first, last):
        x = torch.randn(5, 4, generator=torch.Generator().manual_seed(s))
        sum(m(x).square().sum() for m in models.values()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def weights(models: dict[str, nn.Module]) -> dict[str, Tensor]:
    return {f"{name}.{k}": v.clone() for name, m in models.items() for k, v in m.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_training_goes_on_from_a_checkpoint_bit_for_bit(tmp_path: Path) -> None:
    models, optimizer = make()
    steps(models, optimizer, 0, 4)
    extra = {"lines": [{"step": 1, "loss": 0.5}], "best": -1.0}
    checkpoint.save(tmp_path, 4, models, optimizer, extra, keep=2)
    steps(models, optimizer, 4, 9)
    again, other_optimizer = make(seed=7)
    assert checkpoint.restore(tmp_path, again, other_optimizer) == (4, extra)
    assert all(float(s["step"]) == 4 for s in other_optimizer.state.values())
    steps(again, other_optimizer, 4, 9)
    assert same(weights(again), weights(models))
    a, b = optimizer.state_dict()["state"], other_optimizer.state_dict()["state"]
    assert set(a) == set(b) == set(range(12))
    assert all(torch.equal(a[i][k], b[i][k]) for i in a for k in ("step", "exp_avg", "exp_avg_sq"))


def test_nothing_to_restore_is_none_and_changes_nothing(tmp_path: Path) -> None:
    models, optimizer = make()
    before = weights(models)
    assert checkpoint.restore(tmp_path / "no such folder", models, optimizer) is None
    assert same(weights(models), before)


def test_only_the_last_n_checkpoints_are_kept(tmp_path: Path) -> None:
    models, optimizer = make()
    for step in (1, 2, 3, 10):
        steps(models, optimizer, step, step + 1)
        checkpoint.save(tmp_path, step, models, optimizer, None, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000003", "step-00000010"]


def test_a_checkpoint_is_safetensors_and_json_only(tmp_path: Path) -> None:
    models, optimizer = make()
    steps(models, optimizer, 0, 1)
    checkpoint.save(tmp_path, 1, models, optimizer, {"lines": []}, keep=1)
    assert sorted(p.name for p in (tmp_path / "step-00000001").iterdir()) == [
        "SHA256SUMS",
        "optimizer.safetensors",
        "state.json",
        "student.safetensors",
        "teacher.safetensors",
    ]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


FILES = ["student.safetensors", "teacher.safetensors", "optimizer.safetensors", "state.json", "SHA256SUMS"]
DAMAGE: dict[str, Any] = {
    f"{how.__name__} {name}": lambda f, how=how, name=name: how(f / name)
    for name in FILES
    for how in (flip, truncate, Path.unlink)
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_newest_checkpoint_is_named_in_a_warning_and_the_one_before_is_used(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    models, optimizer = make()
    kept = {}
    for step in (1, 2):
        steps(models, optimizer, step, step + 1)
        checkpoint.save(tmp_path, step, models, optimizer, {"at": step}, keep=2)
        kept[step] = weights(models)
    DAMAGE[damage](tmp_path / "step-00000002")
    again, other_optimizer = make(seed=7)
    with caplog.at_level(logging.WARNING, "lead"):
        assert checkpoint.restore(tmp_path, again, other_optimizer) == (1, {"at": 1})
    assert same(weights(again), kept[1])
    assert len(caplog.records) == 1 and "step-00000002" in caplog.text


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_in_nobodys_way_when_training_comes_there_again(tmp_path: Path, name: str) -> None:
    models, optimizer = make()
    for step in (1, 2, 3):
        steps(models, optimizer, step, step + 1)
        checkpoint.save(tmp_path, step, models, optimizer, step, keep=2)
    (tmp_path / "step-00000003" / name).unlink()
    assert checkpoint.restore(tmp_path, models, optimizer) == (2, 2)
    steps(models, optimizer, 3, 4)
    checkpoint.save(tmp_path, 3, models, optimizer, 3, keep=2)
    assert checkpoint.restore(tmp_path, models, optimizer) == (3, 3)
    (tmp_path / "step-00000003" / name).unlink()
    checkpoint.save(tmp_path, 2, models, optimizer, 2, keep=1)  # of keep = 1, it is not the damaged one that stays
    assert checkpoint.restore(tmp_path, models, optimizer) == (2, 2)


def test_when_every_checkpoint_is_damaged_training_starts_over(tmp_path: Path) -> None:
    models, optimizer = make()
    steps(models, optimizer, 0, 1)
    checkpoint.save(tmp_path, 1, models, optimizer, None, keep=2)
    flip(tmp_path / "step-00000001" / "student.safetensors")
    before = weights(models)
    assert checkpoint.restore(tmp_path, models, optimizer) is None
    assert same(weights(models), before)


def test_what_a_kill_leaves_of_a_half_written_checkpoint_is_not_taken_for_one(tmp_path: Path) -> None:
    models, optimizer = make()
    steps(models, optimizer, 0, 1)
    checkpoint.save(tmp_path, 1, models, optimizer, None, keep=2)
    half = tmp_path / ".step-00000002.abc.tmp"
    half.mkdir()
    (half / "student.safetensors").write_bytes(b"\0" * 10)
    found = checkpoint.restore(tmp_path, models, optimizer)
    assert found is not None and found[0] == 1


def test_a_checkpoint_of_another_model_is_refused_not_loaded_in_part(tmp_path: Path) -> None:
    models, optimizer = make()
    steps(models, optimizer, 0, 1)
    checkpoint.save(tmp_path, 1, models, optimizer, None, keep=2)
    larger = {"student": nn.Sequential(*model(), nn.Linear(2, 2)), "teacher": model()}
    with pytest.raises((LeadError, RuntimeError), match="(?i)missing key"):
        checkpoint.restore(tmp_path, larger, torch.optim.AdamW([p for m in larger.values() for p in m.parameters()]))
