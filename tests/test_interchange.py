"""A dual encoder's folder in other libraries: they make our vectors, quietly, for texts of every length."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_retriever, make_tokenizer, vocabulary
from huggingface_hub import ModelCard, constants
from numpy.typing import NDArray

from lead.config.schema import Lengths, Linear, ModelRef, Scoring
from lead.config.stages import PretrainedSettings
from lead.errors import LeadError
from lead.export.onnx import FP32, write_onnx
from lead.models.base import LayeredModel
from lead.models.card import usage
from lead.models.ready import ready
from lead.store.checksums import check_folder

sentence_transformers = pytest.importorskip("sentence_transformers")
TEXTS = [
    "the array shape",
    "",
    "  \n",
    "na\u00efve caf\u00e9 \u2615 \u6570\u636e \u200b",
    "graph edge of a path " * 40,
    "x" * 3000,
    "tree, " * 11,
]
SCORINGS: list[tuple[dict[str, Any], int | None]] = [
    ({"pooling": "mean", "normalise": "unit", "scale": 20.0}, None),
    ({"pooling": "cls"}, 12),
    ({"pooling": "last", "normalise": "unit"}, 32),
    ({"pooling": "mean"}, 12),
]


def dual_encoder(folder: Path, scoring: dict[str, Any], size: int | None = None, prompts: Any = None) -> Any:
    """With a linear layer of `size` random outputs, unless it is None."""
    torch.manual_seed(1)
    linear = None if size is None else Linear(size=size, identity=False)
    ref = ModelRef(reference=f"path:{folder}", linear=linear, prompts=prompts)
    return LayeredModel.pretrained(ref, "de", Scoring(**scoring), Lengths(query=8, passage=24)).eval()


@torch.no_grad()
def ours(model: Any, side: Any, texts: list[str] = TEXTS) -> NDArray[np.float32]:
    return model.vectors(model.encode(model.tokenize(side, texts), (model.n_layers,))).numpy()


def opened(folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return sentence_transformers.SentenceTransformer(str(folder), device="cpu")


@pytest.mark.parametrize(("scoring", "size"), SCORINGS)
def test_sentence_transformers_makes_our_vectors_without_a_word(
    tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], scoring: dict[str, Any], size: int | None
) -> None:
    model = dual_encoder(tiny_model, scoring, size)
    model.save(tmp_path / "m")
    theirs = opened(tmp_path / "m")
    assert np.allclose(theirs.encode_query(TEXTS), ours(model, "query"), atol=1e-5)
    assert np.allclose(theirs.encode_document(TEXTS), ours(model, "passage"), atol=1e-5)
    assert np.array_equal(theirs.encode(TEXTS), theirs.encode_document(TEXTS))
    assert not np.allclose(theirs.encode_query(TEXTS), theirs.encode_document(TEXTS), atol=1e-3)  # the lengths matter
    assert theirs.similarity_fn_name == ("cosine" if "normalise" in scoring else "dot")
    printed = capfd.readouterr()
    assert printed.out == "" and [line for line in printed.err.splitlines() if "Loading weights" not in line] == []


@pytest.mark.parametrize("lengths", [(24, 24), (40, 12)])
def test_other_lengths(tiny_model: Path, tmp_path: Path, lengths: tuple[int, int]) -> None:
    model = make_retriever(tiny_model).eval()
    model.lengths = Lengths(query=lengths[0], passage=lengths[1])
    model.save(tmp_path / "m")
    theirs = opened(tmp_path / "m")
    assert np.allclose(theirs.encode_query(TEXTS), ours(model, "query"), atol=1e-5)
    assert np.allclose(theirs.encode_document(TEXTS), ours(model, "passage"), atol=1e-5)
    config = (tmp_path / "m" / "sentence_bert_config.json").read_text()
    assert ("query_length" in config) == (lengths[0] != lengths[1])  # which versions before 6 do not know


def test_prompts(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = dual_encoder(tiny_model, {}, prompts={"query": 'query: "\n', "passage": "text: "})
    model.save(tmp_path / "m")
    theirs = opened(tmp_path / "m")
    assert np.allclose(theirs.encode_query(TEXTS), ours(model, "query"), atol=1e-5)
    assert np.allclose(theirs.encode_document(TEXTS), ours(model, "passage"), atol=1e-5)
    monkeypatch.chdir(tmp_path / "m")
    made: dict[str, Any] = {}
    exec(code_of(tmp_path / "m")[1], made)
    assert np.allclose(made["queries"], ours(model, "query", ["a question"]), atol=1e-5)
    assert '`"query: \\"\\n"` before each query, `"text: "` before' in (tmp_path / "m" / "README.md").read_text()


def code_of(folder: Path) -> list[str]:
    """The code in a card: with sentence-transformers, transformers, faiss, and ONNX if it is there."""
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("says", [{"padding_side": "left"}, {"pad_token": None, "eos_token": "[SEP]"}])
def test_a_decoder_whose_tokenizer_pads_on_the_left_or_has_nothing_to_pad_with(
    tmp_path: Path, says: dict[str, Any]
) -> None:
    """Positions count from the first token, padding included, so there the side matters."""
    from transformers import GPT2Config, GPT2Model

    make_tokenizer(tmp_path / "base")
    config = json.loads((tmp_path / "base" / "tokenizer_config.json").read_text())
    (tmp_path / "base" / "tokenizer_config.json").write_text(json.dumps({**config, **says}))
    sizes = {"vocab_size": len(vocabulary()), "n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 2}
    GPT2Model(GPT2Config(**sizes, initializer_range=0.5)).save_pretrained(tmp_path / "base")
    model = dual_encoder(tmp_path / "base", {"pooling": "last"})
    model.save(tmp_path / "m")
    assert np.allclose(opened(tmp_path / "m").encode_document(TEXTS), ours(model, "passage"), atol=1e-5)


@pytest.mark.parametrize(("scoring", "size"), SCORINGS)
def test_the_code_in_the_card_makes_our_vectors(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scoring: dict[str, Any], size: int | None
) -> None:
    model = dual_encoder(tiny_model, scoring, size)
    model.save(tmp_path / "m")
    card = ModelCard.load(tmp_path / "m" / "README.md")
    assert card.data.library_name == "sentence-transformers" and "8 tokens, a passage to 24" in card.text
    monkeypatch.chdir(tmp_path / "m")
    made: dict[str, Any] = {}
    library, transformers, faiss = code_of(tmp_path / "m")
    for code in (library, transformers):
        exec(code, made)
        assert np.allclose(made["queries"], ours(model, "query", ["a question"]), atol=1e-5)
        passages = ["a passage that may answer it", "another passage"]
        assert np.allclose(made["passages"], ours(model, "passage", passages), atol=1e-5)
    products = made["scores"]
    exec(faiss, made)
    assert np.allclose(made["scores"], -np.sort(-products), atol=1e-4)


def test_the_code_of_a_card_on_the_hub_takes_its_files_from_there(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the hub's cache on this machine, whose layout is that of a download."""
    pytest.importorskip("onnxscript", reason="the extra `export` is not installed")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    kept = tmp_path / "hub" / "models--me--small"
    model: Any = dual_encoder(tiny_model, {"pooling": "mean", "normalise": "unit"}, 12).eval()
    model.save(kept / "snapshots" / "abc")
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("abc")
    (kept / "snapshots" / "abc" / "onnx").mkdir()
    write_onnx(model, kept / "snapshots" / "abc" / FP32)
    text = "\n".join(usage("me/small", model.interchange().facts, FP32, on_hub=True))
    _, transformers, _, onnx = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for code in (transformers, onnx):
        made: dict[str, Any] = {}
        exec(code, made)
        assert np.allclose(made["queries"], ours(model, "query", ["a question"]), atol=1e-5)


