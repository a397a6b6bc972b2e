"""The results of a dataset: all seeds of a run together, and the common seeds of compared runs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lead.errors import LeadError
from lead.evaluation.stats import paired_test
from lead.plan.rows import Rows, split_seed
from lead.report.table import Result, read_result

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """Some seeds of a run: values[measure] is [seeds, queries]."""

    name: str
    seeds: list[int]
    warm_up: bool  # or not trained: further seeds of other runs start from its first seed, or from the same seed
    qids: list[str]
    values: dict[str, Values]
    depth: int
    own_warm_up: bool | None  # whether each further seed has its own warm-up; None: no further seeds, or unknown

    def short(self, measure: str) -> bool:
        """Whether its lists end before the measure's cut-off, for example after a short reranking."""
        cutoff = re.search(r"@(\d+)$", measure)
        return cutoff is not None and int(cutoff[1]) > self.depth

    def mean(self, measure: str) -> float:
        """The mean over queries and seeds."""
        return float(self.values[measure].mean())

    def spread(self, measure: str) -> float | None:
        """Standard deviation between the seeds' means; None with one seed."""
        means = self.values[measure].mean(1)
        return float(means.std(ddof=1)) if len(means) > 1 else None

    def per_query(self, measure: str) -> Values:
        """Each query's value, averaged over seeds. Intervals and tests are computed from these."""
        if measure not in self.values:
            raise LeadError(f"run '{self.name}' was evaluated without {measure}; evaluate it again")
        averaged: Values = self.values[measure].mean(0)
        return averaged

    def named_seeds(self) -> str:
        """Its seeds as text.

        >>> Run("x", [1, 2, 3, 5], False, [], {}, 9, None).named_seeds()
        '1-3, 5'
        """
        parts: list[list[int]] = []
        for seed in self.seeds:
            if parts and seed == parts[-1][-1] + 1:
                parts[-1].append(seed)
            else:
                parts.append([seed])
        return ", ".join(f"{p[0]}-{p[-1]}" if len(p) > 1 else str(p[0]) for p in parts)

    @property
    def shared(self) -> bool:
        """Whether all seeds of other runs start from this one."""
        return self.warm_up and self.seeds == [1]

    def of(self, seeds: list[int]) -> Run:
        """The run with only these of its seeds."""
        rows = [self.seeds.index(seed) for seed in seeds]
        return replace(self, seeds=seeds, values={m: v[rows] for m, v in self.values.items()})


def together(*runs: Run) -> list[Run] | None:
    """The runs with the seeds that all of them have, because equal seeds share batches. None if there are none.

    A warm-up counts with its first seed, because all seeds of other runs start from it. If one of the runs has its own
    warm-up for further seeds, warm-ups count with all seeds.
    """
    chain = any(run.own_warm_up for run in runs)
    kept = [run.of([1]) if run.warm_up and not chain and 1 in run.seeds else run for run in runs]
    sets = [set(run.seeds) for run in kept if not run.shared]
    if not sets:
        return kept
    seeds = sorted(set.intersection(*sets))
    return [run if run.shared else run.of(seeds) for run in kept] if seeds else None


def against(run: Run, baseline: Run, measure: str, folder: Path) -> tuple[float, float] | None:
    """The difference of a run's mean to its baseline's, and p of a paired test over queries, not corrected.

    Over the seeds that both have; None if there are none. Raises LeadError if they are of different queries.
    """
    pair = together(run, baseline)
    if pair is None:
        return None
    check_queries(folder, *pair)
    x, y = (one.per_query(measure) for one in pair)
    return float(x.mean() - y.mean()), paired_test(x, y)


def check_queries(folder: Path, *runs: Run) -> None:
    """Refuse to compare runs that were evaluated on different queries. Raises LeadError."""
    for run in runs[1:]:
        if run.qids != runs[0].qids:
            raise LeadError(f"{folder}: {runs[0].name} and {run.name} are of different queries; evaluate them again")


class Runs:
    """The results of a dataset that exist. Each is read on first use."""

    def __init__(self, folder: Path, rows: Rows) -> None:
        """`folder`: results/{dataset}."""
        self.folder, self.rows = folder, rows
        self.files: dict[str, list[Path]] = {}
        for path in sorted(folder.glob("*.json"), key=lambda p: split_seed(p.stem)):
            self.files.setdefault(split_seed(path.stem)[0], []).append(path)
        self._read: dict[str, Run] = {}

    def __contains__(self, name: object) -> bool:
        return name in self.files

    def __iter__(self) -> Iterator[str]:
        """Names of the runs, without seeds."""
        return iter(self.files)

    def used(self) -> list[Run]:
        """The runs that have been read."""
        return list(self._read.values())

    def __getitem__(self, name: str) -> Run:
        """All seeds of a run. Raises LeadError if their queries differ, or their settings do in more than the seed."""
        if name not in self._read:
            results = [read_result(path) for path in self.files[name]]
            columns: dict[str, list[Values]] = {m: [] for m in results[0].measures}
            qids: list[str] = []
            told = [result for result in results if result.settings]
            for result in results:
                _check_recipe([*told, result][0], result)
                for measure, column in columns.items():
                    if measure not in result.measures:
                        raise LeadError(f"{result.path} was evaluated without {measure}; evaluate it again")
                    qids = self._column(result, measure, column, qids)
            seeds = [split_seed(result.run)[1] for result in results]
            further = [_own_warm_up(r) for r, seed in zip(results, seeds, strict=True) if seed > 1]
            self._read[name] = Run(
                name,
                seeds,
                name in self.rows and (not self.rows.method(name).has_model or self.rows[name].phase != "distil"),
                qids,
                {m: np.stack(c) for m, c in columns.items()},
                min(r.depth for r in results),
                next((own for own in further if own is not None), None),
            )
        return self._read[name]

    @staticmethod
    def _column(result: Result, measure: str, column: list[Values], qids: list[str]) -> list[str]:
        own, values = result.values(measure)
        if qids and own != qids:
            raise LeadError(f"{result.per_query} is of other queries than the other seeds; evaluate them again")
        column.append(values)
        return own


def _own_warm_up(result: Result) -> bool | None:
    """Whether a further seed has warm-ups of the same seed; None if the result does not say."""
    trained = [run for run, stage in map(_parts, result.settings) if stage == "train" and run != result.run]
    return all(split_seed(run)[1] > 1 for run in trained) if trained else None


def _check_recipe(first: Result, other: Result) -> None:
    """Raise LeadError for seeds with different settings: they are not one run."""
    a, b = _recipe(first.settings), _recipe(other.settings)
    for name in sorted(a.keys() & b.keys()):
        if a[name] != b[name]:
            keys = [k for k in sorted({*a[name], *b[name]}) if a[name].get(k) != b[name].get(k)]
            raise LeadError(
                f"{other.path} and {first.path} were made with different settings of {name} ({', '.join(keys)}); make "
                "both again"
            )


def _recipe(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of each stage of each run behind a result, without seeds."""
    found = {}
    for key, values in settings.items():
        run, stage = _parts(key)
        kept = {k: v for k, v in dict(values).items() if k != "seed"}
        found[f"{split_seed(run)[0]}.{stage}" if stage else key] = kept
    return found


def _parts(key: str) -> tuple[str, str]:
    """Run and stage of a key such as `student-s2.train`."""
    run, _, stage = key.rpartition(".")
    return (run, stage) if run else (key, "")
