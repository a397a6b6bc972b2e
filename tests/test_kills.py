"""SIGKILL at random moments of every stage of the workflow: started again, it ends in the same bytes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from dag.kills import Killer, contents, draw
from dag.project import ONE_THREAD, RESULTS, make_project, replace, succeed

from lead.cli import STAGES

pytestmark = pytest.mark.dag
KILLS = int(os.environ.get("LEAD_KILLS", "0"))


def same(project: Path, undisturbed: Path) -> None:
    a, b = contents(project), contents(undisturbed)
    assert a.keys() == b.keys(), "files that are missing, or were left behind"
    assert [name for name in a if a[name] != b[name]] == []


def test_a_run_that_is_killed_three_times_ends_in_the_same_bytes(made: Path, tmp_path: Path) -> None:
    project = tmp_path / "a project"
    shutil.copytree(made, project)  # with its times, and what Snakemake knows
    for name in ("models", "metrics", "embeddings", "runs", "per_query", "."):
        for path in (project / RESULTS / name).glob("rd_cb*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    killer = Killer(project, [*ONE_THREAD, "--", f"{RESULTS}/rd_cb.json"], draw(["distil", "encode", "evaluate"], 3, 1))
    killer.run()
    assert killer.done.total() == 3
    same(project, made)


@pytest.mark.skipif(KILLS == 0, reason="LEAD_KILLS=24 asks for it; half an hour")
def test_a_whole_workflow_that_is_killed_many_times_ends_in_the_same_bytes(
    tmp_path: Path, tiny_model: Path, tiny_collection: Path
) -> None:
    projects = []
    for name in ("undisturbed", "killed"):
        project = make_project(tmp_path / name, tiny_model, tiny_collection)
        with (project / "config/experiments.yaml").open("a") as f:
            f.write(
                "  rocketqa: {method: contrastive, start: student, denoise: teacher_cb}\n"
                "  external: {method: external}\n"
            )
        with (project / "config/presets/tiny.yaml").open("a") as f:
            f.write("denoise: {keep_below: 0.5}\n")
        replace(project / "config/presets/tiny.yaml", "train: {steps: 3", "train: {steps: 20")
        replace(project / "config/presets/tiny.yaml", "distil: {steps: 4}", "distil: {steps: 30}")
        replace(project / "config/presets/tiny.yaml", "retrieval: {", "retrieval: {index: 'IVF4,Flat', ")
        replace(
            project / "config/datasets/tiny.yaml",
            "preset: tiny",
            "preset: tiny\nshards: 2\nexternal_run: ../../lists.tsv",
        )
        (project / "lists.tsv").write_text("".join(f"test{i}\tp{i + 1}\t1\n" for i in range(8)))
        projects.append(project)
    undisturbed, project = projects
    runs = ["bm25", "external", "lead_cb", "lead_cb_teacher", "rocketqa"]
    arguments = [*ONE_THREAD, "--", *(f"{RESULTS}/{run}.json" for run in runs)]
    succeed(undisturbed, *arguments)
    killer = Killer(project, arguments, draw(list(STAGES), KILLS, 2))
    killer.run()
    print(f"\nkilled, survived: {killer.done.total()} of {KILLS}: {dict(killer.done)}")
    assert killer.done.total() == KILLS and set(killer.done) == set(STAGES)
    same(project, undisturbed)
