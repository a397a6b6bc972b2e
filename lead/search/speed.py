"""`lead speed`: how long a query takes, and how many passages a second a model encodes, on this machine."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lead.errors import LeadError
from lead.search.systems import Collection, Dense, System
from lead.store.tables import write_json

log = logging.getLogger("lead")
QUERIES = 100  # test queries that are asked at most, after a few that are not counted
WARM = 5
TEXTS = 128  # passages that are encoded at a time
ENOUGH = 10.0  # seconds after which no more queries are asked
K = 10


def speed(
    target: str,
    config: Path,
    overrides: dict[str, Any] | None = None,
    threads: int = 1,
    say: Callable[[str], None] = print,
) -> list[Path]:
    """Measure DATASET/RUN, or every run of DATASET that can be searched, and write DATASET/speed/RUN.json for each.

    A query is asked alone, as `lead search` asks it: from its text to its ten best passages. Passages are encoded
    together. Raises LeadError for a run that was not made, and if nothing can be searched.
    """
    dataset, _, run = target.partition("/")
    found = Collection.find(f"{dataset}/{run or 'bm25'}", config, overrides)
    folder = Path(found.job.dataset.folder)
    made = {*(path.stem for path in folder.glob("*.json")), *(path.name for path in folder.glob("models/*"))}
    names = [run] if run else sorted(name for name in made if name in found.plan.rows)
    written = []
    for name in names:
        try:
            system = found.system(name)
        except LeadError as e:
            if run:
                raise
            say(f"{name}: not measured: {e}")
            continue
        numbers = {**measure(found, system), "threads": threads, "machine": machine()}
        written.append(folder / "speed" / f"{name}.json")
        write_json(numbers, written[-1], first=list(numbers))
        ms = numbers["query_ms"]
        texts = f", {numbers['texts_per_second']:.0f} passages a second" if "texts_per_second" in numbers else ""
        say(f"{name}: a query takes {ms['median']:.1f} ms (90 %: {ms['high']:.1f} ms or less){texts}")
    if not written:
        raise LeadError(f"{folder} holds no run that can be searched; make one with: lead run {dataset}")
    return written


def measure(found: Collection, system: System) -> dict[str, Any]:
    """Milliseconds of a query (median, and what 10 % and 90 % stay below), and passages encoded in a second."""
    asked = [text for text, (split, _) in found.queries.items() if split == "test"] or list(found.queries)
    if not asked:
        raise LeadError(f"{found.job.dataset.folder}: no test or dev queries to ask; prepare the dataset")
    asked = [asked[int(i)] for i in np.linspace(0, len(asked) - 1, min(QUERIES, len(asked)))]
    for text in asked[:WARM]:
        system.rank(text, K)
    took: list[float] = []
    for text in asked:
        begun = time.perf_counter()
        system.rank(text, K)
        took.append(1000 * (time.perf_counter() - begun))
        if sum(took) > 1000 * ENOUGH and len(took) >= 10:
            break
    low, median, high = (round(float(x), 3) for x in np.quantile(took, [0.1, 0.5, 0.9]))
    numbers: dict[str, Any] = {"query_ms": {"median": median, "low": low, "high": high}, "queries": len(took), "k": K}
    if isinstance(system, Dense):
        numbers |= encoding(found, system)
    return numbers


def encoding(found: Collection, system: Dense) -> dict[str, Any]:
    """Passages that are encoded in a second, `TEXTS` at a time."""
    n, seconds, done = len(found.passages), 0.0, 0
    rows = np.linspace(0, n - 1, min(4 * TEXTS, n)).astype(np.int64)
    system.model.encode_passages(found.passages.read(rows[:WARM]))
    for start in range(0, len(rows), TEXTS):
        texts = found.passages.read(rows[start : start + TEXTS])
        begun = time.perf_counter()
        system.model.encode_passages(texts)
        seconds, done = seconds + time.perf_counter() - begun, done + len(texts)
        if seconds > ENOUGH / 2:
            break
    return {"texts_per_second": round(done / seconds, 1), "texts": done}


def machine() -> str:
    """The processor, as the system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
