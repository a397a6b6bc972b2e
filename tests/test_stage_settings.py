"""Stage settings: which keys each stage reads, and what of them is its recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from dag.project import empty_project, replace
from test_plan import add_rows, plan

from lead.cli import STAGES
from lead.config import stages
from lead.config.load import merge, validate
from lead.plan.plan import Plan
from lead.plan.stage_settings import execution_of, recipe_of, settings_of, stage_settings
from lead.plan.targets import twin

SHARED = ["prepare", "bm25"]  # stages of a dataset, not of a run
RUNS = ["student", "student_more", "teacher_cb", "rd_cb", "lead_cb"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return empty_project(tmp_path)


def found_settings(made: Plan) -> dict[str, str]:
    """The settings of every stage, by `stage` or `run.stage`. What made a list is left out: it holds other settings."""
    found = {stage: settings_of(made.jobs, stage, "tiny") for stage in SHARED}
    for run in RUNS:
        found |= {f"{run}.{stage}": stage_settings(made["tiny", run], stage) for stage in made["tiny", run].stages}
    found["miner.mine"] = stage_settings(made["tiny", "miner"], "mine")
    for values in found.values():
        values.pop("made_by", None)
    return {name: json.dumps(values) for name, values in found.items()}


def of(stage: str, *runs: str) -> set[str]:
    return {f"{run}.{stage}" for run in runs}


DE, CB = ("student", "student_more", "rd_cb", "lead_cb"), ("teacher_cb",)
TRAINED = of("train", "student", "student_more", "teacher_cb") | of("distil", "rd_cb", "lead_cb")
EVALUATED = of("evaluate", *DE, *CB)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"seed": 2}, TRAINED | EVALUATED),
        ({"dev_share": 0.2}, {"prepare"}),
        ({"checks": {"empty_passages": 0.5}}, {"prepare"}),
        ({"bm25": {"b": 0.5}}, {"bm25"}),
        ({"lengths": {"query": 10}}, of("train", "student", "teacher_cb")),
        ({"scoring": {"cb": {"expand": True}}}, of("train", "teacher_cb")),
        ({"scoring": {"de": {"scale": 2.0}}}, of("train", "student")),
        ({"models": {"student": {"layers": [1, 2]}}}, of("train", "student")),
        ({"train": {"lr": 0.1}}, TRAINED),
        ({"phases": {"teacher": {"steps": 9}}}, of("train", "teacher_cb")),
        ({"phases": {"distil": {"steps": 9}}}, of("train", "student_more") | of("distil", "rd_cb", "lead_cb")),
        ({"distil": {"tau": 2.0}}, of("distil", "rd_cb", "lead_cb")),
        ({"distil": {"layers": {"k": 1}}}, of("distil", "lead_cb")),
        ({"distil": {"layer_weights": "uniform"}}, of("distil", "lead_cb")),
        ({"retrieval": {"depth": 50}}, {"bm25"} | of("retrieve", *DE)),
        ({"retrieval": {"mine_depth": 5}}, {"bm25", "miner.mine"}),
        ({"retrieval": {"ignore_identical_ids": True}}, {"bm25", "miner.mine"} | of("retrieve", *DE) | EVALUATED),
        ({"retrieval": {"rerank_depth": 5}}, of("rerank", *CB)),
        ({"retrieval": {"fp16": True}}, of("encode", *DE)),
        ({"retrieval": {"batch_tokens": 64}}, of("encode", *DE) | of("rerank", *CB)),
        ({"retrieval": {"rerank_from": "student"}}, set()),  # an input, not a setting
        ({"evaluation": {"confidence": 0.9}}, EVALUATED),
        ({"evaluation": {"relevance": 2}}, {"prepare", "bm25", "miner.mine"} | TRAINED | EVALUATED),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_key_changes_the_stages_that_read_it_and_no_other(
    folder: Path, keys: dict[str, Any], expected: set[str]
) -> None:
    before, after = found_settings(plan(folder)), found_settings(plan(folder, **keys))
    assert {name for name in before if before[name] != after[name]} == expected


def test_the_recipe_does_not_hold_how_a_run_is_executed(folder: Path) -> None:
    keys = {"micro_tokens": 9, "cache_above": 9, "checkpoint_every": 9, "checkpoint_keep": 9, "dev_every": 9}
    before, after = plan(folder), plan(folder, train=keys, retrieval={"batch_tokens": 9})
    for run in RUNS:
        for stage in before["tiny", run].stages:
            old, new = (stage_settings(made["tiny", run], stage) for made in (before, after))
            assert recipe_of(stage, old) == recipe_of(stage, new)
    assert execution_of("distil", stage_settings(after["tiny", "lead_cb"], "distil")) == {"train": keys}
    assert all(twin(after["tiny", run]) == run for run in RUNS)


def test_lists_are_one_deeper_where_a_querys_own_passage_is_dropped(folder: Path) -> None:
    made = plan(folder, retrieval={"ignore_identical_ids": True, "depth": 50})
    assert [stage_settings(made["tiny", "student"], stage)["depth"] for stage in ("bm25", "retrieve")] == [51, 51]


def test_how_often_dev_is_evaluated_is_of_the_recipe_where_it_selects(folder: Path) -> None:
    for select, part in (("last", execution_of), ("best", recipe_of)):
        settings = stage_settings(plan(folder, train={"dev_every": 7, "select": select})["tiny", "student"], "train")
        assert part("train", settings)["train"]["dev_every"] == 7


def test_runs_that_differ_in_their_execution_only_are_twins(folder: Path) -> None:
    add_rows(folder, "again: {method: rd, start: student, teacher: teacher_cb, settings: {train: {micro_tokens: 9}}}")
    add_rows(folder, "other: {method: rd, start: student, teacher: teacher_cb, settings: {train: {lr: 0.5}}}")
    made = plan(folder)
    assert [twin(made["tiny", run]) for run in ("again", "other")] == ["rd_cb", "other"]


def test_a_row_changes_its_own_stages_only(folder: Path) -> None:
    before = found_settings(plan(folder))
    row = "lead_cb: {method: lead, start: student, teacher: teacher_cb"
    replace(folder / "experiments.yaml", row + "}", row + ", settings: {train: {lr: 0.5}, distil: {tau: 3.0}}}")
    after = found_settings(plan(folder))
    assert {name for name in before if before[name] != after[name]} == {"lead_cb.distil"}


def test_settings_of_the_bm25_row_reach_the_stage(folder: Path) -> None:
    replace(folder / "experiments.yaml", "bm25: {method: bm25}", "bm25: {method: bm25, settings: {bm25: {k1: 0.5}}}")
    made = plan(folder)
    result = stage_settings(made["tiny", "bm25"], "evaluate")["made_by"]["settings"]["bm25.bm25"]
    assert settings_of(made.jobs, "bm25", "tiny")["bm25"]["k1"] == result["bm25"]["k1"] == 0.5


def test_the_settings_of_every_stage_are_valid_and_are_a_recipe_and_an_execution(folder: Path) -> None:
    made = plan(folder)
    for dataset in ("tiny", "docs"):
        for run in made.rows:
            for stage in {*SHARED, *made[dataset, run].stages}:
                settings = stage_settings(made[dataset, run], stage)
                cls = getattr(stages, STAGES[stage].settings)
                parts = recipe_of(stage, settings), execution_of(stage, settings)
                assert json.loads(json.dumps(settings)) == merge(*parts) == settings
                assert validate(cls, merge(*parts), stage) == validate(cls, settings, stage)


def test_the_result_names_what_its_list_was_made_with(folder: Path) -> None:
    made_by = stage_settings(plan(folder)["tiny", "lead_cb_teacher"], "evaluate")["made_by"]
    assert {"lead_cb.distil", "student.train", "teacher_cb.train", "miner.train"} <= set(made_by["settings"])
    assert made_by["settings"]["lead_cb_teacher.rerank"]["rerank_depth"] == 20


def test_the_overview_names_every_dataset_and_run(folder: Path) -> None:
    made = plan(folder)
    assert all(name in made.overview() for name in [*made.rows, "tiny", "docs", "160 passages"])


def test_of_steps_and_epochs_the_later_one_counts(folder: Path) -> None:
    def train(row: str, run: str = "rd_cb", **settings: Any) -> dict[str, Any]:
        plain = "rd_cb: {method: rd, start: student, teacher: teacher_cb"
        replace(folder / "experiments.yaml", plain + "}", plain + f", settings: {{train: {row}}}}}")
        made: dict[str, Any] = stage_settings(plan(folder, **settings)["tiny", run], "distil")["train"]
        replace(folder / "experiments.yaml", plain + f", settings: {{train: {row}}}}}", plain + "}")
        return made

    own = train("{steps: 7}", train={"epochs": 2.0})
    assert own["steps"] == 7 and "epochs" not in own
    own = train("{epochs: 3.0}", phases={"distil": {"steps": 5}})
    assert own["epochs"] == 3.0 and "steps" not in own
    assert stage_settings(plan(folder, phases={"distil": {"epochs": 2.0}})["tiny", "lead_cb"], "distil")["train"][
        "epochs"
    ]
    assert (
        "epochs"
        not in stage_settings(plan(folder, phases={"distil": {"epochs": 2.0}})["tiny", "student"], "train")["train"]
    )
