"""Scores of pairs as a teacher: `lead score`, files from elsewhere, distillation from them, and their rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from conftest import make_retriever
from dag.project import empty_project, refusal
from steps import SCORING, TRAIN, build, gradients, take
from test_align import plan
from test_resume import inputs, outputs

from lead.config.load import load
from lead.config.schema import Distil, Train
from lead.config.stages import DistilSettings, ScoreSettings
from lead.data.scores import read_scores
from lead.errors import LeadError
from lead.plan.checks import check
from lead.plan.plan import Plan
from lead.plan.stage_settings import stage_settings
from lead.plan.targets import sensible
from lead.retrieval.score import score
from lead.store.tables import read_table
from lead.train.data import Queries, TrainingData
from lead.train.scores import ScoresStep, taught_by
from lead.train.stages import distil


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory, teacher_folder: Path, tiny_collection: Path) -> dict[str, Path]:
    """Scores of the train passages by a teacher of each kind, and its model folder."""
    folder = tmp_path_factory.mktemp("scores")
    files = inputs(tiny_collection)
    found = {}
    for kind in ("de", "cb", "ce"):
        scoring = SCORING | ({"normalise": "none", "layer_normalise": "standard"} if kind == "ce" else {})
        torch.manual_seed(1)
        make_retriever(teacher_folder, kind, **scoring).save(folder / kind)
        score(
            settings=ScoreSettings(depth=6, precision="fp32"), gpu=0, model=folder / kind, corpus=files["corpus"],
            queries=[files["queries"]], qrels=[files["qrels"]], negatives=files["negatives"],
            out=folder / f"{kind}.parquet",
        )  # fmt: skip
        found[kind] = folder / f"{kind}.parquet"
    return found


def data_of(collection: Path, scores: list[Path], weights: list[float] | None = None) -> TrainingData:
    files = inputs(collection)
    corpus = read_table(files["corpus"], "corpus")
    queries = Queries(corpus["pid"], files["queries"], files["qrels"], files["negatives"], 1, 10)
    taught_by(scores, weights, queries, corpus["pid"])
    return TrainingData(corpus, queries, 4, 2, seed=5)


def student(tiny_model: Path, method: str, **train: Any) -> ScoresStep:
    options = Train(**{**TRAIN, "dropout": 0.0, **train})
    return ScoresStep(make_retriever(tiny_model, **SCORING).train(), options, Distil(candidates="own"), 3, method)


@pytest.mark.parametrize("kind", ["de", "cb", "ce"])
@pytest.mark.parametrize("method", ["rd", "margin_mse"])
def test_stored_scores_teach_as_their_model_does(
    scored: dict[str, Path], tiny_model: Path, teacher_folder: Path, tiny_collection: Path, kind: str, method: str
) -> None:
    step = student(tiny_model, method)
    data = data_of(tiny_collection, [scored[kind]])
    batch = next(b for b in map(data.batch, range(9)) if not b.taught.isnan().any())  # no negative drawn at random
    live = build(tiny_model, teacher_folder, "de", method, Distil(candidates="own"), dropout=0.0)
    from lead.models.base import LayeredModel

    live.teacher = LayeredModel.load(scored[kind].with_suffix("")).eval().requires_grad_(False)
    live.alike = False
    a, b = take(step, batch, 0), take(live, batch, 0)
    assert a.parts["rep"].item() == pytest.approx(b.parts["rep"].item(), rel=2e-2 if kind == "cb" else 1e-4)
    assert a.parts["stu"].item() == pytest.approx(b.parts["stu"].item(), rel=1e-5)
    got, want = gradients(step), gradients(live)
    name = "student.encoder.encoder.layer.0.attention.self.query.weight"
    assert torch.allclose(got[name], want[name], atol=2e-2 * float(want[name].abs().max()))


def write_tsv(path: Path, table: pa.Table, header: bool = False) -> Path:
    lines = ["qid\tpid\tscore\n"] if header else []
    lines += [f"{row['qid']}\t{row['pid']}\t{row['score']!r}\n" for row in table.to_pylist()]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def test_files_from_elsewhere_and_weights(scored: dict[str, Path], tiny_collection: Path, tmp_path: Path) -> None:
    tables = {kind: read_scores(path) for kind, path in scored.items()}
    tsv = write_tsv(tmp_path / "ce.tsv", tables["ce"], header=True)
    assert read_scores(tsv).equals(tables["ce"])
    one, two, both = (
        data_of(tiny_collection, files, weights).batch(0).taught
        for files, weights in (([scored["de"]], None), ([tsv], None), ([scored["de"], tsv], [0.5, 2.0]))
    )
    assert torch.allclose(0.5 * one + 2.0 * two, both, atol=1e-5)


def test_pairs_without_a_score_are_left_out(
    scored: dict[str, Path], tiny_model: Path, tiny_collection: Path, tmp_path: Path
) -> None:
    """Queries without a scored positive, negatives without a score; random negatives are masked."""
    table = read_scores(scored["de"])
    negatives = read_table(tiny_collection / "negatives.parquet")
    one = {(r["qid"], r["pid"]) for r in negatives.to_pylist() if r["rank"] == 1}
    relevant = {(r["qid"], r["pid"]) for r in read_table(tiny_collection / "qrels.train.parquet").to_pylist()}
    some = [r for r in table.to_pylist() if (r["qid"], r["pid"]) in relevant | one and r["qid"] != "train3"]
    data = data_of(tiny_collection, [write_tsv(tmp_path / "some.tsv", pa.Table.from_pylist(some))])
    assert len(data.queries) == 47 and "train3" not in data.queries.qids.to_pylist()
    batch = data.batch(2)
    assert not batch.taught[:, 0].isnan().any() and batch.taught[:, 2].isnan().all()  # one scored negative a query
    assert torch.equal(batch.shard(1, 2).taught.nan_to_num(), batch.taught[2:].nan_to_num())
    loss = take(student(tiny_model, "rd"), batch, 0)
    assert torch.isfinite(loss.total)
    with pytest.raises(LeadError, match="no scored pair is one of this dataset's train queries"):
        data_of(
            tiny_collection,
            [write_tsv(tmp_path / "other.tsv", pa.table({"qid": ["x"], "pid": ["p1"], "score": [1.0]}))],
        )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("q1\tp1\t1.0\nq1\tp1\t2.0\n", "is scored twice"),
        ("q1\tp1\tnan\n", "NaN or infinite"),
        ("q1\tp1\t1.0\nq1\tp2\t\n", "a score is missing"),
        ("q1\tp1\t1.0\nq1\tp2\tnan\n", "NaN or infinite"),
        ("q1\tp1\n", "between tabs"),
        ("q1\tp1\thigh\n", "between tabs"),
    ],
)
def test_bad_files_of_scores_are_one_line(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "s.tsv").write_text(text)
    assert says in refusal(lambda: read_scores(tmp_path / "s.tsv"))


def test_the_stage(scored: dict[str, Path], tiny_model: Path, tiny_collection: Path, tmp_path: Path) -> None:
    make_retriever(tiny_model, **SCORING).save(tmp_path / "start")
    settings = DistilSettings(
        method="rd", train=Train(**{**TRAIN, "steps": 3}), score_weights=[1.0, 0.5], distil=Distil(tau=2.0)
    )
    given = {**inputs(tiny_collection), "start": tmp_path / "start", "teacher_out": None, **outputs(tmp_path)}
    distil(settings=settings, gpu=0, teacher=None, scores=[scored["cb"], scored["ce"]], **given)
    assert (tmp_path / "student" / "lead.json").exists() and not (tmp_path / "state").exists()
    lead = settings.model_copy(update={"method": "lead"})
    for more, says in (
        ({"settings": lead, "teacher": None, "scores": [scored["cb"]]}, "method lead needs a teacher's layers"),
        ({"settings": settings, "teacher": None}, "one of --teacher"),
    ):
        assert says in refusal(lambda more=more: distil(gpu=0, **{**given, **more}))


# --- the plan --------------------------------------------------------------------------------------------------------
def test_runs_and_files_of_a_dataset_are_named_alike(tmp_path: Path) -> None:
    folder = empty_project(tmp_path)
    with (folder / "datasets" / "tiny.yaml").open("a") as file:
        file.write("scores: {gpt: ../../gpt.tsv}\n")
    made = plan(folder, "x: {method: rd, start: student, scores: {teacher_ce: 0.5, gpt: 2}}")
    job = made["tiny", "x"]
    assert job.scores == ["all results/tiny/scores/teacher_ce.parquet", str(folder / "datasets" / "../../gpt.tsv")]
    assert stage_settings(job, "distil")["score_weights"] == [0.5, 2.0]
    assert {"teacher_ce", "student", "miner"} <= set(made.rows.ancestors("x")) and made.rows.scored() == ["x"]
    assert "x" not in made.rows.frozen() and "score_weights" not in stage_settings(made["tiny", "rd_cb"], "distil")
    assert "key 'scores': " in refusal(lambda: check(job)) and "gpt.tsv does not exist" in refusal(lambda: check(job))
    (tmp_path / "data/queries.train.jsonl").write_text('{"_id": "q7", "text": "what"}\n', encoding="utf-8")
    for text, says in (
        ("", "gpt.tsv cannot be read as qid, pid and score between tabs"),
        ("q7\tp1\n", "gpt.tsv cannot be read as qid, pid and score between tabs"),
        ("q7\tp1\tgood\n", "gpt.tsv cannot be read as qid, pid and score between tabs"),
        ("7\tp1\t0.5\n", "gpt.tsv: no query id such as 7 is one of the train queries"),
    ):
        (tmp_path / "gpt.tsv").write_text(text, encoding="utf-8")
        assert says in refusal(lambda: check(job))
    (tmp_path / "gpt.tsv").write_text("7\tp1\t0.5\n" * 2000 + "q7\tp1\t0.5\n", encoding="utf-8")
    assert "is scored twice" in refusal(lambda: check(job))
    (tmp_path / "gpt.tsv").write_text("q7\tp1\t0.5\n", encoding="utf-8")
    check(job)
    assert "no run 'gpt' with a model" in refusal(lambda: check(made["docs", "x"]))
    assert "x" in sensible(made, "tiny") and "x" not in sensible(made, "docs")
    assert "teacher_ce.score" in stage_settings(job, "evaluate")["made_by"]["settings"]


def test_another_seed_learns_from_the_scores_of_its_own_chain(tmp_path: Path) -> None:
    folder = empty_project(tmp_path)
    row = "x: {method: rd, start: student, scores: {teacher_ce: 0.5, rd_cb: 1, gpt: 2}}"
    assert plan(folder, row).rows["x-s2"].scores == {"teacher_ce": 0.5, "rd_cb-s2": 1.0, "gpt": 2.0}
    chain = Plan(load(folder / "config.yaml", {"seeds": "chain"}))
    assert chain.rows["x-s2"].scores == {"teacher_ce-s2": 0.5, "rd_cb-s2": 1.0, "gpt": 2.0}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("x: {method: rd, start: student, scores: {x: 1}}", "run 'x' depends on itself"),
        (
            "x: {method: rd, start: student, scores: {y: 1}}\n"
            "  y: {method: contrastive, start: student, passages: teacher_de}",
            "key 'scores': 'y' encodes queries only",
        ),
        ("x: {method: lead, start: student, scores: {teacher_ce: 1}}", "method lead needs a teacher's layers"),
        ("x: {method: rd, start: student, teacher: teacher_cb, scores: {teacher_ce: 1}}", "without `teacher` only"),
        ("x: {method: rd, start: student}", "method rd needs `teacher`"),
    ],
)
def test_rows_that_scores_cannot_teach_are_refused(tmp_path: Path, row: str, says: str) -> None:
    assert says in refusal(lambda: plan(empty_project(tmp_path), row))
