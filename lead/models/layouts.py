"""How ready retrievers lie in a folder: sentence-transformers' layout, PyLate's, the original ColBERT's, and ours.

A `Layout` is what such a folder says of scoring, lengths, prompts and projection; what it does not say is None.
"""

from __future__ import annotations

import json
import string
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from lead.config.load import validate
from lead.config.schema import Scoring
from lead.errors import LeadError
from lead.pretrained import loading

POOLINGS = {"cls": "cls", "mean": "mean", "lasttoken": "last"}  # of sentence-transformers, and ours
# the ColBERT that says nothing of these keys of config_sentence_transformers.json (PyLate's defaults)
PYLATE: dict[str, Any] = {
    "query_prefix": "[Q] ",
    "document_prefix": "[D] ",
    "query_length": 32,
    "document_length": 180,
    "do_query_expansion": True,
    "attend_to_expansion_tokens": False,
    "skiplist_words": list(string.punctuation),
}


@dataclass
class Layout:
    """What a folder says of a retriever.

    encoder: the folder of its transformer. alone: whether there is nothing else. scoring: keys of `Scoring` with their
    values. query, passage: lengths in tokens. lower_case: whether texts are read in lower case. prompts: by `query` and
    `passage`. projection: weight [d, width] and bias [d] of the linear map of its vectors.
    """

    encoder: Path
    alone: bool = True
    scoring: dict[str, Any] = field(default_factory=dict)
    query: int | None = None
    passage: int | None = None
    lower_case: bool = False
    prompts: dict[str, str] = field(default_factory=dict)
    projection: tuple[Tensor, Tensor] | None = None


def read_layout(folder: Path, kind: str) -> Layout:
    """What `folder` says of a retriever of this kind; nothing, if it holds a transformer alone.

    Raises LeadError for a part that is damaged, or that has no counterpart here.
    """
    with loading(f"'{folder}'"):
        if (folder / "lead.json").is_file() and not (folder / "modules.json").is_file():
            return _trained_here(folder, kind)
        if kind == "ce":
            return Layout(folder)
        if _json(folder / "config.json").get("architectures") == ["HF_ColBERT"]:
            return _original_colbert(folder) if kind == "cb" else Layout(folder)
        if (folder / "modules.json").is_file():
            return _modules(folder, kind)
    return Layout(folder)


# --- sentence-transformers and PyLate --------------------------------------------------------------------------------
def _modules(folder: Path, kind: str) -> Layout:
    said = _json(folder / "config_sentence_transformers.json")
    listed = json.loads(_text(folder / "modules.json"))
    modules = [(str(m["type"]).rpartition(".")[2], _inside(folder, str(m["path"]))) for m in listed]
    if not modules or modules[0][0] != "Transformer":
        raise _refused(folder, f"its first module is {modules[0][0] if modules else 'missing'}, not Transformer")
    late = said.get("model_type") == "ColBERT" or "query_prefix" in said
    layout = Layout(modules[0][1], alone=False)
    _transformer(layout)
    layout.prompts = _prompts(said)
    known = {"Dense", "Dropout", "Normalize"} if late else {"Pooling", "Dense", "Dropout", "Normalize"}
    names = [name for name, _ in modules[1:] if name != "Dropout"]
    if unknown := [name for name in names if name not in known]:
        raise _refused(folder, f"its module {unknown[0]} has no counterpart here")
    if names != sorted(names, key=["Pooling", "Dense", "Normalize"].index):
        raise _refused(folder, f"its modules are in another order than Pooling, Dense, Normalize: {', '.join(names)}")
    if kind == "de" and late:
        raise _refused(folder, "it is a ColBERT; give its run `kind: cb`")
    if kind == "de":
        pooling = next((_json(path / "config.json") for name, path in modules if name == "Pooling"), None)
        if pooling is None:
            raise _refused(folder, "it has no module Pooling")
        similarity = said.get("similarity_fn_name")
        if similarity not in (None, "cosine", "dot"):
            raise _refused(folder, f"its similarity is {similarity}; cosine and dot are known here")
        unit = "Normalize" in names or similarity == "cosine"
        layout.scoring = {"pooling": _pooling(folder, pooling), "normalise": "unit" if unit else "none"}
    elif late:
        _pylate(layout, PYLATE | {key: value for key, value in said.items() if value is not None})
    if kind == "de" or late:
        layout.projection = _project([path for name, path in modules if name == "Dense"])
    return layout


def _transformer(layout: Layout) -> None:
    for file in sorted(layout.encoder.glob("sentence_*_config.json")):
        if not file.name.startswith("sentence_transformers"):
            config = _json(file)
            most = config.get("max_seq_length")
            layout.query, layout.passage = config.get("query_length", most), config.get("document_length", most)
            layout.lower_case = bool(config.get("do_lower_case"))
            return


def _prompts(said: dict[str, Any]) -> dict[str, str]:
    """Prompts of queries and passages, by the names that sentence-transformers gives them."""
    named = {name: prompt or "" for name, prompt in (said.get("prompts") or {}).items()}
    default = str(named.get(said.get("default_prompt_name"), ""))
    passage = next((named[name] for name in ("document", "passage", "corpus") if name in named), default)
    found = {"query": str(named.get("query", default)), "passage": str(passage)}
    return found if any(found.values()) else {}


