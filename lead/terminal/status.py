"""`lead status`: what of a dataset is done, running, failed and missing, from its folder of results."""

from __future__ import annotations

import time
from pathlib import Path

from lead.plan.plan import Plan
from lead.plan.targets import runs, wanted
from lead.store.tables import read_json
from lead.terminal.cost import TRAININGS, steps_of
from lead.terminal.format import duration
from lead.terminal.run import last_line, steps_done

ALIVE = 120.0  # seconds since the last sign of a stage that is taken to be running


def status(plan: Plan, datasets: list[str]) -> str:
    """Lines on these datasets, or on every one with results. Raises LeadError for an unknown dataset."""
    chosen = datasets or [name for name, planned in plan.datasets.items() if Path(planned.folder).is_dir()]
    if not chosen:
        return f"nothing in {plan.results} yet; make something: lead run DATASET/RUN (`lead show` lists both)"
    return "\n\n".join(_dataset(plan, name) for name in chosen)


def _dataset(plan: Plan, name: str) -> str:
    folder, locked = Path(plan.datasets[name].folder), any(Path(".snakemake/locks").glob("*"))
    chosen, tested = runs(plan, name), plan.datasets[name].has_test
    if tested:
        done = sorted(path.stem for path in folder.glob("*.json"))
    else:
        there = {*chosen, *(path.name for path in folder.glob("models/*") if path.name in plan.rows)}
        done = sorted(run for run in there if all(Path(made).exists() for made in wanted(plan[name, run])))
    lines = [f"{name}: {len(done)} of {len({*chosen, *done})} runs are done"]
    lines += [f"  done     {run:<20} {_measured(plan, name, run) if tested else 'made'}" for run in done]
    for log in sorted(folder.glob("logs/*.log"), key=lambda path: path.stat().st_mtime):
        last, age = last_line(log), time.time() - log.stat().st_mtime
        stage, _, what = log.stem.partition(".")
        if " done in " in last and "error" not in last:
            continue
        if "lead: error: " in last:
            says = last.partition("lead: error: ")[2]
            lines.append(f"  {'stopped' if 'started again' in says else 'failed ':<8} {log.stem}: {says}")
            lines.append(f"           {log}")
            continue
        lines.append(_unfinished(plan, name, stage, what, last, age, locked))
    missing = [run for run in chosen if run not in done]
    if missing:
        more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
        lines.append(f"  missing  {', '.join(missing[:8])}{more}")
        lines.append(f"           make them: lead run {name}, or one: lead run {name}/{missing[0]}")
    return "\n".join(lines)


def _measured(plan: Plan, dataset: str, run: str) -> str:
    """The dataset's first measure of a result."""
    found = read_json(Path(plan.datasets[dataset].folder) / f"{run}.json")["metrics"]
    first = next((m for m in plan.datasets[dataset].settings.evaluation.measures if m in found), min(found))
    return f"{first} {found[first]['mean']:.3f}"


def _unfinished(plan: Plan, dataset: str, stage: str, run: str, last: str, age: float, locked: bool) -> str:
    """A line on a stage whose log has no end: it runs, or it was killed."""
    text = f"{stage} {run}".strip()
    folder = Path(plan.datasets[dataset].folder)
    trains = stage in TRAININGS and run in plan.rows
    for file in (folder / "state" / run).glob("*/metrics.jsonl") if trains else ():
        age = min(age, time.time() - file.stat().st_mtime)
    by_hand = not Path(".snakemake/locks").exists()  # a stage without Snakemake
    alive = age < ALIVE if by_hand else locked and age < 30 * ALIVE
    if trains:
        step, seconds = steps_done(folder, run)
        steps = steps_of(plan[dataset, run])
        left = f", about {duration(seconds * (steps - step))} left" if seconds and alive and steps else ""
        text += f": step {step}" + (f" of {steps}{left}" if steps else "")
    else:
        text += f": {last}"
    sign = f" (last sign {duration(age)} ago)"
    if alive:
        return f"  running  {text}{sign}"
    return f"  stopped  {text}{sign}; run it again, and it goes on"
