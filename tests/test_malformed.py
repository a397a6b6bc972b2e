"""Every malformed input ends in one clear line with its place, at once, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import make_retriever
from malformed import configs, data, stages
from malformed import models as folders
from malformed.base import Bad, Site

from lead import cli
from lead.config.load import load
from lead.errors import LeadError
from lead.plan.plan import Plan
from lead.plan.targets import check_target

ROWS = [*data.ROWS, *configs.ROWS, *folders.ROWS, *stages.ROWS]
SECONDS = 5


@pytest.fixture(scope="module")
def models(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an untrained dual encoder and cross encoder."""
    folder = tmp_path_factory.mktemp("models")
    for kind in ("de", "ce"):
        make_retriever(tiny_model, kind).save(folder / kind)
    return folder


# through the command itself: one row a topic, none that needs torch
REAL = ["corpus c.jsonl: 1: empty id; expected", "datasets/docs.yaml: billion laughs", "table: no measure"]


@pytest.mark.parametrize("name", REAL)
def test_it_is_one_line_of_the_command(name: str, tmp_path: Path) -> None:
    (bad,) = (row for row in ROWS if row.name == name)
    before = os.times()
    command = bad.command(Site(tmp_path, tmp_path, tmp_path, tmp_path, tmp_path))
    done = subprocess.run([sys.executable, "-m", "lead", *command], capture_output=True, text=True)
    assert os.times().children_user - before.children_user < SECONDS
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (bad.code, "", 1)
    assert re.search(bad.says, done.stderr)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def run(command: list[str]) -> int:
    """The exit status of `lead COMMAND`, or of `plan CONFIG TARGET`: what the Snakefile asks before any work."""
    try:
        if command[0] != "plan":
            return cli.main(command)
        check_target(Plan(load(command[1])), command[2])
        return 0
    except SystemExit as e:  # argparse
        return int(e.code or 0)
    except LeadError as e:
        print(f"lead: error: {e}", file=sys.stderr)
        return 1


@pytest.mark.parametrize("bad", ROWS, ids=lambda bad: bad.name[:90])
def test_it_is_one_line(
    bad: Bad, tmp_path: Path, tiny_model: Path, models: Path, tiny_collection: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = bad.command(Site(tmp_path, tiny_model, models / "de", models / "ce", tiny_collection))
    before, begun = contents(tmp_path), time.process_time()
    code = run([str(word) for word in command])
    assert time.process_time() - begun < SECONDS
    said = capfd.readouterr()
    assert code == bad.code and said.out == ""
    assert "Traceback" not in said.err
    *rest, line = said.err.splitlines()
    assert "error: " in line and re.search(bad.says, line), line
    assert not any("error: " in other for other in rest)
    assert contents(tmp_path) == before
