"""The plan: every run on every dataset, from the configuration. It decides what the workflow makes.

`plan[dataset, run]` is a `Job`. lead.plan.stage_settings has the settings of its stages, lead.plan.checks the checks
before any work, lead.plan.targets the default targets.
"""

from __future__ import annotations

import functools
import json
import os

from lead.config.load import Loaded
from lead.config.paper import Paper, load_paper
from lead.plan.datasets import planned_datasets
from lead.plan.job import Job, Jobs
from lead.plan.row_checks import check_rows
from lead.plan.rows import Rows


class Plan:
    """The rows of the experiments, the datasets, and the jobs: one for each pair of them.

    rows, datasets: by name. jobs: by dataset and run. results: the folder of all results.
    """

    def __init__(self, loaded: Loaded) -> None:
        """`loaded`: all configuration files. The experiments are checked against each other here. Raises LeadError."""
        self.loaded = loaded
        self.results = os.path.normpath(loaded.config.results)
        self.rows = Rows(loaded.experiments_path, loaded.experiments.runs, loaded.config.seeds)
        check_rows(self.rows)
        self.datasets = planned_datasets(loaded)
        self.jobs = Jobs(loaded, self.rows, self.datasets)
        self.paper_path = loaded.file("paper.yaml")

    def __getitem__(self, key: tuple[str, str]) -> Job:
        """The job of a dataset and a run. Raises LeadError for an unknown name."""
        return self.jobs[key]

    def collections(self) -> list[str]:
        """Datasets with their own corpus."""
        return [name for name, dataset in self.datasets.items() if dataset.collection is dataset]

    def evaluations(self) -> list[str]:
        """Datasets that are more evaluation queries of another one."""
        return [name for name, dataset in self.datasets.items() if dataset.collection is not dataset]

    def scattered(self, yes: bool) -> list[str]:
        """Datasets whose shards are searched by separate jobs (yes), or the other datasets (no)."""
        return [name for name, dataset in self.datasets.items() if dataset.scattered == yes]

    @functools.cached_property
    def paper(self) -> Paper:
        """The paper's tables. Raises LeadError for one that names a run which does not exist."""
        return load_paper(self.paper_path, list(self.rows))

    def checked_paper(self) -> str:
        """The file of the paper's tables, after a check."""
        _ = self.paper
        return str(self.paper_path)

    def path(self) -> str:
        """The file config.yaml that was loaded."""
        return str(self.loaded.path)

    def overrides(self) -> str:
        """The keys that do not come from files (snakemake --config), as JSON."""
        return json.dumps(self.loaded.overrides, sort_keys=True)

    def overview(self) -> str:
        """Datasets and runs with their one-line descriptions."""
        lines = ["datasets:"]
        lines += [f"  {name:<16} {dataset.data.about}" for name, dataset in self.datasets.items()]
        lines += ["runs:"] + [f"  {name:<16} {row.about}" for name, row in self.rows.items()]
        lines += ["", f"make one with: lead run DATASET/RUN, or snakemake --cores 2 -- {self.results}/DATASET/RUN.json"]
        return "\n".join(lines)
