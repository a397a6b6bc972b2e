"""Where a model reference points: a hub name, a folder, or a folder inside an installed package."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from lead.errors import LeadError


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
    if not (folder / "config.json").is_file():
        raise LeadError(
            f"models: '{reference}' has no config.json in {folder}; give the folder of a transformers model"
        )
    return str(folder)


def local_weights(reference: str) -> Path | None:
    """The weights file of a model on this machine; None for the hub's, which are named, not read, in a fingerprint."""
    file = Path(resolve(reference)) / "model.safetensors"
    return file if not reference.startswith("hub:") and file.is_file() else None
