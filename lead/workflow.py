"""What the Snakefile needs from the package: the checked plan, and helpers that keep rules free of logic."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from lead.config.load import load, parse_yaml
from lead.errors import LeadError
from lead.plan import Plan
from lead.rows import SEED

R = TypeVar("R")
DEFAULT_CONFIG = Path("config/config.yaml")


def load_plan(workflow: Any) -> Plan:
    """The plan of the configuration that Snakemake was called with, every target checked.

    `--configfile` replaces config/config.yaml (the last one counts), `--config key=value` its keys. A mistake ends
    Snakemake with one line.
    """
    given = workflow.config_settings
    # Snakemake makes the path absolute; results and settings must not depend on where the checkout stands
    path = Path(os.path.relpath(given.configfiles[-1])) if given.configfiles else DEFAULT_CONFIG
    try:
        plan = Plan(load(path, _typed(dict(given.config))))
        for argument in sys.argv[1:]:  # Snakemake parses its targets only after it has read the rules
            plan.check_target(argument)
    except LeadError as e:
        _stop(e)
    return plan


def one_line(function: Callable[..., R]) -> Callable[[Any], R]:
    """An input or params function of wildcards whose LeadError ends Snakemake with one line."""

    def checked(wildcards: Any) -> R:
        try:
            return function(wildcards)
        except LeadError as e:
            _stop(e)

    return checked


def slices(plan: Plan) -> Callable[[str], Callable[[Any], str]]:
    """`settings("train")`: the params function of the settings that a stage's job reads (a change reruns the job)."""

    def settings(stage: str) -> Callable[[Any], str]:
        return one_line(lambda w: plan.settings_json(stage, w.dataset, w.get("run"), w.get("shard", "")))

    return settings


def one_of(names: Iterable[str]) -> str:
    """A wildcard constraint: exactly one of these names, with or without a seed (nothing at all, if there are none)."""
    names = list(names)
    either = "|".join(map(re.escape, sorted(names)))
    return _whole(rf"(?:{either})(?:{SEED})?") if names else "(?!)"


def exactly(names: Iterable[str]) -> str:
    """A wildcard constraint: exactly one of these names, such as datasets."""
    either = "|".join(map(re.escape, sorted(names)))
    return _whole(f"(?:{either})") if either else "(?!)"


def _whole(pattern: str) -> str:
    """A pattern that must match the whole name.

    Snakemake also tries a constraint with `match` on a bare name, where `lead_cb` would do for `lead_cb_teacher`: hence
    the second half. The first is for a name inside a path.
    """
    return rf"(?!\A){pattern}|\A{pattern}\Z"


def option(name: str, value: Any) -> str:
    """`--name value`, or `--name value value ..` for a list, quoted for the shell; nothing when there is no value."""
    values = [value] if isinstance(value, str) else list(value or [])
    return f"--{name} {shlex.join(map(str, values))}" if values and values[0] else ""


def _typed(value: Any) -> Any:
    """Values of `--config`, whose nested numbers Snakemake leaves as text, as YAML would read them."""
    if isinstance(value, dict):
        return {k: _typed(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_typed(v) for v in value]
    return parse_yaml(value, "--config") if isinstance(value, str) else value


def _stop(error: LeadError) -> NoReturn:
    print(f"lead: error: {error}", file=sys.stderr, flush=True)
    os._exit(1)  # an exception would make Snakemake print its own traceback around it
