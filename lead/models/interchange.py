"""What other libraries read of a dual encoder's folder: with it, sentence-transformers makes our vectors.

`SentenceTransformer(folder)` builds a model of the modules that modules.json names: the encoder, pooling, a dense layer
for `linear`, and unit length. Keys are the old ones, which every version knows, but for `query_length`: it cuts queries
shorter than passages, and came with version 6.
"""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from lead.config.schema import Lengths, Prompts, Scoring
from lead.models.card import Facts, short_card
from lead.store.checksums import CARD

MODES = {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens", "last": "pooling_mode_lasttoken"}


@dataclass(frozen=True)
class Interchange:
    """All that decides a dual encoder's vectors, but its tokenizer."""

    encoder: nn.Module
    linear: nn.Linear | None
    scoring: Scoring
    lengths: Lengths
    prompts: Prompts

    def write(self, folder: Path) -> None:
        """Write modules.json and what it names, and a README.md, beside an encoder that is saved in `folder`.

        A linear layer comes after pooling there, and before it here: the vectors are the same, since each pooling is a
        weighted mean of the tokens' vectors. `scale` is left out: it changes no ranking.
        """
        modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
        for i, (name, config) in enumerate(self._after_the_encoder(), start=1):
            path = folder / f"{i}_{name}"
            path.mkdir()
            _write(path / "config.json", config)
            if name == "Dense" and self.linear is not None:
                weights = {f"linear.{key}": w.contiguous() for key, w in self.linear.state_dict().items()}
                save_file(weights, path / "model.safetensors")
            modules.append(
                {"idx": i, "name": str(i), "path": path.name, "type": f"sentence_transformers.models.{name}"}
            )
        _write(folder / "modules.json", modules)
        _write(folder / "sentence_bert_config.json", self._cut())
        similarity = "cosine" if self.scoring.normalise == "unit" else "dot"
        config = {
            "prompts": {"query": self.prompts.query, "document": self.prompts.passage},
            "similarity_fn_name": similarity,
        }
        _write(folder / "config_sentence_transformers.json", config)
        (folder / CARD).write_text(short_card(self.facts), encoding="utf-8")

    @property
    def facts(self) -> Facts:
        """What people must know of it."""
        size = self.width if self.linear is None else self.linear.out_features
        return Facts(self.scoring, self.lengths, self.prompts, size, self.linear is not None)

    @property
    def width(self) -> int:
        """Of the encoder's outputs."""
        return int(self.encoder.config.hidden_size)  # type: ignore[union-attr,arg-type]

    def _after_the_encoder(self) -> list[tuple[str, dict[str, Any]]]:
        """The modules that make one vector of the tokens' vectors: class and configuration."""
        modes = {key: mode == self.scoring.pooling for mode, key in MODES.items()}
        parts: list[tuple[str, dict[str, Any]]] = [("Pooling", {"word_embedding_dimension": self.width, **modes})]
        if self.linear is not None:
            sizes = {"in_features": self.linear.in_features, "out_features": self.linear.out_features, "bias": True}
            parts.append(("Dense", {**sizes, "activation_function": "torch.nn.modules.linear.Identity"}))
        return [*parts, ("Normalize", {})] if self.scoring.normalise == "unit" else parts

    def _cut(self) -> dict[str, Any]:
        """Where texts are cut: plain `encode` and `encode_document` cut as passages are, `encode_query` as queries."""
        cut: dict[str, Any] = {"max_seq_length": self.lengths.passage, "do_lower_case": False}
        if self.lengths.query != self.lengths.passage:
            cut["query_length"] = self.lengths.query
        if "add_pooling_layer" in inspect.signature(type(self.encoder).__init__).parameters:
            cut["model_args"] = {"add_pooling_layer": False}  # or the layer, which no folder has, is reported missing
        return cut


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
