"""One run on one dataset: its settings, its stages, and the files that it reads. Nothing is checked here."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lead.config.experiments import Row, path_in_rules
from lead.config.kinds import Kind
from lead.config.load import Loaded
from lead.config.methods import Method
from lead.config.schema import ModelRef, Settings
from lead.errors import LeadError, Named
from lead.plan.datasets import PlannedDataset
from lead.plan.rows import Rows, split_seed
from lead.plan.settings import run_settings
from lead.pretrained import model_files


class Jobs(dict[tuple[str, str], "Job"]):
    """Jobs by dataset and run. Each is created on first access. Raises LeadError for an unknown name."""

    def __init__(self, loaded: Loaded, rows: Rows, datasets: Named[PlannedDataset]) -> None:
        super().__init__()
        self.loaded, self.rows, self.datasets = loaded, rows, datasets
        self.recipes: dict[tuple[str, str, str | None], dict[str, Any]] = {}  # of stages, as a cache

    def __missing__(self, key: tuple[str, str]) -> Job:
        dataset, run = key
        planned, row, method = self.datasets[dataset], self.rows[run], self.rows.method(run)
        self[key] = Job(self, planned, run, row, method, self.rows.kind(run) if method.has_model else None)
        return self[key]


@dataclass(frozen=True, eq=False)
class Job:
    """A run on a dataset.

    method, kind: the records of its method and of its model's kind (None for a list without a model).
    """

    jobs: Jobs
    dataset: PlannedDataset
    run: str
    row: Row
    method: Method
    kind: Kind | None

    def other(self, run: str | None) -> Job:
        """Another run on the same dataset."""
        return self.jobs[self.dataset.name, str(run)]

    @cached_property
    def settings(self) -> Settings:
        """All settings of the run on the dataset."""
        return run_settings(self.jobs.loaded, self.jobs.rows, self.dataset.name, self.run)

    @cached_property
    def stages(self) -> list[str]:
        """The stages that make this run, without the runs that it depends on, in order."""
        if self.kind is None:
            return [str(self.method.stage), "evaluate"]
        made = [] if self.method.stage is None else [str(self.method.stage)]
        if self.kind.ranks_by == "rerank":
            return [*made, "rerank", "evaluate"]
        return [*made, "encode", *(["index"] if self.indexes() else []), "retrieve", "evaluate"]

    # --- models ------------------------------------------------------------------------------------------------------
    @property
    def model(self) -> str:
        """Model folder: its own; for `teacher_of` the one that the joint run leaves, for `asymmetric` its student's."""
        if self.searches_another:
            return self.start[0]
        name = self.run if self.row.of is None else f"{self.row.of}_teacher"
        return f"{self.dataset.collection.folder}/models/{name}"

    @property
    def searches_another(self) -> bool:
        """Whether its queries search the vectors of another run (method asymmetric)."""
        return self.method.passages == "searched"

    @property
    def start(self) -> list[str]:
        """Model folder where training starts; none if it starts from a pretrained encoder."""
        return [] if self.row.start is None else [self.other(self.row.start).model]

    @property
    def teacher(self) -> str:
        """Model folder of the teacher of a run that distils."""
        return self.other(self.row.teacher).model

    @property
    def scores(self) -> list[str]:
        """Files of scores that teach it in the place of a teacher."""
        given = self.dataset.scores
        return [given[name] if name in given else self.other(name).own_scores for name in self.row.scores or ()]

    @property
    def own_scores(self) -> str:
        """File of the scores of its own model (`lead score`)."""
        return f"{self.dataset.collection.folder}/scores/{self.run}.parquet"

    @property
    def origin(self) -> Job:
        """The run at the start of this model's chain: a warm-up, or a ready model."""
        return self.other(self.jobs.rows.origin(self.run))

    @property
    def encoder(self) -> ModelRef:
        """The pretrained encoder of its chain of trainings."""
        origin = self.origin
        return Named("model of `models`", origin.dataset.file, origin.settings.models)[str(origin.row.init)]

    @property
    def encoder_files(self) -> list[str]:
        """Files of the pretrained encoder that it starts from, where that is a folder of the user's own.

        None in a folder of the results, which the workflow may make. Raises LeadError for a name that no rule can hold.
        """
        if self.row.init is None:
            return []
        files = [
            os.path.relpath(f) if f.is_relative_to(Path.cwd()) else str(f) for f in model_files(self.encoder.reference)
        ]
        try:
            return [path_in_rules(f) for f in files if not Path(f).is_relative_to(self.jobs.loaded.config.results)]
        except ValueError as e:
            raise LeadError(f"models: {self.encoder.reference}: {e}") from None

    @property
    def texts(self) -> list[str]:
        """Files of further texts that it is aligned on, read as passages."""
        return [os.path.expanduser(path) for path in self.settings.align.texts]

    @property
    def more_queries(self) -> list[str]:
        """Files of further queries that it is aligned on."""
        return [os.path.expanduser(path) for path in self.settings.align.queries]

    # --- vectors and lists -------------------------------------------------------------------------------------------
    @property
    def negatives(self) -> str:
        """File of the hard negatives for its training."""
        row = self.row
        name = row.negatives if row.denoise is None else f"{row.negatives}.{row.denoise}"
        return f"{self.dataset.folder}/negatives/{name}.parquet"

    @property
    def passages(self) -> list[str]:
        """Files of the fixed passage vectors of a run with `passages` (ADORE); none otherwise."""
        return self.vectors() if self.row.passages else []

    @property
    def taught_passages(self) -> list[str]:
        """Files of the teacher's vectors of the passages, which an alignment learns."""
        return self.other(self.row.teacher).vectors()

    def vectors(self, shard: str | None = None) -> list[str]:
        """Files of the searched vectors: one for each shard, or only that of `shard`. Evaluation sets share them."""
        folder = f"{self.dataset.collection.folder}/embeddings/{self.row.passages or self.run}"
        return [f"{folder}/passages{s}.parquet" for s in (self.dataset.shards if shard is None else [shard])]

    def indexes(self, shard: str | None = None) -> list[str]:
        """Folders of approximate indexes, one for each file of `vectors`; none if search is exact."""
        if self.jobs[self.dataset.collection.name, self.run].settings.retrieval.index is None:
            return []
        return [re.sub(r"/passages([^/]*)\.parquet$", r"/index\1", file) for file in self.vectors(shard)]

    @property
    def tokenizer(self) -> tuple[str, dict[str, Any]]:
        """Name of the store of its passages' token ids, and the settings that make it: encoder, length and prompt.

        The name is like hub_Luyu_co-condenser-marco-144; a prompt's sum follows.
        """
        reference, length = self.encoder.reference, self.origin.settings.lengths.passage
        name, settings = re.sub(r"[^A-Za-z0-9.-]+", "_", reference) + f"-{length}", dict[str, Any]()
        if self.encoder.prompts is not None and (prompt := self.encoder.prompts.passage):
            name, settings = f"{name}-{hashlib.sha256(prompt.encode()).hexdigest()[:8]}", {"prompt": prompt}
        return name, {"reference": reference, "length": length, **settings}

    def tokens(self, shard: str) -> list[str]:
        """Folder of a shard's token ids for its model; none for a corpus in one part, which is tokenized anew.

        None for a ready model, whose length and prompt are not known before it is loaded.
        """
        stored = shard and not self.is_ready
        return [f"{self.dataset.folder}/tokens/{self.tokenizer[0]}/passages{shard}"] if stored else []

    @property
    def is_ready(self) -> bool:
        """Whether its model grew from a ready one, which says itself how it reads texts and projects vectors."""
        return self.origin.method.stage == "pretrained"

    @property
    def reranked(self) -> str:
        """The run whose list a ColBERT or cross encoder reranks."""
        source = self.dataset.settings.retrieval.rerank_from
        return str(self.jobs.rows.reference(source, split_seed(self.run)[1]))

    @property
    def rerank_from(self) -> str:
        """File of the list that a ColBERT or cross encoder reranks."""
        return f"{self.dataset.folder}/runs/{self.reranked}.parquet"
