"""Approximate indexes and search on a GPU: scores stay exact, recall is what it says, mistakes are one line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from dag.project import empty_project, refusal
from searching import top_k

from lead.config.load import load
from lead.config.stages import EvaluateSettings, IndexSettings, MineSettings, RetrieveSettings
from lead.evaluation.evaluate import evaluate
from lead.plan.checks import check
from lead.plan.plan import Plan
from lead.plan.stage_settings import stage_settings
from lead.retrieval import engine
from lead.retrieval.engine import check_index, exact_engine, load_faiss, search_gpu
from lead.retrieval.index import index
from lead.retrieval.mine import mine
from lead.retrieval.retrieve import retrieve
from lead.retrieval.search import recall, search, search_file
from lead.retrieval.torch_index import exact_engine_on, torch_engine
from lead.store.tables import read_json, read_table, write_table
from lead.store.vectors import write_vectors

N, DEPTH = 2000, 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Vectors of 2,000 passages in 40 clusters, in two shards and whole, and of 30 queries."""
    folder = tmp_path_factory.mktemp("vectors")
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((40, 16), dtype=np.float32) * 2
    vectors = centres[rng.integers(40, size=N)] + rng.standard_normal((N, 16), dtype=np.float32)
    ids = [f"p{i}" for i in range(N)]
    for name, part in (("whole", slice(None)), ("1", slice(0, 900)), ("2", slice(900, None))):
        write_vectors(ids[part], vectors[part], folder / f"{name}.parquet")
    queries = centres[rng.integers(40, size=30)] + rng.standard_normal((30, 16), dtype=np.float32)
    write_vectors([f"q{i}" for i in range(30)], queries, folder / "queries.parquet")
    return folder


def build(folder: Path, shards: list[Path], factory: str) -> list[Path]:
    """An index of each shard."""
    out = [folder / f"index.{shard.stem}" for shard in shards]
    for shard, to in zip(shards, out, strict=True):
        index(settings=IndexSettings(index=factory), passages=shard, out=to)
    return out


def ranked(
    folder: Path, shards: list[Path], depth: int, indexes: list[Path] | None = None, how: str | None = None
) -> pa.Table:
    """Lists of the queries over the shards."""
    retrieve(settings=RetrieveSettings(depth=depth, index_parameters=how), passages=shards, index=indexes, parts=None,
             queries=shards[0].parent / "queries.parquet", gpu=0, out=folder / "ranked.parquet")  # fmt: skip
    return read_table(folder / "ranked.parquet", "ranked")


def lists(table: pa.Table) -> dict[str, dict[str, float]]:
    """Score by pid by qid."""
    found: dict[str, dict[str, float]] = {}
    for row in table.to_pylist():
        found.setdefault(row["qid"], {})[row["pid"]] = row["score"]
    return found


@pytest.mark.parametrize(
    ("factory", "few", "all_"),
    [
        ("IVF16,Flat", "nprobe=1", "nprobe=16"),
        ("IVF16,SQ8", None, "nprobe=16"),
        ("HNSW32", "efSearch=1", "efSearch=2000"),
    ],
)
@pytest.mark.parametrize("shards", [["whole"], ["1", "2"]])
def test_recall_is_what_it_says_and_scores_are_exact(
    tmp_path: Path, folder: Path, factory: str, few: str | None, all_: str, shards: list[str]
) -> None:
    files = [folder / f"{name}.parquet" for name in shards]
    indexes = build(tmp_path, files, factory)
    truth, everything = (lists(ranked(tmp_path, files, depth)) for depth in (DEPTH, N))
    recalls = []
    for parameters in (few, all_):
        table = ranked(tmp_path, files, DEPTH, indexes, parameters)
        found = lists(table)
        assert all(found[q][p] == everything[q][p] for q in found for p in found[q])  # to the last bit
        for q in found:
            rows = [r for r in table.to_pylist() if r["qid"] == q]
            assert [r["rank"] for r in rows] == list(range(1, len(rows) + 1))
            assert [r["score"] for r in rows] == sorted((r["score"] for r in rows), reverse=True)
        share = np.mean([len(found[q].keys() & truth[q].keys()) / DEPTH for q in truth])
        about = json.loads(table.schema.metadata[b"about"])
        # of shards: the mean over each one's own lists, which go deeper into it than a list over all does
        assert about["recall"][str(DEPTH)] == pytest.approx(share, abs=1e-4 if len(files) == 1 else 0.1)
        assert (about["index"], about["parameters"], about["queries"]) == (factory, parameters, 30)
        assert about.get("parts") == {1: None, 2: 2}[len(files)]
        recalls.append(about["recall"][str(DEPTH)])
    assert recalls[0] < recalls[1] > 0.97


