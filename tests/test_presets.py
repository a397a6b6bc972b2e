"""The shipped presets: what they have in common, where they differ, and that the paper's ColBERT can be trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import make_bert, make_retriever
from steps import TRAIN, build, lead_step, take

from lead.config.load import Loaded, load
from lead.config.recipe import flat
from lead.config.schema import Distil, Layers, ScoringByKind, Settings, Train
from lead.config.stages import TrainSettings
from lead.errors import LeadError
from lead.methods.losses import entropies_of
from lead.plan.plan import Plan
from lead.train.data import TrainingData
from lead.train.step import DistilStep

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return load(ROOT / "config/config.yaml")


def with_preset(loaded: Loaded, preset: str, run: str = "lead_cb") -> dict[str, Any]:
    """All settings of a run on pydocs as if its file held nothing but this preset, by dotted key."""
    dataset, path = loaded.datasets["pydocs"]
    alone = dataset.model_copy(update={"preset": preset, "settings": {}, "repeats": {}})
    changed = Loaded(**{**vars(loaded), "datasets": {**loaded.datasets, "pydocs": (alone, path)}})
    return flat(Plan(changed)["pydocs", run].settings.model_dump(mode="json"))


def different(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """The keys in which b differs from a, with their values in b."""
    return {key: b.get(key) for key in a | b if a.get(key) != b.get(key)}


def test_presets_that_differ_from_another_in_what_they_say(loaded: Loaded) -> None:
    raw = {"scoring.cb.normalise": "none", "scoring.cb.layer_normalise": "none"}
    assert different(with_preset(loaded, "paper"), with_preset(loaded, "paper_raw")) == raw
    assert different(with_preset(loaded, "tuned"), with_preset(loaded, "best")) == {
        "align.between": [3000, 20000],
        "lengths.passage": 128,
    }


def test_defaults_are_the_papers(loaded: Loaded) -> None:
    paper = with_preset(loaded, "paper")
    models = {"teacher": {"reference": "path:."}, "student": {"reference": "path:."}}
    default = flat(Settings.model_validate({"models": models}).model_dump(mode="json"))
    assert {k for k in different(default, paper) if not k.startswith(("models.", "phases."))} == set()


def test_colbert_has_unit_vectors_unless_told_otherwise() -> None:
    said = [ScoringByKind(), ScoringByKind.model_validate({"cb": {"expand": True}})]
    assert all((s.cb.normalise, s.cb.layer_normalise, s.de.normalise) == ("unit", "unit", "none") for s in said)
    assert TrainSettings.model_validate({"kind": "cb"}).scoring.normalise == "unit"
    assert TrainSettings.model_validate({"kind": "cb", "scoring": {"normalise": "none"}}).scoring.normalise == "none"
    assert TrainSettings.model_validate({}).scoring.normalise == "none"


def test_raw_colbert_starts_saturated_and_the_papers_does_not(tmp_path: Path, data: TrainingData) -> None:
    """Entropies in nats over 12 candidates (log 12 is 2.5), of vectors of MiniLM's width."""
    folder = make_bert(tmp_path, layers=2, hidden=384)
    entropies = {}
    for name, keys in (("raw", {}), ("paper", ScoringByKind().cb.model_dump())):
        model = make_retriever(folder, "cb", **keys).eval()
        batch = data.batch(0)
        ids, candidates = model.tokenize_batch(batch.queries, batch.passages), batch.candidates("batch")
        scores = model.score(*(model.encode(ids[key], (1, 2)) for key in ("queries", "passages")), candidates)
        entropies[name] = entropies_of(scores, candidates)
    assert float(entropies["raw"].max()) < 0.3
    assert float(entropies["paper"].min()) > 0.7


@pytest.mark.parametrize("layers", ["unit", "standard", "none"])
def test_layer_features_can_be_other_than_in_the_warm_up(
    tiny_model: Path, teacher_folder: Path, data: TrainingData, layers: str
) -> None:
    """The same loss as from models that were made with them."""
    changed = take(lead_step(tiny_model, teacher_folder, layer_normalise=layers), data.batch(0), 0)
    step = lead_step(tiny_model, teacher_folder)
    for model in (step.student, step.teacher):
        model.scoring = model.scoring.model_copy(update={"layer_normalise": layers})
    assert changed.total.item() == take(step, data.batch(0), 0).total.item()


def test_a_cross_encoders_layers_have_no_length(tiny_model: Path, teacher_folder: Path) -> None:
    student, teacher = make_retriever(tiny_model), make_retriever(teacher_folder, "ce")
    distil = Distil(layers=Layers(k=2), layer_normalise="unit")
    with pytest.raises(LeadError, match=r"scoring.ce: a cross encoder's score is one number"):
        DistilStep(student, teacher, Train(**TRAIN), distil, 1, "lead")
    assert build(tiny_model, teacher_folder, "de", "rd")  # a method without layers reads no such key
