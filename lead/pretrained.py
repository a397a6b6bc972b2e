"""Where a model reference points: a hub name, a folder, or a folder inside an installed package.

It imports no torch: the workflow reads it at every start.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from lead.config.schema import ModelRef
from lead.errors import LeadError

NEEDED = (  # of a model on the hub: one of each
    ("config.json",),
    ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "pytorch_model.bin.index.json"),
    ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model"),
)
OF_MODEL = (".json", ".safetensors", ".bin", ".txt", ".model")  # endings of files that a model is read from
MODULE = re.compile(r"\d+_\w+")  # folders of sentence-transformers' modules, such as 1_Pooling
LAYERS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")  # keys of config.json, by architecture


@contextlib.contextmanager
def loading(what: str) -> Iterator[None]:
    """Turn whatever is raised over somebody's files into one LeadError; a LeadError stays.

    transformers, tokenizers and safetensors promise no exceptions: a damaged file may raise any.
    """
    try:
        yield
    except LeadError:
        raise
    except Exception as e:
        reason = " ".join(str(e).split())[:300] or type(e).__name__
        offline = "; the hub cannot be asked (HF_HUB_OFFLINE=1)" if os.environ.get("HF_HUB_OFFLINE") == "1" else ""
        raise LeadError(f"models: cannot load {what}: {reason}{offline}") from e


def resolve(reference: str) -> str:
    """The name or folder that transformers loads for `hub:`, `path:` or `package:` references. Raises LeadError."""
    kind, _, rest = reference.partition(":")
    if kind == "hub":
        return rest
    if kind == "path":
        folder = Path(os.path.expanduser(rest))
    else:
        package, _, inside = rest.partition("/")
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            raise LeadError(f"models: package '{package}' of reference '{reference}' is not installed; pip install it")
        folder = Path(next(iter(spec.submodule_search_locations))) / inside
    if not os.path.isfile(folder / "config.json"):
        raise LeadError(
            f"models: '{reference}' has no config.json in {folder}; give the folder of a transformers model"
        )
    return str(folder)


def download(reference: str) -> Path:
    """The folder of a model with all its files but copies of its weights; a hub model is downloaded. LeadError."""
    name = resolve(reference)
    if not reference.startswith("hub:"):
        return Path(name)
    from huggingface_hub import constants, snapshot_download

    parts = [
        "*.json",
        "*.txt",
        "*.model",
        "*.safetensors",
        "*/pytorch_model.bin",
        "artifact.metadata",
        ".gitattributes",
        "README.md",  # states the licence
    ]
    with loading(f"'{reference}'"):
        folder = Path(snapshot_download(name, allow_patterns=parts, ignore_patterns=["onnx/*", "openvino/*"]))
        if not any(folder.glob("model*.safetensors*")):
            folder = Path(snapshot_download(name, allow_patterns=[*parts, "pytorch_model*.bin*"]))
    if constants.HF_HUB_OFFLINE and not any((folder / f).exists() for f in (".gitattributes", "modules.json")):
        raise LeadError(
            f"models: '{reference}': only a part of it is on this machine, perhaps without the files that say how it "
            f"is used, and the hub cannot be asked (HF_HUB_OFFLINE=1); where there is a network: hf download {name}"
        )
    return folder


def local_weights(reference: str) -> Path | None:
    """The weights file of a model on this machine; None for the hub's, which are named, not read, in a fingerprint."""
    if reference.startswith("hub:"):
        return None
    files = (Path(resolve(reference)) / name for name in ("model.safetensors", "pytorch_model.bin"))
    return next((file for file in files if file.is_file()), None)


def model_files(reference: str) -> list[Path]:
    """What a model in a folder of the user's own (`path:`) is read from: weights, tokenizer, pooling, prompts, lengths.

    None for other references: an installed package or a revision of the hub stays as it is. Raises LeadError.
    """
    if not reference.startswith("path:"):
        return []
    folder = Path(resolve(reference))
    inside = [folder, *(path for path in folder.iterdir() if MODULE.fullmatch(path.name))]
    found = (path for at in inside for path in at.iterdir() if path.is_file())
    return sorted(path for path in found if path.suffix in OF_MODEL or path.name == "artifact.metadata")


