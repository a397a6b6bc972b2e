"""The workflow through Snakemake itself: one full run of a tiny collection, then what a change makes it do again."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from dag.project import ONE_THREAD, RESULTS, ROOT, RUNS, TARGETS, jobs, snakemake, succeed, without

pytestmark = pytest.mark.dag


def result(folder: Path, run: str) -> dict[str, Any]:
    return json.loads((folder / RESULTS / f"{run}.json").read_text(encoding="utf-8"))


def settings(**keys: object) -> list[str]:
    return ["--config", f"settings={json.dumps(keys)}"]


# --- the full run ----------------------------------------------------------------------------------------------------
def test_every_run_has_its_result_and_the_values_behind_it(made: Path) -> None:
    for run in RUNS:
        metrics = result(made, run)["metrics"]
        assert set(metrics) == {"RR@10", "R@20", "R@60"}
        assert all(0 <= value["low"] <= value["mean"] <= value["high"] <= 1 for value in metrics.values())
        per_query = pq.read_table(made / RESULTS / "per_query" / f"{run}.parquet")
        assert per_query.num_rows == 3 * result(made, run)["queries"] == 36
    assert result(made, "bm25")["metrics"]["R@20"]["mean"] > 0.5


def test_the_result_says_what_made_it(made: Path) -> None:
    made_by = result(made, "lead_cb")["made_by"]
    assert (made_by["dataset"], made_by["run"]) == ("tiny", "lead_cb")
    assert {"lead_cb.distil", "student.train", "teacher_cb.train", "miner.train"} <= set(made_by["settings"])
    assert made_by["settings"]["lead_cb.distil"]["train"]["steps"] == 4
    assert str(made) not in json.dumps(result(made, "lead_cb"))


def test_joint_training_leaves_both_models_and_a_frozen_teacher_one(made: Path) -> None:
    models = {path.name for path in (made / RESULTS / "models").iterdir()}
    trained = {"miner", "teacher_de", "teacher_cb", "student"} | set(RUNS) - {"bm25"}
    assert models == trained | {"lead_de_teacher"}


def test_training_leaves_one_line_a_step_and_no_state(made: Path) -> None:
    lines = (made / RESULTS / "metrics" / "lead_cb.jsonl").read_text(encoding="utf-8").splitlines()
    assert [line["step"] for line in map(json.loads, lines) if "loss" in line] == [1, 2, 3, 4]
    assert not list((made / RESULTS / "state").glob("*/*"))


def test_every_job_leaves_a_log_without_a_traceback_and_its_times(made: Path) -> None:
    logs = {path.name.removesuffix(".log"): path for path in (made / RESULTS / "logs").iterdir()}
    assert set(logs) == {path.name.removesuffix(".tsv") for path in (made / RESULTS / "timings").glob("*.tsv")}
    assert not [name for name, path in logs.items() if "Traceback" in path.read_text(encoding="utf-8")]


def test_no_positive_is_among_the_negatives(made: Path) -> None:
    positives = {
        (row["qid"], row["pid"])
        for split in ("train", "dev")
        for row in pq.read_table(made / RESULTS / "data" / f"qrels.{split}.parquet").to_pylist()
    }
    for name in ("bm25", "miner"):
        rows = pq.read_table(made / RESULTS / "negatives" / f"{name}.parquet").to_pylist()
        assert rows and not positives & {(row["qid"], row["pid"]) for row in rows}
        assert max(row["rank"] for row in rows) == 10


def test_reranked_recall_equals_that_of_the_list_at_the_rerank_depth(made: Path) -> None:
    recall = {run: result(made, run)["metrics"]["R@20"]["mean"] for run in RUNS}
    assert recall["teacher_cb"] == recall["lead_cb_teacher"] == recall["teacher_de"]
    assert result(made, "teacher_cb")["metrics"]["R@60"]["mean"] == recall["teacher_cb"]
    assert result(made, "teacher_cb")["ranked_depth"] == 20


def test_a_second_call_does_nothing(made: Path) -> None:
    assert jobs(made, "--", *TARGETS) == {}


# --- what is done again ----------------------------------------------------------------------------------------------
def test_a_missing_result_is_evaluated_again_and_nothing_else(made: Path) -> None:
    with without(made / RESULTS / "rd_cb.json"):
        assert jobs(made, "--", *TARGETS) == {"evaluate": 1}


def test_a_missing_model_is_made_again_where_it_is_needed_or_asked_for(made: Path) -> None:
    model, result = f"{RESULTS}/models/rd_cb", f"{RESULTS}/rd_cb.json"
    with without(made / model):
        assert jobs(made, "--", *TARGETS) == {}  # its result is there, and newer than all that it was made from
        again = {"distil": 1, "encode_passages": 1, "encode_queries": 1, "retrieve": 1, "evaluate": 1}
        assert jobs(made, "--", model, result) == again


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("evaluate", {"evaluate": 8}),
        ("rerank", {"rerank": 2, "evaluate": 2}),
        ("retrieve", {"retrieve": 5, "rerank": 2, "evaluate": 7}),
        ("distil", {"distil": 1, "encode_passages": 1, "encode_queries": 1, "retrieve": 1, "evaluate": 1}),
        (
            "distil_joint",
            {"distil_joint": 2, "encode_passages": 2, "encode_queries": 2, "retrieve": 2, "rerank": 1, "evaluate": 3},
        ),
    ],
)
def test_a_forced_rule_reruns_what_depends_on_it(made: Path, rule: str, expected: dict[str, int]) -> None:
    assert jobs(made, "--forcerun", rule, "--", *TARGETS) == expected


DISTILLED = {"distil", "distil_joint", "encode_passages", "encode_queries", "retrieve", "rerank", "evaluate"}
MINED = DISTILLED | {"train", "mine"}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"evaluation": {"resamples": 21}}, {"evaluate": 8}),
        ({"retrieval": {"rerank_depth": 21}}, {"rerank": 2, "evaluate": 2}),
        ({"distil": {"tau": 2.0}}, DISTILLED),
        ({"phases": {"student": {"lr": 2e-3}}}, DISTILLED | {"train"}),
        ({"scoring": {"cb": {"expand": True}}}, DISTILLED | {"train"}),
        ({"retrieval": {"fp16": True}}, MINED),
        ({"train": {"dev_negatives": 3}}, MINED),
        ({"retrieval": {"depth": 61}}, MINED | {"bm25"}),
        ({"bm25": {"k1": 0.8}}, MINED | {"bm25"}),
        ({"dev_share": 0.1}, MINED | {"bm25", "prepare"}),
        ({"distil": {"layers": {"pairs": None}}}, {}),
        ({"seed": 1}, {}),
    ],
    ids=lambda v: str(v) if isinstance(v, dict) else " ".join(sorted(v)),  # the same in every process
)
def test_a_changed_setting_reruns_the_stages_that_read_it(
    made: Path, keys: dict[str, object], expected: set[str] | dict[str, int]
) -> None:
    again = jobs(made, *settings(**keys), "--", *TARGETS)
    assert (again if isinstance(expected, dict) else set(again)) == expected


@pytest.mark.parametrize(
    "keys",
    [
        {"train": {"micro_tokens": 99}},
        {"train": {"cache_above": 9}},
        {"train": {"checkpoint_every": 1, "checkpoint_keep": 3}},
        {"train": {"dev_every": 2}},  # it selects nothing where the last weights are kept
        {"phases": {"student": {"micro_tokens": 99}}},
        {"retrieval": {"batch_tokens": 99}},
    ],
    ids=str,
)
def test_how_a_run_is_executed_reruns_nothing(made: Path, keys: dict[str, object]) -> None:
    assert jobs(made, *settings(**keys), "--", *TARGETS) == {}


def test_threads_rerun_nothing(made: Path) -> None:
    assert jobs(made, "--set-threads", "train=2", "distil=2", "rerank=2", "--", *TARGETS) == {}


def test_the_execution_reaches_the_command(made: Path) -> None:
    keys = settings(train={"micro_tokens": 99}, retrieval={"batch_tokens": 77})
    said = succeed(made, "--dry-run", "--printshellcmds", *keys, "--forceall", "--", *TARGETS)
    commands = [shlex.split(line) for line in re.findall(r"^Shell command: (?:exec )?(lead .+)$", said, re.MULTILINE)]
    executions = {c[1]: json.loads(c[c.index("--execution") + 1]) for c in commands if "--execution" in c}
    assert set(executions) == {"train", "distil", "encode", "rerank"}
    assert executions["train"]["train"]["micro_tokens"] == executions["distil"]["train"]["micro_tokens"] == 99
    assert executions["encode"] == executions["rerank"] == {"batch_tokens": 77}
    recipes = [c[c.index("--settings") + 1] for c in commands]
    execution = ("micro_tokens", "batch_tokens", "cache_above", "checkpoint_every", "checkpoint_keep", "dev_every")
    assert not [text for text in recipes if any(f'"{key}"' in text for key in execution)]


def test_a_changed_setting_of_one_phase_spares_the_others(made: Path) -> None:
    again = jobs(made, *settings(phases={"distil": {"steps": 5}}), "--", *TARGETS)
    # student_more, rd_cb, lead_de, lead_cb; the lists of the last with its teacher's
    assert (again["train"], again["distil"], again["distil_joint"]) == (1, 1, 2)
    assert (again["encode_passages"], again["rerank"], again["evaluate"]) == (4, 1, 5)
    assert "mine" not in again


def test_a_changed_input_file_reruns_everything_made_from_it(made: Path) -> None:
    corpus = made / "data" / "corpus.jsonl"
    before = corpus.stat()
    content = corpus.read_bytes()
    try:
        corpus.write_bytes(content + b'{"_id": "more", "text": "one more"}\n')
        assert set(jobs(made, "--", *TARGETS)) == MINED | {"bm25", "prepare"}
    finally:
        corpus.write_bytes(content)
        os.utime(corpus, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert jobs(made, "--", *TARGETS) == {}


def test_the_same_run_twice_is_the_same_bytes(made: Path) -> None:
    files = [made / RESULTS / name for name in ("rd_cb.json", "models/rd_cb/SHA256SUMS", "runs/rd_cb.parquet")]
    before = [path.read_bytes() for path in files]
    times = [path.stat().st_mtime_ns for path in files]
    succeed(made, *ONE_THREAD, "--forcerun", "distil", "--", f"{RESULTS}/rd_cb.json")
    assert all(path.stat().st_mtime_ns > t for path, t in zip(files, times, strict=True))
    assert [path.read_bytes() for path in files] == before
    assert jobs(made, "--", *TARGETS) == {}


def test_a_gpu_that_is_not_there_is_one_clear_line(made: Path, tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    forced = ["--forcerun", "rerank", "--rerun-triggers", "mtime", "--resources", "gpu=1"]
    done = snakemake(copy, *forced, "--", f"{RESULTS}/teacher_cb.json")
    said = [line for line in (done.stdout + done.stderr).splitlines() if "lead: error:" in line]
    assert done.returncode == 1
    assert said and all("--gpu 1" in line and "--resources gpu=0" in line for line in said)
    assert "Traceback" not in done.stdout + done.stderr


def test_variants_are_compared_on_dev_and_one_that_cannot_be_trained_is_named(made: Path, tmp_path: Path) -> None:
    """`benchmarks/pilot.py`: a run as it is, twice, one with a changed key, one of labels alone; nothing is written."""
    before = sorted(made.rglob("*"))
    changed, wrong = 'lead_cb:{"distil": {"joint": false}}', 'rd_cb:{"train": {"batch_size": 100000}}'
    variants = ["rd_cb", "rd_cb", changed, "student_more", wrong]
    options = ["--steps", "2", "--seeds", "2", "--out", str(tmp_path / "tried.jsonl")]
    command = [sys.executable, str(ROOT / "benchmarks/pilot.py"), "tiny", *options, *variants]
    done = subprocess.run(command, cwd=made, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    first, again, other, labels, *refused = done.stdout.splitlines()
    assert first.startswith("rd_cb: ") and "+0.0000 (s.e. 0.0000)" in first and "+0.0000 (s.e. 0.0000)" in again
    assert other.startswith(f"{changed}: ") and labels.startswith("student_more: ")
    assert refused == [f"{wrong}: train.batch_size: 100000 is more than the 48 train queries; lower it"] * 2
    tried = [json.loads(line) for line in (tmp_path / "tried.jsonl").read_text().splitlines()]
    assert [(t["variant"], t["seed"]) for t in tried] == [(v, s) for v in variants[:4] for s in (1, 2)]
    assert tried[0]["after"] == tried[2]["after"] and tried[0]["after"] != tried[1]["after"]
    assert sorted(made.rglob("*")) == before
    for variant, why in (
        ("rd_cb:{", "Expecting"),
        ("rd_cb:[1]", "an object"),
        ('rd_cb:{"distil": {"tu": 2}}', "unknown key"),
        ("miner", "does not"),
    ):
        refusal = subprocess.run([*command[:3], variant], cwd=made, capture_output=True, text=True, timeout=100)
        assert refusal.returncode == 2 and why in refusal.stderr.splitlines()[-1] and "Traceback" not in refusal.stderr