def test_recall_of_lists_that_are_short_or_empty() -> None:
    truth = np.array([[1, 2, 3], [4, 5, 6]])
    assert recall(np.array([[3, 1, -1], [-1, -1, -1]]), truth, 3) == {"queries": 2, "recall": {"3": 0.3333}}
    assert recall(truth, truth, 3)["recall"] == {"3": 1.0}
    assert recall(truth, truth, 20)["recall"] == {"10": 1.0, "20": 1.0}  # of a shard with three passages
    assert recall(truth[:0], truth[:0], 3) == {"queries": 0, "recall": {"3": None}}
    assert recall(truth[:, :0], truth[:, :0], 3) == {"queries": 2, "recall": {"3": None}}  # of an empty shard
    wide = np.arange(200)[None]
    assert recall(wide[:, ::-1], wide, 200)["recall"] == {"10": 0.0, "100": 0.0, "200": 1.0}


def test_an_index_is_the_same_bytes_whatever_the_threads(tmp_path: Path, folder: Path) -> None:
    faiss = load_faiss()
    before = faiss.omp_get_max_threads()
    try:
        for factory in ("IVF16,Flat", "HNSW8"):
            sums = []
            for threads in (1, 2):
                faiss.omp_set_num_threads(threads)
                (made,) = build(tmp_path / f"{threads}", [folder / "whole.parquet"], factory)
                sums.append((made / "index.faiss").read_bytes())
            assert sums[0] == sums[1], factory
    finally:
        faiss.omp_set_num_threads(before)


def test_recall_goes_into_the_list_and_the_result(tmp_path: Path, folder: Path) -> None:
    files = [folder / "1.parquet", folder / "2.parquet"]
    write_table(pa.table({"qid": ["q0"], "pid": ["p0"], "rel": [1]}), tmp_path / "qrels.parquet", "qrels")
    for name, indexes, how in (("exact", None, None), ("approximate", build(tmp_path, files, "IVF8,Flat"), "nprobe=2")):
        ranked(tmp_path, files, DEPTH, indexes, how)
        evaluate(settings=EvaluateSettings(), ranked=tmp_path / "ranked.parquet", qrels=tmp_path / "qrels.parquet",
                 out=tmp_path / f"{name}.json", per_query=tmp_path / "pq.parquet", trec=None)  # fmt: skip
    assert "search" not in read_json(tmp_path / "exact.json")
    said = read_json(tmp_path / "approximate.json")["search"]
    assert (said["index"], said["parameters"], said["queries"], said["parts"]) == ("IVF8,Flat", "nprobe=2", 30, 2)
    assert set(said["recall"]) == {"10", "20"} and 0.3 < said["recall"]["20"] < 1


def test_mining_goes_through_the_same_index(tmp_path: Path, folder: Path) -> None:
    passages, queries = folder / "whole.parquet", [folder / "queries.parquet"]
    (index_,) = build(tmp_path, [passages], "IVF16,Flat")
    write_table(pa.table({"qid": ["q0"], "pid": ["p0"], "rel": [1]}), tmp_path / "qrels.parquet", "qrels")
    mine(settings=MineSettings(mine_depth=DEPTH, index_parameters="nprobe=3"), passages=[passages], queries=queries,
         gpu=0, qrels=[tmp_path / "qrels.parquet"], index=[index_], parts=None, out=tmp_path / "n.parquet")  # fmt: skip
    want = pa.concat_tables(search_file(passages, queries, DEPTH + 1, index_, "nprobe=3")[0]).to_pylist()
    kept = [(r["qid"], r["pid"]) for r in want if (r["qid"], r["pid"]) != ("q0", "p0")]
    got = read_table(tmp_path / "n.parquet", "ranked").to_pylist()
    assert {(r["qid"], r["pid"]) for r in got} <= set(kept) and len(got) == 30 * DEPTH


def test_no_queries_have_no_recall(tmp_path: Path, folder: Path) -> None:
    (index_,) = build(tmp_path, [folder / "1.parquet"], "IVF8,Flat")
    write_vectors([], np.empty((0, 16)), tmp_path / "none.parquet")
    tables, about = search_file(folder / "1.parquet", [tmp_path / "none.parquet"], DEPTH, index_)
    assert list(tables) == [] and about is not None
    assert (about["queries"], about["recall"]) == (0, {"10": None, "20": None})


