"""Runs of other seeds, chains of runs, and runs with a cross encoder."""

from __future__ import annotations

from collections import UserDict
from pathlib import Path
from typing import Any

import pytest
from conftest import make_tokenizer
from dag.project import empty_project, refusal, replace

from lead.config.load import load
from lead.errors import LeadError
from lead.plan.checks import check
from lead.plan.plan import Plan
from lead.plan.rows import split_seed
from lead.plan.snakemake import one_of, recipes
from lead.plan.stage_settings import stage_settings
from lead.plan.targets import check_target, sensible, targets, twin
from lead.pretrained import vocabulary_sum


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return empty_project(tmp_path)


def plan(folder: Path, seeds: str = "distil", **settings: Any) -> Plan:
    return Plan(load(folder / "config.yaml", {"seeds": seeds, "settings": settings}))


def test_another_seed_shares_the_warm_up_or_makes_the_whole_chain_anew(folder: Path) -> None:
    shared, chain = plan(folder), plan(folder, "chain")
    base = "all results/tiny/models"
    assert shared["tiny", "lead_cb-s2"].start == [f"{base}/student"]
    assert chain["tiny", "lead_cb-s2"].start == [f"{base}/student-s2"]
    assert shared["tiny", "lead_cb-s3"].teacher == f"{base}/teacher_cb"
    assert chain["tiny", "lead_cb-s3"].teacher == f"{base}/teacher_cb-s3"
    for made in (shared, chain):
        assert made["tiny", "lead_cb_teacher-s2"].model == f"{base}/lead_cb-s2_teacher"
    assert chain["tiny", "miner-s2"].negatives.endswith("negatives/bm25.parquet")
    assert chain["tiny", "student-s2"].negatives.endswith("negatives/miner-s2.parquet")
    assert chain["tiny", "teacher_cb-s2"].rerank_from.endswith("runs/teacher_de-s2.parquet")
    assert shared["tiny", "teacher_cb-s2"].rerank_from.endswith("runs/teacher_de.parquet")


def test_a_seed_changes_the_seed_and_nothing_else(folder: Path) -> None:
    made = plan(folder)
    first, third = (
        stage_settings(made["tiny", "lead_cb"], "distil"),
        stage_settings(made["tiny", "lead_cb-s3"], "distil"),
    )
    assert third == {**first, "seed": first["seed"] + 2}
    assert made["tiny", "lead_cb-s3"].stages == made["tiny", "lead_cb"].stages
    assert "lead_cb-s3.distil" in stage_settings(made["tiny", "lead_cb-s3"], "evaluate")["made_by"]["settings"]


@pytest.mark.parametrize("run", ["bm25-s2", "lead_cb-s1", "lead_cb-s0", "nothing-s2", "lead_cb-sx", "lead_cb-s02"])
def test_what_is_no_seed_of_a_run_is_refused(folder: Path, run: str) -> None:
    assert refusal(lambda: check(plan(folder)["tiny", run])).startswith(f"no run '{run}' in ")


def test_rules_match_a_run_and_its_seeds() -> None:
    import re

    pattern = re.compile(one_of(["lead_cb"]))
    for name in ("lead_cb", "lead_cb-s2", "lead_cb-s10"):
        assert pattern.match(name)
    for name in ("lead_cb-s1", "lead_cb-s", "lead_cb_teacher", "lead_cb-s2_teacher", "xlead_cb"):
        assert not pattern.match(name)
    assert split_seed("a-s10") == ("a", 10)


def test_a_row_may_not_look_like_a_seed(folder: Path) -> None:
    with (folder / "experiments.yaml").open("a") as f:
        f.write("  x-s2: {method: contrastive, init: student}\n")
    assert "names that end in -s2" in refusal(lambda: plan(folder))


def test_the_cross_phase_is_read_by_runs_with_a_cross_encoder_only(folder: Path) -> None:
    with (folder / "presets" / "tiny.yaml").open("a") as f:
        f.write("phases: {cross: {batch_size: 3}, teacher: {batch_size: 5}, distil: {steps: 4}}\n")
    text = (folder / "presets" / "tiny.yaml").read_text().replace("phases:\n  distil: {steps: 4}\n", "")
    (folder / "presets" / "tiny.yaml").write_text(text)
    made = plan(folder)
    assert stage_settings(made["tiny", "teacher_ce"], "train")["train"]["batch_size"] == 3
    assert stage_settings(made["tiny", "lead_ce"], "distil")["train"]["batch_size"] == 3
    assert stage_settings(made["tiny", "teacher_cb"], "train")["train"]["batch_size"] == 5
    assert stage_settings(made["tiny", "lead_cb"], "distil")["train"]["batch_size"] == 4


