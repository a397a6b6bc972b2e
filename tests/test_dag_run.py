"""`lead run` and `lead plan` through Snakemake itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from dag.project import RESULTS, ROOT, WARM, make_project, warm_server, without

pytestmark = pytest.mark.dag


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_collection: Path) -> Path:
    return make_project(tmp_path_factory.mktemp("run") / "a project", tiny_model, tiny_collection)


def lead(project: Path, *words: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-SE", str(WARM), "call", warm_server(), "lead", *words]
    return subprocess.run(command, cwd=project, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)


def test_a_dry_run_can_be_read_and_a_plan_has_minutes(project: Path) -> None:
    done = lead(project, "run", "--dry-run", "tiny/rd_cb")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("14 jobs would run, in about this order:\n   1  tiny: preparing")
    assert re.search(r"^ +14  tiny: evaluating rd_cb +\S.*$", done.stdout, re.MULTILINE)
    again = lead(project, "run", "-np", "tiny/rd_cb").stdout
    assert again.startswith("14 jobs would run, in about this order:") and "nothing was done" in again
    assert not (project / RESULTS).exists()
    done = lead(project, "plan", "tiny/rd_cb")
    assert done.returncode == 0, done.stderr
    assert re.search(r"training student +\d+ s  3 steps of 4 queries, 0.2 epochs", done.stdout)
    assert re.search(r"^14 jobs, one after the other: about \d+ \w+ \(", done.stdout, re.MULTILINE)
    assert "rate: 4 steps of path:model just now" in done.stdout and "are free" in done.stdout


def test_a_run_says_what_it_does_and_keeps_all_that_was_printed(project: Path) -> None:
    done = lead(project, "run", "tiny/bm25", "--cores", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout.splitlines()
    assert said[0].startswith("3 jobs; what they print: .snakemake/log/run.") and said[-1] == "done: 3 jobs"
    assert re.fullmatch(r"\[3/3\] tiny: evaluating bm25 \(\d+ s\)", said[-2])
    assert "bm25 done in" in (project / said[0].partition(": ")[2]).read_text(encoding="utf-8")
    assert (project / RESULTS / "bm25.json").is_file()
    done = lead(project, "status", "tiny")
    assert re.search(r"done     bm25 +RR@10 0\.\d{3}", done.stdout)


def test_what_fails_is_named_with_its_last_words(project: Path) -> None:
    corpus = project / "data/corpus.jsonl"
    text = corpus.read_text(encoding="utf-8")
    corpus.write_text("{no json\n", encoding="utf-8")
    try:
        done = lead(project, "run", "tiny/bm25")
    finally:
        corpus.write_text(text, encoding="utf-8")
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    assert re.search(r"failed: tiny: preparing .*\n  \S+ lead: error: .*corpus.jsonl:1: not valid JSON", done.stdout)
    assert "stopped: 0 of " in done.stdout


def test_a_mistake_in_the_configuration_is_one_line(project: Path) -> None:
    with without(project / "data/test.tsv"):
        done = lead(project, "run", "tiny/bm25")
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and line.startswith("lead: error: ") and "test.tsv does not exist" in line


def test_verbose_is_snakemakes_own_output(project: Path) -> None:
    done = lead(project, "run", "--verbose", "-n", "tiny/student")
    assert done.returncode == 0 and re.search(r"^total +\d+$", done.stdout + done.stderr, re.MULTILINE)