# --- what is refused -------------------------------------------------------------------------------------------------
def test_an_index_of_other_vectors_or_a_damaged_one_is_refused(tmp_path: Path, folder: Path) -> None:
    queries = [folder / "queries.parquet"]
    (of_first,) = build(tmp_path, [folder / "1.parquet"], "IVF8,Flat")
    said = refusal(lambda: search_file(folder / "2.parquet", queries, 1, of_first))
    assert "index.1 is not the index of" in said
    assert "2 indexes for 1 files" in refusal(lambda: ranked(tmp_path, [folder / "1.parquet"], 1, [of_first] * 2))
    said = refusal(lambda: search_file(folder / "1.parquet", queries, 1, of_first, "efSearch=3"))
    assert "'retrieval.index_parameters': 'IVF8,Flat' does not take 'efSearch=3'" in said
    file = of_first / "index.faiss"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert "damaged (checksum)" in refusal(lambda: search_file(folder / "1.parquet", queries, 1, of_first))


def test_too_few_vectors_to_train_an_index(tmp_path: Path, folder: Path) -> None:
    settings = IndexSettings(index="IVF1500,Flat")
    said = refusal(lambda: index(settings=settings, passages=folder / "1.parquet", out=tmp_path / "i"))
    assert "'retrieval.index': 'IVF1500,Flat'" in said and "training points" in said
    assert not (tmp_path / "i").exists()


@pytest.mark.parametrize(
    ("factory", "parameters", "width", "says"),
    [
        ("IVF64,PQ", None, 64, "'retrieval.index': faiss makes no 'IVF64,PQ' .* could not parse"),
        ("PQ7", None, 64, "'retrieval.index': faiss makes no 'PQ7' for vectors of width 64: .* multiple"),
        ("PQ7", None, None, "'retrieval.index'"),
        ("HNSW32", "nprobe=3", 64, "'retrieval.index_parameters': 'HNSW32' does not take 'nprobe=3'"),
        ("IVF64,Flat", "nprobe", 64, "'retrieval.index_parameters'"),
        (None, "nprobe=3", 64, "'retrieval.index_parameters' is read with `retrieval.index` only"),
    ],
)
def test_what_faiss_does_not_take_is_one_line(
    factory: str | None, parameters: str | None, width: int | None, says: str
) -> None:
    assert re.search(says, refusal(lambda: check_index(factory, parameters, width)))


def test_what_faiss_takes_passes() -> None:
    for factory, parameters in ((None, None), ("IVF64,PQ16", "nprobe=8"), ("HNSW32", "efSearch=64"), ("PQ96", None)):
        check_index(factory, parameters, None)


def plan(folder: Path, **retrieval: Any) -> Plan:
    return Plan(load(folder / "config.yaml", {"settings": {"retrieval": retrieval}}))


def test_the_plan_refuses_before_any_work_and_knows_the_indexes(tmp_path: Path) -> None:
    config = empty_project(tmp_path)
    (tmp_path / "model/config.json").write_text(json.dumps({"num_hidden_layers": 4, "hidden_size": 32}))
    for bad, says in (({"index": "PQ7"}, "width 32"), ({"index_parameters": "nprobe=2"}, "index_parameters")):
        said = refusal(lambda bad=bad: check(plan(config, **bad)["tiny", "lead_cb"]))
        assert "tiny.yaml: run 'lead_cb': key 'retrieval." in said and says in said
    made = plan(config, index="IVF8,Flat", index_parameters="nprobe=2")
    check(made["tiny", "lead_cb"])
    assert made["tiny", "lead_cb"].indexes() == ["all results/tiny/embeddings/lead_cb/index"]
    assert made["tiny", "lead_cb"].stages == ["distil", "encode", "index", "retrieve", "evaluate"]
    assert stage_settings(made["tiny", "lead_cb"], "index") == {"index": "IVF8,Flat", "seed": 1}
    assert stage_settings(made["tiny", "lead_cb"], "retrieve")["index_parameters"] == "nprobe=2"
    made_by = stage_settings(made["tiny", "lead_cb"], "evaluate")["made_by"]["settings"]
    assert {"miner.index", "lead_cb.index"} <= set(made_by)
    assert plan(config)["tiny", "lead_cb"].indexes() == []


def test_an_evaluation_set_has_the_index_of_its_collection(tmp_path: Path) -> None:
    config = empty_project(tmp_path)
    (tmp_path / "model/config.json").write_text(json.dumps({"num_hidden_layers": 4, "hidden_size": 32}))
    test = "{queries: ../../data/queries.test.jsonl, qrels: ../../data/test.tsv}"
    extra = config / "datasets" / "extra.yaml"
    source = f"source: {{kind: evaluation, of: tiny, test: {test}}}\n"
    extra.write_text(source)
    assert plan(config, index="HNSW8")["extra", "student"].indexes() == ["all results/tiny/embeddings/student/index"]
    extra.write_text(source + "settings: {retrieval: {index: HNSW8}}\n")
    assert "those of 'tiny', whose index is None" in refusal(lambda: check(plan(config)["extra", "student"]))


