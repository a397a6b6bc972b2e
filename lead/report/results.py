"""The results of a dataset side by side: quality, what each run costs, and one family of tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from lead.errors import LeadError, nearest
from lead.evaluation.stats import bootstrap_interval, holm
from lead.plan.job import Job
from lead.plan.plan import Plan
from lead.report.facts import Facts, facts
from lead.report.render import Mark
from lead.report.seeds import Run, Runs, against
from lead.report.table import SIGNIFICANT, difference, number, read_result
from lead.store.tables import open_table

# what a run is tested against, if it was made: the controls that cost as much as distillation first
BASELINES = ("student_more", "aligned_more", "student", "student_aligned", "pretrained_student", "bm25")
CONTROLS = ("bm25", "pretrained_student", "pretrained_teacher")  # what a reader wants to see beside any student


@dataclass(frozen=True)
class Line:
    """A run of the main table.

    mark: ends of the interval of the first measure, and the mean between them. versus: difference to the baseline in
    the first measure, and its corrected p; None for the baseline itself, and without seeds in common.
    """

    run: str
    about: str
    role: str
    values: Run
    facts: Facts
    mark: Mark
    versus: tuple[float, float] | None

    def shown(self, measure: str) -> str:
        """The mean of a measure, as `lead table` writes it, and the spread between seeds."""
        if measure not in self.values.values:
            return "-"
        spread = self.values.spread(measure)
        return number(self.values.mean(measure)) + ("" if spread is None else f" ± {number(spread)}")

    @property
    def interval(self) -> str:
        """The interval of the first measure."""
        return f"[{number(self.mark[0])}, {number(self.mark[2])}]"

    @property
    def difference(self) -> str:
        """The difference to the baseline and its p."""
        return "" if self.versus is None else difference(*self.versus)


class Results:
    """The runs of a dataset that exist, best first."""

    def __init__(self, plan: Plan, dataset: str, baseline: str | None = None) -> None:
        """`baseline`: the run that others are tested against; by default the first of BASELINES.

        Raises LeadError for a damaged result, and a baseline that does not exist.
        """
        self.plan, self.dataset = plan, plan.datasets[dataset]
        self.folder = folder = Path(self.dataset.folder)
        self.runs = Runs(folder, plan.rows)
        self.names = list(self.runs)
        if baseline is not None and baseline not in self.names:
            raise LeadError(f"--baseline: no result of '{baseline}' in {folder}; {nearest(baseline, self.names)}")
        self.measures = self.dataset.settings.evaluation.measures
        if self.names and any(self.measures[0] not in self.runs[name].values for name in self.names):
            own = [list(self.runs[name].values) for name in self.names]
            self.measures = [m for m in own[0] if all(m in one for one in own)]
            if not self.measures:
                raise LeadError(f"{folder}: no measure that all results have; evaluate them again")
        found = next((name for name in BASELINES if name in self.names), self.names[0] if self.names else None)
        self.baseline = baseline or found

    def job(self, run: str) -> Job | None:
        """The run of the configuration; None for a result whose run it no longer has."""
        return self.plan[self.dataset.name, run] if run in self.plan.rows else None

    @cached_property
    def passages(self) -> int | None:
        """How many passages are searched."""
        path = Path(self.dataset.corpus)
        return open_table(path).metadata.num_rows if path.exists() else None

    @cached_property
    def lines(self) -> list[Line]:
        """A line for each run, best first."""
        first, tests = self.measures[0], self._tests()
        made = []
        for name in self.names:
            job, run = self.job(name), self.runs[name]
            known = Facts("not in the configuration") if job is None else facts(job, self.passages)
            about = "" if job is None else job.row.about or job.method.about
            made.append(Line(name, about, self.role(name), run, known, self._mark(run, first), tests.get(name)))
        return sorted(made, key=lambda line: -line.values.mean(first))

    def _mark(self, run: Run, measure: str) -> Mark:
        """Mean and interval over queries; of one seed as its result says them, of several from each query's mean."""
        if len(run.seeds) == 1:
            numbers = read_result(self.runs.files[run.name][0]).metrics[measure]
            return numbers["low"], numbers["mean"], numbers["high"]
        of = self.dataset.settings.evaluation
        low, high = bootstrap_interval(run.per_query(measure), of.resamples, of.confidence, seed=1)
        return low, run.mean(measure), high

    def _tests(self) -> dict[str, tuple[float, float]]:
        """The one family of tests: every run against the baseline, in the first measure, Holm-corrected."""
        if self.baseline is None:
            return {}
        baseline, first = self.runs[self.baseline], self.measures[0]
        others = [name for name in self.names if name != self.baseline]
        found = {n: t for n in others if (t := against(self.runs[n], baseline, first, self.folder)) is not None}
        corrected = holm([p for _, p in found.values()])
        return {name: (delta, p) for (name, (delta, _)), p in zip(found.items(), corrected, strict=True)}

    def role(self, run: str) -> str:
        """What a run is for a reader: student, teacher, or other (BM25, lists from elsewhere)."""
        if run not in self.plan.rows or not self.plan.rows.method(run).has_model:
            return "other"
        return "student" if self._searches(run) and self.plan.rows.root(run) in self._students else "teacher"

    def _searches(self, run: str) -> bool:
        return self.plan.rows.kind(run).ranks_by == "search"

    @cached_property
    def _students(self) -> set[str]:
        """The encoders that students grow from: those of runs that learn from a teacher."""
        rows = self.plan.rows
        taught = {rows.root(n) for n in rows if rows[n].teacher is not None or rows[n].scores is not None}
        return taught or {rows.root(n) for n in rows if rows.method(n).has_model}

    def best(self) -> Line | None:
        """The best student."""
        return next((line for line in self.lines if line.role == "student"), None)

    def beside(self, run: str) -> str | None:
        """The run that its queries are compared with: the baseline, or the next one where it is the baseline itself."""
        return next((n for n in (self.baseline, *BASELINES, *self.names) if n in self.names and n != run), None)

    def line(self, run: str) -> Line | None:
        """The line of a run."""
        return next((line for line in self.lines if line.run == run), None)

    def guide(self) -> float | None:
        """The baseline's mean of the first measure."""
        return None if self.baseline is None else self.runs[self.baseline].mean(self.measures[0])

    def missing_controls(self) -> list[str]:
        """Runs that a reader expects in the table, and that were not made."""
        return [name for name in CONTROLS if name in self.plan.rows and name not in self.names]

    # --- in words ----------------------------------------------------------------------------------------------------
    def tests_in_words(self) -> str:
        """What the column of differences is; empty with nothing to compare."""
        tested = [line for line in self.lines if line.versus is not None]
        if not tested:
            return ""
        n = len(self.runs[str(self.baseline)].qids)
        text = (
            f"The column \u201cvs {self.baseline}\u201d is the difference in {self.measures[0]}, and p of a two-sided "
            f"paired t-test over {n:,} queries, Holm-corrected over the {len(tested)} tests of this table; "
            "* p < .05, ** p < .01. These are the only tests on this page."
        )
        if all(line.versus[1] >= SIGNIFICANT for line in tested if line.versus):
            text += f" None is significant: {n:,} queries are too few to tell these runs apart."
        return text

    def verdict(self) -> list[str]:
        """Sentences that say what came out."""
        best = self.best()
        if best is None:
            return []
        first, students = self.measures[0], [line for line in self.lines if line.role == "student"]
        many = f"Of {len(students)} students" if len(students) > 1 else "The one student"
        name = f", {best.run} has the highest {first}" if len(students) > 1 else f", {best.run}, has {first}"
        said = [f"{many}{name}: {best.shown(first)} {best.interval}."]
        if best.versus is not None and best.versus[1] < SIGNIFICANT:
            more = "above" if best.versus[0] > 0 else "below"
            said.append(f"That is clearly {more} {self.baseline} ({best.difference}).")
        elif best.versus is not None:
            said.append(f"It cannot be told apart from {self.baseline} ({best.difference}).")
        said += self._beside(best)
        if len(students) > 2:
            said.append("It was picked by these test queries, so its number is a little too good.")
        return said

    def _beside(self, best: Line) -> list[str]:
        first, said = self.measures[0], []
        if (bm25 := self.line("bm25")) is not None:
            more = bm25.values.mean(first) > best.values.mean(first)
            said.append(f"BM25 has {'more: ' if more else ''}{bm25.shown(first)}.")
        teacher = next((line for line in self.lines if line.role == "teacher"), None)
        if teacher is not None:
            share = _share(best.facts.parameters, teacher.facts.parameters)
            costs = f"; the student has {share} of its parameters" if share else ""
            said.append(f"The best teacher, {teacher.run}, has {teacher.shown(first)}{costs}.")
        return said


def _share(a: int | None, b: int | None) -> str:
    return f"{a / b:.0%}" if a and b else ""


def millions(count: int | None) -> str:
    """Parameters, in millions, for people."""
    return "" if count is None else f"{count / 1e6:.1f}"


def megabytes(count: float | None) -> str:
    """Bytes, in MB, for people.

    >>> megabytes(1_843_000), megabytes(15_000_000), megabytes(None)
    ('1.8', '15', '')
    """
    return "" if count is None else f"{count / 1e6:.1f}" if count < 1e7 else f"{count / 1e6:,.0f}"


def significant(values: Sequence[float]) -> list[str]:
    """Numbers with three significant digits.

    >>> significant([0.01234, 12.34, 1234.5])
    ['0.0123', '12.3', '1,230']
    """
    return [
        f"{v:,.{max(0, 2 - int(np.floor(np.log10(abs(v)))))}f}" if abs(v) < 100 else f"{float(f'{v:.3g}'):,.0f}"
        for v in values
    ]
