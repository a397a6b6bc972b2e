"""Commands and names of the README and of docs/running.md are real, and so are the examples in docstrings."""

from __future__ import annotations

import doctest
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lead.cli import STAGES, main
from lead.config.load import load, validate
from lead.config.schema import Dataset
from lead.plan.checks import check
from lead.plan.plan import Plan

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RUNNING = (ROOT / "docs" / "running.md").read_text(encoding="utf-8")
BOTH = README + RUNNING
BASH = [line for block in re.findall(r"```bash\n(.*?)```", BOTH, re.S) for line in block.splitlines()]
COMMANDS = sorted({line.split("#")[0].strip() for line in BASH})
OWN = "results/mine/"  # the reader's own collection


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("snakemake") and OWN not in c])
def test_snakemake_commands_plan_jobs(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # the paper's models could be downloaded: nothing here does
    words = shlex.split(command)
    done = subprocess.run(
        [sys.executable, "-m", *words[:1], "-n", "--nolock", *words[1:]], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^total +\d+$|Nothing to be done", done.stdout + done.stderr, re.M)


@pytest.mark.parametrize("command", sorted(set(re.findall(r"`lead ((?:show|schema)[^`]*)`", BOTH))))
def test_lead_commands_of_the_readme_print_something(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(shlex.split(command)) == 0
    assert capsys.readouterr().out.strip()


def test_the_readme_names_every_stage_and_make_target_it_should() -> None:
    listed = re.search(r"`lead (prepare[^`]*)`", RUNNING)
    assert listed is not None
    assert sorted(re.split(r"\s*\|\s*", listed[1])) == sorted(STAGES)
    makefile = (ROOT / "Makefile").read_text()
    for target in [c.split()[1] for c in COMMANDS if c.startswith("make ")]:
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_the_readmes_own_collection_is_a_valid_dataset_file() -> None:
    block = re.search(r"```yaml\n(.*?)```", RUNNING, re.S)
    assert block is not None
    dataset = validate(Dataset, yaml.safe_load(block[1]), "running.md")
    assert dataset.preset in load(ROOT / "config/config.yaml").presets


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_every_file_that_a_page_links_exists(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), link


@pytest.mark.parametrize("page", ["code.md", "extending.md"])
def test_names_beside_a_link_to_a_module_are_in_it(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    for link, names in re.findall(r"\]\((\.\./lead/[\w/]+\.py)\): ((?:`\w+`(?:, | \([^)]*\), )?)+)", text):
        for name in re.findall(r"`(\w+)`", names):
            assert re.search(rf"(def|class) {name}\b", (ROOT / "docs" / link).read_text()), f"{link}: {name}"


def test_every_file_and_run_the_readme_names_exists() -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / link).exists(), link
    plan = Plan(load(ROOT / "config/config.yaml"))
    for run in re.findall(r"results/demo/([\w-]+)\.json", BOTH):
        check(plan["demo", run])


EXAMPLES = [file for file in sorted((ROOT / "lead").rglob("*.py")) if ">>> " in file.read_text(encoding="utf-8")]


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: str(file.relative_to(ROOT)))
def test_examples_in_docstrings_are_true(file: Path) -> None:
    name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried and not failed
