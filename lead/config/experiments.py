"""The keys of config/experiments.yaml, the runs as data, and of config/config.yaml."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from lead.config.kinds import KindName
from lead.config.methods import METHODS, MethodName
from lead.config.types import Name, Strict


class Row(Strict):
    """A row of config/experiments.yaml: one run."""

    about: str = Field("", description="one line for people")
    method: MethodName = Field(description="; ".join(f"{name}: {method.about}" for name, method in METHODS.items()))
    kind: KindName = Field("de", description="with `init`: dual encoder, ColBERT or cross encoder")
    init: Name | None = Field(None, description="the encoder of `models` to start from, such as teacher or student")
    start: Name | None = Field(
        None, description="the run whose model is trained further, is the student of distillation, or encodes queries"
    )
    teacher: Name | None = Field(None, description="distillation, align: the run whose model teaches")
    scores: dict[Name, float] | None = Field(
        None,
        min_length=1,
        description="distillation, instead of `teacher`: whose scores teach, and their weights: runs with a model "
        "(`lead score` asks each once), or names of files in the dataset's `scores`",
    )
    passages: Name | None = Field(
        None,
        description="contrastive: the run whose passage vectors are used and do not change; only queries are learnt. "
        "asymmetric: the run whose passage vectors are searched",
    )
    of: Name | None = Field(None, description="teacher_of: the joint run")
    negatives: Name = Field("miner", description="run whose list gives hard negatives, or `bm25`")
    denoise: Name | None = Field(
        None, description="run of a cross encoder or ColBERT that removes likely positives from the negatives"
    )
    phase: Literal["miner", "teacher", "student", "align", "distil"] = Field(
        "distil", description="which overrides of `train` apply; of method align: align"
    )
    datasets: list[Name] | None = Field(None, description="only these datasets; null: all")
    settings: dict[str, Any] = Field({}, description="any keys of Settings")

    @model_validator(mode="before")
    @classmethod
    def _phase(cls, row: Any) -> Any:
        method = METHODS.get(str(row.get("method"))) if isinstance(row, dict) else None
        return {"phase": "align", **row} if method is not None and method.stage == "align" else row

    @model_validator(mode="after")
    def _needs(self) -> Row:
        method = METHODS[self.method]
        for key in ("teacher", "of") if method.warms_up else ("init", "start", "teacher", "of"):
            given = getattr(self, key) is not None
            if key == "teacher" and self.scores is not None and method.distils and not given:
                continue  # in the place of a teacher
            if given != (key in method.needs):
                wrong = f"does not read `{key}`; leave it out" if given else f"needs `{key}`; name a run"
                raise ValueError(f"method {self.method} {wrong}")
        if self.init is None and "kind" in self.model_fields_set:
            raise ValueError("`kind` is read with `init` only; leave it out")
        if method.warms_up and (self.init is None) == (self.start is None):
            raise ValueError(f"method {self.method} needs one of `init` and `start`")
        if self.passages is not None and (self.start is None or method.passages is None):
            raise ValueError("`passages` is read by method contrastive with `start`, and by asymmetric; leave it out")
        if self.scores is not None and (self.teacher is not None or not method.distils):
            raise ValueError("`scores` is read by distillation without `teacher` only; leave one out")
        if self.scores is not None and method.sees != "scores":
            raise ValueError(
                f"method {self.method} needs a teacher's {method.sees}, which scores do not hold; use rd or margin_mse"
            )
        if self.passages is None and "passages" in method.needs:
            raise ValueError(f"method {self.method} needs `passages`")
        if self.passages is not None and self.denoise is not None:
            raise ValueError("with `passages` every step finds its own negatives; leave `denoise` out")
        return self


class Experiments(Strict):
    """config/experiments.yaml."""

    runs: dict[Name, Row]


def path_in_rules(path: str) -> str:
    """Refuse a path that rules cannot hold: `{x}` is a wildcard in Snakemake, `-x` an option of the commands.

    Raises ValueError.
    """
    if path.startswith("-") or re.search(r"[{}\x00-\x1f\x7f]", path):
        raise ValueError("a path of the workflow holds no braces or control characters and starts with no '-'")
    return path


class Config(Strict):
    """config/config.yaml."""

    seeds: Literal["distil", "chain"] = Field(
        "distil",
        description="what RUN-s2 makes anew: distil: the run and the runs in the phase distil that it depends on, on a "
        "shared warm-up; chain: everything but data and BM25",
    )

    results: Annotated[str, AfterValidator(path_in_rules)] = Field(
        "results", pattern=r"[^./]", description="folder of all results"
    )
    datasets: str = Field("datasets", description="folder of dataset files, relative to this file")
    presets: str = Field("presets", description="folder of presets, relative to this file")
    experiments: str = Field("experiments.yaml", description="the runs, relative to this file")
    settings: dict[str, Any] = Field({}, description="any keys of Settings, for every dataset and run")
