"""`lead plan`: the jobs that would run, and what to expect of each: epochs, minutes, bytes."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from lead.errors import LeadError
from lead.plan.plan import Plan
from lead.terminal.cost import aligned_texts, shape, steps_of
from lead.terminal.disk import disk
from lead.terminal.format import duration, size
from lead.terminal.rates import Cost, Rates
from lead.terminal.run import Job, grouped, jobs_of, last_words
from lead.terminal.workflow import option, planned, snakemake_words


def plan(words: list[str]) -> int:
    """Print the jobs that these words of `lead run` would run, and what they cost; returns the exit status.

    Raises LeadError for a mistake in the words or the configuration.
    """
    made = planned(words)
    jobs, code, said = jobs_of(snakemake_words(made, words))
    if code:
        last_words(said)
        return code
    if not jobs:
        print("everything is there; nothing to do")
        return 0
    rates = Rates(made)
    trained = next((job for job in jobs if job.trains), next((job for job in jobs if _encodes(made, job)), None))
    if trained is not None:
        gpu = next((int(w.partition("=")[2]) for w in option(words, "--resources") if w.startswith("gpu=")), 0)
        with contextlib.suppress(LeadError):  # models that are not here: no minutes
            rates.measure(made[trained.wildcards["dataset"], trained.wildcards["run"]], gpu)
    costs = [rates.cost(job.rule, job.wildcards, job.timing) for job in jobs]
    _table(made, jobs, costs)
    _total(made, jobs, costs, rates)
    return 0


def _encodes(made: Plan, job: Job) -> bool:
    run = job.wildcards.get("run", "")
    return run in made.rows and made.rows.method(run).has_model


def _table(made: Plan, jobs: list[Job], costs: list[Cost | None]) -> None:
    groups = grouped(jobs)
    of = {id(job): cost for job, cost in zip(jobs, costs, strict=True)}
    width = max(len(about) for about, _ in groups)
    for number, (about, group) in enumerate(groups, 1):
        seconds = [cost.seconds for job in group if (cost := of[id(job)]) is not None]
        takes = duration(sum(seconds)) if len(seconds) == len(group) else "?"
        print(f"{number:>4}  {about:<{width}}  {takes:>11}{_training(made, group[0])}")


def _training(made: Plan, job: Job) -> str:
    """Steps and epochs of a job that trains."""
    if not job.trains:
        return ""
    planned = made[job.wildcards["dataset"], job.wildcards["run"]]
    aligned, size, steps = planned.method.stage == "align", planned.settings.train.batch_size, steps_of(planned)
    if steps is None:
        return f"  steps of {size} {'texts' if aligned else 'queries'}"
    seen = aligned_texts(planned) if aligned else shape(planned).queries.get("train")
    text = f"  {steps:,} steps of {size} {'texts' if aligned else 'queries'}"
    return text + (f", {steps * size / seen:.1f} epochs" if seen else "")


def _total(made: Plan, jobs: list[Job], costs: list[Cost | None], rates: Rates) -> None:
    known = [cost for cost in costs if cost is not None]
    seconds = sum(cost.seconds for cost in known)
    low, high = sum(cost.seconds / cost.factor for cost in known), sum(cost.seconds * cost.factor for cost in known)
    unknown = len(jobs) - len(known)
    which = f"{len(known)} of {len(jobs)} jobs" if unknown else f"{len(jobs)} jobs"
    print(f"{which}, one after the other: about {duration(seconds)} ({duration(low)} to {duration(high)})")
    if unknown:
        print(f"  of {unknown} nothing here tells the time: the model or the data is not on this machine yet")
    if any(cost.how == rates.how for cost in known):
        print(f"  rate: {rates.how}; a busy machine takes longer")
    needs = [disk(made, job.rule, job.wildcards) for job in jobs]
    kept, while_it_runs = sum(made for made, _ in needs), max(needed for _, needed in needs)
    folder = next(p for p in [Path(made.results).absolute(), *Path(made.results).absolute().parents] if p.exists())
    free = shutil.disk_usage(folder).free
    text = f"disk: about {size(kept)} to keep" + (
        f", {size(while_it_runs)} more while it trains" if while_it_runs else ""
    )
    print(f"{text}; {size(free)} are free{'' if kept + while_it_runs < free else ': TOO LITTLE'}")