def torch_sees_a_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


# --- GPUs ------------------------------------------------------------------------------------------------------------
def gpu_faiss(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """faiss with the names of its GPU build, computed on the CPU; returns the depths it was asked for."""
    faiss, asked = load_faiss(), []

    class Flat(faiss.IndexFlatIP):  # type: ignore[misc]
        def __init__(self, resources: object, width: int, config: Any) -> None:
            assert resources == "resources" and config.device == 1
            super().__init__(width)

        def search(self, queries: Any, k: int) -> Any:
            asked.append(k)
            return super().search(queries, k)

    monkeypatch.setattr(faiss, "GpuIndexFlatIP", Flat, raising=False)
    monkeypatch.setattr(faiss, "GpuIndexFlatConfig", SimpleNamespace, raising=False)
    monkeypatch.setattr(engine, "_gpu_resources", lambda: "resources")
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 2)
    return asked


def test_a_gpu_proposes_as_the_cpu_does_and_longer_lists_than_it_can_go_to_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    passages, queries = rng.integers(-2, 3, size=(900, 5)).astype(np.float32), rng.normal(size=(9, 5))
    queries = queries.astype(np.float32)
    want = top_k(queries, passages, 30)
    asked = gpu_faiss(monkeypatch)

    def on_gpu() -> Any:
        ((_, found, scores),) = search(queries, passages, 30, np.arange(900), exact_engine(passages, 1))
        return found, scores

    assert all(np.array_equal(a, b) for a, b in zip(on_gpu(), want, strict=True)) and asked
    monkeypatch.setattr(engine, "GPU_DEEPEST", 0)
    asked.clear()
    assert all(np.array_equal(a, b) for a, b in zip(on_gpu(), want, strict=True)) and not asked


def test_a_gpu_that_faiss_or_torch_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    assert search_gpu(0) is None
    if not torch.cuda.is_available():
        assert "--gpu 1: PyTorch sees no GPU" in refusal(lambda: search_gpu(1))
    monkeypatch.setattr("lead.device.device", lambda gpu: torch.device("cuda", 1))
    assert search_gpu(1) == 1
    monkeypatch.setattr(load_faiss(), "get_num_gpus", lambda: 0)
    asked: list[torch.device] = []
    monkeypatch.setattr("lead.retrieval.torch_index.torch_engine", lambda vectors, on: asked.append(on))
    exact_engine_on(np.ones((3, 2), np.float32), 1)  # faiss-cpu, or no faiss: PyTorch searches
    assert asked == [torch.device("cuda", 1)]


@pytest.mark.parametrize("block", [1, 700, 1 << 28])
@pytest.mark.parametrize("whole_numbers", [True, False])
def test_torch_makes_the_lists_of_faiss(block: int, whole_numbers: bool) -> None:
    """Ties, also at the cut-off, go by `order`; blocks end anywhere; k is larger than a block, and than the corpus."""
    import torch

    rng = np.random.default_rng(0)
    draw = (lambda *shape: rng.integers(-2, 3, shape)) if whole_numbers else (lambda *shape: rng.normal(size=shape))
    passages, queries = draw(900, 5).astype(np.float32), draw(9, 5).astype(np.float32)
    order = rng.permutation(900)
    for k in (1, 30, 900, 2000):
        ((_, *want),) = search(queries, passages, k, order)
        ((_, *got),) = search(queries, passages, k, order, torch_engine(passages, torch.device("cpu"), block))
        assert all(np.array_equal(a, b) for a, b in zip(got, want, strict=True))
    ((_, found, _),) = search(queries, passages[:0], 5, order[:0], torch_engine(passages[:0], torch.device("cpu")))
    assert found.shape == (9, 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch_sees_a_gpu(), reason="no GPU")
def test_lists_are_those_of_the_cpu_on_a_real_gpu(folder: Path) -> None:
    """Of faiss-gpu where it is installed, of PyTorch otherwise."""
    passages, queries = folder / "whole.parquet", [folder / "queries.parquet"]
    want, got = (pa.concat_tables(search_file(passages, queries, DEPTH, gpu=gpu)[0]) for gpu in (0, 1))
    assert got.equals(want)
