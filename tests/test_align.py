"""Alignment without labels: batches of texts, the loss, the stage with its resume, and its rows in the plan."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TOPICS, make_retriever
from dag.project import empty_project, refusal
from steps import SCORING, TRAIN
from test_resume import assert_same, inputs, outputs

from lead.config.load import load, validate
from lead.config.phases import Align, align_steps
from lead.config.schema import Lengths, ModelRef, Scoring, Train
from lead.config.stages import AlignSettings, EncodeSettings
from lead.errors import LeadError, Preempted
from lead.models.base import LayeredModel
from lead.plan.checks import check
from lead.plan.plan import Plan
from lead.plan.stage_settings import stage_settings
from lead.retrieval.encode import encode
from lead.store.tables import read_table
from lead.train.align import AlignData, AlignStep, align, align_data
from lead.train.exchange import Exchange
from lead.train.taught import Taught

LENGTHS = Lengths(query=8, passage=24)


def settings(folder: Path, **more: Any) -> AlignSettings:
    train = Train(
        steps=99, batch_size=8, precision="fp32", dropout=0.1, lr=1e-3, micro_tokens=120, cache_above=150,
        checkpoint_every=5, dev_every=10, dev_queries=4, dev_negatives=3, select="best",
    )  # fmt: skip
    model = ModelRef(reference=f"path:{folder}", layers=[2, 4])
    given = {"model": model, "scoring": Scoring(**SCORING), "lengths": LENGTHS, "train": train, "epochs": 1.0}
    return AlignSettings(**{**given, **more})


def files(collection: Path, teacher: Path) -> dict[str, Any]:
    every = inputs(collection)
    return {name: every[name] for name in ("corpus", "queries", "dev_queries", "dev_qrels")} | {"teacher": teacher}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, teacher_folder: Path) -> Path:
    """A dual encoder of 16 outputs, saved as a run's model is."""
    folder = tmp_path_factory.mktemp("teacher") / "model"
    make_retriever(teacher_folder, normalise="unit", pooling="mean").save(folder)
    return folder


# --- data ------------------------------------------------------------------------------------------------------------
def test_an_epoch_shows_every_text_once_and_lengths_together(tiny_collection: Path) -> None:
    passages, queries = (read_table(tiny_collection / f"{n}.parquet")["text"] for n in ("corpus", "queries.train"))
    data, again = (AlignData(passages, queries, 8, seed=3) for _ in range(2))
    assert data.steps == 26  # of 208 texts
    batches = [data.batch(step) for step in range(52)]
    assert all(again.batch(s) == batches[s] for s in (51, 0, 30))  # whatever was asked for before
    for epoch in (batches[:26], batches[26:]):
        assert sorted(t for b in epoch for t in b.passages) == sorted(passages.to_pylist())
        assert sorted(t for b in epoch for t in b.queries) == sorted(queries.to_pylist())
    assert batches[:26] != batches[26:]
    spread = [max(map(len, b.queries + b.passages)) - min(map(len, b.queries + b.passages)) for b in batches]
    assert sorted(spread)[26] < 12  # unsorted batches of 8: about 100 characters
    with pytest.raises(LeadError, match=r"batch_size: 300 is more than the 208 texts"):
        AlignData(passages, queries, 300, seed=3)


@pytest.mark.parametrize("distance", ["squared", "cosine"])
def test_the_gradient_is_that_of_the_distance_whatever_the_ranks(
    tiny_model: Path, tiny_collection: Path, tmp_path: Path, distance: str
) -> None:
    passages, queries = (read_table(tiny_collection / f"{n}.parquet")["text"] for n in ("corpus", "queries.train"))
    batch = AlignData(passages, queries, 8, seed=3).batch(0)
    assert batch.queries and batch.passages

    def step(cache_above: int = 10**6) -> AlignStep:
        torch.manual_seed(0)
        train = Train(**{**TRAIN, "batch_size": 8, "dropout": 0.0, "cache_above": cache_above})
        student = make_retriever(tiny_model, **SCORING).train()
        teacher = make_retriever(tiny_model, normalise="none", pooling="mean")
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        return AlignStep(student, teacher, train, distance, 3, Taught(folder, 208, teacher.size, Exchange()))

    one = step()
    x, y = [], []
    for model, vectors in ((one.student, x), (one.teacher, y)):
        for side, texts in (("query", batch.queries), ("passage", batch.passages)):
            for text in texts:
                features = model.encode(model.tokenize(side, [text]), (4,))
                vectors.append(model.vectors(features)[0])
    pairs = list(zip(x, y, strict=True))
    if distance == "squared":
        want = sum((a - b).square().sum() for a, b in pairs) / 8
    else:
        want = sum(1 - (a @ b) / (a.norm() * b.norm()) for a, b in pairs) / 8
    want.backward()
    expected = {n: p.grad.clone() for n, p in one.student.named_parameters() if p.grad is not None}
    for cache_above, world in ((10**6, 1), (1, 1), (10**6, 2)):
        made = step(cache_above)
        losses = []
        for rank in range(world):
            part = batch.shard(rank, world)
            losses.append(made(made.prepare(part), 0).total.item())  # gradients add up
        assert sum(losses) / world == pytest.approx(want.item(), rel=1e-5, abs=1e-6)
        for name, p in made.student.named_parameters():
            if name in expected:
                assert torch.allclose(p.grad / world, expected[name], atol=1e-5), name
        assert all(p.grad is None for p in made.teacher.parameters())
        assert made.taught.known(batch.rows).all() and not made.prepare(batch).inputs["teacher"]["texts"]


