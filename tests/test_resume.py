"""Killed and run again, training ends in the same bytes as if nothing had happened."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_bert, make_retriever
from forked import Lead, done

from lead.config.schema import Distil, Layers, Lengths, ModelRef, Scoring, Train
from lead.config.stages import DistilSettings, TrainSettings
from lead.errors import LeadError
from lead.train import stages

SCORING = Scoring(normalise="unit", scale=10.0, layer_normalise="unit", layer_scale=3.0)
TRAIN = Train(
    steps=36, batch_size=4, negatives=2, precision="bf16", dropout=0.1, lr=1e-3, warmup=0.2, micro_tokens=200,
    cache_above=300, checkpoint_every=5, dev_every=12, dev_queries=4, dev_negatives=3, select="best",
)  # fmt: skip


def inputs(collection: Path) -> dict[str, Path]:
    return {
        "corpus": collection / "corpus.parquet",
        "queries": collection / "queries.train.parquet",
        "qrels": collection / "qrels.train.parquet",
        "dev_queries": collection / "queries.dev.parquet",
        "dev_qrels": collection / "qrels.dev.parquet",
        "negatives": collection / "negatives.parquet",
    }


def outputs(folder: Path) -> dict[str, Path]:
    return {"out": folder / "student", "state": folder / "state", "metrics": folder / "metrics.jsonl"}


def command(stage: str, settings: Any, paths: dict[str, Any]) -> list[str]:
    options = [
        word
        for name, path in paths.items()
        for word in (f"--{name.replace('_', '-')}", *map(str, path if isinstance(path, list) else [path]))
    ]
    settings = settings.model_dump_json(exclude_none=True)
    return [stage, "--settings", settings, "--threads", "1", *options]


def wait_for_checkpoint(lead: Lead, state: Path, step: int) -> None:
    limit = time.monotonic() + 1200
    while not list(state.glob(f"*/step-{step:08d}")):
        assert lead.status is None and time.monotonic() < limit, lead.said
        time.sleep(0.002)


def lines(path: Path) -> list[dict[str, Any]]:
    """The log of training without its wall-clock times."""
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in path.read_text().splitlines()]


STATUS = {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130}


def stopped_at(words: list[str], state: Path, step: int, number: int = signal.SIGKILL) -> str:
    """Run `lead WORDS` and signal it just after the checkpoint of a step; what it said."""
    with Lead(words) as lead:
        wait_for_checkpoint(lead, state, step)
        lead.signal(number)
        said = lead.finished()
    assert lead.status == STATUS.get(number, 75), said
    return said


def killed_and_run_again(
    stage: str, settings: Any, paths: dict[str, Any], state: Path, number: int = signal.SIGKILL
) -> str:
    """Runs the stage, signals it just after the checkpoint of step 10, runs it again to the end; what it said first."""
    words = command(stage, settings, paths)
    said = stopped_at(words, state, 10, number)
    assert list(state.iterdir()) and not paths["out"].exists() and not paths["metrics"].exists()
    status, again = done(words)
    assert status == 0 and "going on from the checkpoint of step" in again, again
    assert not state.exists()
    return said


def assert_same(paths: dict[str, Path], undisturbed: dict[str, Path], models: tuple[str, ...]) -> None:
    for name in models:
        a, b = (p[name] / "model.safetensors" for p in (paths, undisturbed))
        assert a.read_bytes() == b.read_bytes(), name
    assert lines(paths["metrics"]) == lines(undisturbed["metrics"])
    assert not undisturbed["state"].exists()


@pytest.mark.slow
def test_a_killed_dual_encoder_ends_in_the_same_bytes(tiny_model: Path, tiny_collection: Path, tmp_path: Path) -> None:
    settings = TrainSettings(
        model=ModelRef(reference=f"path:{tiny_model}", layers=[2, 4]), scoring=SCORING,
        lengths=Lengths(query=8, passage=24), train=TRAIN,
    )  # fmt: skip
    undisturbed = outputs(tmp_path / "undisturbed")
    stages.train(settings=settings, gpu=0, start=None, **inputs(tiny_collection), **undisturbed)
    paths = outputs(tmp_path / "killed")
    killed_and_run_again("train", settings, inputs(tiny_collection) | paths, paths["state"])
    assert_same(paths, undisturbed, ("out",))
    log = lines(paths["metrics"])
    assert [line["step"] for line in log if "loss" in line] == list(range(1, 37))
    assert [line["step"] for line in log if "dev_mrr10" in line] == [0, 12, 24, 36]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
def test_a_preempted_stage_saves_the_step_at_hand_and_loses_nothing(
    tiny_model: Path, tiny_collection: Path, tmp_path: Path, number: int
) -> None:
    settings = TrainSettings(
        model=ModelRef(reference=f"path:{tiny_model}", layers=[2, 4]), scoring=SCORING,
        lengths=Lengths(query=8, passage=24), train=TRAIN.model_copy(update={"steps": 60}),
    )  # fmt: skip
    undisturbed = outputs(tmp_path / "undisturbed")
    stages.train(settings=settings, gpu=0, start=None, **inputs(tiny_collection), **undisturbed)
    paths = outputs(tmp_path / "preempted")
    said = killed_and_run_again("train", settings, inputs(tiny_collection) | paths, paths["state"], number)
    assert f"stopped by {signal.Signals(number).name} after step" in said and "Traceback" not in said
    assert_same(paths, undisturbed, ("out",))


def long_steps(tiny_model: Path) -> TrainSettings:
    """Steps of seconds."""
    train = TRAIN.model_copy(update={"batch_size": 40, "negatives": 100, "dev_queries": 0, "select": "last"})
    return TrainSettings(
        model=ModelRef(reference=f"path:{tiny_model}"), lengths=Lengths(query=8, passage=24), train=train
    )


def test_a_second_sigint_ends_a_training_at_once(tiny_model: Path, tiny_collection: Path, tmp_path: Path) -> None:
    paths = outputs(tmp_path)
    with Lead(command("train", long_steps(tiny_model), inputs(tiny_collection) | paths)) as lead:
        for awaited in ("M parameters", "a second SIGINT stops at once"):
            while awaited not in lead.said:
                assert lead.status is None, lead.said
                time.sleep(0.01)
            lead.signal(signal.SIGINT)
        lead.finished(60)
    assert lead.status == -signal.SIGINT
    assert not list(paths["state"].glob("*/step-*"))


def test_an_ignored_sighup_does_not_stop_a_training(tiny_model: Path, tiny_collection: Path, tmp_path: Path) -> None:
    settings = TrainSettings(
        model=ModelRef(reference=f"path:{tiny_model}"), lengths=Lengths(query=8, passage=24), train=TRAIN
    )
    words = command("train", settings, inputs(tiny_collection) | outputs(tmp_path))
    with Lead(words, ignored=(signal.SIGHUP,)) as lead:  # as nohup starts it
        wait_for_checkpoint(lead, tmp_path / "state", 10)
        lead.signal(signal.SIGHUP)
        said = lead.finished()
    assert lead.status == 0, said


@pytest.fixture(scope="module")
def models(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Model folders of a student (DE, 4 layers) and a wider teacher (CB, 5 layers)."""
    folder = tmp_path_factory.mktemp("models")
    make_retriever(tiny_model, "de", **SCORING.model_dump()).save(folder / "student")
    wide = make_bert(folder / "bert", layers=5, hidden=48, seed=2)
    make_retriever(wide, "cb", **SCORING.model_dump()).save(folder / "teacher")
    return {"start": folder / "student", "teacher": folder / "teacher"}


