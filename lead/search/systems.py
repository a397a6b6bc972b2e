"""What answers a typed query: a run of the configuration, whatever ranks its lists, and what it is compared with."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow.compute as pc

from lead.config.load import load as load_config
from lead.config.schema import Settings
from lead.config.shipped import DEFAULT_CONFIG
from lead.errors import LeadError
from lead.lists import Floats, Ints, best
from lead.plan.job import Job
from lead.plan.plan import Plan
from lead.search.model import BATCH_TOKENS, Model
from lead.search.passages import Passages, Vectors

CANDIDATES = 50  # passages of a list that a reranker scores for a typed query


class System(Protocol):
    """Ranks the passages of a collection for a typed query."""

    @property
    def name(self) -> str:
        """The run."""

    @property
    def about(self) -> str:
        """What it is and which passages it ranks, for people."""

    def rank(self, query: str, k: int) -> tuple[Ints, Floats]:
        """Rows of the best passages, at most k, and their scores, best first."""


class Dense:
    """A dual encoder, which searches all passages."""

    def __init__(self, name: str, title: str, model: Model, passages: Passages) -> None:
        """`title`: its kind of model."""
        self.name, self.model = name, model
        self.about = f"{title}, searches all {len(passages):,} passages"
        model.rank("", 1)  # whatever is imported and read for the first query, before it is asked

    def rank(self, query: str, k: int) -> tuple[Ints, Floats]:
        """As `System`."""
        return self.model.rank(query, k)


class Bm25Ranking:
    """BM25, over an index that is made now."""

    def __init__(self, name: str, corpus: Path, settings: Settings) -> None:
        """`settings`: those of the row of BM25."""
        from lead.retrieval.bm25 import Bm25Index

        self.name, self.index = name, Bm25Index(corpus, settings.bm25)
        self.about = f"BM25, searches all {len(self.index.pids):,} passages"

    def rank(self, query: str, k: int) -> tuple[Ints, Floats]:
        """As `System`."""
        return self.index.tops([query], k)[0]


class Reranked:
    """A ColBERT or cross encoder, which scores the first `CANDIDATES` passages of another system."""

    def __init__(self, name: str, title: str, folder: Path, first: System, passages: Passages) -> None:
        """`first`: whose list it reranks."""
        from lead.models.microbatch import MicroBatchEncoder
        from lead.retrieval.rerank import load_reranker

        self.name, self.first, self.passages = name, first, passages
        self.about = f"{title}, reranks the first {CANDIDATES} of {first.name}"
        self.model = load_reranker(folder, 0, "search with it instead")
        self.encode = MicroBatchEncoder(BATCH_TOKENS, "fp32")

    def rank(self, query: str, k: int) -> tuple[Ints, Floats]:
        """As `System`."""
        import torch

        rows, _ = self.first.rank(query, CANDIDATES)
        if not len(rows):
            return rows, np.empty(0, np.float32)
        with torch.inference_mode():
            scores = self.model.scorer([query], self.passages.read(rows), self.encode)(0, np.arange(len(rows)))
        top = best(scores, self.passages.order[rows], k)
        return rows[top], scores[top]


class Collection:
    """A dataset of the configuration with its passages, and the runs on it that answer queries."""

    def __init__(self, plan: Plan, job: Job) -> None:
        """`job`: any run on the dataset."""
        self.plan, self.job = plan, job
        self.made: dict[tuple[str, str | None], System] = {}

    @classmethod
    def find(cls, target: str, config: Path = DEFAULT_CONFIG, overrides: dict[str, Any] | None = None) -> Collection:
        """From DATASET/RUN, or the folder of a model among the results. Raises LeadError for unknown names."""
        plan = Plan(load_config(config, overrides))
        path, (here, results) = Path(target), (Path(os.path.abspath(name)) for name in (target, plan.results))
        if here.is_relative_to(results):
            path = here.relative_to(results)
        elif (path / "lead.json").is_file():
            raise LeadError(f"{target} is a model without passages; give them: lead search {target} --corpus FILE")
        parts = [part for part in path.parts if part != "models"]
        if len(parts) != 2:
            raise LeadError(f"'{target}' is neither DATASET/RUN nor the folder of a model; `lead show` lists both")
        return cls(plan, plan[parts[0], parts[1].removesuffix(".json")])

    @property
    def name(self) -> str:
        """The dataset."""
        return self.job.dataset.name

    @cached_property
    def passages(self) -> Passages:
        """The passages of its corpus. Raises LeadError if it has not been prepared."""
        return Passages.of_corpus(self.made_file(self.job.dataset.corpus, self.job))

    def made_file(self, path: str, job: Job) -> Path:
        """A file or folder of a run. Raises LeadError with the command that makes it, if it is not there."""
        if not Path(path).exists():
            own = self.plan.path() != str(DEFAULT_CONFIG) and os.path.isfile(self.plan.path())
            given = f" --configfile {self.plan.path()}" if own else ""
            raise LeadError(f"{path} does not exist; make it with: lead run {job.dataset.name}/{job.run}{given}")
        return Path(path)

    def system(self, run: str | None = None, first: System | None = None) -> System:
        """What ranks the lists of a run (default: the one asked for).

        first: whose list a ColBERT or cross encoder reranks; by default that of the run that its own lists come from.
        Raises LeadError for a run that answers no new query, and for one that has not been made.
        """
        key = run or self.job.run, None if first is None else first.name
        if key not in self.made:
            self.made[key] = self._make(self.job.other(key[0]), first)
        return self.made[key]

    def _make(self, job: Job, first: System | None) -> System:
        if job.kind is None:
            if job.method.stage != "bm25":
                raise LeadError(f"run '{job.run}' is a list that came from elsewhere; it answers no new query")
            return Bm25Ranking(job.run, self.made_file(job.dataset.corpus, job), job.settings)
        folder = self.made_file(job.model, job)
        if job.kind.ranks_by == "rerank":
            return Reranked(job.run, job.kind.title, folder, first or self.system(job.reranked), self.passages)
        asker = job.row.start if job.searches_another else job.run
        by = f"queries by {asker}, passages by {job.row.passages}: " if job.row.passages else ""
        return Dense(job.run, f"{by}{job.kind.title}", self.model(job), self.passages)

    def model(self, job: Job | None = None) -> Model:
        """The dual encoder of a run with the vectors that the run searches. Raises LeadError if they are not made."""
        job = job or self.job
        if job.kind is None or job.kind.ranks_by != "search":
            what = job.method.name if job.kind is None else job.kind.title
            raise LeadError(f"run '{job.run}' is no dual encoder ({what}); it has no vectors of texts")
        folder, files = self.made_file(job.model, job), [self.made_file(path, job) for path in job.vectors()]
        indexes = [self.made_file(path, job) for path in job.indexes()]
        vectors = Vectors.of_files(files, indexes, job.settings.retrieval.index_parameters, self.passages)
        another = Model(Path(job.other(job.row.passages).model)) if job.row.passages else None
        return Model(folder, self.passages, vectors, another)

    def against(self, run: str) -> System:
        """What the run is compared with. If that is its teacher and a reranker, it reranks the run's first passages."""
        return self.system(run, self.system() if run == self.teacher else None)

    @cached_property
    def teacher(self) -> str | None:
        """The run's teacher; of a run without one that of the run it started from."""
        job = self.job
        while job.row.teacher is None and job.row.start is not None:
            job = job.other(job.row.start)
        return job.row.teacher

    def compared(self) -> list[Callable[[], System]]:
        """BM25 and the run's teacher, or the model of its passages; each made when it is called."""
        names = ["bm25", self.job.row.passages if self.job.searches_another else self.teacher]
        return [partial(self.against, name) for name in names if name is not None and name != self.job.run]

    # --- judgements --------------------------------------------------------------------------------------------------
    @cached_property
    def queries(self) -> dict[str, tuple[str, str]]:
        """Text of each test and dev query, on one line -> its split and id.

        Test queries come first; the first of equal texts wins.
        """
        from lead.store.tables import read_table

        found: dict[str, tuple[str, str]] = {}
        for split in ("test", "dev"):
            path = Path(self.job.dataset.folder, "data", f"queries.{split}.parquet")
            if path.exists():
                table = read_table(path, "queries")
                for qid, text in zip(table["qid"].to_pylist(), table["text"].to_pylist(), strict=True):
                    found.setdefault(_on_one_line(text), (split, qid))
        return found

    def judged(self, query: str) -> dict[str, bool]:
        """Passages judged for a query of the collection, and whether each counts as relevant; empty for any other."""
        if (known := self.queries.get(_on_one_line(query))) is None:
            return {}
        from lead.store.tables import read_table

        split, qid = known
        table = read_table(Path(self.job.dataset.folder, "data", f"qrels.{split}.parquet"), "qrels")
        table = table.filter(pc.equal(table["qid"], qid))
        least = self.job.dataset.settings.evaluation.relevance
        return {p: r >= least for p, r in zip(table["pid"].to_pylist(), table["rel"].to_pylist(), strict=True)}


def _on_one_line(query: str) -> str:
    """A query as the page's field holds it."""
    return " ".join(query.split())