# --- the stage -------------------------------------------------------------------------------------------------------
def test_a_stopped_alignment_ends_in_the_same_bytes_in_the_teachers_space(
    tiny_model: Path, tiny_collection: Path, teacher: Path, tmp_path: Path
) -> None:
    """32 outputs become 16. The student's queries then find the teacher's vectors of the same texts."""
    more = tmp_path / "more.txt"
    more.write_text("".join(f"{words}\n\n" for words in TOPICS.values()), encoding="utf-8")
    more_queries = tmp_path / "more.jsonl"
    more_queries.write_text("".join(f'{{"_id": "{n}", "text": "what is {n}"}}\n' for n in range(16)), encoding="utf-8")
    given = settings(tiny_model), files(tiny_collection, teacher) | {"texts": [more], "more_queries": [more_queries]}
    whole, cut = outputs(tmp_path / "whole"), outputs(tmp_path / "cut")
    align(settings=given[0], gpu=0, start=None, **given[1], **whole)

    def stop() -> None:
        while not list(cut["state"].glob("*/step-00000010")):
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGTERM)

    watch = threading.Thread(target=stop)
    watch.start()
    with pytest.raises(Preempted):
        align(settings=given[0], gpu=0, start=None, **given[1], **cut)
    watch.join()
    assert not cut["out"].exists()
    align(settings=given[0], gpu=0, start=None, **given[1], **cut)
    assert_same(cut, whole, ("out",))
    lines = whole["metrics"].read_text().splitlines()
    assert len([line for line in lines if '"loss"' in line]) == 29  # 232 texts in batches of 8
    student = LayeredModel.load(whole["out"])
    assert student.size == 16 and student.n_layers == 3  # the linear layer is the last


def test_passages_that_the_teacher_has_encoded_are_not_encoded_again(
    tiny_model: Path, tiny_collection: Path, teacher: Path, tmp_path: Path
) -> None:
    vectors, queries = tmp_path / "passages.parquet", tmp_path / "queries.parquet"
    for name, out in ("corpus", vectors), ("queries.train", queries):
        texts = tiny_collection / f"{name}.parquet"
        encode(settings=EncodeSettings(precision="fp32"), gpu=0, model=teacher, texts=texts, out=out)
    found = {}
    for name, passages in ("with", [vectors]), ("without", None):
        paths = outputs(tmp_path / name) | {"passages": passages}
        align(settings=settings(tiny_model), gpu=0, start=None, **files(tiny_collection, teacher), **paths)
        lines = [json.loads(line) for line in paths["metrics"].read_text().splitlines()]
        found[name] = [line["loss"]["align"] for line in lines if "loss" in line]
    assert len(found["with"]) == 26 and found["with"] == pytest.approx(found["without"], rel=1e-3)
    with pytest.raises(LeadError, match="queries.parquet is not the teacher's vectors of the corpus"):
        paths = outputs(tmp_path / "other") | {"passages": [queries]}
        align(settings=settings(tiny_model), gpu=0, start=None, **files(tiny_collection, teacher), **paths)


def test_bounds_of_steps_are_in_order() -> None:
    with pytest.raises(LeadError, match=r"x.yaml: key 'between': give the fewest steps first: \[20, 40\]"):
        validate(Align, {"between": [40, 20]}, "x.yaml")


def test_a_small_collection_gets_more_passes(
    tiny_model: Path, tiny_collection: Path, teacher: Path, tmp_path: Path
) -> None:
    """26 steps are an epoch: half of one would be 13."""
    train = Train(batch_size=8, precision="fp32", dev_queries=0)
    own, paths = settings(tiny_model, train=train, epochs=0.5, between=[20, 40]), outputs(tmp_path / "run")
    align(settings=own, gpu=0, start=None, **files(tiny_collection, teacher), **paths)
    assert len(paths["metrics"].read_text().splitlines()) == 20
    assert [align_steps(epochs, [20, 40], 26) for epochs in (1.0, 9.0)] == [26, 40]


