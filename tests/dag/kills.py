"""Kills processes of a running workflow at moments drawn from a seed, and starts it again until it is finished."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dag.project import RESULTS, snakemake, snakemake_command

TICKS = os.sysconf("SC_CLK_TCK")
WITH_TORCH = {"train", "distil", "tokenize", "encode", "denoise", "rerank"}
RULES = {"encode": ["encode_passages", "encode_queries"], "distil": ["distil_joint"]}  # where not called as the stage


@dataclass
class Kill:
    """Of a process of this stage: after some processor time, or, None, when it is seen writing."""

    stage: str
    cpu: float | None
    everything: bool  # Snakemake and all its jobs at once, as when the machine goes down


@dataclass
class Killer:
    """Runs a workflow to its end against its kills."""

    project: Path
    arguments: list[str]
    kills: list[Kill]
    done: Counter[str] = field(default_factory=Counter)

    def run(self) -> None:
        """Until every kill has been done and the workflow has ended well."""
        self._until_it_ends_well([])
        for _ in range(10):  # stages that ended too soon are run again
            if not self.kills:
                return
            rules = sorted({rule for k in self.kills for rule in RULES.get(k.stage, [k.stage])})
            self._until_it_ends_well(["--forcerun", *rules])
        raise AssertionError(f"never seen: {self.kills}")

    def _until_it_ends_well(self, force: list[str]) -> None:
        """Forced again after a kill: Snakemake makes no list again that a newer result does not need any more."""
        while self._once(force) != 0:
            pass

    def _once(self, force: list[str]) -> int:
        """One call of Snakemake, its exit status."""
        words, environment = snakemake_command(self.project, *force, *self.arguments)
        with (self.project / "said").open("a") as said:
            process = subprocess.Popen(
                words, env=environment, cwd=self.project, stdout=said, stderr=said, start_new_session=True
            )
        before = len(self.kills)
        aimed: dict[int, Kill] = {}
        while process.poll() is None:
            time.sleep(0.002)  # or looking takes a core from what is looked at
            running = dict(stages_running(self.project))
            for pid in aimed.keys() - running.keys():  # it ended first: sooner, next time
                missed = aimed.pop(pid)
                missed.cpu = (usual(missed.stage) if missed.cpu is None else missed.cpu) / 2
                self.kills.append(missed)
            for pid, stage in running.items():
                kill = next((k for k in self.kills if k.stage == stage), None)
                if pid not in aimed and kill is not None:
                    self.kills.remove(kill)
                    aimed[pid] = kill
            for pid, kill in list(aimed.items()):
                if not self._now(pid, kill):
                    continue
                del aimed[pid]
                self.done[kill.stage] += 1
                self.kills += aimed.values() if kill.everything else []
                if kill.everything:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                    assert "cannot be locked" in (refused := snakemake(self.project, *self.arguments)).stderr, refused
                    assert snakemake(self.project, "--unlock").returncode == 0
                    return -1
                os.kill(pid, signal.SIGKILL)
        self.kills += aimed.values()
        status = process.wait()
        assert status == 0 or len(self.kills) < before, (self.project / "said").read_text()[-3000:]
        return status

    def _now(self, pid: int, kill: Kill) -> bool:
        if kill.cpu is not None:
            time.sleep(0.005)
            return cpu_seconds(pid) >= kill.cpu
        deadline = time.monotonic() + 0.05
        while time.monotonic() < deadline:
            if next((self.project / RESULTS).rglob(".*.tmp"), None):
                return True
        return False


def usual(stage: str) -> float:
    """Seconds of processor time that a stage takes on the tiny collection, about: most of it for imports."""
    return 6.0 if stage in WITH_TORCH else 0.8


def stages_running(project: Path) -> Iterator[tuple[int, str]]:
    """Process and stage of every `lead STAGE` that works in this project."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if len(words) > 2 and words[1].endswith(b"/lead") and os.readlink(folder / "cwd") == str(project):
                yield int(folder.name), words[2].decode()
        except OSError:
            continue


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far; -1 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return -1.0
    return (int(fields[11]) + int(fields[12])) / TICKS


def draw(stages: list[str], n: int, seed: int) -> list[Kill]:
    """`n` kills, dealt out to the stages in turn; every third when the stage writes, every fourth of everything."""
    rng = random.Random(seed)
    dealt = [
        Kill(stage, None if i % 3 == 2 else rng.uniform(0.05, usual(stage)), i % 4 == 3)
        for i, stage in zip(range(n), itertools.cycle(stages), strict=False)
    ]
    rng.shuffle(dealt)
    return dealt


def contents(project: Path) -> dict[str, bytes | str]:
    """Every file of the results but logs and timings; of metrics all but the seconds that steps took."""
    base = project / RESULTS
    found: dict[str, bytes | str] = {}
    for path in base.rglob("*"):
        name = str(path.relative_to(base))
        if path.is_dir() or name.startswith(("logs/", "timings/")):
            continue
        found[name] = path.read_bytes()
        if path.suffix == ".jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = json.dumps([{k: v for k, v in line.items() if k != "seconds"} for line in lines])
    return found