@pytest.mark.slow
def test_a_killed_joint_run_ends_in_the_same_student_and_the_same_teacher(
    models: dict[str, Path], tiny_collection: Path, tmp_path: Path
) -> None:
    settings = DistilSettings(train=TRAIN, distil=Distil(layers=Layers(k=2), candidates="own"))
    given = inputs(tiny_collection) | models
    undisturbed, paths = (
        outputs(tmp_path / n) | {"teacher_out": tmp_path / n / "t"} for n in ("undisturbed", "killed")
    )
    stages.distil(settings=settings, gpu=0, **given, **undisturbed)
    killed_and_run_again("distil", settings, given | paths, paths["state"])
    assert_same(paths, undisturbed, ("out", "teacher_out"))
    trained, before = paths["teacher_out"] / "model.safetensors", models["teacher"] / "model.safetensors"
    assert trained.read_bytes() != before.read_bytes()
    log = [line for line in lines(paths["metrics"]) if "loss" in line]
    assert set(log[0]["loss"]) == {"total", "lyr", "rep", "stu", "tch"} and len(log[0]["layer_weights"]) == 2


# --- what a stage refuses, and what it leaves as it was --------------------------------------------------------------
@pytest.mark.parametrize(
    ("stage", "keys", "message"),
    [
        ("train", {"batch_size": 1}, "train.negatives: 0 with train.batch_size: 1 leaves one candidate"),
        ("distil", {}, "train.negatives: 0 with distil.candidates: own leaves one candidate"),
    ],
)
def test_a_loss_with_nothing_to_learn_from_is_refused_before_any_work(
    models: dict[str, Path], tiny_collection: Path, tmp_path: Path, stage: str, keys: dict[str, Any], message: str
) -> None:
    train = TRAIN.model_copy(update={"negatives": 0} | keys)
    with pytest.raises(LeadError, match=message):
        if stage == "train":
            settings = TrainSettings(train=train)
            paths = inputs(tiny_collection) | outputs(tmp_path)
            stages.train(settings=settings, gpu=0, start=models["start"], **paths)
        else:
            distil = DistilSettings(method="rd", train=train, distil=Distil(candidates="own", joint=False))
            paths = inputs(tiny_collection) | models | outputs(tmp_path)
            stages.distil(settings=distil, gpu=0, teacher_out=None, **paths)
    assert not (tmp_path / "state").exists()


