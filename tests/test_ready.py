"""Ready retrievers: the configurations of docs/teachers.md give the vectors and scores of their libraries."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ready as tiny
import torch
import yaml
from dag.project import ROOT, empty_project, refusal
from safetensors.torch import load_file, save_file

from lead.config.load import load, validate
from lead.config.schema import Lengths, ModelRef, Prompts, Scoring
from lead.config.stages import PretrainedSettings
from lead.models.base import LayeredModel
from lead.models.bi_encoder import BiEncoder
from lead.models.cross_encoder import CrossEncoder
from lead.models.microbatch import MicroBatchEncoder
from lead.models.ready import pretrained, ready
from lead.plan.plan import Plan
from lead.plan.stage_settings import settings_of

QUERIES = ["array shape", "the degree of a vertex, and a cycle?", "a token. " * 30, "text"]
PASSAGES = ["tree node, leaf. split", "graph " * 60, "signal, filter; frequency window", "image"]
BLOCKS = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/teachers.md").read_text(encoding="utf-8"), re.S)
ROWS: dict[str, dict[str, Any]] = {name: row for block in BLOCKS for name, row in yaml.safe_load(block).items()}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, Path]:
    """A tiny model in the layout of each retriever of docs/teachers.md."""
    base = tmp_path_factory.mktemp("ready")
    qwen = {"prompts": {"query": "query text ", "document": ""}}
    return {
        "e5": tiny.sentence_transformer(base / "e5", tiny_model, "mean"),
        "bge": tiny.sentence_transformer(base / "bge", tiny_model, "cls"),
        "gte": tiny.sentence_transformer(base / "gte", tiny_model, "mean"),
        "decoder": tiny.sentence_transformer(base / "qwen", tiny.decoder(base / "qwen3"), "lasttoken", **qwen),
        "colbert": tiny.original_colbert(base / "colbert"),
        "pylate": tiny.pylate(base / "pylate"),
        "reranker": tiny.cross_encoder(base / "reranker"),
    }


def settings_for(tmp_path: Path, name: str, folder: Path) -> PretrainedSettings:
    """The settings that the plan makes of a row of docs/teachers.md, its model in `folder`."""
    row = json.loads(json.dumps(ROWS[name]))
    row["settings"]["models"][name]["reference"] = f"path:{folder}"
    row["settings"].pop("lengths", None)
    config = empty_project(tmp_path)
    with (config / "experiments.yaml").open("a") as f:
        f.write(f"  {name}: {json.dumps(row)}\n")
    plan = Plan(load(config / "config.yaml"))
    return validate(PretrainedSettings, settings_of(plan.jobs, "pretrained", "tiny", name), name)


def settings(folder: Path, kind: str = "de", **more: Any) -> PretrainedSettings:
    return PretrainedSettings(model=ModelRef(reference=f"path:{folder}", **more), kind=kind)


@torch.no_grad()
def vectors(model: LayeredModel, side: Any, texts: list[str]) -> list[torch.Tensor]:
    """Vectors of each text: [d] of a dual encoder, [T, d] of a ColBERT."""
    assert isinstance(model, BiEncoder)
    features = MicroBatchEncoder(120, "fp32")(model, model.tokenize(side, texts), (model.n_layers,), "test")
    x = model.vectors(features)
    return list(x) if features.mask is None else [v[m] for v, m in zip(x, features.mask, strict=True)]


def same(ours: list[Any], theirs: list[Any]) -> bool:
    return all(
        torch.allclose(torch.as_tensor(a), torch.as_tensor(b), atol=1e-5) for a, b in zip(ours, theirs, strict=True)
    )


@pytest.mark.parametrize("name", ["e5", "bge", "gte", "decoder"])
def test_a_dual_encoder_has_the_vectors_of_sentence_transformers(
    tmp_path: Path, folders: dict[str, Path], name: str
) -> None:
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(folders[name]), device="cpu")
    given = ROWS[name]["settings"]["models"][name].get("prompts", theirs.prompts)
    pretrained(settings=settings_for(tmp_path, name, folders[name]), out=tmp_path / "out")
    ours = LayeredModel.load(tmp_path / "out")
    assert ours.prompts == Prompts(query=given.get("query", ""), passage=given.get("passage", ""))
    assert ours.lengths.query == ours.lengths.passage == 40 and ours.scoring.scale > 1
    for side, texts in (("query", QUERIES), ("passage", PASSAGES)):
        want = theirs.encode([t.strip() for t in texts], prompt=given.get(side, ""))
        assert same(vectors(ours, side, [t.strip() for t in texts]), list(want))


@pytest.mark.parametrize("name", ["colbert", "pylate"])
@torch.no_grad()
def test_a_colbert_has_the_token_vectors_of_sentence_transformers(
    tmp_path: Path, folders: dict[str, Path], name: str
) -> None:
    from sentence_transformers import MultiVectorEncoder

    theirs = MultiVectorEncoder(str(folders[name]), device="cpu")
    pretrained(settings=settings_for(tmp_path, name, folders[name]), out=tmp_path / "out")
    ours = LayeredModel.load(tmp_path / "out").eval()
    assert (ours.lengths.query, ours.lengths.passage, ours.size) == (16, 30, 12)
    assert ours.scoring.attend == (name == "pylate")
    queries, passages = vectors(ours, "query", QUERIES), vectors(ours, "passage", PASSAGES)
    assert same(queries, list(theirs.encode_query(QUERIES))) and {len(q) for q in queries} == {16}
    assert same(passages, list(theirs.encode_document(PASSAGES)))
    assert len(passages[0]) == 3 + 4  # [CLS], marker, [SEP], and four words without their punctuation
    scorer = ours.scorer(QUERIES, PASSAGES, MicroBatchEncoder(200, "fp32"))  # passages are stored in 16 bits
    want = [float((q @ p.T).max(1).values.sum()) for q in queries[:1] for p in passages]
    assert np.allclose(scorer(0, np.arange(4)), want, rtol=1e-2)


@pytest.mark.parametrize(
    ("labels", "architecture", "config"),
    [
        (1, "Bert", {}),
        (2, "Bert", {}),
        (1, "XLMRoberta", {}),
        (2, "Roberta", {}),
        (1, "DistilBert", {}),
        (1, "Electra", {"embedding_size": 32}),
        (1, "Albert", {"embedding_size": 16}),
    ],
)
def test_a_cross_encoder_has_the_logits_of_sentence_transformers(
    tmp_path: Path, labels: int, architecture: str, config: dict[str, Any]
) -> None:
    from sentence_transformers import CrossEncoder as Theirs

    folder = tiny.cross_encoder(tmp_path / "ready", labels, architecture, **config)
    pretrained(settings=settings_for(tmp_path, "reranker", folder), out=tmp_path / "out")
    ours = LayeredModel.load(tmp_path / "out").eval()
    assert isinstance(ours, CrossEncoder) and ours.lengths.query + ours.lengths.passage == 64 + 1
    pairs = [(q, p) for q in (QUERIES[0], QUERIES[1]) for p in (PASSAGES[0], PASSAGES[2], "")]
    logits = Theirs(str(folder), device="cpu").predict(pairs, activation_fn=torch.nn.Identity())
    want = logits if labels == 1 else logits[:, 1] - logits[:, 0]
    scorer = ours.scorer(*map(list, zip(*pairs, strict=True)), MicroBatchEncoder(200, "fp32"))
    with torch.no_grad():
        got = np.concatenate([scorer(i, np.array([i])) for i in range(len(pairs))])
        layers = ours.encode(ours.tokenize(["array"], ["tree node"]), (1, 2, 3)).x[:, 0]
    assert np.allclose(got, want, atol=1e-5) and len(set(layers.tolist())) == 3


@pytest.mark.parametrize("size", [8, 40])
def test_a_projection_after_the_pooling_is_a_layer_more(tmp_path: Path, tiny_model: Path, size: int) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense

    dense = Dense(32, size, activation_function=torch.nn.Identity())
    torch.nn.init.normal_(dense.linear.bias)
    folder = tiny.sentence_transformer(
        tmp_path / "st", tiny_model, "mean", unit=False, dense=dense, similarity_fn_name="dot"
    )
    model = ready(settings(folder))
    assert (model.n_layers, model.size, model.scoring.normalise) == (5, size, "none")
    assert same(
        vectors(model, "passage", PASSAGES), list(SentenceTransformer(str(folder), device="cpu").encode(PASSAGES))
    )


def test_the_folder_s_length_wins_over_the_tokenizer_s(folders: dict[str, Path], tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    folder = Path(shutil.copytree(folders["e5"], tmp_path / "model"))
    _set(folder / "sentence_bert_config.json", max_seq_length=40)
    _set(folder / "tokenizer_config.json", model_max_length=20)
    _set(folder / "config_sentence_transformers.json", prompts={"query": None, "document": None})
    model = ready(settings(folder))
    assert model.lengths == Lengths(query=40, passage=40) and model.prompts == Prompts()
    theirs = SentenceTransformer(str(folder), device="cpu")
    assert same(vectors(model, "passage", PASSAGES), list(theirs.encode(PASSAGES)))


def test_a_colbert_that_lead_trained(folders: dict[str, Path], tmp_path: Path) -> None:
    model = ready(settings(folders["pylate"], "cb"))
    model.save(tmp_path / "cb")
    again = ready(settings(tmp_path / "cb", "cb"))
    assert (again.scoring, again.lengths, again.prompts) == (model.scoring, model.lengths, model.prompts)
    assert same(vectors(again, "query", QUERIES), vectors(model, "query", QUERIES))
    assert "lead trained it, with `kind: cb`" in refusal(lambda: ready(settings(tmp_path / "cb", "de")))


def test_what_a_row_gives_wins_over_the_folder(folders: dict[str, Path], tiny_model: Path) -> None:
    given = {"given": ["pooling", "passage"], "lengths": Lengths(query=9, passage=20)}
    model = ready(settings(folders["e5"], layers=[1, 3]).model_copy(update=given))
    assert (model.scoring.pooling, model.scoring.normalise, model.n_layers) == ("cls", "unit", 2)
    assert (model.lengths.query, model.lengths.passage) == (40, 20)
    alone = ready(settings(tiny_model).model_copy(update={"lengths": given["lengths"]}))  # a transformer, no more
    assert (alone.scoring, alone.lengths) == (Scoring(), given["lengths"])


MISTAKES: list[tuple[str, str, Callable[[Path], Any], str]] = [
    ("e5", "de", lambda f: _set(f / "1_Pooling/config.json", pooling_mode="max"), "its pooling is max; cls, mean and"),
    ("e5", "de", lambda f: _set(f / "1_Pooling/config.json", include_prompt=False), "leaves its prompt out"),
    ("pylate", "cb", lambda f: _set(f / "1_Dense/config.json", activation_function="torch.nn.Tanh"), "is Tanh; only"),
    ("pylate", "cb", lambda f: _set(f / "1_Dense/config.json", use_residual=True), "residual connection"),
    ("pylate", "cb", lambda f: _set(f / "config_sentence_transformers.json", query_prefix="[X]"), "has no [X]"),
    ("pylate", "cb", lambda f: _set(f / "config_sentence_transformers.json", document_prefix=""), "told by their mark"),
    ("pylate", "cb", lambda f: _set(f / "config_sentence_transformers.json", do_query_expansion="yes"), "key 'expand'"),
    ("e5", "de", lambda f: _set(f / "config_sentence_transformers.json", similarity_fn_name="euclidean"), "euclidean;"),
    ("e5", "de", lambda f: _set(f / "sentence_bert_config.json", max_seq_length=2), "key 'query'"),
    ("e5", "de", lambda f: _module(f, "../other"), "lies outside the folder"),
    ("e5", "de", lambda f: _module(f, "/other"), "lies outside the folder"),
    ("pylate", "de", lambda f: None, "it is a ColBERT; give its run `kind: cb`"),
    ("e5", "ce", lambda f: None, "has no trained head"),
    ("e5", "de", lambda f: (f / "modules.json").write_text("[{"), "cannot load"),
    ("reranker", "ce", lambda f: _head(f, lambda w: w.repeat(3, 1)), "has 3 labels"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kind", "spoil", "says"), MISTAKES, ids=[m[3][:20] for m in MISTAKES])
def test_what_has_no_counterpart_here_is_one_line(
    tmp_path: Path, folders: dict[str, Path], name: str, kind: str, spoil: Callable[[Path], Any], says: str
) -> None:
    folder = Path(shutil.copytree(folders[name], tmp_path / "model"))
    spoil(folder)
    message = refusal(lambda: ready(settings(folder, kind)))
    assert says in message and message.count("models: ") <= 1


def test_a_trained_head_cannot_be_given_away(folders: dict[str, Path]) -> None:
    without = settings(folders["reranker"], "ce").model_copy(update={"given": ["head"]})  # head: linear
    assert "leaves out dense.weight" in refusal(lambda: ready(without))


def _set(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def _module(folder: Path, path: str) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["path"] = path
    (folder / "modules.json").write_text(json.dumps(modules))


def _head(folder: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    weights = load_file(folder / "model.safetensors")
    weights |= {"classifier.weight": change(weights["classifier.weight"]), "classifier.bias": torch.zeros(3)}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    _set(folder / "config.json", id2label={str(i): str(i) for i in range(3)}, label2id={str(i): i for i in range(3)})
