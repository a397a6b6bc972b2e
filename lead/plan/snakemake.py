"""Helpers for the Snakefile: the checked plan, and functions that keep logic out of the rules."""

from __future__ import annotations

import inspect
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

from lead.config.load import load
from lead.config.parse import parse_yaml
from lead.config.shipped import DEFAULT_CONFIG
from lead.errors import LeadError
from lead.plan.checks import check
from lead.plan.job import Job
from lead.plan.plan import Plan
from lead.plan.rows import SEED
from lead.plan.stage_settings import execution_of, recipe_of, settings_of
from lead.plan.targets import check_target

R = TypeVar("R")


def load_plan(workflow: Any) -> Plan:
    """The plan of the configuration that Snakemake was called with, every target checked.

    `--configfile` replaces config/config.yaml (the last one counts), `--config key=value` its keys. A mistake ends
    Snakemake with one line.
    """
    given = workflow.config_settings
    # Snakemake makes the path absolute; results and settings must not depend on where the checkout stands
    path = Path(os.path.relpath(given.configfiles[-1])) if given.configfiles else DEFAULT_CONFIG
    resources = workflow.resource_settings
    granted = getattr(resources.resources.get("gpu"), "value", None)  # --resources gpu=N
    if any("gpu" in changed for changed in resources.overwrite_resources.values()):  # --set-resources train:gpu=1
        granted = None
    try:
        plan = Plan(load(path, _typed(dict(given.config))))
        for argument in sys.argv[1:]:  # Snakemake parses its targets only after it has read the rules
            check_target(plan, argument, granted if isinstance(granted, int) else None)
    except LeadError as e:
        _stop(e)
    return plan


def one_line(function: Callable[..., R]) -> Callable[[Any], R]:
    """Wrap an input or params function: a LeadError ends Snakemake with one line."""

    def checked(wildcards: Any) -> R:
        try:
            return function(wildcards)
        except LeadError as e:
            _stop(e)

    return _signed(checked)


def _signed(function: Callable[..., R]) -> Callable[..., R]:
    """The function with its signature stored: Snakemake asks for it several times a job, and finding it is slow."""
    function.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    return function


def checked(job: Job) -> Job:
    """The job, after its check. An invalid run is refused for every target."""
    check(job)
    return job


def recipes(plan: Plan) -> Callable[[str], Callable[[Any], str]]:
    """`settings("train")`: the params function for the recipe of a stage's job. A change reruns the job."""

    def settings(stage: str) -> Callable[[Any], str]:
        def of(wildcards: Any) -> str:
            shard = wildcards.get("shard") if stage in ("tokenize", "encode") else None
            tree = recipe_of(stage, _settings(plan, stage, wildcards)) | ({"shard": shard[1:]} if shard else {})
            return json.dumps(tree, sort_keys=True)

        return one_line(of)

    return settings


def executions(plan: Plan) -> Callable[[str], Callable[..., str]]:
    """`execution("train")`: the params function for the keys of a stage's job that decide only time and memory.

    Snakemake ignores changes of a parameter whose function takes `output`, so execution keys rerun nothing. On the
    job's machine the parameter is evaluated from the Snakefile like any other.
    """

    def execution(stage: str) -> Callable[..., str]:
        def of(wildcards: Any, output: Any) -> str:
            return json.dumps(execution_of(stage, _settings(plan, stage, wildcards)), sort_keys=True)

        return _signed(of)

    return execution


def _settings(plan: Plan, stage: str, wildcards: Any) -> dict[str, Any]:
    name = wildcards.get("tokenizer" if stage == "tokenize" else "run")
    return settings_of(plan.jobs, stage, wildcards.dataset, name)


class Memory(NamedTuple):
    """Peak memory of a stage in MB: a base for the process, and factors for each MB of its inputs."""

    base: int
    full: dict[str, float] = {}  # of inputs that are in memory whole
    shard: dict[str, float] = {}  # of inputs with one shard in memory at a time
    largest: dict[str, float] = {}  # of inputs in several files, one file in memory at a time
    ranks: bool = False  # multiply everything by the number of ranks


