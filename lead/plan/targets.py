"""The results of a dataset, and the checks of a target on Snakemake's command line."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

from lead.config.recipe import recipe
from lead.errors import LeadError, nearest
from lead.plan.checks import check, check_grant, check_meant, check_models, check_scores
from lead.plan.job import Job
from lead.plan.plan import Plan
from lead.plan.rows import split_seed


def check_target(plan: Plan, target: str, gpus: int | None = None) -> None:
    """Check the job of a target like results/demo/lead_cb.json, or the dataset of another file there. LeadError.

    Other targets pass. gpus: the number of granted GPUs, if known.
    """
    path = Path(os.path.normpath(target))
    if not path.is_relative_to(plan.results) or len(below := path.relative_to(plan.results).parts) < 2:
        return
    _ = plan.datasets[below[0]]
    if path.suffix == ".json" and len(below) == 2:
        job = plan[below[0], path.stem]
        job.dataset.check_test()
        check(job)
        if gpus is not None:
            check_grant(job, gpus)


def targets(plan: Plan, dataset: str) -> list[str]:
    """Result files of the dataset's `runs`. Raises LeadError where there are no test queries."""
    plan.datasets[dataset].check_test()
    return [f"{plan.datasets[dataset].folder}/{name}.json" for name in runs(plan, dataset)]


def wanted(job: Job) -> list[str]:
    """What is made for a run that is named: its result; without test queries its model, ready to search."""
    if job.dataset.has_test:
        return [f"{job.dataset.folder}/{job.run}.json"]
    if job.kind is None:
        return [f"{job.dataset.folder}/negatives/{job.run}.parquet"]
    return [job.model, *(job.vectors() + job.indexes() if job.kind.ranks_by == "search" else [])]


def runs(plan: Plan, dataset: str) -> list[str]:
    """The dataset's `runs`, or every run that makes sense on it, with their further seeds.

    The seeds are those of `repeats`, and those that exist already. If several runs are equal here (`twin`), only the
    first is included, unless `runs` names the others.
    """
    planned, rows = plan.datasets[dataset], plan.rows
    data = planned.data
    for name in data.runs or []:
        if name not in rows:
            raise LeadError(f"{planned.file}: key 'runs': no run '{name}'; {nearest(name, rows)}")
    chosen = data.runs
    if chosen is None:
        chosen = [n for n in sensible(plan, dataset) if n in data.repeats or twin(plan[dataset, n]) == n]
    for name in data.repeats:
        if name not in chosen or f"{name}-s2" not in rows:
            seeded = [n for n in chosen if f"{n}-s2" in rows]
            hint = nearest(name, seeded)
            raise LeadError(f"{planned.file}: key 'repeats': '{name}' is no run of this dataset with seeds; {hint}")
    seeds = [f"{n}-s{seed}" for n in chosen for seed in range(2, data.repeats.get(n, 1) + 1)]
    found = (path.stem for path in sorted(Path(planned.folder).glob("*-s*.json")))
    there = [n for n in found if split_seed(n)[1] != 1 and split_seed(n)[0] in chosen and n in rows]
    return list(dict.fromkeys([*chosen, *seeds, *there]))


def sensible(plan: Plan, dataset: str) -> list[str]:
    """Runs that make sense on a dataset: they are meant for it, and its models and lists allow them."""
    return [name for name in plan.rows if _makes_sense(plan[dataset, name])]


def _makes_sense(job: Job) -> bool:
    lists = job.reranked if "rerank" in job.stages else job.run
    if lists == "external" and job.dataset.data.external_run is None:
        return False
    try:
        check_meant(job)
        for name in job.jobs.rows.ancestors(job.run):
            check_models(job.other(name))
            check_scores(job.other(name))
    except LeadError:
        return False
    return True


def twin(job: Job) -> str:
    """The first run with the same settings on this dataset (`lead_cb` for `lead_cb_k3` if K = 3), or the run."""
    return next((name for name in job.jobs.rows if _what(job.other(name)) == _what(job)), job.run)


@functools.lru_cache(maxsize=1024)
def _what(job: Job) -> tuple[dict[str, Any], dict[str, Any]]:
    return job.row.model_dump(exclude={"about", "settings"}), recipe(job.settings)
