"""Every artifact has a record of how it was made.

A record holds `stage`, `settings`, `inputs` (path as given: checksum of the content) and `code`. It is in the metadata
of a Parquet file under the key `lead`, in a folder's made_by.json, in a JSON file under `provenance`.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lead
from lead.config.recipe import recipe
from lead.errors import LeadError
from lead.store.checksums import identity, sha256

Record = dict[str, Any]
KEY = "lead"  # of a Parquet file's metadata
FILE = "made_by.json"  # of a folder
_records: list[Record] = []  # of the running command, if any


@contextlib.contextmanager
def made_by(record: Record) -> Iterator[None]:
    """Artifacts written inside the block get `record`."""
    _records.append(record)
    try:
        yield
    finally:
        _records.pop()


def current() -> Record | None:
    """The record of the running command; None outside of commands."""
    return _records[-1] if _records else None


@contextlib.contextmanager
def gathering(parts: Sequence[Path]) -> Iterator[None]:
    """Artifacts written inside the block record the inputs of `parts`, because parts are deleted later.

    Raises LeadError for a part with another stage, settings or inputs, and if the part of a shard is missing.
    """
    record = current()
    if record is None or not parts:
        yield
        return
    inputs = {given: sum_ for given, sum_ in record["inputs"].items() if given not in set(map(str, parts))}
    made = record["code"]
    for part in parts:
        of = record_of(part) or {}
        if any(of.get(key) != record[key] for key in ("stage", "settings")):
            raise LeadError(f"{part} was made with other settings, or is no part of it; make it again")
        for given, sum_ in of["inputs"].items():
            if inputs.setdefault(given, sum_) != sum_:
                raise LeadError(f"{part} was made from another {given} than the rest; make it again")
        made = of["code"] if of["code"] != record["code"] else made  # so that `lead verify` can report it
    shards = [match for given in inputs if (match := re.search(r"\.(\d+)of(\d+)\.parquet$", given))]
    for missing in {i for m in shards for i in range(1, int(m[2]) + 1)} - {int(m[1]) for m in shards}:
        raise LeadError(
            f"--parts: the part of shard {missing} of {shards[0][2]} is missing; give the parts of all shards"
        )
    with made_by({**record, "inputs": inputs, "code": made}):
        yield


def make_record(stage: str, settings: Any, paths: Iterable[Path]) -> Record:
    """The record of a stage with these checked settings and input paths.

    Sources and pretrained weights that the settings name are inputs too. Two things are left out: `made_by`, which the
    result holds, and an unreadable input, for which the stage has a better message.
    """
    inputs = {}
    for path in [*paths, *named_files(settings)]:
        with contextlib.suppress(LeadError):
            inputs[str(path)] = identity(path)
    reference = getattr(getattr(settings, "model", None), "reference", None)
    with contextlib.suppress(LeadError):
        if reference is not None and (weights := pretrained(reference)) is not None:
            inputs[reference] = weights
    kept = {key: value for key, value in recipe(settings).items() if key != "made_by"}
    return {"stage": stage, "settings": kept, "inputs": inputs, "code": code()}


def named_files(settings: Any) -> list[Path]:
    """Files that the settings of a stage name: a source, ranked lists that come with it, a model of the user's own.

    A folder that is missing has none.
    """
    from lead.config.load import source_files
    from lead.config.sources import IR_DATASETS
    from lead.pretrained import model_files

    source, run = getattr(settings, "source", None), getattr(settings, "external_run", None)
    files: list[str] = []
    if source is not None:
        with contextlib.suppress(LeadError):
            files = source_files(source)
    files += [os.path.expanduser(run)] if run and not run.startswith(IR_DATASETS) else []
    reference, model = getattr(getattr(settings, "model", None), "reference", None), list[Path]()
    if reference is not None:
        with contextlib.suppress(LeadError):
            model = model_files(reference)
    return [*map(Path, files), *model]


def pretrained(reference: str) -> str | None:
    """Checksum of a pretrained model's local weights; None for a model of the hub. LeadError for missing weights."""
    from lead.pretrained import local_weights

    weights = local_weights(reference)
    return None if weights is None else sha256(weights)


@functools.cache
def code() -> str:
    """Version of the package and a checksum of its sources."""
    digest = hashlib.sha256()
    for source in sorted(Path(lead.__file__).parent.rglob("*.py")):
        digest.update(source.read_bytes())
    return f"{lead.__version__}+{digest.hexdigest()[:16]}"


def record_of(path: Path) -> Record | None:
    """The record of an artifact, or None. Check the artifact first."""
    if path.is_dir():
        file = path / FILE
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    elif path.suffix == ".json":
        found = json.loads(path.read_text(encoding="utf-8")).get("provenance")
    else:
        import pyarrow.parquet as pq

        text = (pq.read_metadata(path).metadata or {}).get(KEY.encode())
        found = None if text is None else json.loads(text)
    return found if isinstance(found, dict) else None


def dumps(value: Any) -> str:
    """JSON with sorted keys, so that equal values give equal bytes."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
