"""What the rules ask of the package: memory by the size of inputs, and options for the shell."""

from __future__ import annotations

import ast
import importlib
import os
import re
import shlex
import subprocess
import sys
from collections import UserDict
from graphlib import TopologicalSorter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dag.project import ROOT, empty_project, replace

from lead.commands import STAGES
from lead.config.load import load
from lead.plan.plan import Plan
from lead.plan.snakemake import MEMORY, memories, option

RULES = "".join(p.read_text(encoding="utf-8") for p in sorted((ROOT / "workflow/rules").glob("*.smk")))


@pytest.fixture
def memory(tmp_path: Path) -> Any:
    config = empty_project(tmp_path)
    replace(config / "datasets/tiny.yaml", "preset: tiny", "preset: tiny\nshards: 4\ngpus: 3")
    of_stage = memories(Plan(load(config / "config.yaml")))
    wildcards = SimpleNamespace(dataset="tiny")
    return lambda stage, attempt=1, **inputs: of_stage(stage)(wildcards, input=UserDict(inputs), attempt=attempt)


def sized(path: Path, mb: float) -> str:
    with path.open("wb") as file:
        file.truncate(int(mb * 1e6))
    return str(path)


def test_memory_grows_with_the_inputs_the_attempt_and_the_ranks(memory: Any, tmp_path: Path) -> None:
    corpus, negatives = sized(tmp_path / "corpus", 100), sized(tmp_path / "negatives", 10)
    assert memory("train", corpus=corpus, negatives=negatives) == 3 * (5000 + 0.4 * 100 + 14 * 10)
    assert memory("train", 2, corpus=corpus, negatives=negatives) == 2 * 3 * (5000 + 0.4 * 100 + 14 * 10)
    assert memory("encode_passages", texts=corpus) == 4000 + 30 * 100 / 4  # of one shard
    assert memory("encode_queries", texts=corpus) == 4000 + 130 * 100
    assert memory("tables") == 4000


def test_one_shard_of_vectors_is_in_memory_at_a_time_and_its_index(memory: Any, tmp_path: Path) -> None:
    shards = [sized(tmp_path / f"{i}", 40) for i in range(4)]
    queries = [sized(tmp_path / "q", 2)]
    exact = memory("search", passages=shards, queries=queries, indexes=[])
    assert exact == memory("search", passages=shards[0], queries=queries) == 4000 + 4 * 2 + 4 * 40
    folders = [tmp_path / f"index{i}" for i in range(4)]
    for folder in folders:
        folder.mkdir()
        sized(folder / "index.faiss", 50)
    more = memory("search", passages=shards, queries=queries, indexes=list(map(str, folders))) - exact
    assert more == pytest.approx(1.2 * 50, abs=1)


def test_what_does_not_exist_yet_is_left_to_snakemake(memory: Any, tmp_path: Path) -> None:
    """It knows FileNotFoundError of an input for `to be determined`."""
    with pytest.raises(FileNotFoundError) as error:
        memory("encode_queries", texts=str(tmp_path / "nothing"))
    assert error.value.filename == str(tmp_path / "nothing")


def test_every_rule_has_a_bound_by_named_inputs_and_the_gpus_that_its_stage_takes() -> None:
    rules = re.findall(
        r"^(?:use rule [^\n]+ as )?(?:rule )?(\w+)(?: with)?:\n(.*?)(?=^\S|\Z)", RULES, re.DOTALL | re.MULTILINE
    )
    seen = set()
    for name, body in rules:
        for stage in re.findall(r'mem_mb=memory\("(\w+)"\)', body):
            seen.add(stage)
            for given in {*MEMORY[stage].full, *MEMORY[stage].shard} - {"corpus", "queries"}:
                assert re.search(rf"^        {given}=", body, re.MULTILINE), (name, given)
        if "shell:" in body:
            assert 'memory("' in body, name
            # a stage that can use a GPU is told how many it was granted; no other asks for any
            assert ("--gpu {resources.gpu}" in body) == ("gpu=0" not in body), name
    assert seen == set(MEMORY)


def test_options_of_paths_with_blanks() -> None:
    assert option("start", "") == option("start", []) == option("start", None) == ""
    assert shlex.split(option("start", "a b")) == ["--start", "a b"]
    assert shlex.split(option("index", ["a b", "c"])) == ["--index", "a b", "c"]


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_states_what_bounds_its_memory(stage: str) -> None:
    module, function = STAGES[stage].function.split(":")
    about = getattr(importlib.import_module(module), function).__doc__
    assert about is not None and "Memory" in about


def test_the_plan_imports_no_torch() -> None:
    """Snakemake reads it at every start, and again in every job."""
    modules = [f"lead.plan.{p.stem}" for p in (ROOT / "lead/plan").glob("[a-z]*.py")]
    code = f"import sys, {', '.join(modules)}; print('torch' in sys.modules, 'transformers' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout == "False False\n"


def test_no_module_of_plan_or_config_imports_itself_over_others() -> None:
    imports = {}
    for path in [*(ROOT / "lead/plan").glob("[a-z]*.py"), *(ROOT / "lead/config").glob("[a-z]*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found = [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module]
        imports[f"lead.{path.parent.name}.{path.stem}"] = {
            m for m in found if m.startswith(("lead.plan.", "lead.config."))
        }
    order = list(TopologicalSorter(imports).static_order())  # raises CycleError
    assert set(imports) <= set(order)
    assert not [m for name in imports if "config" in name for m in imports[name] if "plan" in m]