def _pooling(folder: Path, config: dict[str, Any]) -> str:
    """Our name of what a Pooling module does. Raises LeadError where there is none."""
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
                 for key, on in config.items() if key.startswith("pooling_mode_") and on]  # fmt: skip
    modes = [modes] if isinstance(modes, str) else modes or ["mean"]
    if len(modes) > 1 or modes[0] not in POOLINGS:
        raise _refused(folder, f"its pooling is {' and '.join(modes)}; cls, mean and lasttoken are known here")
    if config.get("include_prompt") is False:
        raise _refused(folder, "it leaves its prompt out of the pooling, which is not done here")
    return POOLINGS[modes[0]]


def _project(folders: list[Path]) -> tuple[Tensor, Tensor] | None:
    """Weight and bias of the one linear map that some Dense modules are, one after the other; None if there are none.

    It commutes with pooling: the mean of projected vectors is the projection of the mean.
    """
    found: tuple[Tensor, Tensor] | None = None
    for folder in folders:
        config = _json(folder / "config.json")
        if not str(config.get("activation_function", "Tanh")).endswith("Identity"):
            name = str(config.get("activation_function", "Tanh")).rpartition(".")[2]
            raise _refused(folder, f"its activation is {name}; only a linear layer (Identity) can be taken over")
        if config.get("use_residual"):
            raise _refused(folder, "it has a residual connection; only a linear layer can be taken over")
        weights = _tensors(folder, "linear.")
        weight = weights["linear.weight"]
        bias = weights.get("linear.bias", torch.zeros(len(weight)))
        found = (weight, bias) if found is None else (weight @ found[0], weight @ found[1] + bias)
    return found


def _pylate(layout: Layout, said: dict[str, Any]) -> None:
    markers = {"query": said["query_prefix"], "passage": said["document_prefix"]}
    layout.query, layout.passage = said["query_length"], said["document_length"]
    layout.scoring = {
        "normalise": "unit",
        "markers": markers if any(markers.values()) else False,
        "expand": said["do_query_expansion"],
        "attend": said["attend_to_expansion_tokens"],
        "skip": said["skiplist_words"],
        "special_tokens": True,
    }


# --- the original ColBERT --------------------------------------------------------------------------------------------
def _original_colbert(folder: Path) -> Layout:
    said = _json(folder / "artifact.metadata")
    layout = Layout(folder, alone=False)
    keys = {
        "query_prefix": said.get("query_token_id", "[unused0]"),
        "document_prefix": said.get("doc_token_id", "[unused1]"),
        "query_length": said.get("query_maxlen"),
        "document_length": said.get("doc_maxlen"),
        "attend_to_expansion_tokens": said.get("attend_to_mask_tokens"),
        "skiplist_words": PYLATE["skiplist_words"] if said.get("mask_punctuation", True) else [],
    }
    _pylate(layout, PYLATE | {key: value for key, value in keys.items() if value is not None})
    weight = _tensors(folder, "linear.")["linear.weight"]
    layout.projection = weight, torch.zeros(len(weight))
    return layout


# --- ours ------------------------------------------------------------------------------------------------------------
def _trained_here(folder: Path, kind: str) -> Layout:
    """A ColBERT that lead trained. Its dual encoders are folders of sentence-transformers."""
    said = _json(folder / "lead.json")
    if said["kind"] != kind or kind != "cb":
        raise LeadError(
            f"models: {folder}: lead trained it, with `kind: {said['kind']}`; elsewhere than in its own project only a "
            "dual encoder or a ColBERT can be used, as the kind that it is"
        )
    scoring = validate(Scoring, said["scoring"], str(folder / "lead.json")).model_dump()
    chosen = {key: scoring[key] for key in ("normalise", "markers", "expand", "special_tokens", "attend", "skip")}
    layout = Layout(folder, alone=False, scoring=chosen, prompts=said.get("prompts", {}), **said["lengths"])
    if (file := folder / "head.safetensors").is_file():
        head = load_file(file)
        layout.projection = head["linear.weight"], head["linear.bias"]
    return layout


# --- files -----------------------------------------------------------------------------------------------------------
def _tensors(folder: Path, prefix: str) -> dict[str, Tensor]:
    """The weights in a folder whose names start so, in fp32. Of `pytorch_model.bin` only tensors are read."""
    if (file := folder / "model.safetensors").is_file():
        with safe_open(file, "pt") as weights:
            return {name: weights.get_tensor(name).float() for name in weights.keys() if name.startswith(prefix)}  # noqa: SIM118
    found = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    return {name: tensor.float() for name, tensor in found.items() if name.startswith(prefix)}


def _inside(folder: Path, path: str) -> Path:
    """A module's folder. Raises LeadError for one that is not inside `folder`."""
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise _refused(folder, f"its module {path} lies outside the folder")
    return folder / path


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def _json(file: Path) -> dict[str, Any]:
    """The keys in a JSON file; none if there is no file."""
    found = json.loads(_text(file)) if file.is_file() else {}
    if not isinstance(found, dict):
        raise ValueError(f"{file.name} holds no keys")
    return found


def _refused(folder: Path, why: str) -> LeadError:
    return LeadError(f"models: {folder}: {why}; train it further (method contrastive), or take another model")