# From measured peaks (docs/scale.md) and the size of a row in memory: files are compressed, tables in memory are not.
MEMORY = {
    "packages": Memory(2000),
    "prepare": Memory(3000, {"sources": 0.3, "corpus": 1}),
    "bm25": Memory(2000, {"corpus": 4, "queries": 150}),  # the index; 100 negatives a query
    # ids of the corpus; lists hold texts, or compressed ids
    "external": Memory(2000, {"corpus": 1, "queries": 4, "lists": 0.5}),
    "pretrained": Memory(8000),
    # ADORE's passages: a file while it is read, and a rank's part of all
    # texts are mapped from a file; ids are looked up in memory
    "train": Memory(5000, {"corpus": 0.4, "queries": 5, "negatives": 14}, {"passages": 6}, ranks=True),
    "distil": Memory(7000, {"corpus": 0.4, "queries": 5, "negatives": 14}, ranks=True),
    "align": Memory(6000, {"queries": 5, "corpus": 0.4}, {"passages": 6}, ranks=True),
    "tokenize": Memory(3000, shard={"texts": 3}),
    "encode_passages": Memory(4000, shard={"texts": 30}),  # 768 floats a text of 140 bytes
    "encode_queries": Memory(4000, {"texts": 130}),
    "index": Memory(2000, {"vectors": 6}),
    "search": Memory(4000, {"queries": 4}, largest={"passages": 4, "indexes": 1.2}),
    "gather": Memory(5000, {"queries": 1}),  # a row group of each part: 1,024 queries, for any number of queries
    "denoise": Memory(13000, {"corpus": 0.4, "negatives": 20}),
    "rerank": Memory(13000, {"corpus": 0.4, "ranked": 25}),  # 8 GB of token vectors
    "evaluate": Memory(3000, {"ranked": 20, "qrels": 20}),
    "tables": Memory(4000),
}


def memories(plan: Plan) -> Callable[[str], Callable[..., int]]:
    """`memory("mine")`: the resource function of a stage's `mem_mb`, from the sizes of its inputs, times the attempt.

    If an input does not exist yet, as in a dry run, Snakemake shows <TBD> and calls the function again before the job.
    """

    def memory(stage: str) -> Callable[..., int]:
        of = MEMORY[stage]

        def mem_mb(wildcards: Any, input: Any, attempt: int) -> int:
            def sizes(name: str) -> list[float]:
                paths = input.get(name, [])
                return [_size(path) / 1e6 for path in ([paths] if isinstance(paths, str) else paths)]

            dataset = plan.datasets[wildcards.dataset]
            shards = len(dataset.shards)
            mb = of.base + sum(factor * sum(sizes(name)) for name, factor in of.full.items())
            mb += sum(factor * sum(sizes(name)) / shards for name, factor in of.shard.items())
            mb += sum(factor * max(sizes(name), default=0) for name, factor in of.largest.items())
            return round(mb * attempt * (dataset.gpus if of.ranks else 1))

        return _signed(mem_mb)

    return memory


def _size(path: str) -> int:
    """Bytes of a file, or of all in a folder. Raises FileNotFoundError."""
    size = os.path.getsize(path)
    return sum(p.stat().st_size for p in Path(path).rglob("*")) if os.path.isdir(path) else size


def one_of(names: Iterable[str]) -> str:
    """A wildcard constraint: exactly one of these names, with or without a seed. Without names it matches nothing."""
    names = list(names)
    either = "|".join(map(re.escape, sorted(names)))
    return _full(rf"(?:{either})(?:{SEED})?") if names else "(?!)"


def exactly(names: Iterable[str]) -> str:
    """A wildcard constraint: exactly one of these names, such as datasets."""
    either = "|".join(map(re.escape, sorted(names)))
    return _full(f"(?:{either})") if either else "(?!)"


def _full(pattern: str) -> str:
    """A pattern that must match the whole name.

    The first half is for a name inside a path. Snakemake also applies `match` to a bare name, and there `lead_cb` would
    match `lead_cb_teacher`. The second half prevents this.
    """
    return rf"(?!\A){pattern}|\A{pattern}\Z"


def option(name: str, value: Any) -> str:
    """`--name value`, or `--name value value ..` for a list, quoted for the shell; nothing when there is no value."""
    values = [value] if isinstance(value, str) else list(value or [])
    return f"--{name} {shlex.join(map(str, values))}" if values and values[0] else ""


def _typed(value: Any) -> Any:
    """Values of `--config` as YAML reads them. Snakemake leaves nested numbers as text."""
    if isinstance(value, dict):
        return {k: _typed(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_typed(v) for v in value]
    return parse_yaml(value, "--config") if isinstance(value, str) else value


def _stop(error: LeadError) -> NoReturn:
    print(f"lead: error: {error}", file=sys.stderr, flush=True)
    os._exit(1)  # an exception would make Snakemake print its own traceback around it
