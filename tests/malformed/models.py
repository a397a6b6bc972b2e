"""Malformed model folders: a pretrained model that `lead train` starts from, and models that lead saved."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from malformed.base import Bad, Command, Site, settings
from safetensors.torch import load_file, save_file

from lead.store.checksums import MANIFEST, write_manifest

WEIGHTS, TOKENIZER = "model.safetensors", "tokenizer.json"


def edit(name: str, **keys: Any) -> Callable[[Path], None]:
    """Change keys of a JSON file; ... takes one out."""

    def change(folder: Path) -> None:
        value = json.loads((folder / name).read_text())
        value = {k: v for k, v in (value | keys).items() if v is not ...}
        (folder / name).write_text(json.dumps(value))

    return change


def put(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def cut(name: str, keep: int) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:keep])


def remove(*names: str) -> Callable[[Path], object]:
    return lambda folder: [(folder / name).unlink() for name in names]


class Loud:
    """Unpickled, it prints."""

    def __reduce__(self) -> tuple[object, ...]:
        return print, ("ran",)


def pickled(size: int | None = None) -> Callable[[Path], None]:
    """Weights as pickle only, with an object that acts when it is unpickled; or cut to `size` bytes, without."""

    def change(folder: Path) -> None:
        more = {"more": Loud()} if size is None else {}
        file = folder / "pytorch_model.bin"
        torch.save(load_file(folder / WEIGHTS) | more, file)
        file.write_bytes(file.read_bytes()[:size])
        (folder / WEIGHTS).unlink()

    return change


def reshaped(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    key = next(k for k in weights if k.endswith("layer.1.output.dense.weight"))
    save_file(weights | {key: weights[key][:8].contiguous()}, folder / WEIGHTS, metadata={"format": "pt"})


def more_words(folder: Path) -> None:
    """A tokenizer that knows more words than the encoder has embeddings for."""
    tokenizer = json.loads((folder / TOKENIZER).read_text())
    words = tokenizer["model"]["vocab"]
    words |= {f"word{i}": len(words) + i for i in range(50)}
    (folder / TOKENIZER).write_text(json.dumps(tokenizer))


def own_code(folder: Path) -> None:
    """A model whose folder brings Python of its own: loading it must not run it."""
    edit("config.json", model_type="strange", auto_map={"AutoConfig": "own.Config", "AutoModel": "own.Model"})(folder)
    (folder / "own.py").write_text("open('it ran', 'w')\n")


def pretrained(name: str, change: Callable[[Path], object], says: str, kind: str = "de", **scoring: Any) -> Bad:
    """`lead train` from a transformers folder that was spoilt."""

    def command(site: Site) -> Command:
        folder = Path(shutil.copytree(site.model, site.folder / "model"))
        change(folder)
        train = {"steps": 1, "batch_size": 4, "negatives": 2, "precision": "fp32", "dev_queries": 0}
        lengths = {"query": 8, "passage": 16}
        model = {"reference": f"path:{folder}"}
        chosen = settings(model=model, kind=kind, train=train, lengths=lengths, scoring=scoring)
        data = {"corpus": "corpus", "queries": "queries.train", "qrels": "qrels.train"}
        data |= {"dev-queries": "queries.dev", "dev-qrels": "qrels.dev"}
        files = [word for k, v in data.items() for word in (f"--{k}", site.collection / f"{v}.parquet")]
        out = [word for k in ("out", "state", "metrics") for word in (f"--{k}", site.folder / "new" / k)]
        return ["train", *files, *out, "--settings", chosen]

    return Bad(f"pretrained: {name}", command, says)


def saved(name: str, change: Callable[[Path], object], says: str, stage: str = "encode", signed: bool = True) -> Bad:
    """`lead encode` or `rerank` with a model that lead saved and that was spoilt, its checksums made right again."""

    def command(site: Site) -> Command:
        folder = Path(shutil.copytree(site.dual if stage == "encode" else site.cross, site.folder / "model"))
        change(folder)
        if signed:
            write_manifest(folder)
        corpus, queries = site.collection / "corpus.parquet", site.collection / "queries.dev.parquet"
        out = ["--out", site.folder / "out.parquet"]
        if stage == "encode":
            return ["encode", "--model", folder, "--texts", corpus, *out]
        lists = ["--corpus", corpus, "--queries", queries, "--ranked", site.collection / "negatives.parquet"]
        return ["rerank", "--model", folder, *lists, *out]

    return Bad(f"saved: {name}", command, says)


ROWS = [
    pretrained("no config", remove("config.json"), "has no config.json in .*model; give the folder of"),
    pretrained("half a config", cut("config.json", 40), "models: cannot load 'path:.*model'"),
    pretrained("a config that is a list", put("config.json", b"[1]"), "models: cannot load 'path:.*model'"),
    pretrained("a config that is a number", put("config.json", b"5"), "models: cannot load 'path:.*model'"),
    pretrained("a config without a type", edit("config.json", model_type=...), "models: cannot load 'path:"),
    pretrained("an unknown architecture", edit("config.json", model_type="strange"), "cannot load .*strange"),
    pretrained("a size of text", edit("config.json", hidden_size="wide"), "models: cannot load 'path:"),
    pretrained("a negative size", edit("config.json", hidden_size=-1), "models: cannot load 'path:"),
    pretrained("heads that do not fit", edit("config.json", num_attention_heads=7), "models: cannot load 'path:"),
    pretrained("more layers than weights", edit("config.json", num_hidden_layers=9), "lacks weights of its architect"),
    pretrained("code of its own", own_code, "models: cannot load 'path:"),
    pretrained("no weights", remove(WEIGHTS), "models: cannot load 'path:.*model.safetensors"),
    pretrained("pickled weights that act", pickled(), "models: cannot load 'path:.*weights_only"),
    pretrained("half of pickled weights", pickled(9000), "models: cannot load 'path:"),
    pretrained("truncated weights", cut(WEIGHTS, 5000), "models: cannot load 'path:"),
    pretrained("empty weights", put(WEIGHTS, b""), "models: cannot load 'path:"),
    pretrained("weights with a huge header", put(WEIGHTS, b"\xff" * 64), "models: cannot load 'path:"),
    pretrained("weights of another shape", reshaped, "models: cannot load 'path:|lacks weights"),
    pretrained("no tokenizer", remove(TOKENIZER, "tokenizer_config.json"), "tokenizer of 'path:"),
    pretrained("half a tokenizer", cut(TOKENIZER, 500), "tokenizer of 'path:"),
    pretrained("a tokenizer that is a list", put(TOKENIZER, b"[]"), "tokenizer of 'path:"),
    pretrained("a tokenizer of another model", more_words, "has an id 219, .* embeddings of 0 to 169 only"),
    pretrained("no [MASK] to expand with", edit("tokenizer_config.json", mask_token=...), "expand", "cb", expand=True),
    saved("no lead.json", remove("lead.json"), "lead.json is missing or not understood"),
    saved("an unknown kind", edit("lead.json", kind="xx"), "lead.json is missing or not understood .*'xx'"),
    saved("a kind that is a list", edit("lead.json", kind=[]), "lead.json is missing or not understood"),
    saved("unknown scoring", edit("lead.json", scoring={"poling": 1}), "lead.json: unknown key 'scoring.poling'"),
    saved("lengths of text", edit("lead.json", lengths={"query": "8"}), "lead.json: key 'lengths.query'"),
    saved("lead.json that is a list", put("lead.json", b"[]"), "lead.json is missing or not understood|lead.json: "),
    saved("a linear layer without weights", edit("lead.json", linear={"size": 8}), "head.safetensors"),
    saved("half a head", cut("head.safetensors", 30), "head.safetensors", "rerank"),
    saved("a head of another shape", lambda f: save_file({"w.weight": torch.ones(1, 3)}, f / "head.safetensors"),
          "head.safetensors", "rerank"),
    saved("no checksums", remove(MANIFEST), "not a folder written by lead", signed=False),
    saved("a changed config", edit("config.json", hidden_act="relu"), "config.json is missing", signed=False),
    saved("checksums of another format", put(MANIFEST, b"[" * 100_000), "SHA256SUMS cannot be read", signed=False),
    saved("a cross encoder to encode with", edit("lead.json", kind="ce"), "is a cross encoder|head.safetensors"),
]  # fmt: skip
