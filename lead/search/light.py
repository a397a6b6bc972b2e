"""The vector of a query from NumPy alone, for BERT and DistilBERT.

Importing torch and transformers takes seconds, encoding a query takes milliseconds. So a search encodes its queries
here where it can. The vectors are those of `lead encode` up to rounding (1e-6). Other architectures need torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lead.lists import Floats
from lead.pretrained import loading
from lead.store.checksums import check_folder

KNOWN = {"kind", "scoring", "lengths", "linear", "prompts"}  # keys of lead.json that are understood here


@dataclass(frozen=True)
class Layout:
    """How an architecture names its weights and the keys of its config.json."""

    layer: str
    query: str
    key: str
    value: str
    out: str
    norm: str  # after attention
    up: str
    down: str
    norm_out: str  # after the feed-forward layers
    heads: str
    depth: str
    activation: str


LAYOUTS = {
    "bert": Layout(
        "encoder.layer", "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
        "attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm",
        "num_attention_heads", "num_hidden_layers", "hidden_act",
    ),
    "distilbert": Layout(
        "transformer.layer", "attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin",
        "sa_layer_norm", "ffn.lin1", "ffn.lin2", "output_layer_norm", "n_heads", "n_layers", "activation",
    ),
}  # fmt: skip


def light_encoder(folder: Path) -> LightEncoder | None:
    """The encoder of queries of a dual encoder's folder; None if it needs torch. Raises LeadError for damage."""
    with loading(f"'{folder}'"):
        description, config, tokenizing = (
            json.loads(file.read_text(encoding="utf-8")) if (file := folder / name).is_file() else {}
            for name in ("lead.json", "config.json", "tokenizer_config.json")
        )
        layout = LAYOUTS.get(config.get("model_type", ""))
        if (
            layout is None
            or description.get("kind") != "de"
            or description.keys() - KNOWN
            or config.get(layout.activation) != "gelu"
            or config.get("position_embedding_type", "absolute") != "absolute"
            or config.get("is_decoder")
            or tokenizing.get("truncation_side", "right") != "right"
            or tokenizing.get("split_special_tokens")
            or not all((folder / name).is_file() for name in ("model.safetensors", "tokenizer.json"))
        ):
            return None
        check_folder(folder)
        found = LightEncoder(folder, description, config, layout)
        return found if found.ids("") else None  # an empty text without special tokens is a case of its own


class LightEncoder:
    """Encodes one query at a time, in fp32."""

    def __init__(self, folder: Path, description: dict[str, Any], config: dict[str, Any], layout: Layout) -> None:
        """`description`, `config`: what lead.json and config.json of `folder` say."""
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        self.layout, self.scoring = layout, description["scoring"]
        self.weights = {name: w.astype(np.float32) for name, w in load_file(folder / "model.safetensors").items()}
        head = load_file(folder / "head.safetensors") if "linear" in description else {}
        self.weights |= {name: w.astype(np.float32) for name, w in head.items()}
        self.linear = "linear" in description
        self.heads, self.depth = int(config[layout.heads]), int(config[layout.depth])
        self.epsilon = float(config.get("layer_norm_eps", 1e-12))
        self.prompt = description.get("prompts", {}).get("query", "")
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(int(description["lengths"]["query"]))
        self.tokenizer.no_padding()

    def ids(self, query: str) -> list[int]:
        """Token ids, cut to the length of queries."""
        found: list[int] = self.tokenizer.encode(self.prompt + query).ids
        return found

    def __call__(self, query: str) -> Floats:
        """The vector [d] of a query."""
        ids, names = self.ids(query), self.layout
        h = self.weights["embeddings.word_embeddings.weight"][ids]
        h = h + self.weights["embeddings.position_embeddings.weight"][: len(ids)]
        if (types := self.weights.get("embeddings.token_type_embeddings.weight")) is not None:
            h = h + types[0]
        h = self._norm("embeddings.LayerNorm", h)
        for i in range(self.depth):
            at = f"{names.layer}.{i}."
            h = self._norm(at + names.norm, h + self._attention(at, h))
            h = self._norm(at + names.norm_out, h + self._dense(at + names.down, gelu(self._dense(at + names.up, h))))
        if self.linear:
            h = self._dense("linear", h)
        pooling = self.scoring["pooling"]
        x = h[0] if pooling == "cls" else h[-1] if pooling == "last" else h.mean(0)
        unit = self.scoring["normalise"] == "unit"
        result: Floats = x / max(float(np.linalg.norm(x)), 1e-12) if unit else x
        return result.astype(np.float32)

    def _dense(self, name: str, x: Floats) -> Floats:
        result: Floats = x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]
        return result

    def _norm(self, name: str, x: Floats) -> Floats:
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(self.epsilon))
        result: Floats = x * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]
        return result

    def _attention(self, at: str, h: Floats) -> Floats:
        names = (self.layout.query, self.layout.key, self.layout.value)
        q, k, v = (self._dense(at + name, h).reshape(len(h), self.heads, -1).swapaxes(0, 1) for name in names)
        s = q @ k.swapaxes(1, 2) / np.float32(np.sqrt(q.shape[-1]))  # [heads, T, T]
        s = np.exp(s - s.max(-1, keepdims=True))
        mixed = (s / s.sum(-1, keepdims=True)) @ v
        return self._dense(at + self.layout.out, mixed.swapaxes(0, 1).reshape(len(h), -1))


def gelu(x: Floats) -> Floats:
    """x Phi(x), Phi the normal distribution function."""
    from scipy.special import erf

    result: Floats = x * (1 + erf(x * np.float32(np.sqrt(0.5)))) / 2
    return result
