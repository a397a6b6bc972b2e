"""One dataset as the workflow sees it: its collection, its shards, and its source files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from lead.config.folders import locate
from lead.config.load import Loaded, seen_path, source_files, source_paths
from lead.config.schema import Settings
from lead.config.sources import IR_DATASETS, AnySource, EvaluationSource, OnDisk, PydocsSource
from lead.errors import LeadError, Named
from lead.plan.settings import dataset_settings


class PlannedDataset:
    """A file of config/datasets/, and the places of its results.

    data, file: its keys, and the file that holds them. folder: its results. collection: the dataset whose corpus,
    models and vectors it uses. This is the dataset itself, or another dataset for which it has more evaluation queries.
    """

    def __init__(self, loaded: Loaded, name: str, collection: PlannedDataset | None = None) -> None:
        """`collection`: None for a dataset with its own corpus."""
        self.loaded, self.name = loaded, name
        self.data, self.file = loaded.datasets[name]
        self.folder = f"{os.path.normpath(loaded.config.results)}/{name}"  # like Snakemake's targets
        self.collection = collection or self

    @cached_property
    def settings(self) -> Settings:
        """Its settings, without those of any run."""
        return dataset_settings(self.loaded, self.name)

    @property
    def corpus(self) -> str:
        """File of the passages that its queries search."""
        return f"{self.collection.folder}/data/corpus.parquet"

    @property
    def shards(self) -> list[str]:
        """Endings of the files of the corpus's shards: .1of2, .2of2; one empty ending for a corpus in one part."""
        n = self.collection.data.shards
        return [f".{i}of{n}" for i in range(1, n + 1)] if n > 1 else [""]

    @property
    def scattered(self) -> bool:
        """Whether each shard is searched by a separate job.

        An evaluation set has few queries: one job searches all shards.
        """
        return self.collection is self and len(self.shards) > 1

    def parts(self, kind: str, run: str) -> list[str]:
        """Files of a run's lists for each shard, which are gathered later. kind: runs or negatives."""
        return [f"{self.folder}/{kind}/{run}/part{shard}.parquet" for shard in self.shards]

    @property
    def encode_threads(self) -> int:
        """Threads of a job that encodes. One for a shard: its tokens are stored, and many jobs run at once."""
        return 1 if len(self.shards) > 1 else 8

    @property
    def gpus(self) -> int:
        """GPUs that a training job asks for."""
        return self.collection.data.gpus

    @property
    def source(self) -> AnySource:
        """Its source, with paths as they are seen from here, and no train split where that is drawn from the corpus.

        Packages that are installed for it have a folder.
        """
        source = source_paths(self.data.source, self.file)
        if isinstance(source, PydocsSource) and source.requirements is not None:
            return source.model_copy(update={"folder": f"{self.folder}/packages", "requirements": None})
        if self.data.queries is None or "train" not in type(source).model_fields:
            return source
        return source.model_copy(update={"train": None})

    @property
    def requirements(self) -> list[str]:
        """The file of pinned packages that are installed for it; none for another source."""
        source = source_paths(self.data.source, self.file)
        return [source.requirements] if isinstance(source, PydocsSource) and source.requirements is not None else []

    @property
    def has_test(self) -> bool:
        """Whether it has test queries. Without them there are models, but no results."""
        source = self.source
        if self.data.queries is None or not isinstance(source, OnDisk) or not source.on_disk:
            return True
        return "test" in locate(source).splits

    def check_test(self) -> None:
        """Refuse results of a dataset without test queries. Raises LeadError."""
        if not self.has_test:
            raise LeadError(
                f"{self.file}: no test queries, so no results; make a model (lead run {self.name}/best_unlabelled), or "
                "add source.test"
            )

    def train_ids(self) -> Iterator[str] | None:
        """Ids of its train queries: those prepared, else of its files; None where nothing tells. Raises LeadError."""
        from lead.data.layout import QUERIES, Layout, rows
        from lead.store.tables import read_table

        prepared, source = Path(self.collection.folder) / "data/queries.train.parquet", self.source
        if prepared.exists():
            return iter(read_table(prepared, columns=["qid"])["qid"].to_pylist())
        split = locate(source).splits.get("train") if isinstance(source, OnDisk) and source.on_disk else None
        if split is None:
            return None
        return (str(row.get("qid")) for path in split.queries for _, row in rows(path, QUERIES, Layout()))

    @property
    def source_files(self) -> list[str]:
        """Files that `prepare` reads. Raises LeadError if a folder lacks a part of its layout."""
        try:
            return source_files(self.source)
        except LeadError as e:
            raise LeadError(f"{self.file}: {e}") from None

    @property
    def external_run(self) -> str:
        """The ranked lists that come with its test queries: a file, or ir_datasets:ID. Raises LeadError."""
        lists = self.data.external_run
        if lists is None:
            raise LeadError(
                f"{self.file}: key 'external_run' is missing; name the ranked lists that come with the test queries"
            )
        return lists if lists.startswith(IR_DATASETS) else seen_path(lists, self.file, "external_run")

    @property
    def scores(self) -> dict[str, str]:
        """Files of scores from elsewhere, by name."""
        return {name: seen_path(path, self.file, "scores") for name, path in self.data.scores.items()}

    @property
    def external_files(self) -> list[str]:
        """Files of the ranked lists that come with its test queries."""
        lists = self.external_run
        return [] if lists.startswith(IR_DATASETS) else [lists]


def planned_datasets(loaded: Loaded) -> Named[PlannedDataset]:
    """Every dataset by name, in the order of the configuration."""
    sources = {name: data.source for name, (data, _) in loaded.datasets.items()}
    found = {n: PlannedDataset(loaded, n) for n, source in sources.items() if not isinstance(source, EvaluationSource)}
    found |= {
        n: PlannedDataset(loaded, n, found[source.of])
        for n, source in sources.items()
        if isinstance(source, EvaluationSource)
    }
    return Named("dataset", loaded.path.parent / loaded.config.datasets, {name: found[name] for name in sources})
