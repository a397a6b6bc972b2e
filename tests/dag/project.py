"""The project in this folder, to be copied and spoilt: its configuration, its data, and Snakemake run in it."""

from __future__ import annotations

import atexit
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from lead.errors import LeadError

ROOT = Path(__file__).resolve().parents[2]
WARM = Path(__file__).with_name("warm.py")
RESULTS = "all results/tiny"
RUNS = ["bm25", "teacher_de", "teacher_cb", "student_more", "rd_cb", "lead_de", "lead_cb", "lead_cb_teacher"]
TARGETS = [f"{RESULTS}/{run}.json" for run in RUNS]
# every job is mostly imports: one thread each, so that two run side by side
RULES = "train distil distil_joint encode_passages encode_queries mine retrieve rerank bm25".split()
ONE_THREAD = ["--set-threads", *(f"{rule}=1" for rule in RULES)]


def copy_config(folder: Path) -> Path:
    """A configuration folder of a test's own: datasets `tiny` (files) and `docs` (pydocs), K = M = 2, N = 4."""
    return Path(shutil.copytree(ROOT / "tests" / "dag" / "config", folder / "config"))


def empty_project(tmp_path: Path) -> Path:
    """A project's configuration, and empty files for all that it names but the 4 layers of the model."""
    config = copy_config(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"num_hidden_layers": 4}', encoding="utf-8")
    replace(config / "presets" / "tiny.yaml", '"path:model"', f'"path:{tmp_path / "model"}"')
    (tmp_path / "data").mkdir()
    splits = ("train", "dev", "test")
    for name in ["corpus.jsonl", *(f"queries.{s}.jsonl" for s in splits), *(f"{s}.tsv" for s in splits)]:
        (tmp_path / "data" / name).touch()
    return config


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def refusal(call: Callable[[], Any]) -> str:
    """The message of the LeadError that a call must raise: one line."""
    with pytest.raises(LeadError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message
    return message


def make_project(folder: Path, model: Path, collection: Path) -> Path:
    """A folder with configuration, model, and the collection as BEIR's JSONL and TSV."""
    folder.mkdir()
    copy_config(folder)
    shutil.copytree(model, folder / "model")
    data = folder / "data"
    data.mkdir()

    def rows(name: str) -> list[dict[str, Any]]:
        return pq.read_table(collection / f"{name}.parquet").to_pylist()

    def write_jsonl(name: str, records: list[dict[str, Any]]) -> None:
        (data / name).write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")

    write_jsonl("corpus.jsonl", [{"_id": r["pid"], "title": "", "text": r["text"]} for r in rows("corpus")])
    for split in ("train", "dev", "test"):
        write_jsonl(f"queries.{split}.jsonl", [{"_id": r["qid"], "text": r["text"]} for r in rows(f"queries.{split}")])
        lines = [f"{r['qid']}\t{r['pid']}\t{r['rel']}\n" for r in rows(f"qrels.{split}")]
        (data / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines), encoding="utf-8")
    return folder


def snakemake_command(project: Path, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """Words and environment of a call of Snakemake in a project, on two cores."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "workflow" / "Snakefile"]
    command += ["--workflow-profile", ROOT / "workflow" / "profiles" / "default", "--directory", project]
    if "--configfile" not in arguments:
        command += ["--configfile", project / "config" / "config.yaml"]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return [*map(str, command), "--cores", "2", *arguments], os.environ | {"PYTHONPATH": paths}


@cache
def warm_server() -> str:
    """The address of a server that has imported Snakemake and lead, and forks for each call (dag/warm.py)."""
    folder = Path(tempfile.mkdtemp(prefix="lead-warm-"))
    command = [sys.executable, WARM, "serve", folder / "socket", folder / "bin"]
    server = subprocess.Popen([*map(str, command)], stdin=subprocess.PIPE, cwd=ROOT)
    atexit.register(lambda: (server.kill(), server.wait(), shutil.rmtree(folder, ignore_errors=True)))
    while not (folder / "socket").exists():
        assert server.poll() is None, "the server of dag/warm.py died"
        time.sleep(0.05)
    return str(folder / "socket")


def snakemake(project: Path, *arguments: str, real: bool = False) -> subprocess.CompletedProcess[str]:
    """Run Snakemake in a project. `real`: started anew, as are its jobs, with as many threads as their rules say."""
    words, environment = snakemake_command(project, *arguments)
    if environment["HF_HUB_OFFLINE"] == "1" and not real:  # the hub's library reads it once, when it is imported
        words = [sys.executable, "-SE", str(WARM), "call", warm_server(), *words[2:]]
    return subprocess.run(words, env=environment, cwd=project, capture_output=True, text=True)


def succeed(project: Path, *arguments: str, real: bool = False) -> str:
    """What Snakemake says, on both streams."""
    done = snakemake(project, *arguments, real=real)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def jobs(project: Path, *arguments: str) -> dict[str, int]:
    """How many jobs of each rule a dry run would do."""
    said = succeed(project, "--dry-run", *arguments)
    table = re.search(r"^Job stats:\njob +count\n[- ]+\n((?:\w+ +\d+\n)+)", said, re.MULTILINE)
    if table is None:
        assert "Nothing to be done" in said, said
        return {}
    counts = {name: int(count) for name, count in (line.split() for line in table[1].splitlines())}
    assert counts.pop("total") == sum(counts.values())
    return counts


def last_words(project: Path, *arguments: str) -> str:
    """The one line that Snakemake ends with after a mistake that our code finds, at once."""
    before = os.times()
    done = snakemake(project, *arguments)
    # processor time: the machine may be busy with other things
    assert os.times().children_user - before.children_user < 5
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("lead: error: ")]
    assert len(said) == 1, done.stdout + done.stderr
    return said[0]


@contextmanager
def without(path: Path) -> Iterator[None]:
    """A path is gone for a while; its times are kept."""
    away = path.parent / f"{path.name}.away"
    path.rename(away)
    try:
        yield
    finally:
        away.rename(path)
