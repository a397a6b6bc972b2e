"""The keys of config/paper.yaml: the paper's tables as data."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from lead.config.load import validate
from lead.config.parse import read_yaml
from lead.config.types import Name, Strict
from lead.errors import LeadError, nearest


class PaperRow(Strict):
    """A row of a table: the paper's label, our run, and the paper's values."""

    label: str
    run: Name | None = Field(description="our run; null: a system that the paper quotes and we do not run")
    against: Name | None = Field(None, description="run that it is tested against, besides student_more")
    teacher: Name | None = Field(None, description="teacher whose gap to the student this run closes in part")
    values: dict[Name, list[float | None]] = Field({}, description="in percent, by dataset, in the order of `measures`")


class PaperTable(Strict):
    """One table."""

    title: str
    datasets: list[Name] | None = Field(None, description="only on these; null: on every dataset")
    gap: bool = Field(False, description="also report the share of the gap between student and teacher that is closed")
    rows: list[PaperRow]


class Paper(Strict):
    """All tables, and the measures of their values."""

    measures: dict[Name, list[str]]
    tables: dict[Name, PaperTable]


def load_paper(path: Path, runs: list[str]) -> Paper:
    """Read and check config/paper.yaml against the names of the runs. Raises LeadError."""
    tree, text = read_yaml(path)
    paper = validate(Paper, tree, str(path), text)
    for name, table in paper.tables.items():
        for row in table.rows:
            for run in (row.run, row.against, row.teacher):
                if run is not None and run not in runs:
                    raise LeadError(f"{path}: table '{name}', row '{row.label}': no run '{run}'; {nearest(run, runs)}")
            for dataset, values in row.values.items():
                if len(values) != len(paper.measures.get(dataset, [])):
                    raise LeadError(
                        f"{path}: table '{name}', row '{row.label}': {len(values)} values of '{dataset}', which has "
                        f"{len(paper.measures.get(dataset, []))} measures"
                    )
    return paper
