"""What each run is made of, what is refused before any work, and which settings each stage reads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from dag.project import empty_project, refusal

from lead.config.load import load
from lead.errors import LeadError
from lead.plan.checks import check
from lead.plan.plan import Plan
from lead.plan.snakemake import checked
from lead.plan.stage_settings import stage_settings
from lead.plan.targets import check_target, targets

SHARED = ["prepare", "bm25"]  # stages of a dataset, not of a run
RUNS = ["student", "student_more", "teacher_cb", "rd_cb", "lead_cb"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return empty_project(tmp_path)


def add_rows(folder: Path, *rows: str) -> None:
    with (folder / "experiments.yaml").open("a", encoding="utf-8") as file:
        file.writelines(f"  {row}\n" for row in rows)


def plan(folder: Path, **settings: Any) -> Plan:
    return Plan(load(folder / "config.yaml", {"settings": settings}))


# --- what is refused, before any work --------------------------------------------------------------------------------
def test_everything_that_makes_sense_passes(folder: Path) -> None:
    made = plan(folder)
    for run in made.rows:
        for dataset, fits in (("tiny", run not in ("lead_cb_k3", "lead_cb_docs")), ("docs", run != "lead_cb_k3")):
            if fits:
                check(made[dataset, run])


def test_more_layer_pairs_than_student_layers_are_refused(folder: Path) -> None:
    message = refusal(lambda: check(plan(folder)["tiny", "lead_cb_k3"]))
    assert "run 'lead_cb_k3' on 'tiny': distil.layers.k: 3 is more than the student's 2 layers" in message
    assert str(folder / "experiments.yaml") in message


@pytest.mark.parametrize("run", ["lead_cb", "lead_cb_teacher"])
def test_a_student_deeper_than_its_teacher_is_refused(folder: Path, run: str) -> None:
    deep = {"teacher": {"layers": [1]}, "student": {"layers": [1, 2, 3]}}
    message = refusal(lambda: check(plan(folder, models=deep)["tiny", run]))
    assert "the student has 3 layers, the teacher only 1" in message and "run 'lead_cb'" in message


@pytest.mark.parametrize(
    ("layers", "says"),
    [
        ({"strategy": "skip", "skip": 4}, "needs teacher layer 5, but N is 4"),
        ({"strategy": "pairs"}, "pairs is empty"),
        ({"strategy": "pairs", "pairs": [[5, 1]]}, "[5, 1] is outside teacher 1..4, student 1..2"),
    ],
)
def test_layers_that_do_not_exist_are_refused(folder: Path, layers: dict[str, Any], says: str) -> None:
    assert says in refusal(lambda: check(plan(folder, distil={"layers": layers})["tiny", "lead_cb"]))


def test_a_run_made_from_a_refused_one_is_refused(folder: Path) -> None:
    add_rows(folder, "more: {method: contrastive, start: lead_cb_k3}")
    assert "run 'lead_cb_k3'" in refusal(lambda: check(plan(folder)["tiny", "more"]))


@pytest.mark.parametrize(
    ("dataset", "run", "says"),
    [
        ("tinny", "student", "no dataset 'tinny' in .*datasets; did you mean 'tiny'"),
        ("tiny", "stduent", "no run 'stduent' in .*experiments.yaml; did you mean 'student'"),
        ("tiny", "zzz", "no run 'zzz' .*; valid: bm25, "),
        ("tiny", "lead_cb_docs", "experiments.yaml: run 'lead_cb_docs' is for docs only, not for 'tiny'"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(folder: Path, dataset: str, run: str, says: str) -> None:
    made = plan(folder)
    with pytest.raises(LeadError, match=says):
        check(made[dataset, run])
    with pytest.raises(LeadError, match=says):
        check_target(made, f"all results/{dataset}/{run}.json")
    with pytest.raises(LeadError, match=says):
        check_target(made, f"./all results/{dataset}/{run}.json")


@pytest.mark.parametrize("target", ["-n", "demo", "all results/tiny/data/x.json", "other/tiny/x.json", "x.json", "8"])
def test_arguments_that_name_no_result_pass(folder: Path, target: str) -> None:
    check_target(plan(folder), target)


def test_an_unknown_run_or_dataset_has_no_job(folder: Path) -> None:
    made = plan(folder)
    for ask in (lambda: made["tiny", "nothing"], lambda: made.rows.kind("nothing")):
        assert refusal(ask).startswith("no run 'nothing' in ")
    for ask in (lambda: made["nowhere", "teacher_cb"], lambda: made.datasets["nowhere"]):
        assert refusal(ask).startswith("no dataset 'nowhere' in ")


def test_a_training_job_is_refused_whatever_the_target(folder: Path) -> None:
    """Every rule that trains asks for a checked job. Asking for a path alone checks nothing."""
    assert plan(folder)["tiny", "lead_cb_k3"].start == ["all results/tiny/models/student"]
    assert "at most 2" in refusal(lambda: checked(plan(folder)["tiny", "lead_cb_k3"]))
    add_rows(folder, "more: {method: contrastive, start: lead_cb_docs}")
    assert "'lead_cb_docs' is for docs only" in refusal(lambda: check(plan(folder)["tiny", "more"]))


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("a: {method: contrastive, start: a}", "depends on itself (a -> a); break the circle"),
        ("a: {method: contrastive, start: b}\n  b: {method: contrastive, start: a}", "depends on itself (a -> b -> a)"),
        ("a: {method: contrastive, init: student, negatives: a}", "depends on itself (a -> a)"),
        ("a: {method: contrastive, start: stduent}", "key 'start': no run 'stduent' with a model; did you mean 'st"),
        ("a: {method: contrastive, start: bm25}", "key 'start': no run 'bm25' with a model"),
        ("a: {method: rd, start: student, teacher: teacher}", "key 'teacher': no run 'teacher' with a model; did you"),
        ("a: {method: teacher_of, of: rd_cb}", "key 'of': no run 'rd_cb'"),
        ("a: {method: rd, start: student, teacher: teacher_cb, negatives: mimer}", "key 'negatives': no run 'mimer'"),
        ("a: {method: rd, start: student, teacher: teacher_cb, negatives: teacher_cb}", "'teacher_cb' is a ColBERT"),
        ("a: {method: lead, start: teacher_cb, teacher: teacher_cb}", "the student must be a dual encoder"),
        ("a: {method: rd, start: lead_cb_teacher, teacher: teacher_de}", "the student must be a dual encoder"),
        (
            "a: {method: lead, start: student, teacher: teacher_cb, settings: {distil: {joint: false}}}\n"
            "  b: {method: teacher_of, of: a}",
            "key 'of': 'a' does not train its teacher",
        ),
        ("bm25_again: {method: bm25}", "run 'bm25_again': the run of method bm25, and no other, is called 'bm25'"),
    ],
)
def test_rows_that_do_not_fit_each_other_are_refused(folder: Path, row: str, says: str) -> None:
    add_rows(folder, row)
    message = refusal(lambda: plan(folder))
    assert message.startswith(f"{folder / 'experiments.yaml'}: run '") and says in message


def test_joint_training_is_switched_off_in_the_row_only(folder: Path) -> None:
    """The outputs of a rule cannot depend on the dataset: a switch elsewhere must not fail after hours of training."""
    message = refusal(lambda: check(plan(folder, distil={"joint": False})["tiny", "lead_cb"]))
    assert "distil.joint" in message and "lead_cb" in message


def test_a_missing_source_file_names_file_and_key(folder: Path) -> None:
    missing = folder.parent / "data" / "test.tsv"
    missing.unlink()
    message = refusal(lambda: check(plan(folder)["tiny", "bm25"]))
    assert message.startswith(f"{folder / 'datasets' / 'tiny.yaml'}: key 'source") and "test.tsv" in message


@pytest.mark.parametrize("run", ["student", "rd_cb", "lead_cb"])
@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("package:no_such_package/model", "package 'no_such_package' of reference .* is not installed; pip install"),
        ("package:yaml/model", "has no config.json"),
        ("path:/nowhere/model", "has no config.json in /nowhere/model"),
    ],
)
def test_a_model_that_is_not_there_is_refused(folder: Path, reference: str, says: str, run: str) -> None:
    for layers in (None, [1, 2]):
        models = {"student": {"reference": reference, "layers": layers}}
        with pytest.raises(LeadError, match=says):
            check(plan(folder, models=models)["tiny", run])


def test_kept_layers_that_the_model_does_not_have_are_refused(folder: Path) -> None:
    message = refusal(lambda: check(plan(folder, models={"student": {"layers": [2, 5]}})["tiny", "student"]))
    assert "layers" in message and "1..4" in message


def test_reranking_needs_a_list_that_is_not_reranked(folder: Path) -> None:
    for name in ("teacher_cb", "nobody"):
        message = refusal(lambda name=name: check(plan(folder, retrieval={"rerank_from": name})["tiny", "teacher_cb"]))
        assert "settings.retrieval.rerank_from" in message and name in message
    made = plan(folder, retrieval={"rerank_from": "bm25"})
    check(made["tiny", "teacher_cb"])
    assert made["tiny", "teacher_cb"].rerank_from.endswith("tiny/runs/bm25.parquet")


def test_a_measure_that_does_not_exist_is_refused(folder: Path) -> None:
    message = refusal(lambda: check(plan(folder, evaluation={"measures": ["RR@10", "ndgc@10"]})["tiny", "student"]))
    assert "evaluation.measures" in message and "nDCG" in message


# --- what a run is made of -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("run", "expected"),
    [
        ("bm25", ["bm25", "evaluate"]),
        ("student", ["train", "encode", "retrieve", "evaluate"]),
        ("student_more", ["train", "encode", "retrieve", "evaluate"]),
        ("teacher_cb", ["train", "rerank", "evaluate"]),
        ("rd_cb", ["distil", "encode", "retrieve", "evaluate"]),
        ("lead_cb", ["distil", "encode", "retrieve", "evaluate"]),
        ("lead_cb_teacher", ["rerank", "evaluate"]),
    ],
)
def test_the_stages_of_a_run(folder: Path, run: str, expected: list[str]) -> None:
    assert plan(folder)["tiny", run].stages == expected


def test_the_inputs_of_a_run(folder: Path) -> None:
    made, base = plan(folder), "all results/tiny"
    assert made["tiny", "student"].start == []
    assert made["tiny", "lead_cb"].start == [f"{base}/models/student"]
    assert made["tiny", "lead_cb"].teacher == made["tiny", "rd_cb"].teacher == f"{base}/models/teacher_cb"
    assert made["tiny", "lead_cb_teacher"].model == f"{base}/models/lead_cb_teacher"
    assert made["tiny", "miner"].negatives == f"{base}/negatives/bm25.parquet"
    assert made["tiny", "lead_cb"].negatives == f"{base}/negatives/miner.parquet"
    assert made["tiny", "teacher_cb"].rerank_from == f"{base}/runs/teacher_de.parquet"
    assert made.datasets["docs"].source_files == []
    names = [Path(path).name for path in made.datasets["tiny"].source_files]
    assert sorted(names) == sorted(os.listdir(folder.parent / "data"))


def test_a_chain_goes_on_from_students_and_taught_teachers(folder: Path) -> None:
    add_rows(folder, "s2: {method: lead, start: lead_de, teacher: lead_cb_teacher}", "t: {method: teacher_of, of: s2}")
    made = plan(folder)
    assert made["tiny", "s2"].start == ["all results/tiny/models/lead_de"]
    assert made["tiny", "s2"].teacher == "all results/tiny/models/lead_cb_teacher"
    assert made["tiny", "t"].model == "all results/tiny/models/s2_teacher"
    assert (made.rows.kind("s2").name, made.rows.kind("t").name) == ("de", "cb")
    assert [made.rows.generation(run) for run in ("student", "lead_cb", "lead_cb_teacher", "s2", "t")] == [
        0,
        1,
        1,
        2,
        2,
    ]
    assert stage_settings(made["tiny", "s2"], "distil")["generation"] == 2
    check(made["tiny", "t"])


def test_kinds_and_joint_runs(folder: Path) -> None:
    add_rows(folder, "frozen: {method: lead, start: student, teacher: teacher_cb, settings: {distil: {joint: false}}}")
    made = plan(folder)
    assert {"teacher_cb", "lead_cb_teacher", "teacher_ce"} == set(made.rows.ranked_by("rerank"))
    assert "bm25" not in made.rows.ranked_by("search") and "bm25" in made.rows
    assert set(made.rows.joint()) == {"lead_de", "lead_cb", "lead_ce", "lead_cb_k3", "lead_cb_docs"}
    assert set(made.rows.frozen()) == {"rd_cb", "fd_ce", "margin_mse", "frozen"}


def test_targets_are_the_runs_meant_for_a_dataset(folder: Path) -> None:
    made = plan(folder)
    assert "all results/tiny/lead_cb_docs.json" not in targets(made, "tiny")
    assert "all results/docs/lead_cb_docs.json" in targets(made, "docs")
