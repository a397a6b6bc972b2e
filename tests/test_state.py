"""Which training a state folder belongs to: what may change between a kill and the next attempt, and what is said."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from forked import done
from safetensors.torch import load_file
from test_resume import TRAIN, command, inputs, lines, outputs, stopped_at

from lead.config.schema import Lengths, ModelRef, Train
from lead.config.stages import TrainSettings
from lead.store.tables import read_table, write_table
from lead.train import stages


def test_a_state_is_only_resumed_with_the_same_recipe_and_inputs(tiny_collection: Path, tmp_path: Path) -> None:
    files: dict[str, Path | None] = {**inputs(tiny_collection), "start": None}
    name = stages.state_name(stages.state_key(TrainSettings(), files))

    def other(settings: TrainSettings | None = None, **changed: Path) -> bool:
        return stages.state_name(stages.state_key(settings or TrainSettings(), files | changed)) != name

    def train(**keys: Any) -> TrainSettings:
        return TrainSettings(train=Train(**keys))

    assert not other() and other(TrainSettings(seed=2)) and other(train(lr=1e-4)) and other(train(select="best"))
    for keys in ({"micro_tokens": 1}, {"cache_above": 1}, {"checkpoint_every": 1}, {"checkpoint_keep": 9}):
        assert not other(train(**keys)), keys
    assert not other(train(dev_every=1))
    best = [stages.state_key(train(select="best", dev_every=n), files) for n in (1, 2)]
    assert best[0] != best[1]  # it decides which weights are kept
    copy = tmp_path / "elsewhere.parquet"
    copy.write_bytes((tiny_collection / "negatives.parquet").read_bytes())
    assert not other(negatives=copy)  # contents, not names
    copy.write_bytes((tiny_collection / "corpus.parquet").read_bytes())
    assert other(negatives=copy)


def test_the_code_of_a_state_is_all_that_training_imports_but_what_computes_nothing(tmp_path: Path) -> None:
    listed = "import sys, lead.train.stages; print(*(m for m in sys.modules if m.startswith('lead.')))"
    used = subprocess.run([sys.executable, "-c", listed], capture_output=True, text=True, check=True).stdout.split()
    files = {name.removeprefix("lead.").replace(".", "/") + ".py" for name in used}
    package = Path(stages.__file__).parents[1]
    counted = stages.state_key(TrainSettings(), {})["code"].keys()
    computes_nothing = {"errors.py", "imports.py", "store/atomic.py", "store/checksums.py", "store/provenance.py"}
    rest = {name for name in files - counted if (package / name).is_file() and not name.startswith("config/")}
    assert rest <= computes_nothing

    shutil.copytree(package, tmp_path / "lead")
    before = stages.state_key(TrainSettings(), {}, tmp_path / "lead")
    for name in ("cli.py", "report/table.py", "plan/plan.py", "evaluation/evaluate.py", "retrieval/search.py"):
        with (tmp_path / "lead" / name).open("a") as file:
            file.write("# edited\n")
    assert stages.state_key(TrainSettings(), {}, tmp_path / "lead") == before
    with (tmp_path / "lead/methods/losses.py").open("a") as file:
        file.write("# edited\n")
    assert stages.state_key(TrainSettings(), {}, tmp_path / "lead") != before


@pytest.mark.slow
def test_memory_settings_may_change_after_a_kill_and_a_state_that_is_ignored_is_explained(
    tiny_model: Path, tiny_collection: Path, tmp_path: Path
) -> None:
    train = TRAIN.model_copy(update={"steps": 24, "dropout": 0.0, "precision": "fp32", "select": "last"})
    paths = outputs(tmp_path)

    def words(collection: Path = tiny_collection, **keys: Any) -> list[str]:
        settings = TrainSettings(
            model=ModelRef(reference=f"path:{tiny_model}"), lengths=Lengths(query=8, passage=24),
            train=train.model_copy(update=keys),
        )  # fmt: skip
        return command("train", settings, inputs(collection) | paths)

    stopped_at(words(), paths["state"], 10, signal.SIGTERM)
    other = Path(shutil.copytree(tiny_collection, tmp_path / "other"))
    table = read_table(other / "negatives.parquet")
    write_table(table.slice(1), other / "negatives.parquet", "ranked")
    said = stopped_at(words(other, lr=2e-3), paths["state"], 15, signal.SIGTERM)
    assert "training starts anew; the checkpoints in" in said
    assert "train.lr: 0.001 -> 0.002; other inputs (negatives)" in said
    status, said = done(words(micro_tokens=100, cache_above=50, checkpoint_every=7))
    assert status == 0 and "going on from the checkpoint of step" in said and "starts anew" not in said, said
    assert "train.micro_tokens: 200 -> 100" in said
    undisturbed = outputs(tmp_path / "undisturbed")
    settings = TrainSettings.model_validate_json(words()[2])
    stages.train(settings=settings, gpu=0, start=None, **inputs(tiny_collection), **undisturbed)
    a, b = (load_file(p["out"] / "model.safetensors") for p in (paths, undisturbed))
    assert max(float((a[k] - b[k]).abs().mean()) for k in a if not k.endswith("key.bias")) < 1e-5
    assert [line["step"] for line in lines(paths["metrics"])] == [
        line["step"] for line in lines(undisturbed["metrics"])
    ]
