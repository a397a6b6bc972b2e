"""The words that `lead run` gives to Snakemake, and Snakemake's events as they come."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from lead.config.load import load
from lead.config.parse import parse_yaml
from lead.config.shipped import DEFAULT_CONFIG, shipped
from lead.config.types import NAME
from lead.errors import LeadError
from lead.plan.checks import check
from lead.plan.plan import Plan
from lead.plan.targets import runs, wanted

Event = dict[str, Any]
TARGET = re.compile(f"({NAME[1:-1]})/({NAME[1:-1]})")  # DATASET/RUN
# one of them says how much at a time
PARALLEL = ("--cores", "-c", "--jobs", "-j", "--executor", "-e", "--profile", "--workflow-profile")


def option(words: Sequence[str], name: str) -> list[str]:
    """The values of a long option: `--name value ..` or `--name=value`; empty where it is not given."""
    found: list[str] = []
    for at, word in enumerate(words):
        if word.startswith(f"{name}="):
            found = [word.partition("=")[2]]
        elif word == name:
            end = next((n for n in range(at + 1, len(words)) if words[n].startswith("-")), len(words))
            found = list(words[at + 1 : end])
    return found


def planned(words: Sequence[str]) -> Plan:
    """The plan of the configuration that these words of Snakemake ask for. Raises LeadError, also for no words."""
    if not words:
        raise LeadError("give DATASET/RUN, such as demo/lead_cb; `lead show` lists both")
    files = option(words, "--configfile") or option(words, "--configfiles")
    files = files[:1] + [file for file in files[1:] if file.endswith((".yaml", ".yml", ".json"))]  # targets may follow
    for file in files:
        if not os.path.isfile(file):
            raise LeadError(f"--configfile {file}: no such file; fix the path")
    given = option(words, "--config") or option(words, "-C")
    changed = {key: parse_yaml(value, "--config") for key, equals, value in (w.partition("=") for w in given) if equals}
    return Plan(load(Path(files[-1]) if files else DEFAULT_CONFIG, changed or None))


def snakemake_words(plan: Plan, words: Sequence[str]) -> list[str]:
    """Snakemake's words for those of `lead run`: DATASET/RUN is short for results/DATASET/RUN.json.

    DATASET alone, before the first option, is short for all its default results. Without test queries, models and
    passage vectors stand for results. Raises LeadError for a short name of nothing.
    """
    first = next((n for n, word in enumerate(words) if word.startswith("-")), len(words))
    names, options, last = list(words[:first]), list(words[first:]), []
    if "--" in options:
        options, last = options[: options.index("--")], options[options.index("--") + 1 :]
    # a name after options: `--cores 2 demo/lead_cb`
    short = [word for word in options if (match := TARGET.fullmatch(word)) and match[1] in plan.datasets]
    options = [word for word in options if word not in short]
    found = [target for name in [*names, *short, *last] for target in _targets(plan, name)]
    if not any(word.partition("=")[0] in PARALLEL or re.match("-[cje][^-]", word) for word in options):
        options += ["--cores", "all"]
    return ["--snakefile", str(shown(shipped("workflow") / "Snakefile")), *options, *(["--", *found] if found else [])]


def score_words(words: Sequence[str]) -> list[str]:
    """The words of `lead run` for those of `lead score`: DATASET/RUN is short for the file of its scores.

    Raises LeadError for a run without a model, and one that cannot be made.
    """
    plan = planned(words)
    named = [(word, match) for word in words if (match := TARGET.fullmatch(word)) and match[1] in plan.datasets]
    files = {word: plan[match[1], match[2]] for word, match in named}
    for word, job in files.items():
        if job.kind is None:
            raise LeadError(f"{word}: a list without a model; lead score asks a dual encoder, ColBERT or cross encoder")
        check(job)
    return [*(job.own_scores for job in files.values()), *(word for word in words if word not in files)]


def shown(path: Path) -> Path:
    """A path as seen from here, where it is below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _targets(plan: Plan, name: str) -> list[str]:
    match = TARGET.fullmatch(name)
    if match and match[1] != plan.results.partition("/")[0] and not os.path.exists(name):
        return wanted(plan[match[1], match[2].removesuffix(".json")])
    if re.fullmatch(NAME, name) and name in plan.datasets:
        return [target for run in runs(plan, name) for target in wanted(plan[name, run])]
    return [name]


class Workflow:
    """Snakemake as a process. Its own output goes to a file; its events are read here."""

    def __init__(self, words: Sequence[str], output: IO[Any] | int) -> None:
        """`words`: of `snakemake_words`. `output`: where what it and its jobs print goes."""
        read, write = os.pipe()
        command = [sys.executable, "-m", "lead.terminal.snakemake", *words]
        environment = os.environ | {"LEAD_EVENTS": str(write)}
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            pass_fds=[write],
        )
        os.close(write)
        self._pipe = read

    def events(self, every: float) -> Iterator[Event | None]:
        """Events as they come, and None each time that nothing has come for so many seconds.

        A signal that ends this process is passed on; the terminal sends Ctrl-C to both.
        """
        import select

        before = signal.signal(signal.SIGTERM, lambda *_: self.process.send_signal(signal.SIGTERM))
        rest = b""
        try:
            while True:
                try:
                    if not select.select([self._pipe], [], [], every)[0]:
                        yield None
                        continue
                    data = os.read(self._pipe, 1 << 16)
                except KeyboardInterrupt:  # Snakemake has it too, and stops its jobs
                    continue
                if not data:
                    return
                *lines, rest = (rest + data).split(b"\n")
                yield from map(json.loads, lines)
        finally:
            signal.signal(signal.SIGTERM, before)
            os.close(self._pipe)

    def wait(self) -> int:
        """The exit status, as shells tell it."""
        while True:
            try:
                code = self.process.wait()
                return code if code >= 0 else 128 - code
            except KeyboardInterrupt:
                continue
