"""Tiny ready retrievers in the layouts of published ones, for the tests of method pretrained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from conftest import make_bert, make_tokenizer, vocabulary
from safetensors.torch import load_file, save_file


def sentence_transformer(
    folder: Path, encoder: Path, pooling: str, unit: bool = True, dense: Any = None, **said: Any
) -> Path:
    """A folder that sentence-transformers writes: Transformer, Pooling, perhaps Dense, Normalize."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    transformer = Transformer(str(encoder), max_seq_length=40)
    modules = [transformer, Pooling(transformer.get_embedding_dimension(), pooling_mode=pooling)]
    modules += [dense] if dense is not None else []
    SentenceTransformer(modules=[*modules, *([Normalize()] if unit else [])], device="cpu", **said).save(str(folder))
    return folder


def decoder(folder: Path) -> Path:
    """A Qwen3 of 3 layers."""
    from transformers import Qwen3Config, Qwen3Model

    make_tokenizer(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "head_dim": 16}
    config = Qwen3Config(
        vocab_size=len(vocabulary()), num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
        initializer_range=0.3, pad_token_id=3, **sizes,
    )  # fmt: skip
    torch.manual_seed(3)
    Qwen3Model(config).save_pretrained(folder)
    return folder


def original_colbert(folder: Path) -> Path:
    """The layout of ColBERTv2: weights under `bert.`, `linear.weight`, artifact.metadata."""
    make_bert(folder, seed=4)
    weights = {f"bert.{name}": w for name, w in load_file(folder / "model.safetensors").items()}
    save_file({**weights, "linear.weight": torch.randn(12, 32)}, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["HF_ColBERT"]}))
    said = {"query_token_id": "[unused0]", "doc_token_id": "[unused1]", "query_maxlen": 16, "doc_maxlen": 30}
    said |= {"attend_to_mask_tokens": False, "mask_punctuation": True, "dim": 12, "similarity": "cosine"}
    (folder / "artifact.metadata").write_text(json.dumps(said))
    return folder


def pylate(folder: Path, **said: Any) -> Path:
    """The layout of PyLate: modules.json with 1_Dense, markers as tokens of their own."""
    from transformers import AutoModel, AutoTokenizer

    make_bert(folder, seed=5)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["[Q] ", "[D] "])
    model = AutoModel.from_pretrained(folder)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 29, "do_lower_case": False}))
    modules = (("Transformer", "", "sentence_transformers.models.Transformer"),
               ("Dense", "1_Dense", "pylate.models.Dense.Dense"))  # fmt: skip
    listed = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (_, path, kind) in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Dense").mkdir()
    identity = "torch.nn.modules.linear.Identity"
    dense = {"in_features": 32, "out_features": 12, "bias": False, "activation_function": identity}
    (folder / "1_Dense" / "config.json").write_text(json.dumps({**dense, "use_residual": False}))
    save_file({"linear.weight": torch.randn(12, 32)}, folder / "1_Dense" / "model.safetensors")
    config = {"model_type": "ColBERT", "query_prefix": "[Q] ", "document_prefix": "[D] ", "query_length": 16}
    config |= {"document_length": 30, "attend_to_expansion_tokens": True, "skiplist_words": [",", "."], **said}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(config))
    return folder


def cross_encoder(folder: Path, labels: int = 1, architecture: str = "Bert", **config: Any) -> Path:
    """A trained head of 1, 2 or more labels on a tiny encoder."""
    import transformers

    make_tokenizer(folder)
    if architecture in ("Bert", "Electra", "Albert"):  # their tokenizers tell the two segments
        said = json.loads((folder / "tokenizer_config.json").read_text())
        said["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
        (folder / "tokenizer_config.json").write_text(json.dumps(said))
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
    if architecture == "DistilBert":
        sizes = {"dim": 32, "n_layers": 3, "n_heads": 2, "hidden_dim": 48}
    made: Any = getattr(transformers, f"{architecture}Config")(
        vocab_size=len(vocabulary()), max_position_embeddings=70, num_labels=labels, initializer_range=0.3,
        pad_token_id=3, **sizes, **config,
    )  # fmt: skip
    torch.manual_seed(6)
    getattr(transformers, f"{architecture}ForSequenceClassification")(made).save_pretrained(folder)
    return folder