def check_hub(reference: str) -> None:
    """Refuse what is no name on the hub, and a model that is not on this machine while the hub cannot be asked.

    Other references pass. Raises LeadError.
    """
    if not reference.startswith("hub:"):
        return
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    name = resolve(reference)
    try:
        here = all(any(isinstance(try_to_load_from_cache(name, f), str) for f in any_of) for any_of in NEEDED)
    except HFValidationError as e:
        raise LeadError(f"models: '{reference}' is no name of a model: {' '.join(str(e).split())}") from None
    if not here and constants.HF_HUB_OFFLINE:
        raise LeadError(
            f"models: '{reference}' is not in {constants.HF_HUB_CACHE}, and the hub cannot be asked "
            f"(HF_HUB_OFFLINE=1); where there is a network: hf download {name} (HF_HOME says where it goes)"
        )


@cache
def vocabulary_sum(reference: str) -> str | None:
    """A sum of the words of a tokenizer and their ids; None where no file on this machine tells."""
    if (file := _file_of(reference, "tokenizer.json")) is None:
        return None
    try:
        words = json.loads(file.read_text(encoding="utf-8"))["model"]["vocab"]
    except (OSError, ValueError, LookupError, TypeError):  # the stage that loads it says what is wrong
        return None
    return hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()


def rules_sum(tokenizer: dict[str, Any]) -> str:
    """SHA-256 of what of a tokenizer.json decides how a text is cut into which words."""
    kept = [tokenizer.get(key) for key in ("normalizer", "pre_tokenizer", "model")]
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def pretrained_layers(model: ModelRef) -> int | None:
    """Number of layers of a pretrained encoder and its linear layer; None where only the hub can tell."""
    n = _of_config(model.reference, LAYERS, "number of layers")
    extra = int(model.linear is not None)
    if model.layers is None:
        return n if n is None else n + extra
    if n is not None and max(model.layers, default=1) > n:
        raise LeadError(
            f"models: layers has {max(model.layers)}, but '{model.reference}' has only layers 1..{n}; give its own, or "
            "`layers: null` for all (a preset's stay where only the reference is given)"
        )
    return len(model.layers) + extra


def vector_width(model: ModelRef) -> int | None:
    """Width of the vectors of a dual encoder made of this pretrained encoder; None where only the hub can tell."""
    if model.linear is not None and model.linear.size is not None:
        return model.linear.size
    return encoder_width(model.reference)


def encoder_width(reference: str) -> int | None:
    """Width of a pretrained encoder's own outputs; None where only the hub can tell."""
    return _of_config(reference, ("hidden_size", "dim", "d_model", "n_embd", "emb_dim"), "width")


def own_length(reference: str) -> int | None:
    """Tokens to which a model of sentence-transformers cuts texts; None where no file on this machine says so."""
    try:
        file = _file_of(reference, "sentence_bert_config.json")
        said = None if file is None else json.loads(file.read_text(encoding="utf-8")).get("max_seq_length")
    except (OSError, ValueError, AttributeError):  # the stage that loads it says what is wrong
        return None
    return said if isinstance(said, int) else None


def _file_of(reference: str, name: str) -> Path | None:
    """Where a file of a model is, or ought to be, on this machine; None for one that is on the hub only."""
    if not reference.startswith("hub:"):
        return Path(resolve(reference)) / name
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(resolve(reference), name)
    except HFValidationError:  # `check_hub` says so
        return None
    return Path(cached) if isinstance(cached, str) else None


def _of_config(reference: str, keys: tuple[str, ...], what: str) -> int | None:
    """The first of these keys that the config.json of a model has; None for a model that is on the hub only."""
    file = _file_of(reference, "config.json")
    if file is None:
        return None
    try:
        return _number(file, keys, what)
    except LeadError:
        if reference.startswith("hub:"):  # it was accepted before it was downloaded: the stage that loads it says more
            return None
        raise


@cache
def _number(file: Path, keys: tuple[str, ...], what: str) -> int:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        return int(next(config[key] for key in keys if key in config))
    except (OSError, ValueError, TypeError, StopIteration):
        raise LeadError(f"models: {file} does not tell the {what}; is it that of an encoder?") from None


def shown(reference: str) -> str:
    """A reference without the folders of this machine.

    >>> shown("path:/data/models/my-bert"), shown("hub:google/bert")
    ('path:my-bert', 'hub:google/bert')
    """
    kind, _, rest = reference.partition(":")
    return f"path:{Path(rest).name}" if kind == "path" else reference