def test_a_teacher_that_goes_on_alone_has_the_rate_of_a_jointly_trained_one(folder: Path) -> None:
    with (folder / "experiments.yaml").open("a") as f:
        f.write("  teacher_cb_more: {method: contrastive, start: teacher_cb}\n")
    path = folder / "presets" / "tiny.yaml"
    path.write_text(path.read_text().replace("lr: 1e-3", "lr: 1e-3, teacher_lr: 2e-5"))
    made = plan(folder)
    assert stage_settings(made["tiny", "teacher_cb_more"], "train")["train"]["lr"] == 2e-5
    assert stage_settings(made["tiny", "student_more"], "train")["train"]["lr"] == 1e-3
    assert stage_settings(made["tiny", "teacher_cb"], "train")["train"]["lr"] == 1e-3


def test_a_run_that_learns_queries_only_searches_the_passages_of_another(folder: Path) -> None:
    with (folder / "experiments.yaml").open("a") as f:
        f.write("  adore: {method: contrastive, start: student, passages: student}\n")
        f.write("  again: {method: contrastive, start: adore, passages: student, negatives: adore}\n")
    made, base = plan(folder, "chain"), "all results/tiny"
    passages = [f"{base}/embeddings/student/passages.parquet"]
    assert (
        made["tiny", "adore"].passages == made["tiny", "adore"].vectors() == made["tiny", "again"].vectors() == passages
    )
    assert made["tiny", "adore-s2"].vectors() == [f"{base}/embeddings/student-s2/passages.parquet"]
    assert made["tiny", "student"].passages == [] and made["tiny", "adore"].model == f"{base}/models/adore"
    assert made["tiny", "again"].negatives == f"{base}/negatives/adore.parquet"
    made_by = stage_settings(made["tiny", "again"], "evaluate")["made_by"]["settings"]
    assert {"again.train", "adore.train", "adore.mine", "student.train", "student.encode"} <= set(made_by)
    assert made["tiny", "adore"].stages == ["train", "encode", "retrieve", "evaluate"]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("{method: contrastive, start: adore}", "'adore' encodes queries only; give `passages: student` too"),
        ("{method: rd, start: student, teacher: adore}", "key 'teacher': 'adore' encodes queries only; name another"),
        ("{method: contrastive, start: student, passages: adore}", "key 'passages': 'adore' encodes queries only; na"),
        ("{method: contrastive, start: student, passages: teacher_cb}", "'teacher_cb' is a ColBERT; `passages` needs "),
        ("{method: contrastive, start: teacher_cb, passages: student}", "'teacher_cb' is a ColBERT; `passages` needs "),
        ("{method: contrastive, start: student, passages: nobody}", "key 'passages': no run 'nobody' with a model"),
        ("{method: contrastive, init: student, passages: student}", "`passages` is read by method contrastive"),
        ("{method: rd, start: student, teacher: student, passages: student}", "`passages` is read by method contrast"),
        ("{method: contrastive, start: student, passages: student, denoise: teacher_ce}", "leave `denoise` out"),
    ],
)  # fmt: skip
def test_a_model_of_queries_is_not_taken_for_one_of_passages(folder: Path, row: str, says: str) -> None:
    with (folder / "experiments.yaml").open("a") as f:
        f.write(f"  adore: {{method: contrastive, start: student, passages: student}}\n  x: {row}\n")
    assert says in refusal(lambda: plan(folder))


