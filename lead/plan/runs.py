"""The runs of the experiments and how they hang together: what each is made from, of what kind, for which seed.

`{run}-s2`, `{run}-s3`, .. are runs too: the same row with another seed, made from the rows it names with that seed
(`seeds` of config.yaml says which of them are made anew, and which are shared by all seeds).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lead.config.experiments import DISTILLATION, UNTRAINED, Row
from lead.config.schema import Distil
from lead.errors import LeadError, Named, nearest

TRAINING = ("contrastive", *DISTILLATION)
SEED = r"-s(?:[2-9]|[1-9][0-9]{1,8})"  # the first seed has no suffix
RESPONSE: Any = {"candidates": True, "contrastive_candidates": True, "weights": {"rep", "stu"}}
READS: dict[str, Any] = {  # the keys of `distil` that a method reads, and which of those inside
    "rd": {"tau": True, **RESPONSE},
    "margin_mse": RESPONSE,
    "fd": {"contrastive_candidates": True, "map_layers": True, "weights": {"map", "stu"}},
    "lead": {key: True for key in Distil.model_fields if key != "map_layers"}
    | {"weights": {"lyr", "rep", "tch", "stu"}},
}
REFERENCES = ("start", "teacher", "passages", "of", "negatives", "denoise")


def split_seed(run: str) -> tuple[str, int]:
    """The name of a run's row, and which seed it is for.

    >>> split_seed("lead_cb-s3"), split_seed("lead_cb")
    (('lead_cb', 3), ('lead_cb', 1))
    """
    match = re.fullmatch(rf"(.+){SEED}", run)
    return (match[1], int(run[len(match[1]) + 2 :])) if match else (run, 1)


class SeededRows(Named[Row]):
    """Rows by name; `{name}-s2` is derived from `{name}` when asked for."""

    def __init__(self, where: object, rows: Mapping[str, Row], seeds: str) -> None:
        """`seeds`: `distil` or `chain`, as in config.yaml."""
        super().__init__("run", where, rows)
        self.seeds = seeds

    def __contains__(self, name: object) -> bool:
        """Whether the row exists, with or without a seed. BM25 and given lists have none."""
        base, seed = split_seed(str(name))
        return super().__contains__(base) and (seed == 1 or self[base].method not in UNTRAINED)

    def __missing__(self, name: str) -> Row:
        """The row of a seed, its references those of the same seed."""
        base, seed = split_seed(name)
        if seed == 1 or name not in self:
            return super().__missing__(name)
        row = self[base]
        return row.model_copy(update={key: self.reference(getattr(row, key), seed) for key in REFERENCES})

    def reference(self, run: str | None, seed: int) -> str | None:
        """The run that a run of this seed is made from, where its row names `run`."""
        if run is None or seed == 1 or run not in self or self[run].method in UNTRAINED:
            return run
        return f"{run}-s{seed}" if self.seeds == "chain" or self[run].phase == "distil" else run


class Rows:
    """Answers about runs that do not depend on the dataset."""

    def __init__(self, where: object, rows: Mapping[str, Row], seeds: str = "distil") -> None:
        """`where`: the experiments file. Rows are checked against each other. Raises LeadError."""
        self.where = where
        self.rows = SeededRows(where, rows, seeds)
        for name, row in rows.items():
            self._check_row(name, row)

    def runs(self, *methods: str, kind: str | None = None) -> list[str]:
        """Names of the runs with one of these methods (all, if none is given), and of this kind of model."""
        return [
            name for name, row in self.rows.items()
            if (not methods or row.method in methods)
            and (kind is None or (row.method not in UNTRAINED and self.kind(name) == kind))
        ]  # fmt: skip

    def reranking(self) -> list[str]:
        """Runs whose model reranks another run's list: ColBERT and cross encoders."""
        return self.runs(kind="cb") + self.runs(kind="ce")

    def joint(self) -> list[str]:
        """Runs that train the teacher too, and so leave a model `<run>_teacher`, on every dataset."""
        return [
            n for n, r in self.rows.items() if r.method == "lead" and r.settings.get("distil", {}).get("joint", True)
        ]

    def frozen(self) -> list[str]:
        """Runs that distil from a teacher that stays as it is."""
        return [n for n in self.runs(*DISTILLATION) if n not in self.joint()]

    def kind(self, run: str) -> str:
        """`de`, `cb` or `ce`: the architecture of the model that this run evaluates."""
        row = self.rows[run]
        if row.method == "teacher_of":
            return self.kind(str(self.rows[str(row.of)].teacher))
        return row.kind if row.init is not None else self.kind(str(row.start))

    def origin(self, run: str) -> str:
        """The run that trained the pretrained encoder from which this run's model grew."""
        row = self.rows[run]
        if row.method == "teacher_of":
            return self.origin(str(self.rows[str(row.of)].teacher))
        return run if row.init is not None else self.origin(str(row.start))

    def generation(self, run: str) -> int:
        """How many trainings the models that a run trains or learns from have behind them: 0 for a warm-up."""
        row = self.rows[run]
        if row.of is not None:
            return self.generation(row.of)
        return max((1 + self.generation(name) for name in (row.start, row.teacher) if name is not None), default=0)

    def root(self, run: str) -> str:
        """Which of `models` the run's model grew from: `teacher` or `student`."""
        return str(self.rows[self.origin(run)].init)

    def ancestors(self, run: str) -> list[str]:
        """A run and every run that it is made from, itself first."""
        row = self.rows[run]
        negatives = row.negatives if row.method in TRAINING else None
        names = [row.start, row.teacher, row.passages, row.of, negatives, row.denoise]
        found = [run]
        for name in names:
            if name in self.rows:
                found += [a for a in self.ancestors(str(name)) if a not in found]
        return found

    def phases(self, run: str) -> list[str]:
        """Which of `phases` a run's training is in, later ones winning."""
        row = self.rows[run]
        if row.method in UNTRAINED:
            return []
        learnt = [run, row.teacher, *([self.rows[str(row.of)].teacher] if row.of else [])]
        crossed = any(name is not None and self.kind(name) == "ce" for name in learnt)
        warm_up = crossed and row.init is not None
        return [row.phase, *(["cross"] if crossed else []), *(["teacher_ce"] if warm_up else [])]

    # --- checks ------------------------------------------------------------------------------------------------------
    def _check_row(self, name: str, row: Row, seen: tuple[str, ...] = ()) -> None:
        where = f"{self.where}: run '{name}'"
        if name in seen:
            raise LeadError(f"{where} is made from itself ({' -> '.join([*seen, name])}); break the circle")
        if split_seed(name)[1] != 1:
            raise LeadError(f"{where}: names that end in -s2, -s3, .. are other seeds of a run; rename it")
        trained = {n for n, r in self.rows.items() if r.method not in UNTRAINED}
        valid: dict[str, set[str]] = {
            "start": trained,
            "teacher": trained,
            "passages": trained,
            "of": {n for n, r in self.rows.items() if r.method == "lead"},
            "negatives": trained | {"bm25"},
            "denoise": trained,
        }
        for key, names in valid.items():
            value = getattr(row, key)
            if value is None or (key == "negatives" and row.method not in TRAINING):
                continue
            if value not in names:
                raise LeadError(f"{where}: key '{key}': no run '{value}' with a model; {nearest(value, names)}")
            if value in self.rows:
                self._check_row(value, self.rows[value], (*seen, name))
        if row.denoise is not None and (self.kind(row.denoise) == "de" or row.method not in TRAINING):
            raise LeadError(f"{where}: key 'denoise': give a cross encoder or a ColBERT, to a run that trains")
        self._check_untied(name, row)
        self._check_settings(where, row)
        trained_by = name.removesuffix("_teacher")
        if row.method in TRAINING and trained_by != name and trained_by in self.joint():
            raise LeadError(f"{where}: '{trained_by}' leaves its teacher under this name; rename the run")
        for method in UNTRAINED:
            if (row.method == method) != (name == method):
                raise LeadError(f"{where}: the run of method {method}, and no other, is called '{method}'; rename it")
        if row.method in DISTILLATION and self.kind(name) != "de":
            raise LeadError(
                f"{where}: key 'start': the student must be a dual encoder, '{row.start}' is {a_kind(self.kind(name))}"
            )
        if row.method == "teacher_of" and row.of not in self.joint():
            raise LeadError(f"{where}: key 'of': '{row.of}' does not train its teacher (distil.joint: false)")
        if row.method in TRAINING and row.negatives != "bm25" and self.kind(row.negatives) != "de":
            raise LeadError(
                f"{where}: key 'negatives': '{row.negatives}' is {a_kind(self.kind(row.negatives))}; negatives are "
                "mined with a dual encoder"
            )

    def _check_untied(self, name: str, row: Row) -> None:
        """Refuse what would take a model that encodes queries only for one that encodes passages too."""
        where = f"{self.where}: run '{name}'"
        for key in ("start", "teacher", "passages"):
            other = getattr(row, key)
            if other is None or (of := self.rows[other].passages) is None or (key == "start" and row.passages):
                continue
            remedy = {"passages": f"name '{of}'"}.get(key, "name another")
            if key == "start" and row.method == "contrastive":
                remedy = f"give `passages: {of}` too"
            raise LeadError(f"{where}: key '{key}': '{other}' encodes queries only; {remedy}")
        if row.passages is not None:
            for key in ("start", "passages"):
                if (kind := self.kind(other := getattr(row, key))) != "de":
                    raise LeadError(
                        f"{where}: key '{key}': '{other}' is {a_kind(kind)}; `passages` needs dual encoders"
                    )

    def _check_settings(self, where: str, row: Row) -> None:
        """Refuse settings of a row that nothing would read, or that are the whole dataset's."""
        for key, inside in (("checks", None), ("dev_share", None), ("denoise", None), ("retrieval", "rerank_from")):
            if key in row.settings and (inside is None or inside in row.settings[key]):
                full = f"{key}.{inside}" if inside else key
                raise LeadError(
                    f"{where}: key 'settings.{full}' is of the whole dataset; move it to the dataset's file"
                )
        unread = {"bm25"} if row.method != "bm25" else set()
        unread |= {"models", "lengths", "scoring"} if row.init is None else set()
        unread |= {"distil"} if row.method not in DISTILLATION else set()
        given = sorted(unread & row.settings.keys())
        given += [f"distil.{key}" for key in _unread(row.settings.get("distil", {}), READS.get(row.method, {}))]
        for key in given:
            raise LeadError(
                f"{where}: key 'settings.{key}' is not read by this run; set it for the run or dataset that reads it"
            )


def _unread(given: dict[str, Any], reads: dict[str, Any]) -> list[str]:
    """Keys that are given but not read: `reads` holds True for a key that is, or which of those inside it are.

    >>> _unread({"tau": 2, "joint": True, "weights": {"lyr": 1, "rep": 1}}, READS["rd"])
    ['joint', 'weights.lyr']
    """
    found = [key for key in given if key not in reads]
    inside = ((key, given[key], reads.get(key)) for key in given)
    return found + [f"{key}.{k}" for key, v, r in inside if isinstance(r, set) and v for k in v if k not in r]


def a_kind(kind: str) -> str:
    """What a model of this kind is called.

    >>> a_kind("cb")
    'a ColBERT'
    """
    return {"de": "a dual encoder", "cb": "a ColBERT", "ce": "a cross encoder"}[kind]


def seeded(settings: dict[str, Any], run: str) -> dict[str, Any]:
    """Settings of a run with its seed: that of the first plus how many seeds came before."""
    seed = split_seed(run)[1]
    return settings if seed == 1 else settings | {"seed": settings.get("seed", 1) + seed - 1}
