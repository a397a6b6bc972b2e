"""The rows of the experiments: the runs that each run depends on, its kind and its seed.

`{run}-s2`, `{run}-s3`, .. are runs too: the same row with another seed. They depend on runs with that seed, or on runs
that all seeds share. `seeds` of config.yaml says which.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from lead.config.experiments import Row
from lead.config.kinds import KINDS, Kind
from lead.config.methods import METHODS, RENAMED, Method
from lead.errors import LeadError, Named

SEED = r"-s(?:[2-9]|[1-9][0-9]{1,8})"  # the first seed has no suffix
REFERENCES = ("start", "teacher", "passages", "of", "negatives", "denoise")  # keys of a row that name other runs


def split_seed(run: str) -> tuple[str, int]:
    """The name of a run's row, and the number of its seed.

    >>> split_seed("lead_cb-s3"), split_seed("lead_cb")
    (('lead_cb', 3), ('lead_cb', 1))
    """
    match = re.fullmatch(rf"(.+){SEED}", run)
    return (match[1], int(run[len(match[1]) + 2 :])) if match else (run, 1)


def seeded(settings: dict[str, Any], run: str) -> dict[str, Any]:
    """Settings of a run with its seed: the first seed plus the number of seeds before."""
    seed = split_seed(run)[1]
    return settings if seed == 1 else settings | {"seed": settings.get("seed", 1) + seed - 1}


class Rows(Named[Row]):
    """Rows by name. The row of `{name}-s2` is derived from that of `{name}`. All is independent of the dataset."""

    def __init__(self, where: object, rows: Mapping[str, Row], seeds: str = "distil") -> None:
        """`where`: the experiments file. `seeds`: `distil` or `chain`, as in config.yaml."""
        super().__init__("run", where, rows)
        self.where, self.seeds = where, seeds

    def __contains__(self, name: object) -> bool:
        """Whether the row exists, with or without a seed. BM25, an external run and a ready model have no seeds.

        A run whose model is another run's has only seeds for which that is another model.
        """
        base, seed = split_seed(str(name))
        if not super().__contains__(base) or seed == 1:
            return super().__contains__(base)
        row, method = self[base], self.method(base)
        source = row.of or row.start
        return method.has_seeds and (method.stage is not None or self.reference(source, seed) != source)

    def __missing__(self, name: str) -> Row:
        """The row of another seed; `reference` replaces the runs that it names. Raises LeadError."""
        base, seed = split_seed(name)
        if name in RENAMED:
            raise LeadError(f"the run '{name}' is called '{RENAMED[name]}' now; rename it")
        if seed == 1 or name not in self:
            return super().__missing__(name)
        row = self[base]
        scores = None if row.scores is None else {str(self.reference(n, seed)): w for n, w in row.scores.items()}
        others = {key: self.reference(getattr(row, key), seed) for key in REFERENCES}
        return row.model_copy(update={**others, "scores": scores})

    def reference(self, run: str | None, seed: int) -> str | None:
        """The run that a run of this seed is made from, where its row names `run`."""
        if run is None or seed == 1 or run not in self or not self.method(run).has_seeds:
            return run
        return f"{run}-s{seed}" if self.seeds == "chain" or self[run].phase == "distil" else run

    # --- groups of runs ----------------------------------------------------------------------------------------------
    def of_stage(self, stage: str) -> list[str]:
        """Runs whose model or list is made by this stage."""
        return [name for name in self if self.method(name).stage == stage]

    def ranked_by(self, way: Literal["search", "rerank"]) -> list[str]:
        """Runs whose model searches (dual encoders), or reranks the list of another run (ColBERT, cross encoders)."""
        return [name for name in self if self.method(name).has_model and self.kind(name).ranks_by == way]

    def joint(self) -> list[str]:
        """Runs that train the teacher too, on every dataset. They also make a model `<run>_teacher`."""
        switched = {name: row.settings.get("distil", {}).get("joint", True) for name, row in self.items()}
        return [name for name in self if self.method(name).joint and switched[name]]

    def frozen(self) -> list[str]:
        """Runs that distil from a frozen teacher."""
        joint = self.joint()
        return [name for name in self.of_stage("distil") if name not in joint and self[name].teacher is not None]

    def scored(self) -> list[str]:
        """Runs that distil from scores."""
        return [name for name in self.of_stage("distil") if self[name].scores is not None]

    # --- one run -----------------------------------------------------------------------------------------------------
    def method(self, run: str) -> Method:
        """The record of the run's method."""
        return METHODS[self[run].method]

    def kind(self, run: str) -> Kind:
        """The kind of the model that this run evaluates."""
        return KINDS[self[self.origin(run)].kind]

    def origin(self, run: str) -> str:
        """The run that trained, or took as it is, the pretrained encoder from which this run's model grew."""
        row = self[run]
        if row.of is not None:
            return self.origin(str(self[row.of].teacher))
        return run if row.init is not None else self.origin(str(row.start))

    def root(self, run: str) -> str:
        """Which of `models` the run's model grew from."""
        return str(self[self.origin(run)].init)

    def generation(self, run: str) -> int:
        """The number of earlier trainings of the models that a run trains or learns from: 0 for a warm-up."""
        row = self[run]
        if row.of is not None:
            return self.generation(row.of)
        learnt = (row.start, row.teacher, *(row.scores or ()))
        return max((1 + self.generation(name) for name in learnt if name in self), default=0)

    def ancestors(self, run: str) -> list[str]:
        """A run and all runs that it depends on. The run comes first."""
        row = self[run]
        negatives = row.negatives if self.method(run).judged else None
        found = [run]
        for name in (row.start, row.teacher, *(row.scores or ()), row.passages, row.of, negatives, row.denoise):
            if name in self:
                found += [a for a in self.ancestors(str(name)) if a not in found]
        return found

    def phases(self, run: str) -> list[str]:
        """The `phases` of a run's training. Later ones override earlier ones."""
        row = self[run]
        if not self.method(run).has_model:
            return []
        learnt = [run, row.teacher, *([self[row.of].teacher] if row.of else [])]
        crossed = any(name is not None and self.kind(name).candidates == "own" for name in learnt)
        warm_up = crossed and row.init is not None
        aligned = row.phase == "distil" and row.start is not None and self.method(row.start).stage == "align"
        then = {"aligned": aligned, "cross": crossed, "teacher_ce": warm_up}
        return [row.phase, *(name for name, holds in then.items() if holds)]