def test_an_aligned_student_is_close_to_its_teacher(
    teacher_folder: Path, tiny_model: Path, tiny_collection: Path, tmp_path: Path
) -> None:
    """From 16 outputs to the 32 of its teacher."""
    make_retriever(tiny_model, normalise="unit", pooling="mean").save(tmp_path / "teacher")
    train = Train(steps=120, batch_size=16, precision="fp32", dropout=0.0, lr=5e-3, dev_queries=0)
    own = settings(
        teacher_folder, train=train, epochs=None, scoring=Scoring(normalise="unit", pooling="mean"),
        model=ModelRef(reference=f"path:{teacher_folder}"),
    )  # fmt: skip
    paths = outputs(tmp_path / "run")
    align(settings=own, gpu=0, start=None, **files(tiny_collection, tmp_path / "teacher"), **paths)
    texts = read_table(tiny_collection / "queries.test.parquet")["text"].to_pylist()
    x, y = [], []
    for folder, found in ((paths["out"], x), (tmp_path / "teacher", y)):
        model: Any = LayeredModel.load(folder).eval()
        with torch.no_grad():
            found.append(model.vectors(model.encode(model.tokenize("query", texts), (model.n_layers,))))
    cosines = x[0] @ y[0].T
    assert cosines.shape == (12, 12) and float(cosines.diag().mean()) > 0.8
    start = paths["out"]
    with pytest.raises(LeadError, match=r"needs one of settings.model .* and --start"):
        align(settings=own, gpu=0, start=start, **files(tiny_collection, tmp_path / "teacher"), **paths)


def test_files_of_texts_are_passages_and_those_of_queries_queries(
    tiny_model: Path, tiny_collection: Path, tmp_path: Path
) -> None:
    (tmp_path / "more.txt").write_text("\n".join(f"text {n}" for n in range(8)), encoding="utf-8")
    (tmp_path / "asked.tsv").write_text("\n".join(f"q{n}\twhat is {n}" for n in range(8)), encoding="utf-8")
    passages, queries = (read_table(tiny_collection / f"{n}.parquet")["text"] for n in ("corpus", "queries.train"))
    files = [tmp_path / "more.txt"], [tmp_path / "asked.tsv"]
    data = align_data(settings(tiny_model), passages, queries, *files, tmp_path / "state")
    epoch = [data.batch(step) for step in range(data.steps)]
    more = {f"text {n}" for n in range(8)}, {f"what is {n}" for n in range(8)}
    assert {t for batch in epoch for t in batch.passages} == set(passages.to_pylist()) | more[0]
    assert {t for batch in epoch for t in batch.queries} == set(queries.to_pylist()) | more[1]


def test_other_sizes_than_the_teachers_are_refused(
    tiny_model: Path, tiny_collection: Path, teacher: Path, tmp_path: Path
) -> None:
    make_retriever(tiny_model, **SCORING).save(tmp_path / "start")
    with pytest.raises(LeadError, match=r"32 outputs, the teacher's 16; give the student `linear: {size: 16}`"):
        align(
            settings=settings(tiny_model, model=None), gpu=0, start=tmp_path / "start",
            **files(tiny_collection, teacher), **outputs(tmp_path / "run"),
        )  # fmt: skip


# --- the plan --------------------------------------------------------------------------------------------------------
ROW = "aligned: {method: align, init: student, teacher: teacher_de}"


def plan(folder: Path, *rows: str, **given: Any) -> Plan:
    with (folder / "experiments.yaml").open("a", encoding="utf-8") as file:
        file.writelines(f"  {row}\n" for row in rows)
    return Plan(load(folder / "config.yaml", {"settings": given}))


def test_alignment_reads_no_negatives_and_a_rate_of_its_own(tmp_path: Path) -> None:
    folder = empty_project(tmp_path)
    made = plan(folder, ROW, "rd_aligned: {method: rd, start: aligned, teacher: teacher_cb}", train={"lr": 1e-5})
    job = made["tiny", "aligned"]
    read = stage_settings(job, "align")
    assert job.stages == ["align", "encode", "retrieve", "evaluate"]
    assert (read["train"]["lr"], read["train"]["batch_size"], read["epochs"]) == (3e-4, 32, 3.0)
    assert "negatives" not in read["train"] and "steps" not in read["train"]
    assert made.rows.reference("aligned", 2) == "aligned"  # a start that all seeds share
    assert "miner" in made.rows.ancestors("aligned")  # through its teacher alone
    assert made.rows.generation("rd_aligned") == 2
    given = plan(folder, phases={"align": {"steps": 7, "lr": 1e-3}})["tiny", "aligned"]
    read = stage_settings(given, "align")
    assert (read["train"]["steps"], read["train"]["lr"], read["epochs"]) == (7, 1e-3, None)


