"""Model folders and references: what is loaded, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_retriever
from encoders import ALL, TEXTS, features
from safetensors.torch import load_file, save_file

from lead.config.schema import Lengths, ModelRef, Scoring
from lead.errors import LeadError
from lead.models.bi_encoder import BiEncoder
from lead.models.encoder import prepare_for_training
from lead.pretrained import local_weights, resolve
from lead.store.checksums import sha256, write_manifest


@pytest.mark.parametrize("kind", ["de", "cb"])
def test_a_saved_retriever_loads_to_the_same_outputs_and_settings(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    model = make_retriever(tiny_model, kind, pooling="mean", normalise="unit", scale=20.0, expand=True, markers=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    prepare_for_training(model.encoder, 0.1)
    model.save(tmp_path / "m")
    again = BiEncoder.load(tmp_path / "m")
    assert (again.kind, again.scoring, again.lengths, again.n_layers) == (model.kind, model.scoring, model.lengths, 4)
    assert again.tokenize("query", TEXTS) == model.tokenize("query", TEXTS)
    a, b = features(model, TEXTS, ALL), features(again, TEXTS, ALL)
    assert torch.allclose(a.x, b.x, atol=1e-5)
    assert {p.suffix for p in (tmp_path / "m").iterdir()} <= {".json", ".safetensors", ".txt", ".md", ""}


def test_a_model_folder_does_not_tell_whether_the_hub_could_be_asked(tiny_model: Path, tmp_path: Path) -> None:
    model = make_retriever(tiny_model, "de")
    for offline in (True, False):
        model.tokenizer.init_kwargs["local_files_only"] = offline  # what transformers notes of HF_HUB_OFFLINE
        model.save(tmp_path / str(offline))
    assert sha256(tmp_path / "True") == sha256(tmp_path / "False")


def rewrite(folder: Path, change: Any) -> None:
    """Changes the weights of a model folder, and its manifest so that checksums agree."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_manifest(folder)


def test_weights_that_are_pickled_are_the_same_model(tiny_model: Path, tmp_path: Path) -> None:
    """Older models have nothing else; what acts when it is unpickled is refused (tests/malformed/models.py)."""
    folder = Path(shutil.copytree(tiny_model, tmp_path / "m"))
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    ids = [[1, 8, 9, 2]]
    with torch.no_grad():
        a, b = (make_retriever(of).eval().encode(ids, (1, 2, 3, 4)).x for of in (tiny_model, folder))
    assert torch.equal(a, b)
    assert local_weights(f"path:{folder}") == folder / "pytorch_model.bin"


def test_a_checkpoint_that_lacks_weights_or_has_them_in_another_shape_is_refused(
    tiny_model: Path, tmp_path: Path
) -> None:
    key = "encoder.layer.2.attention.self.query.weight"
    make_retriever(tiny_model).save(tmp_path / "a")
    rewrite(tmp_path / "a", lambda w: w.pop(key))
    with pytest.raises(LeadError, match="lacks weights.*layer.2.attention.self.query.weight"):
        BiEncoder.load(tmp_path / "a")
    make_retriever(tiny_model).save(tmp_path / "b")
    rewrite(tmp_path / "b", lambda w: w.update({key: w[key][:16].contiguous()}))
    with pytest.raises(LeadError):
        BiEncoder.load(tmp_path / "b")


def test_a_model_folder_with_a_flipped_byte_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    make_retriever(tiny_model).save(tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    with pytest.raises(LeadError, match="model.safetensors"):
        BiEncoder.load(tmp_path / "m")


def test_a_folder_that_lead_did_not_write_is_refused(tiny_model: Path) -> None:
    with pytest.raises(LeadError, match="not a folder written by lead"):
        BiEncoder.load(tiny_model)


def test_references_resolve_or_name_what_is_missing(tiny_model: Path) -> None:
    assert resolve("hub:a/b") == "a/b"
    assert resolve(f"path:{tiny_model}") == str(tiny_model)
    for reference in ("path:/nowhere/at/all", "package:no_such_package_x/model", "package:json/model", "package:a-b/c"):
        with pytest.raises(LeadError, match=reference.replace("/", "/")):
            resolve(reference)


def test_lengths_beyond_the_models_positions_are_refused(tiny_model: Path) -> None:
    with pytest.raises(LeadError, match="lengths.passage.*64"):
        BiEncoder.pretrained(ModelRef(reference=f"path:{tiny_model}"), "de", Scoring(), Lengths(query=8, passage=65))
