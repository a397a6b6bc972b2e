"""Two workflows in one directory, and clocks that were changed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from dag.kills import contents
from dag.project import ONE_THREAD, RESULTS, TARGETS, jobs, snakemake, snakemake_command

pytestmark = pytest.mark.dag


@pytest.fixture
def project(made: Path, tmp_path: Path) -> Path:
    """A copy of the project in which everything was made, with its times."""
    return Path(shutil.copytree(made, tmp_path / "a project"))


def test_a_second_workflow_in_the_same_directory_is_refused_and_the_first_is_none_the_worse(
    project: Path, made: Path
) -> None:
    arguments = [*ONE_THREAD, "--forcerun", "evaluate", "--", f"{RESULTS}/rd_cb.json"]
    words, environment = snakemake_command(project, *arguments)
    first = subprocess.Popen(words, env=environment, cwd=project, stderr=subprocess.DEVNULL)
    locks = project / ".snakemake/locks"
    while not (locks.exists() and any(locks.iterdir())):
        assert first.poll() is None
        time.sleep(0.05)
    first.send_signal(signal.SIGSTOP)  # so that it cannot be ready first
    second = snakemake(project, *arguments)
    first.send_signal(signal.SIGCONT)
    assert second.returncode == 1 and "Traceback" not in second.stderr
    assert "Error: Directory cannot be locked." in second.stderr
    assert first.wait() == 0
    assert contents(project) == contents(made)


def test_a_clock_that_was_changed_makes_nothing_again(project: Path) -> None:
    """All times in the future, as after a clock that was set back; then an input that is newer and the same."""
    tomorrow = time.time() + 86400
    for path in [*(project / RESULTS).rglob("*"), *(project / "data").iterdir()]:
        os.utime(path, (tomorrow, tomorrow))
    assert jobs(project, "--", *TARGETS) == {}
    os.utime(project / "data/corpus.jsonl", (tomorrow + 60, tomorrow + 60))
    assert jobs(project, "--", *TARGETS) == {}