def test_a_card_may_be_edited_and_files_added_but_a_changed_weight_is_seen(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    dual_encoder(tiny_model, {}, 12).save(folder)
    (folder / "README.md").write_text("# Mine")
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"x")
    assert LayeredModel.load(check_folder(folder)).kind == "de"
    for name in ("2_Dense/model.safetensors", "model.safetensors", "1_Pooling/config.json"):
        before = (folder / name).read_bytes()
        (folder / name).write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        with pytest.raises(LeadError, match=name):
            check_folder(folder)
        (folder / name).write_bytes(before)


def test_a_folder_is_the_same_whatever_was_tokenized_last(tiny_model: Path, tmp_path: Path) -> None:
    model = make_retriever(tiny_model)
    for side in ("query", "passage"):
        model.tokenize(side, TEXTS)
        model.save(tmp_path / side)
    sums = [(tmp_path / side / "SHA256SUMS").read_text() for side in ("query", "passage")]
    assert sums[0] == sums[1]


def test_a_student_taken_out_comes_in_again_as_a_ready_retriever(tiny_model: Path, tmp_path: Path) -> None:
    model = dual_encoder(tiny_model, {"pooling": "mean", "normalise": "unit"}, 12, {"query": "q: ", "passage": "p: "})
    model.save(tmp_path / "m")
    for name in ("lead.json", "head.safetensors", "SHA256SUMS"):
        (tmp_path / "m" / name).unlink()
    again = ready(PretrainedSettings.model_validate({"model": {"reference": f"path:{tmp_path / 'm'}"}}))
    assert (again.lengths, again.prompts) == (model.lengths, model.prompts)
    for side in ("query", "passage"):
        assert np.allclose(ours(again, side), ours(model, side), atol=1e-5)


def test_a_colbert_is_no_model_of_sentence_transformers(tiny_model: Path, tmp_path: Path) -> None:
    make_retriever(tiny_model, "cb").save(tmp_path / "m")
    assert not (tmp_path / "m" / "modules.json").exists()