@pytest.mark.parametrize(
    ("row", "key"),
    [
        ("{method: rd, start: student, teacher: teacher_cb, settings: {distil: {layers: {k: 2}}}}", "layers"),
        ("{method: rd, start: student, teacher: teacher_cb, settings: {distil: {weights: {lyr: 0.5}}}}", "weights.lyr"),
        ("{method: fd, start: student, teacher: teacher_de, settings: {distil: {tau: 2.0}}}", "tau"),
        ("{method: margin_mse, start: student, teacher: teacher_ce, settings: {distil: {tau: 2.0}}}", "tau"),
        ("{method: lead, start: student, teacher: teacher_cb, settings: {distil: {map_layers: last}}}", "map_layers"),
    ],
)
def test_a_key_that_its_method_does_not_read_is_refused(folder: Path, row: str, key: str) -> None:
    """Otherwise an ablation would run as what it is an ablation of."""
    with (folder / "experiments.yaml").open("a") as f:
        f.write(f"  x: {row}\n")
    assert f"run 'x': key 'settings.distil.{key}' is not read by this run" in refusal(lambda: plan(folder))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"scoring": {"ce": {"normalise": "unit"}}}, "'settings.scoring.ce'.*one number"),
        ({"models": {"teacher": {"linear": {"size": 16}}}}, "run 'teacher_ce' on 'tiny'.*must be its width, 32"),
        ({"scoring": {"cb": {"markers": True}}}, "run 'fd_cb' on 'tiny': method fd: scoring.cb.markers"),
        ({"models": {"student": {"linear": {"size": 16}}}}, "run 'adore' .*'student' has 16 outputs.*teacher_de` have"),
    ],
)
def test_what_a_model_cannot_do_is_refused_before_any_work(folder: Path, settings: dict[str, Any], says: str) -> None:
    (folder.parent / "model" / "config.json").write_text('{"num_hidden_layers": 4, "hidden_size": 32}')
    with (folder / "experiments.yaml").open("a") as f:
        f.write("  fd_cb: {method: fd, start: student, teacher: teacher_cb}\n")
        f.write("  adore: {method: contrastive, start: student, passages: teacher_de}\n")
    runs = ("teacher_ce", "student", "fd_cb", "adore")
    with pytest.raises(LeadError, match=says):
        made = plan(folder, **settings)
        for run in runs:
            check(made["tiny", run])
    if "'settings." not in says:  # what is refused is not asked for either
        refused = next(run for run in runs if f"run '{run}" in says)
        assert refused not in sensible(made, "tiny") and "bm25" in sensible(made, "tiny")


def test_the_papers_hyper_parameters() -> None:
    """Table 10; Table 4 says which K is LEAD's."""
    made = Plan(load("config/config.yaml"))
    for dataset, length, batch, crossed, k in (("mspas", 144, 80, 16, 5), ("msdoc", 480, 48, 8, 6)):
        for run in ("miner", "student", "teacher_de", "teacher_cb", "lead_de", "lead_cb", "teacher_ce", "lead_ce"):
            s = made[dataset, run].settings
            ce = run.endswith("_ce")
            assert (s.lengths.query, s.lengths.passage, s.distil.tau, s.train.warmup) == (32, length, 1.0, 0.1)
            assert (s.train.steps, s.train.lr, s.train.teacher_lr) == (50000, 5e-5, None)
            assert (s.train.batch_size, s.train.negatives) == ((crossed, 15) if ce else (batch, 16))
            assert s.distil.layers.k == k


def test_the_released_codes_rates_and_steps() -> None:
    """The scripts in its folders data_preprocess, warm_up and distillation."""
    made = Plan(load("config/config.yaml"))
    made.loaded.datasets["mspas"] = (made.loaded.datasets["mspas"][0].model_copy(update={"preset": "simxns"}), Path())
    of = {
        **dict.fromkeys(("miner", "student", "teacher_de", "teacher_cb"), (20000, 2e-5)),
        **dict.fromkeys(("lead_cb", "student_more"), (50000, 2e-5)),
        **{"teacher_ce": (20000, 1e-5), "lead_ce": (100000, 5e-5), "teacher_ce_more": (100000, 5e-5)},
    }
    for run, expected in of.items():
        train = made["mspas", run].settings.train
        assert (train.steps, train.lr, train.weight_decay, train.clip) == (*expected, 0.0, 2.0)
    distil = made["mspas", "lead_cb"].settings.distil
    assert (distil.layer_weights, distil.layer_weights_tau, distil.tau) == ("batch", 10.0, 1.0)


