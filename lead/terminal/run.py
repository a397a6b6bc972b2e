"""`lead run`: Snakemake with the shipped workflow, a dry run to read, and short progress with the time left."""

from __future__ import annotations

import math
import os
import re
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from lead.plan.plan import Plan
from lead.terminal.cost import TRAININGS, steps_of
from lead.terminal.format import duration
from lead.terminal.rates import Cost, Rates, step_seconds
from lead.terminal.workflow import Event, Workflow, planned, snakemake_words

# Snakemake's options that print something else than the progress of jobs: its own output is shown
OWN = """--help -h --version -v --lint --unlock --report --dag --rulegraph --filegraph --d3dag --summary -S --touch -t
--detailed-summary -D --list-rules --list -l --list-target-rules --lt --list-changes --list-input-changes
--list-params-changes --list-untracked --delete-all-output --delete-temp-output --cleanup-metadata --cleanup-shadow
--archive --debug-dag --print-compilation --quiet -q --verbose""".split()
DRY = re.compile(r"--dry-?run|-[kfFpa]*n[kfFpa]*")  # also among other short options without a value: -np
LOGS = Path(".snakemake/log")
NOTE = 30.0  # seconds between lines of progress where there is no terminal


@dataclass
class Job:
    """A job of the workflow, as Snakemake's events tell it."""

    rule: str
    about: str  # the rule's message
    wildcards: dict[str, str]
    reason: str
    timing: str | None
    log: list[str]
    begun: float = 0.0

    @classmethod
    def of(cls, event: Event) -> Job:
        """From an event `job_info`."""
        about = event.get("rule_msg") or event["rule_name"]
        timing = str(event["benchmark"]) if event.get("benchmark") else None
        reason, log = event.get("reason") or "", event.get("log") or []
        return cls(event["rule_name"], about, event.get("wildcards") or {}, reason, timing, log, time.monotonic())

    @property
    def trains(self) -> bool:
        """Whether it trains a model."""
        return self.rule.partition("_")[0] in TRAININGS

    def why(self) -> str:
        """Why it runs, in a few words."""
        for says, short in (
            ("Params have changed", "its settings changed"),
            ("Set of input files has changed", "its inputs are others"),
            ("Forced execution", "you asked for it"),
            ("Missing output files", "not made yet"),
            ("Updated input files", "its inputs changed"),
            ("Input files updated by another job", "its inputs are made again"),
        ):
            if says in self.reason:
                return short
        return self.reason.partition(":")[0].lower()


def grouped(jobs: Sequence[Job]) -> list[tuple[str, list[Job]]]:
    """Jobs under a line for people; those of the parts of a corpus have one line together."""
    found: dict[tuple[object, ...], list[Job]] = {}
    for job in jobs:
        kept = [(key, value) for key, value in sorted(job.wildcards.items()) if key != "shard"]
        found.setdefault((job.rule, *kept), []).append(job)
    lines = []
    for group in found.values():
        about = group[0].about
        if len(group) > 1:
            about = about.replace(group[0].wildcards.get("shard", ""), "") + f" ({len(group)} jobs)"
        lines.append((about, group))
    return lines


def jobs_of(words: Sequence[str]) -> tuple[list[Job], int, str]:
    """The jobs that a dry run lists, Snakemake's exit status, and what it printed. `words`: of `snakemake_words`."""
    import tempfile

    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        workflow = Workflow(["--dry-run", *words], output)
        found = [Job.of(event) for event in workflow.events(60) if event and event["event"] == "job_info"]
        code = workflow.wait()
        output.seek(0)
        return found, code, output.read()


def run(words: list[str]) -> int:
    """Run the workflow; returns the exit status. `words`: targets, and any of Snakemake's options. Raises LeadError."""
    plan = planned(words)
    given = snakemake_words(plan, words)
    options = words[: words.index("--")] if "--" in words else words
    if any(word.partition("=")[0] in OWN for word in options):
        given = [word for word in given if word != "--verbose"]
        os.execv(sys.executable, [sys.executable, "-m", "snakemake", *given])
    if any(DRY.fullmatch(word) for word in options):
        return _dry(given)
    jobs, code, said = jobs_of(given)
    if code or not jobs:
        print("everything is there; nothing to do") if not code else last_words(said)
        return code
    LOGS.mkdir(parents=True, exist_ok=True)
    path = LOGS / f"run.{datetime.now():%Y-%m-%dT%H%M%S}.log"
    with path.open("w", encoding="utf-8") as output:
        workflow = Workflow(given, output)
        progress = Progress(plan, path, jobs)
        try:
            for event in workflow.events(1.0):
                if event is None:
                    progress.show()
                else:
                    progress.take(event)
        finally:  # Snakemake is never left behind, whatever ends the lines: Ctrl-C, or a closed pipe
            code = workflow.wait()
    progress.end(code)
    return code


def _dry(words: list[str]) -> int:
    jobs, code, said = jobs_of(words)
    if code:
        last_words(said)
        return code
    if not jobs:
        print("everything is there; nothing to do")
        return 0
    groups = grouped(jobs)
    width = max(len(about) for about, _ in groups)
    print(f"{len(jobs)} job{'s' * (len(jobs) > 1)} would run, in about this order:")
    for number, (about, group) in enumerate(groups, 1):
        print(f"{number:>4}  {about:<{width}}  {group[0].why()}")
    print("nothing was done; `lead plan` with the same words says how long it takes")
    return 0