def test_the_aligned_phase_is_read_by_runs_that_start_from_an_aligned_student_only(tmp_path: Path) -> None:
    folder = empty_project(tmp_path)
    rd = "rd_aligned: {method: rd, start: aligned, teacher: teacher_cb}"
    made = plan(folder, ROW, rd, phases={"distil": {"lr": 1e-4}, "aligned": {"lr": 5e-4}})
    rates = {run: made["tiny", run].settings.train.lr for run in ("rd_aligned", "rd_cb", "student_more", "aligned")}
    assert rates == {"rd_aligned": 5e-4, "rd_cb": 1e-4, "student_more": 1e-4, "aligned": 3e-4}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (ROW.replace("teacher_de", "teacher_cb"), "key 'teacher': 'teacher_cb' is a ColBERT; alignment is"),
        ("a: {method: align, init: student, kind: cb, teacher: teacher_de}", "'a' is a ColBERT; alignment is of one"),
        ("a: {method: align, init: student}", "method align needs `teacher`"),
        ("a: {method: align, teacher: teacher_de}", "method align needs one of `init` and `start`"),
        ("a: {method: contrastive, init: student, settings: {align: {epochs: 2}}}", "'settings.align' is not read"),
    ],
)
def test_rows_that_cannot_be_aligned_are_refused(tmp_path: Path, row: str, says: str) -> None:
    assert says in refusal(lambda: plan(empty_project(tmp_path), row))


def test_what_cannot_be_aligned_is_refused_before_any_work(tmp_path: Path) -> None:
    folder = empty_project(tmp_path)
    (tmp_path / "model" / "config.json").write_text('{"num_hidden_layers": 4, "hidden_size": 32}')
    missing = plan(folder, ROW, align={"texts": ["more.txt"]})
    assert "key 'settings.align.texts': more.txt does not exist" in refusal(lambda: check(missing["tiny", "aligned"]))
    missing = plan(folder, align={"queries": ["asked.tsv"]})
    assert "'settings.align.queries': asked.tsv does not exist" in refusal(lambda: check(missing["tiny", "aligned"]))
    smaller = plan(folder, "again: {method: align, start: student, teacher: teacher_de}",
                   models={"teacher": {"linear": {"size": 16}}})  # fmt: skip
    check(smaller["tiny", "aligned"])  # a linear layer is added
    says = refusal(lambda: check(smaller["tiny", "again"]))
    assert "its vectors have 32 outputs, those of `teacher: teacher_de` have 16" in says


def test_queries_of_the_student_search_the_passages_of_its_teacher(tmp_path: Path) -> None:
    rows = (ROW, "both: {method: asymmetric, start: aligned, passages: teacher_de}")
    folder = empty_project(tmp_path)
    (tmp_path / "model" / "config.json").write_text('{"num_hidden_layers": 4, "hidden_size": 32}')
    made = plan(folder, *rows, "more: {method: contrastive, start: aligned}",
                "later: {method: asymmetric, start: more, passages: teacher_de}")  # fmt: skip
    job = made["tiny", "both"]
    check(job)
    assert job.stages == ["encode", "retrieve", "evaluate"]
    assert job.model == made["tiny", "aligned"].model == "all results/tiny/models/aligned"
    assert job.vectors() == ["all results/tiny/embeddings/teacher_de/passages.parquet"]
    behind = stage_settings(job, "evaluate")["made_by"]["settings"]
    assert {"both.encode", "both.retrieve", "aligned.align", "teacher_de.train", "teacher_de.encode"} <= behind.keys()
    assert made["tiny", "later"].model == "all results/tiny/models/more"


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (
            "a: {method: asymmetric, start: student, passages: teacher_de}",
            "'student' was not aligned with 'teacher_de'",
        ),
        ("a: {method: asymmetric, start: aligned, passages: miner}", "'aligned' was not aligned with 'miner'"),
        ("a: {method: asymmetric, start: aligned}", "method asymmetric needs `passages`"),
    ],
)
def test_models_of_other_spaces_are_refused(tmp_path: Path, row: str, says: str) -> None:
    assert says in refusal(lambda: plan(empty_project(tmp_path), ROW, row))
