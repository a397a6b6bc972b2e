"""Names and paths that a shell, Snakemake or argparse could take for something else, through Snakemake itself."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from dag.project import ROOT, last_words, make_project, replace, snakemake, succeed

# spaces, quotes, command substitution, separators, globs, variables, unicode, an option's dash, dots
STRANGE = "-a b'c\"d $(touch ran) `touch ran`;touch ran&|<>*?[x]$HOME\\ größe 検索 .."


@pytest.fixture
def project(tmp_path: Path, tiny_model: Path, tiny_collection: Path) -> Path:
    """A project in which every path that reaches a rule is strange: data, results, and the folder it is all in."""
    (tmp_path / STRANGE).mkdir()
    folder = make_project(tmp_path / STRANGE / "project", tiny_model, tiny_collection)
    (folder / "data").rename(folder / STRANGE)
    dataset = folder / "config" / "datasets" / "tiny.yaml"
    text = dataset.read_text(encoding="utf-8")
    files = re.compile(r"\.\./\.\./data/([\w.]+)")
    dataset.write_text(files.sub(lambda m: json.dumps(f"../../{STRANGE}/{m[1]}"), text), encoding="utf-8")
    # `..` on the way, too; a leading dash is refused (below)
    replace(folder / "config" / "config.yaml", "all results", json.dumps(f"x/../r{STRANGE}"))
    return folder


@pytest.mark.dag
def test_strange_paths_are_paths_and_nothing_else(project: Path) -> None:
    results = f"x/../r{STRANGE}/tiny"
    said = succeed(project, "--", f"{results}/data/corpus.parquet")
    assert "Traceback" not in said
    made = project / f"r{STRANGE}" / "tiny"
    assert {p.name for p in (made / "data").iterdir()} > {"corpus.parquet", "report.json", "qrels.test.parquet"}
    assert (made / "logs" / "prepare.log").exists()
    planned = succeed(project, "--dry-run", "--printshellcmds", "--", f"{results}/lead_cb.json")
    assert "distil_joint" in planned
    assert not list(project.parent.rglob("ran")) and not (ROOT / "ran").exists()


@pytest.mark.dag
def test_a_configured_value_runs_nothing(tmp_path: Path, tiny_model: Path, tiny_collection: Path) -> None:
    project = make_project(tmp_path / "p", tiny_model, tiny_collection)
    for value in ("results=$(touch ran)", "results='; touch ran; '", "settings={seed: $(touch ran)}"):
        done = snakemake(project, "--dry-run", "--config", value, "--", "all results/tiny/lead_cb.json")
        assert "Traceback" not in done.stdout + done.stderr
    target = "all results/tiny/$(touch ran).json"
    assert "no run '$(touch ran)'" in last_words(project, "--", target)
    assert not (project / "ran").exists()


SHELL = re.compile(r'^\s+shell:\n((?:\s+".*"\n?)+)', re.MULTILINE)
# numbers, and what `option()` has quoted
QUOTED = {"threads", "resources.gpu"}
QUOTED |= {f"params.{name}" for name in ("start", "corpus", "teacher_out", "index", "passages", "tokens", "texts")}


@pytest.mark.parametrize("rules", sorted((ROOT / "workflow").rglob("*.smk")), ids=lambda p: p.name)
def test_rules_quote_what_they_put_into_commands(rules: Path) -> None:
    commands = SHELL.findall(rules.read_text(encoding="utf-8"))
    holes = [hole for command in commands for hole in re.findall(r"\{([^{}]+)\}", command)]
    assert bool(commands) == (rules.name != "common.smk")
    assert [hole for hole in holes if not hole.endswith(":q") and hole not in QUOTED] == []