def last_words(said: str) -> None:
    """Print our own error of a Snakemake that failed, else the end of what it said."""
    lines = said.strip().splitlines()
    ours = [line for line in lines if line.startswith("lead: error: ")]
    print("\n".join(ours or lines[-15:]), file=sys.stderr)


@dataclass
class Progress:
    """Lines of what was done, and on a terminal a last line that is written again and again."""

    plan: Plan
    path: Path
    waiting: list[Job]
    running: dict[int, Job] = field(default_factory=dict)  # by Snakemake's numbers
    done: int = 0
    failed: bool = False
    wide: bool = sys.stdout.isatty()
    noted: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        """Read the rates of this machine once."""
        self.rates = Rates(self.plan)
        self.costs: dict[int, Cost] = {}  # of waiting jobs
        self.total = len(self.waiting)
        self.line(f"{self.total} job{'s' * (self.total > 1)}; what they print: {self.path}")

    def take(self, event: Event) -> None:
        """Take note of an event, and show it."""
        kind = event["event"]
        if kind == "job_info":
            job = self.running[event["jobid"]] = Job.of(event)
            self.waiting = [w for w in self.waiting if (w.rule, w.wildcards) != (job.rule, job.wildcards)]
        elif kind == "job_finished":
            if ended := self.running.pop(event["job_id"], None):
                self.done += 1
                took = duration(time.monotonic() - ended.begun)
                self.line(f"[{self.done:>{len(str(self.total))}}/{self.total}] {ended.about} ({took})")
        elif kind == "job_error":
            self.failed = True
            gone = [self.running.pop(number).about for number in (event["jobid"],) if number in self.running]
            self.line(f"failed: {gone[0] if gone else event['rule_name']}")
            for log in event.get("log") or []:
                self.line(f"  {last_line(Path(log))}")
                self.line(f"  all of it: {log}")
        self.show()

    def line(self, text: str) -> None:
        """Print a line that stays."""
        if self.wide:
            sys.stdout.write("\r\x1b[K")
        print(text, flush=True)

    def show(self) -> None:
        """What runs now, how far it is, and about how long everything takes from now."""
        now = time.monotonic()
        if not self.total or not self.running or (not self.wide and now - self.noted < NOTE):
            return
        self.noted = now
        doing = "; ".join(self._doing(job) for job in self.running.values())
        left = self.time_left()
        text = f"[{self.done}/{self.total}] {doing}" + (f" - about {duration(left)} left" if left is not None else "")
        if self.wide:
            width = shutil.get_terminal_size().columns - 1
            sys.stdout.write(f"\r\x1b[K{text[:width]}")
            sys.stdout.flush()
        else:
            print(text, flush=True)

    def _doing(self, job: Job) -> str:
        step, steps, _ = self._steps(job)
        return f"{job.about} (step {step} of {steps})" if steps and step else job.about

    def _steps(self, job: Job) -> tuple[int, int, float | None]:
        """The last step of a training, the number of its steps, and the seconds of one; zeros for other jobs."""
        dataset, run = job.wildcards.get("dataset", ""), job.wildcards.get("run", "")
        if not job.trains or dataset not in self.plan.datasets or run not in self.plan.rows:
            return 0, 0, None
        planned = self.plan[dataset, run]
        step, seconds = steps_done(Path(planned.dataset.folder), run)
        return step, steps_of(planned) or 0, seconds

    def time_left(self) -> float | None:
        """Seconds until all jobs are done, one after the other; None where nothing is known of one of them."""
        total = 0.0
        for job in self.running.values():
            step, steps, seconds = self._steps(job)
            if seconds:
                self.rates.learn(self.plan[job.wildcards["dataset"], job.wildcards["run"]], seconds)
                total += seconds * (steps - step) + 3
                continue
            cost = self.rates.cost(job.rule, job.wildcards, job.timing)
            total += math.nan if cost is None else max(1.0, cost.seconds - (time.monotonic() - job.begun))
        for job in self.waiting:
            cost = self.costs.get(id(job)) or self.rates.cost(job.rule, job.wildcards, job.timing)
            total += math.nan if cost is None else cost.seconds
            if cost is not None:
                self.costs[id(job)] = cost
        return None if math.isnan(total) else total

    def end(self, code: int) -> None:
        """The last line."""
        if self.wide:
            sys.stdout.write("\r\x1b[K")
        if code == 0:
            print(f"done: {self.done} job{'s' * (self.done != 1)}")
        elif self.failed:
            print(f"stopped: {self.done} of {self.total} jobs are done; run it again to go on ({self.path})")
        else:
            last_words(self.path.read_text(encoding="utf-8", errors="replace"))


def steps_done(folder: Path, run: str) -> tuple[int, float | None]:
    """The last step of a training that is not finished, and the seconds of one."""
    files = sorted((folder / "state" / run).glob("*/metrics.jsonl"), key=lambda path: path.stat().st_mtime)
    return step_seconds(files[-1]) if files else (0, None)


def last_line(log: Path) -> str:
    """The last line of a log that says something: the error, if it ends in one."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return f"no log {log}"
    return next((line for line in reversed(lines) if "lead: error: " in line), lines[-1] if lines else "an empty log")