def test_the_projects_own_rows_and_datasets() -> None:
    made = Plan(load("config/config.yaml"))
    assert "lead_cb_k6" not in sensible(made, "demo") and "lead_cb_k3" in sensible(made, "demo")
    for run in sensible(made, "pydocs"):
        stage_settings(made["pydocs", run], "evaluate")
    same = {
        d: [(n, t) for n in sensible(made, d) if (t := twin(made[d, n])) != n] for d in ("pydocs", "mspas", "msdoc")
    }
    names = [("best_unlabelled", "student_aligned")], [("lead_best", "lead_cb_aligned_frozen")]
    assert list(same.values()) == [
        [*names[0], (f"lead_cb_k{k}", "lead_cb"), *names[1]] for k in (3, 5, 6)
    ]  # own K each
    stems = [Path(target).stem for target in targets(made, "pydocs")]
    assert {"lead_cb_k1", "lead_cb_k2"} < set(stems) and "lead_cb_k3" not in stems
    assert made.rows.kind("lead_ce_teacher").name == "ce" and made.rows.kind("prod_lead_s3").name == "de"
    tct, margin = made["demo", "tct_colbert"].settings.distil, made["demo", "margin_mse"].settings.distil
    assert (tct.tau, tct.weights.stu, tct.weights.rep) == (0.25, 0.1, 0.9)
    assert (margin.weights.stu, margin.weights.rep) == (0.0, 1.0)
    # what is compared sees the same batches, and none that its warm-up saw
    assert {made.rows.generation(r) for r in ("student_more", "rd_de", "lead_cb", "fd_ce", "ance_r1", "rd_cb-s2")} == {
        1
    }
    assert [made.rows.generation(run) for run in ("teacher_cb", "prod_lead_s2", "prod_lead_s3", "ance_r2")] == [
        0,
        2,
        3,
        2,
    ]
    assert made["demo", "lead_cb_linear"].start == ["results/demo/models/student_linear"]
    assert stage_settings(made["demo", "student_linear"], "train")["model"]["linear"] == {
        "size": None,
        "identity": True,
    }


def test_an_evaluation_set_shares_all_but_its_lists(folder: Path) -> None:
    test = "{queries: ../../data/queries.test.jsonl, qrels: ../../data/test.tsv}"
    extra = folder / "datasets" / "extra.yaml"
    extra.write_text(f"source: {{kind: evaluation, of: tiny, test: {test}}}\nsettings: {{retrieval: {{depth: 7}}}}\n")
    made = plan(folder)
    assert made.collections() == ["docs", "tiny"] and made.evaluations() == ["extra"]
    assert made["extra", "lead_cb"].model == made["tiny", "lead_cb"].model
    assert made.datasets["extra"].corpus == "all results/tiny/data/corpus.parquet"
    assert made["extra", "teacher_cb"].rerank_from == "all results/extra/runs/teacher_de.parquet"
    assert stage_settings(made["extra", "lead_cb"], "distil") == stage_settings(made["tiny", "lead_cb"], "distil")
    assert stage_settings(made["extra", "lead_cb"], "retrieve") == {"depth": 7}
    # BM25's lists are the set's own, the negatives that a model was trained with are not
    for run, depth in (("bm25", 7), ("student", 60)):
        assert stage_settings(made["extra", run], "evaluate")["made_by"]["settings"]["bm25.bm25"]["depth"] == depth
    assert sorted(Path(f).name for f in made.datasets["extra"].source_files) == ["queries.test.jsonl", "test.tsv"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "source: {kind: evaluation, of: tyni, test: x}",
            "key 'source.of': no dataset 'tyni' with a corpus; valid:",
        ),
        ("source: {kind: evaluation, of: tiny, test: x}\npreset: tiny", "key 'preset' is that of the dataset 'tiny'"),
        ("source: {kind: evaluation, of: extra, test: x}", "key 'source.of': no dataset 'extra' with a corpus"),
    ],
)
def test_a_mistake_in_an_evaluation_set_is_one_line(folder: Path, text: str, says: str) -> None:
    (folder / "datasets" / "extra.yaml").write_text(text)
    assert says in refusal(lambda: plan(folder))


