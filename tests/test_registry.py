"""Registries of kinds, methods and strategies: nothing must be imported first, a row and a function are enough."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import make_retriever
from steps import SCORING, TRAIN, gradients, take

from lead.config.kinds import KINDS
from lead.config.methods import METHODS, STRATEGIES, Strategy
from lead.config.schema import Distil, Layers, Train
from lead.errors import LeadError
from lead.methods.layers import check_layers, select
from lead.methods.load import check_method, load_loss
from lead.models.base import LayeredModel
from lead.train.data import TrainingData
from lead.train.step import DistilStep

# each in a fork of a process that has imported what takes seconds, and nothing of lead
FORKS = """
import os, sys
import torch, transformers.models.auto.modeling_auto, transformers.models.bert.modeling_bert

def made(folder, kind, out):
    from lead.config.schema import Lengths, ModelRef, Scoring
    from lead.models.base import LayeredModel
    reference = ModelRef(reference="path:" + folder)
    model = LayeredModel.pretrained(reference, kind, Scoring(), Lengths(query=8, passage=24))
    model.save(out)
    return model

def loaded(folder, kind, out):
    from lead.models.base import LayeredModel
    return LayeredModel.load(out)

folder, out, *kinds = sys.argv[1:]
for kind in kinds:
    for case in (made, loaded):
        assert not any(name.partition(".")[0] == "lead" for name in sys.modules)
        if os.fork() == 0:
            print(case.__name__, kind, type(case(folder, kind, out + kind)).__name__, flush=True)
            os._exit(0)
        assert os.wait()[1] == 0
"""


def test_a_model_of_a_kind_is_made_and_loaded_in_a_process_that_has_imported_nothing_else(
    tiny_model: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", FORKS, str(tiny_model), str(tmp_path / "m"), "de", "cb", "ce"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    classes = {"de": "DualEncoder", "cb": "ColBERT", "ce": "CrossEncoder"}
    assert done.stdout.splitlines() == [f"{case} {k} {n}" for k, n in classes.items() for case in ("made", "loaded")]


def test_every_kind_is_a_class_that_knows_its_name() -> None:
    for name, kind in KINDS.items():
        assert issubclass(kind.load(), LayeredModel) and kind.load().kind == name


def test_an_unknown_kind_is_one_line(tiny_model: Path) -> None:
    with pytest.raises(LeadError, match="no kind of model 'bc' in lead.config.kinds; valid: cb, ce, de"):
        make_retriever(tiny_model, "bc")
    broken = replace(KINDS["de"], model="lead.models.dual_encoder:Missing")
    with pytest.raises(LeadError, match="kind of model 'de' .*lead.models.dual_encoder defines no 'Missing'"):
        broken.load()


# --- methods ---------------------------------------------------------------------------------------------------------
def test_every_record_is_whole() -> None:
    for method in METHODS.values():
        check_method(method)
        assert not method.trains or callable(load_loss(method))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"loss": ""}, "method 'rd' .*there is no ''; write module:name"),
        ({"loss": "lead.methods.no_such_file:rd"}, "there is no 'lead.methods.no_such_file:rd'"),
        ({"loss": "lead.methods.rd:dr"}, "lead.methods.rd defines no 'dr'; valid: rd"),
        ({"reads": {"taw": True}}, "reads 'taw', no key of distil; did you mean 'tau'"),
        ({"reads": {"weights": {"stu", "rap"}}}, "reads 'weights.rap', no key of distil.weights; did you mean 'rep'"),
    ],
)
def test_a_record_that_lacks_a_part_is_one_line(change: dict[str, object], says: str) -> None:
    with pytest.raises(LeadError, match=says) as error:
        load_loss(replace(METHODS["rd"], **change))  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


LOSS = """
from lead.methods.losses import contrastive_loss

def mse(scored):
    difference = (scored.teacher.final - scored.student.final) * scored.distillation.keep
    return scored.loss({
        "stu": contrastive_loss(scored.student_contrastive.final, scored.contrastive),
        "rep": difference.square().mean(),
    })
"""


def test_a_response_loss_is_one_file_and_one_row(
    tiny_model: Path, teacher_folder: Path, data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "our_loss.py").write_text(LOSS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(METHODS, "mse", replace(METHODS["rd"], name="mse", loss="our_loss:mse"))
    student, teacher = make_retriever(tiny_model, **SCORING).train(), make_retriever(teacher_folder, "cb", **SCORING)
    step = DistilStep(student, teacher, Train(**TRAIN), Distil(weights={"stu": 0.0}), 3, "mse")
    loss = take(step, data.batch(0), 0)
    assert set(loss.parts) == {"stu", "rep"} and torch.equal(loss.total, loss.parts["rep"])
    assert sum(float(g.abs().sum()) for k, g in gradients(step).items() if k.startswith("student")) > 0


# --- strategies ------------------------------------------------------------------------------------------------------
STRATEGY = """
def first(layers, given):
    return [(i, i) for i in range(1, layers.k + 1)]
"""


def test_a_strategy_is_one_function_and_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "our_layers.py").write_text(STRATEGY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(STRATEGIES, "first", Strategy("first", "the first K", "our_layers:first"))
    layers = Layers.model_construct(strategy="first", k=2, skip=2, pairs=None)
    check_layers(layers, 6, 3)
    assert select(layers, 6, 3, 1, 0) == [(1, 1), (2, 2)]
    with pytest.raises(LeadError, match=r"distil.layers.k: 4 is more than the student's 3 layers"):
        check_layers(layers.model_copy(update={"k": 4}), 6, 3)
    monkeypatch.setitem(STRATEGIES, "first", Strategy("first", "the first K", "our_layers:second"))
    with pytest.raises(LeadError, match="strategy 'first' .*our_layers defines no 'second'; valid: first"):
        check_layers(layers, 6, 3)
