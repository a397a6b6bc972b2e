"""To which training a state folder belongs: the settings that decide numbers, the inputs, and the code that computes.

Only where all three agree is a state resumed. Keys that decide time and memory (lead.config.recipe) may change.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

import lead
from lead.config.recipe import execution, flat, recipe
from lead.store.atomic import atomic_file
from lead.store.checksums import identity
from lead.store.provenance import dumps

log = logging.getLogger("lead")

FILE = "key.json"  # beside the checkpoints
# the code that computes a training; command line, plan, data preparation, retrieval, evaluation and report do not
COMPUTES = (
    "models/*.py",
    "methods/*.py",
    "train/*.py",
    "config/kinds.py",
    "config/methods.py",
    "data/copies.py",
    "data/scores.py",
    "data/texts.py",
    "data/unlabelled.py",
    "device.py",
    "store/tables.py",
    "store/vectors.py",
    "lists.py",
    "pretrained.py",
    "tokenizer.py",
)
Key = dict[str, dict[str, Any]]


def state_key(settings: BaseModel, inputs: Mapping[str, Path | None], package: Path | None = None) -> Key:
    """What a training state must agree with: `settings`, `inputs` and `code`, each by name.

    `inputs`: checksums of contents, so names and times do not matter. `package`: the folder of the code.
    """
    package = package or Path(lead.__file__).parent
    sources = sorted(file for pattern in COMPUTES for file in package.glob(pattern))
    return {
        "settings": flat(recipe(settings)),
        "inputs": {name: None if path is None else identity(path) for name, path in inputs.items()},
        "code": {str(file.relative_to(package)): _sum(file.read_bytes()) for file in sources},
    }


def state_name(key: Key) -> str:
    """The name of a state's folder: 16 hex digits."""
    return _sum(dumps(key).encode())


def open_state(folder: Path, settings: BaseModel, key: Key) -> None:
    """Make the folder in `folder` for the checkpoints of this training, with its key in it.

    Where there is no state to resume, but one of another training, the log says how that one differs.
    """
    own = folder / state_name(key)
    known, now = _read(own), flat(execution(settings))
    if known is not None:
        for change in _changes(known.get("execution", {}), now):
            log.info("%s: a training that goes on keeps its numbers but for rounding (and its dropout masks)", change)
    elif others := [path for path in folder.glob("[0-9a-f]" * 16) if path != own and any(path.glob("step-*"))]:
        newest = max(others, key=lambda path: path.stat().st_mtime)
        log.warning(
            "training starts anew; the checkpoints in %s are of another one: %s", newest, _why(_read(newest), key)
        )
    with atomic_file(own / FILE) as temporary:
        temporary.write_text(dumps({**key, "execution": now}), encoding="utf-8")


def remove_states(folder: Path) -> None:
    """Remove the training states in a folder, and the folder if nothing else is in it."""
    for old in folder.glob("[0-9a-f]" * 16):
        shutil.rmtree(old, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def _why(old: dict[str, Any] | None, new: Key) -> str:
    """How two keys differ, for people."""
    if old is None:
        return f"no {FILE} can be read there"
    found = list(_changes(old.get("settings", {}), new["settings"]))
    for what in ("inputs", "code"):
        names = [line.split(":")[0] for line in _changes(old.get(what, {}), new[what])]
        found += [f"other {what} ({', '.join(names)})"] if names else []
    return "; ".join(found)


def _changes(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            yield f"{name}: {old.get(name)} -> {new.get(name)}"


def _read(folder: Path) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else None
    return None


def _sum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
