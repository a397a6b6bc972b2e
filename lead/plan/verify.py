"""`lead verify`: whether a dataset's results are intact, and agree with today's configuration."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from lead.commands import STAGES, settings_class
from lead.config.load import validate
from lead.config.recipe import recipe
from lead.errors import LeadError
from lead.plan.plan import Plan
from lead.plan.stage_settings import settings_of
from lead.store.checksums import check_folder, check_pages, identity
from lead.store.provenance import Record, code, named_files, pretrained, record_of
from lead.store.tables import read_json, read_table

FOLDERS = ("models/*/", "embeddings/*/index*/", "tokens/*/*/")  # with checksums of their files
TOLERANCE = 1e-6  # results are rounded to six digits
Finding = tuple[str, str]  # state, what


def verify(plan: Plan, dataset: str) -> list[Finding]:
    """(state, what) of every result, folder and table of a dataset; states: ok, stale, altered, missing, note.

    altered: a checksum or a mean does not agree. stale: today's settings differ, an input has changed, or an input is
    stale. missing: an input of a result, or its values for each query. note: the number of artifacts made by other
    code. Raises LeadError for an unknown dataset, or a dataset of which nothing is made.
    """
    folder = Path(plan.datasets[dataset].folder)
    results = sorted(folder.glob("*.json"))
    if not results and (plan.datasets[dataset].has_test or not folder.is_dir()):
        raise LeadError(f"{folder} holds no result; make one with: lead run {dataset}")
    paths = [*results, *sorted(folder.glob("data/*.json"))]
    paths += [path for kind in FOLDERS for path in sorted(folder.glob(kind)) if not path.name.startswith(".")]
    paths += [path for path in sorted(folder.rglob("*.parquet")) if not path.name.startswith(".")]
    verifier = Verifier(plan)
    found = [finding for path in paths for finding in verifier(path) or [("ok", str(path))]]
    # artifacts in the folder of another dataset are reported only if something is wrong with them
    others_found = verifier.found.keys() - set(paths)
    found += [finding for path in sorted(others_found) for finding in verifier.found[path]]
    if others := sum(record.get("code") != code() for record in verifier.records.values()):
        found.append(("note", f"{others} of {len(paths)} were made by another version of the code than {code()}"))
    return found


class Verifier:
    """What is wrong with artifacts. Each is checked once."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.found: dict[Path, list[Finding]] = {}
        self.records: dict[Path, Record] = {}
        self.sums: dict[str, str | None] = {}

    def __call__(self, path: Path) -> list[Finding]:
        """What is wrong with this artifact; nothing if it is intact and up to date."""
        if path not in self.found:
            try:
                self.found[path] = list(self._check(path))
            except LeadError as e:
                self.found[path] = [("altered", str(e))]
        return self.found[path]

    def _check(self, path: Path) -> Iterator[Finding]:
        if path.is_dir():
            check_folder(path)
        elif path.suffix == ".parquet":
            check_pages(path)
        else:
            read_json(path)
        record = record_of(path)
        if record is None:
            yield "stale", f"{path} has no record of how it was made"
            return
        self.records[path] = record
        if record["stage"] not in STAGES:
            yield "stale", f"{path}: made by the stage {record['stage']}, which no longer exists"
            return
        try:
            yield from (("stale", f"{path}: made with another {key}") for key in self._changed(path, record))
        except LeadError as e:
            yield "stale", f"{path}: today's configuration cannot make it: {e}"
        sources = set(self._sources(record))
        for name, sum_ in record["inputs"].items():
            yield from self._input(path, name, sum_, name in sources)
        if len(path.relative_to(self.plan.results).parts) == 2:
            yield from self._values(path)

    def _changed(self, path: Path, record: Record) -> list[str]:
        """The first keys in which today's recipe differs from the artifact's recipe."""
        dataset, *folders, last = path.relative_to(self.plan.results).parts
        stage = record["stage"]
        run = folders[1] if len(folders) == 2 else Path(last).stem if path.is_file() else last
        if stage in ("train", "align", "distil"):
            rows = self.plan.rows
            run = run if run in rows and rows.method(run).trains else run.removesuffix("_teacher")
        elif stage == "denoise":  # NEGATIVES.MODEL, both names of runs
            splits = ((run[: dot.start()], run[dot.end() :]) for dot in re.finditer(r"\.", run))
            run = next((r for r, by in splits if r in self.plan.rows and by in self.plan.rows), run)
        today = settings_of(self.plan.jobs, stage, dataset, run)
        cls = settings_class(stage)
        shard = {"shard": record["settings"]["shard"]} if stage in ("tokenize", "encode") else {}
        # validated by the class: a key that did not exist at that time gets its default
        then, now = (
            recipe(validate(cls, settings, str(path))) | {"made_by": None}
            for settings in (record["settings"], today | shard)
        )
        if "made_by" in today and path.suffix == ".json":  # a result: the settings of all stages behind it
            then, now = then | read_json(path).get("made_by", {}), now | today["made_by"]
        return list(differences(then, now))[:3]

    def _sources(self, record: Record) -> list[str]:
        """Inputs of an artifact that the user made, in any folder."""
        cls = settings_class(record["stage"])
        with contextlib.suppress(LeadError):
            return [str(path) for path in named_files(validate(cls, record["settings"], record["stage"]))]
        return []

    def _input(self, path: Path, name: str, sum_: str, source: bool) -> Iterator[Finding]:
        """What is wrong with an input of an artifact. sum_: its checksum at that time. source: not made by lead."""
        ours = Path(name).is_relative_to(self.plan.results) and Path(name).exists() and not source
        states = {state for state, _ in self(Path(name))} if ours else set()
        if "altered" in states:  # reported for the input; what was made from it before is still right
            return
        today = self._sum(name)
        if today is None:
            yield "missing", f"{name}, an input of {path}"
        elif today != sum_:
            yield "stale", f"{path}: {name} has changed since it was read"
        elif "stale" in states:
            yield "stale", f"{path}: its input {name} is stale"

    def _sum(self, name: str) -> str | None:
        if name not in self.sums:
            try:
                model = name.partition(":")[0] in ("path", "package")
                self.sums[name] = pretrained(name) if model else identity(Path(name))
            except LeadError:
                self.sums[name] = None
        return self.sums[name]

    def _values(self, path: Path) -> Iterator[Finding]:
        """Whether a result's means equal the means of its queries' values."""
        per_query = path.parent / "per_query" / f"{path.stem}.parquet"
        if not per_query.exists():
            yield "missing", f"{per_query}"
            return
        values = read_table(per_query, "per_query")
        for measure, numbers in read_json(path)["metrics"].items():
            mean = pc.mean(values.filter(pc.equal(values["measure"], measure))["value"]).as_py()
            if mean is None or abs(mean - numbers["mean"]) > TOLERANCE:
                yield "altered", f"{path}: {measure} is {numbers['mean']}, but its queries' mean is {mean}"
                return


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