def test_shards_and_gpus_are_the_collections(folder: Path) -> None:
    path = folder / "datasets" / "tiny.yaml"
    path.write_text(path.read_text().replace("preset: tiny", "preset: tiny\nshards: 2\ngpus: 4\nruns: [lead_bc]"))
    made = plan(folder)
    assert made.datasets["tiny"].shards == [".1of2", ".2of2"] and made.datasets["tiny"].gpus == 4
    names = [Path(f).name for f in made["tiny", "student"].vectors()]
    assert names == ["passages.1of2.parquet", "passages.2of2.parquet"]
    assert [Path(f).name for f in made["tiny", "student"].vectors(".2of2")] == names[1:]
    assert made.datasets["tiny"].parts("runs", "student")[1] == "all results/tiny/runs/student/part.2of2.parquet"
    assert made.scattered(True) == ["tiny"] and "docs" in made.scattered(False)
    assert made.datasets["docs"].shards == [""]
    assert made["docs", "student"].vectors() == ["all results/docs/embeddings/student/passages.parquet"]
    wildcards = UserDict(dataset="tiny", run="student", shard=".2of2")
    wildcards.dataset = "tiny"  # type: ignore[attr-defined]
    assert '"shard": "2of2"' in recipes(made)("encode")(wildcards)
    assert "key 'runs': no run 'lead_bc'" in refusal(lambda: targets(made, "tiny"))


def test_targets_are_as_many_seeds_as_are_wanted_and_those_that_are_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = folder / "datasets" / "tiny.yaml"
    replace(tiny, "preset: tiny", "preset: tiny\nruns: [lead_cb, rd_cb]\nrepeats: {lead_cb: 3}")
    results = Path("all results/tiny")
    results.mkdir(parents=True)
    for name in ("rd_cb-s2", "rd_cb-s9", "lead_cb-s2", "student-s2", "rd_cb-same", "rd_cb"):
        (results / f"{name}.json").touch()
    names = ["lead_cb", "rd_cb", "lead_cb-s2", "lead_cb-s3", "rd_cb-s2", "rd_cb-s9"]
    assert targets(plan(folder), "tiny") == [f"{results}/{name}.json" for name in names]
    replace(tiny, "lead_cb: 3", "led_cb: 3")
    says = "key 'repeats': 'led_cb' is no run of this dataset with seeds; did you mean 'lead_cb'"
    assert says in refusal(lambda: targets(plan(folder), "tiny"))
    replace(tiny, "runs: [lead_cb, rd_cb]\nrepeats: {led_cb: 3}", "runs: [bm25, lead_cb]\nrepeats: {bm25: 2}")
    assert "'bm25' is no run of this dataset with seeds" in refusal(lambda: targets(plan(folder), "tiny"))


def test_gpus_that_cannot_share_a_batch_are_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # the paper's models could be downloaded
    made = Plan(load("config/config.yaml"))
    for gpus in (0, 1, 2, 8, 16, None):
        check_target(made, "results/mspas/lead_ce.json", gpus)
    check_target(made, "results/mspas/lead_cb.json", 5)
    check_target(made, "results/demo/lead_cb.json", 3)  # asks for one
    says = refusal(lambda: check_target(made, "results/mspas/lead_ce.json", 5))
    assert says.startswith("--resources gpu=5: run 'lead_ce' on 'mspas' cannot share its batch of 16")
    assert says.endswith("grant 1, 2, 4, 8")


def test_maps_over_the_tokens_of_different_tokenizers_are_refused(folder: Path) -> None:
    other = folder.parent / "other"
    for model in (folder.parent / "model", other):
        make_tokenizer(model)
    tokenizer = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(tokenizer.replace('"array":', '"arrays":'))
    (other / "config.json").write_text('{"num_hidden_layers": 4}')
    assert "fd_ce" in sensible(plan(folder), "tiny")
    made = plan(folder, models={"student": {"reference": f"path:{other}"}})
    assert "run 'fd_ce' on 'tiny': method fd compares maps" in refusal(lambda: check(made["tiny", "fd_ce"]))
    assert "fd_ce" not in sensible(made, "tiny") and "lead_ce" in sensible(made, "tiny")
    (other / "tokenizer.json").write_text(tokenizer.replace('"lowercase":true', '"lowercase":false'))
    vocabulary_sum.cache_clear()
    check(made["tiny", "fd_ce"])
