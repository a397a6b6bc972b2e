"""`lead verify`: whether a dataset's results are whole, and what the configuration of today would make."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from lead.artifacts import check_folder, read_json, read_table
from lead.errors import LeadError
from lead.plan import Plan

FOLDERS = ("models/*/", "embeddings/*/index*/", "tokens/*/*/")  # with manifests of checksums
TOLERANCE = 1e-6  # results are rounded to six digits


def verify(plan: Plan, dataset: str) -> list[tuple[str, str]]:
    """(state, what) of every result, folder and table found; states: ok, stale, altered, missing.

    Stale: made with other settings than those of today. Altered: a checksum, a page or a mean that does not agree.
    Raises LeadError for an unknown dataset, or one without any result.
    """
    folder = Path(plan.results) / dataset
    results = sorted(folder.glob("*.json"))
    plan.resolve(dataset)
    if not results:
        raise LeadError(f"{folder} holds no result; make one with: snakemake --cores 2 -- {folder}/student.json")
    return [
        *(found for path in results for found in _result(plan, dataset, path)),
        *(_whole(check_folder, path) for kind in FOLDERS for path in sorted(folder.glob(kind))),
        *(_whole(read_table, path) for path in sorted(folder.rglob("*.parquet"))),
    ]


def _result(plan: Plan, dataset: str, path: Path) -> Iterator[tuple[str, str]]:
    run = path.stem
    try:
        result = read_json(path)
        recorded, metrics = result["made_by"], result["metrics"]
    except (LeadError, KeyError, TypeError) as e:
        yield "altered", f"{path} is not a result ({e})"
        return
    if run not in plan.rows:
        yield "stale", f"{path}: no run '{run}' any more"
        return
    try:
        today = plan.settings("evaluate", dataset, run)["made_by"]
    except LeadError as e:
        yield "stale", f"{path}: the run makes no sense any more: {e}"
        return
    changed = list(differences(recorded, today))
    for key in changed[:3]:
        yield "stale", f"{path}: made with another {key}"
    per_query = path.parent / "per_query" / f"{run}.parquet"
    if not per_query.exists():
        yield "missing", f"{per_query}"
        return
    try:
        values = read_table(per_query, "per_query")
    except LeadError as e:
        yield "altered", str(e)
        return
    for measure, numbers in metrics.items():
        mean = pc.mean(values.filter(pc.equal(values["measure"], measure))["value"]).as_py()
        if mean is None or abs(mean - numbers["mean"]) > TOLERANCE:
            yield "altered", f"{path}: {measure} is {numbers['mean']}, but its queries' mean is {mean}"
            return
    if not changed:
        yield "ok", f"{path}"


def differences(a: Any, b: Any, at: str = "") -> Iterator[str]:
    """Paths of the keys in which two trees differ.

    >>> list(differences({"x": {"y": 1, "z": 2}}, {"x": {"y": 1, "z": 3}}))
    ['x.z']
    """
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted(a.keys() | b.keys()):
            if a.get(key) != b.get(key) or (key in a) != (key in b):
                yield from differences(a.get(key), b.get(key), f"{at}.{key}" if at else str(key))
    elif a != b:
        yield at


def _whole(read: Callable[[Path], object], path: Path) -> tuple[str, str]:
    """Whether all of a model folder or Parquet file can be read back with its checksums."""
    try:
        read(path)
        return "ok", f"{path}"
    except LeadError as e:
        return "altered", str(e)
