"""The workflow through a real Slurm of one node: resources, scancel, a controller that dies.

`make test-slurm` starts one; skipped where none of tests/slurm/start.sh is running.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dag.project import RESULTS, ROOT, make_project, replace

CONF = Path("/etc/slurm/slurm.conf")
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(
        shutil.which("sbatch") is None or not CONF.exists() or "# lead test" not in CONF.read_text(),
        reason="no test Slurm is running; `make test-slurm` starts one",
    ),
]
RUN = f"{RESULTS}/lead_cb.json"
ON_GPUS = ("train", "distil_joint", "encode_passages", "encode_queries", "mine", "retrieve")
NO_GPU = [f"{rule}:gpu=0" for rule in ON_GPUS]  # the test cluster's are not there


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The profile as it is shipped, but for waiting less."""
    folder = tmp_path_factory.mktemp("profile")
    text = (ROOT / "workflow/profiles/slurm/config.yaml").read_text()
    text = text.replace("latency-wait: 60", "latency-wait: 5")
    text = text.replace("status-checks: 10", "status-checks: 2")
    (folder / "config.yaml").write_text(text)
    return folder


def command(project: Path, profile: Path, *arguments: str) -> tuple[list[str], dict[str, str]]:
    words = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        ROOT / "workflow/Snakefile",
        "--workflow-profile",
        profile,
    ]
    words += ["--directory", project, "--configfile", project / "config/config.yaml", *arguments]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return list(map(str, words)), os.environ | {"PYTHONPATH": paths}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_collection: Path) -> Path:
    """The same run made without Slurm."""
    from dag.project import succeed

    project = project_at(tmp_path_factory.mktemp("plain") / "p", tiny_model, tiny_collection)
    succeed(project, "--", RUN, real=True)  # jobs of a cluster have threads of their own
    return project


def project_at(folder: Path, model: Path, collection: Path) -> Path:
    """The project of the DAG tests, training longer in distillation, so that there is time to interfere."""
    project = make_project(folder, model, collection)
    preset = project / "config/presets/tiny.yaml"
    replace(preset, "distil: {steps: 4}", "distil: {steps: 400, checkpoint_every: 50}")
    return project


def jobs_of(project: Path) -> dict[str, dict[str, str]]:
    """What Slurm says of the jobs that ran in this project: by the comment or name's rule."""
    said = subprocess.run(["scontrol", "show", "job", "-o"], capture_output=True, text=True).stdout
    found = {}
    for line in said.splitlines():
        fields = dict(re.findall(r"(\S+?)=(\S*)", line))
        if str(project) in line:
            found[fields["JobId"]] = fields
    return found


def wait_for(what: Callable[[], Any], seconds: float, process: subprocess.Popen[str]) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := what():
            return found
        assert process.poll() is None, process.communicate()
        time.sleep(0.2)
    raise AssertionError("waited in vain")


def same_bytes(a: Path, b: Path, *names: str) -> None:
    for name in names:
        assert (a / RESULTS / name).read_bytes() == (b / RESULTS / name).read_bytes(), name


def test_a_cancelled_training_job_and_a_dead_controller_cost_nothing(
    tmp_path: Path, profile: Path, tiny_model: Path, tiny_collection: Path, undisturbed: Path
) -> None:
    """One run of the whole protocol: distillation is cancelled midway, then the controller is away for a while."""
    project = project_at(tmp_path / "a project", tiny_model, tiny_collection)
    words, environment = command(project, profile, "--set-resources", *NO_GPU, "--", RUN)
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(
            words, env=environment, stdout=said, stderr=subprocess.STDOUT, text=True, cwd=project
        )
    try:
        state = project / RESULTS / "state/lead_cb"
        wait_for(lambda: list(state.glob("*/step-*")), 300, process)
        running = subprocess.run(
            ["squeue", "-h", "-t", "R", "-o", "%i %k %j"], capture_output=True, text=True
        ).stdout.splitlines()
        (cancelled,) = [line.split()[0] for line in running if "distil" in line]
        subprocess.run(["scancel", cancelled], check=True)
        wait_for(lambda: cancelled not in subprocess.run(
            ["squeue", "-h", "-o", "%i"], capture_output=True, text=True).stdout.split(), 60, process)  # fmt: skip
        subprocess.run(["pkill", "-x", "slurmctld"], check=True)
        time.sleep(8)
        subprocess.run(["slurmctld"], check=True)
        assert process.wait(timeout=500) == 0, (tmp_path / "said").read_text()[-3000:]
    finally:
        process.kill()
    log = (project / RESULTS / "logs/distil.lead_cb.log").read_text()
    assert "going on from the checkpoint of step" in log
    same_bytes(project, undisturbed, "lead_cb.json", "models/lead_cb/model.safetensors", "runs/lead_cb.parquet")
    same_bytes(project, undisturbed, "models/lead_cb_teacher/model.safetensors", "negatives/miner.parquet")
    names = json.dumps(jobs_of(project))
    for rule in ("prepare", "bm25", "train", "mine", "distil_joint", "retrieve", "evaluate"):
        assert rule in names, names


def test_a_job_has_the_resources_that_its_rule_declares_and_sees_all_its_gpus(tmp_path: Path, profile: Path) -> None:
    """GPUs that are not there cannot train: a rule of its own asks for them through the same profile."""
    (tmp_path / "Snakefile").write_text(
        "rule gpus:\n    output: 'out.txt'\n    threads: 3\n    resources: gpu=4, mem_mb=3000, runtime=7\n"
        '    shell: \'echo "${{CUDA_VISIBLE_DEVICES:-none}} $SLURM_NTASKS" >> {output}; '
        "scontrol show job -o $SLURM_JOB_ID >> {output}; env | sort >> env.txt'\n"
    )
    words = [sys.executable, "-m", "snakemake", "--workflow-profile", profile, "--directory", tmp_path]
    done = subprocess.run(
        [*map(str, words), "-s", str(tmp_path / "Snakefile"), "out.txt"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    first, job, *rest = (tmp_path / "out.txt").read_text().splitlines()
    assert not rest, "the job ran more than once"
    assert sorted(first.split()[0].split(",")) == ["0", "1", "2", "3"]
    assert re.search(r"TresPerNode=gres:gpu:4|TresPerJob=gres:gpu:4|gres/gpu=4", job), job
    assert "TimeLimit=00:07:00" in job and re.search(r"MinMemoryNode=3000M|mem=3000M", job), job
    assert re.search(r"CPUs/Task=3|NumCPUs=[34]", job), job
    assert "NumNodes=1 " in job and "ReqNodeList=(null)" in job, job


def test_a_training_that_fails_runs_once_in_each_of_four_jobs(
    tmp_path: Path, profile: Path, tiny_model: Path, tiny_collection: Path
) -> None:
    """The Snakemake in a job tries nothing again: the next job may have more memory."""
    project = project_at(tmp_path / "p", tiny_model, tiny_collection)
    replace(project / "config/presets/tiny.yaml", "batch_size: ", "batch_size: 1000")
    target = f"{RESULTS}/models/miner"
    words, environment = command(project, profile, "--set-resources", "train:gpu=0", "--", target)
    done = subprocess.run(words, env=environment, cwd=project, capture_output=True, text=True)
    assert done.returncode == 1
    logs = list((project / ".snakemake/slurm_logs/rule_train").rglob("*.log"))
    said = [len(re.findall("^[0-9:]+ lead: error: train.batch_size: ", log.read_text(), re.M)) for log in logs]
    assert said == [1] * 4, [log.read_text()[-2000:] for log in logs]