def test_a_cross_encoder_without_negatives_is_refused_before_any_work(
    tiny_model: Path, tiny_collection: Path, tmp_path: Path
) -> None:
    train = TRAIN.model_copy(update={"negatives": 0})
    model, lengths = ModelRef(reference=f"path:{tiny_model}"), Lengths(query=8, passage=24)
    settings = TrainSettings(model=model, kind="ce", lengths=lengths, train=train)
    with pytest.raises(LeadError, match="train.negatives: 0 with .* leaves one candidate for each query"):
        stages.train(settings=settings, gpu=0, start=None, **inputs(tiny_collection), **outputs(tmp_path))


def test_more_than_three_epochs_are_warned_of_with_the_number(
    models: dict[str, Path], tiny_collection: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for steps, warned in ((36, False), (37, True)):
        train = TRAIN.model_copy(update={"steps": steps, "dev_queries": 0, "select": "last"})
        with caplog.at_level("WARNING", "lead"):
            paths = inputs(tiny_collection) | outputs(tmp_path / str(steps))
            stages.train(settings=TrainSettings(train=train), gpu=0, start=models["start"], **paths)
        assert ("train.steps: 37 steps of 4 queries are 3.1 epochs of the 48 train queries" in caplog.text) == warned


def test_epochs_say_how_many_steps_a_training_has(
    models: dict[str, Path], tiny_collection: Path, tmp_path: Path
) -> None:
    written = {}
    for key, value in ("steps", 6), ("epochs", 0.5):  # of 48 queries, 4 a step
        train = TRAIN.model_copy(update={key: value, "dev_queries": 0, "select": "last"})
        paths = inputs(tiny_collection) | outputs(tmp_path / key)
        stages.train(settings=TrainSettings(train=train), gpu=0, start=models["start"], **paths)
        written[key] = (paths["out"] / "model.safetensors").read_bytes()
    assert written["steps"] == written["epochs"]


def test_a_pretrained_model_that_changed_in_its_folder_is_another_state(tiny_collection: Path, tmp_path: Path) -> None:
    short = TRAIN.model_copy(update={"steps": 2, "checkpoint_every": 1, "dev_queries": 0, "select": "last"})
    reference = ModelRef(reference=f"path:{tmp_path / 'bert'}")
    settings = TrainSettings(model=reference, lengths=Lengths(query=8, passage=24), train=short)
    (tmp_path / "file").write_text("")
    paths = outputs(tmp_path) | {"out": tmp_path / "file" / "student"}  # cannot be written, so the state stays
    for seed in (0, 1):
        make_bert(tmp_path / "bert", layers=1, seed=seed)
        with pytest.raises(LeadError, match="cannot write"):
            stages.train(settings=settings, gpu=0, start=None, **inputs(tiny_collection), **paths)
        assert len(list(paths["state"].glob("*/step-00000001"))) == seed + 1


@pytest.mark.parametrize("joint", [True, False])
def test_a_teacher_is_written_if_and_only_if_it_was_trained(
    models: dict[str, Path], tiny_collection: Path, tmp_path: Path, joint: bool
) -> None:
    settings = DistilSettings(train=TRAIN, distil=Distil(joint=joint, layers=Layers(k=2)))
    paths = outputs(tmp_path) | {"teacher_out": None if joint else tmp_path / "t"}
    with pytest.raises(LeadError, match="--teacher-out is for joint training"):
        stages.distil(settings=settings, gpu=0, **inputs(tiny_collection), **models, **paths)  # type: ignore[arg-type]


def test_a_frozen_teacher_leaves_its_folder_as_it_was_and_the_student_changes(
    models: dict[str, Path], tiny_collection: Path, tmp_path: Path
) -> None:
    before = {name: (folder / "model.safetensors").read_bytes() for name, folder in models.items()}
    short = TRAIN.model_copy(update={"steps": 2, "dev_queries": 0, "select": "last"})
    for method in ("rd", "lead"):
        settings = DistilSettings(method=method, train=short, distil=Distil(joint=False, layers=Layers(k=2)))
        paths = outputs(tmp_path / method)
        stages.distil(settings=settings, gpu=0, teacher_out=None, **inputs(tiny_collection), **models, **paths)
        assert (paths["out"] / "model.safetensors").read_bytes() != before["start"]
        parts = lines(paths["metrics"])[0]["loss"]
        assert set(parts) == {"total", "stu", "rep"} | ({"lyr"} if method == "lead" else set())
    assert {name: (folder / "model.safetensors").read_bytes() for name, folder in models.items()} == before


def test_a_student_deeper_than_its_teacher_is_refused_before_training(
    models: dict[str, Path], tiny_collection: Path, tmp_path: Path
) -> None:
    swapped = {"start": models["teacher"], "teacher": models["start"]}
    with pytest.raises(LeadError, match="N >= M"):
        stages.distil(
            settings=DistilSettings(train=TRAIN), gpu=0, **inputs(tiny_collection), **swapped, **outputs(tmp_path),
            teacher_out=tmp_path / "t",
        )  # fmt: skip
    assert torch.is_grad_enabled() and not (tmp_path / "state").exists()
