"""Exact search: the same lists as brute force, whatever ties, batches and the order of passages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from searching import top_k

from lead.errors import LeadError
from lead.lists import best, descending, ranks
from lead.retrieval import engine, exact, search
from lead.retrieval.engine import load_faiss, openblas_coretype
from lead.retrieval.exact import rescore
from lead.store import vectors as vectors_module
from lead.store.tables import read_table, write_table
from lead.store.vectors import read_vectors, write_vectors


def brute_force(queries: np.ndarray, passages: np.ndarray, k: int, ids: list[str]) -> list[list[str]]:
    """Ids of the top k by exact scores, then id."""
    scores = (queries.astype(np.float64) @ passages.astype(np.float64).T).astype(np.float32)
    return [sorted(ids, key=lambda pid, row=row: (-row[ids.index(pid)], pid))[:k] for row in scores]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu sse4_2 avx avx2 avx512f avx512bw avx512dq avx512vl", "SKYLAKEX"),
        ("fpu sse4_2 avx avx2 avx512f avx512cd", "HASWELL"),  # Knights Landing has only part of AVX-512
        ("fpu sse4_2 avx avx2", "HASWELL"),
        ("fpu sse4_2 avx", None),
        ("", None),
    ],
)
def test_openblas_coretype(flags: str, expected: str | None) -> None:
    assert openblas_coretype(flags.split()) == expected


def test_a_coretype_set_by_the_user_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_cpu_flags", lambda: ["avx2"])
    monkeypatch.setenv("OPENBLAS_CORETYPE", "ZEN")
    load_faiss()
    assert engine.os.environ["OPENBLAS_CORETYPE"] == "ZEN"
    monkeypatch.delenv("OPENBLAS_CORETYPE")
    load_faiss()
    assert engine.os.environ["OPENBLAS_CORETYPE"] == "HASWELL"


def test_top_k_equals_brute_force_and_the_scores_are_exact() -> None:
    rng = np.random.default_rng(0)
    passages = rng.standard_normal((700, 24), dtype=np.float32)
    queries = rng.standard_normal((40, 24), dtype=np.float32)
    ids = [f"p{i}" for i in range(700)]
    index, scores = top_k(queries, passages, 50, ids)
    assert index.shape == scores.shape == (40, 50)
    assert [[ids[i] for i in row] for row in index] == brute_force(queries, passages, 50, ids)
    true = np.einsum("qd,qkd->qk", queries.astype(np.float64), passages[index].astype(np.float64))
    np.testing.assert_array_equal(scores, true.astype(np.float32))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 120), st.integers(1, 130))
def test_ties_and_passage_order(seed: int, queries: int, passages: int, k: int) -> None:
    """With few different vectors nearly everything ties; shuffling the passages must not change a list."""
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-1, 2, size=(passages, 3)).astype(np.float32) * np.float32(0.1)
    q = rng.integers(-1, 2, size=(queries, 3)).astype(np.float32) * np.float32(0.3)
    ids = [str(i) for i in range(passages)]  # as strings "10" comes before "9"
    expected = brute_force(q, vectors, k, ids)
    for order in (np.arange(passages), rng.permutation(passages)):
        shuffled = [ids[i] for i in order]
        index, _ = top_k(q, vectors[order], k, shuffled)
        assert [[shuffled[i] for i in row] for row in index] == expected


def test_a_tie_at_the_cut_off_wider_than_what_is_fetched_first() -> None:
    """300 copies of one passage: the lowest ids win, though faiss first proposes fewer than all copies."""
    rng = np.random.default_rng(1)
    others = rng.standard_normal((500, 17), dtype=np.float32) * 0.01
    copies = np.tile(rng.standard_normal(17).astype(np.float32), (300, 1))
    ids = [f"{i:03d}" for i in rng.permutation(800)]
    vectors = np.concatenate([others, copies])
    index, scores = top_k(copies[:3] * np.float32(1.7), vectors, 5, ids)
    assert [ids[i] for i in index[0]] == sorted(ids[500:])[:5]
    assert (scores == scores[0, 0]).all()  # equal vectors score equally to the last bit, wherever they are


def test_near_ties_are_decided_by_exact_scores() -> None:
    """Scores that differ by less than float32 rounding in a sum of large numbers: rounded sums get it wrong."""
    rng = np.random.default_rng(2)
    base = (rng.standard_normal(768) * 10).astype(np.float32)
    passages = np.tile(base, (400, 1))
    passages[np.arange(400), rng.integers(768, size=400)] *= np.float32(1 + 1e-5)
    ids = [f"{i:03d}" for i in range(400)]
    index, _ = top_k(passages[:2], passages, 20, ids)
    assert [[ids[i] for i in row] for row in index] == brute_force(passages[:2], passages, 20, ids)


@pytest.mark.parametrize(("n", "k"), [(900, 10), (900, 300), (40, 40)])
def test_a_small_corpus_has_the_lists_of_faiss_to_the_last_bit(n: int, k: int) -> None:
    """With products in float32 and gathered vectors, with products in float64, and with all passages listed."""
    rng = np.random.default_rng(4)
    passages, queries = (rng.standard_normal((m, 48), dtype=np.float32) for m in (n, 30))
    passages[n // 2 :] = passages[: n - n // 2]  # ties
    passages[1:9] = np.nextafter(passages[0], np.float32(9))  # near ties
    order, cpu = rng.permutation(n), engine.exact_engine(passages)
    assert cpu.on_cpu
    ours, faiss = (list(search.search(queries, passages, k, order, e)) for e in (cpu, replace(cpu, on_cpu=False)))
    for a, b in zip(ours[0], faiss[0], strict=True):
        np.testing.assert_array_equal(a, b)
    true = np.einsum("qd,qkd->qk", queries.astype(np.float64), passages[ours[0][1]].astype(np.float64))
    np.testing.assert_array_equal(ours[0][2], true.astype(np.float32))


@pytest.mark.parametrize("k", [7, 300])
def test_lists_do_not_depend_on_how_queries_are_blocked(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where passages form groups, with a rest in no group, and where a list is longer than a part."""
    rng = np.random.default_rng(6)
    passages, queries = rng.standard_normal((2003, 16), dtype=np.float32), rng.standard_normal((31, 16), np.float32)
    order = rng.permutation(2003)
    ((_, found, scores),) = search.search(queries, passages, k, order)
    for name, value in (("HELD", 5 * 2003), ("PAIRS", 3 * k), ("SEEN", 2 * 2003), ("GATHER", 1), ("GROUPS", 1)):
        monkeypatch.setattr(exact, name, value)
        ((_, again, same),) = search.search(queries, passages, k, order)
        np.testing.assert_array_equal(again, found)
        np.testing.assert_array_equal(same, scores)


def test_vectors_whose_scores_float32_cannot_hold() -> None:
    long = np.full((4, 8), 3e19, np.float32)
    with pytest.raises(LeadError, match="normalise: unit"):
        top_k(long, long, 2)
    assert top_k(long[:1] * np.float32(1e-3), long * np.float32(1e-3), 2)[0].tolist() == [[0, 1]]


def test_scores_in_the_middle_of_two_numbers() -> None:
    """1 + 2**-24 lies between 1 and its neighbour: a sum in another order may not round it another way."""
    queries = np.array([[0, 0, 1], [1, 2**-24, 0]], np.float64)
    passages = np.array([[1, 1, 0], [1, 0, 5], [3, -1, 1]], np.float32)
    candidates, slack = (np.array([2, 0, 1, 2]), np.array([0, 1, 4])), np.full(2, 1e-6)
    scores = rescore(queries, passages, candidates, slack)
    products = (passages.astype(np.float64) @ queries.T).T
    assert scores.tolist() == np.append(products[0, 2], products[1]).astype(np.float32).tolist()
    bad = np.append(products[0, 2], products[1] + [1e-15, 0, 0])  # what another order of summation could give
    assert rescore(queries, passages, candidates, slack, bad).tolist() == scores.tolist()


def test_the_order_of_scores_and_ties() -> None:
    rng = np.random.default_rng(5)
    scores = rng.choice(np.array([-3.5, -1e-30, -0.0, 0.0, 1e-40, 2, 7e9, -np.inf], np.float32), 300)
    order = rng.permutation(300)
    assert descending(scores, order).tolist() == np.lexsort((order, -scores)).tolist()


def test_k_beyond_the_corpus_and_empty_sides() -> None:
    passages = np.eye(3, dtype=np.float32)
    assert top_k(passages, passages, 10)[0].tolist() == [[0, 1, 2], [1, 0, 2], [2, 0, 1]]
    assert top_k(passages[:0], passages, 2)[0].shape == (0, 2)
    assert top_k(passages, passages[:0], 2)[0].shape == (3, 0)


def test_batches_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    passages, queries = rng.standard_normal((200, 8), dtype=np.float32), rng.standard_normal((50, 8), dtype=np.float32)
    whole = top_k(queries, passages, 7)
    monkeypatch.setattr(search, "BATCH", 3)
    monkeypatch.setattr(search, "FETCHED", 100)
    parts = top_k(queries, passages, 7)
    assert all(np.array_equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_best_and_ranks() -> None:
    assert best(np.array([1.0, 3.0, 3.0, 2.0, 3.0], np.float32), np.array([0, 9, 4, 1, 5]), 2).tolist() == [2, 4]
    assert best(np.empty(0, np.float32), np.empty(0, int), 2).tolist() == []
    assert ranks(np.array([5, 5, 2, 5, 5, 5])).tolist() == [1, 2, 1, 1, 2, 3]
    assert ranks(np.empty(0)).tolist() == []


@pytest.mark.parametrize("fp16", [False, True])
def test_vectors_round_trip(tmp_path: Path, fp16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors_module, "ROW_GROUP", 20)  # several row groups
    vectors = np.random.default_rng(0).standard_normal((11, 4)).astype(np.float16 if fp16 else np.float32)
    ids = [f"id {i}" for i in range(11)]
    write_vectors(ids, vectors.astype(np.float32), tmp_path / "v.parquet", fp16=fp16)
    assert read_table(tmp_path / "v.parquet")["vector"].type.value_type == (pa.float16() if fp16 else pa.float32())
    read_ids, read = read_vectors(tmp_path / "v.parquet")
    assert read_ids == ids
    assert read.dtype == np.float32 and read.flags.c_contiguous
    np.testing.assert_array_equal(read, vectors)


def test_no_vectors_round_trip(tmp_path: Path) -> None:
    write_vectors([], np.empty((0, 4), np.float32), tmp_path / "v.parquet")
    assert read_vectors(tmp_path / "v.parquet")[1].shape == (0, 4)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite(tmp_path: Path, bad: float) -> None:
    vectors = np.zeros((3, 2), np.float32)
    vectors[1, 1] = bad
    with pytest.raises(LeadError, match="v.parquet"):
        write_vectors(["a", "b", "c"], vectors, tmp_path / "v.parquet")
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 2)
    write_table(pa.table({"id": ["a", "b", "c"], "vector": column}), tmp_path / "w.parquet")
    with pytest.raises(LeadError, match="w.parquet holds NaN or infinite"):
        read_vectors(tmp_path / "w.parquet")


def test_too_large_for_half_precision(tmp_path: Path) -> None:
    with pytest.raises(LeadError, match="set retrieval.fp16 to false"):
        write_vectors(["a"], np.full((1, 2), 1e6, np.float32), tmp_path / "v.parquet", fp16=True)


def test_a_table_of_another_kind(tmp_path: Path) -> None:
    for i, table in enumerate([{"id": [1], "vector": [[1.0]]}, {"pid": ["a"], "text": ["b"]}]):
        write_table(pa.table(table), tmp_path / f"{i}.parquet")
        with pytest.raises(LeadError, match=f"{i}.parquet is not a table of vectors"):
            read_vectors(tmp_path / f"{i}.parquet")


@pytest.mark.parametrize("row_group", [1, 7, 1000])
def test_rows_are_read_as_asked_for_whatever_the_row_groups(tmp_path: Path, row_group: int) -> None:
    from lead.store.tables import open_table, read_rows

    table = pa.table({"pid": [str(i) for i in range(50)], "text": ["x"] * 50})
    write_table(table, tmp_path / "t.parquet", "corpus", row_group_size=row_group)
    for start, stop, size in ((0, 50, 8), (3, 4, 1), (10, 10, 5), (13, 47, 100), (0, 50, 50)):
        chunks = list(read_rows(open_table(tmp_path / "t.parquet"), start, stop, size))
        assert [len(c) for c in chunks[:-1]] == [size] * (len(chunks) - 1)
        assert [p for c in chunks for p in c["pid"].to_pylist()] == [str(i) for i in range(start, stop)]


def test_shards_of_an_encoding_are_the_encoding(tmp_path: Path, tiny_model: Path, tiny_collection: Path) -> None:
    from conftest import make_retriever

    from lead.config.stages import EncodeSettings
    from lead.retrieval import encode as module

    make_retriever(tiny_model).save(tmp_path / "m")
    files = []
    for shard in (None, "1of3", "2of3", "3of3"):
        files.append(tmp_path / f"{shard}.parquet")
        module.encode(
            settings=EncodeSettings(shard=shard, precision="fp32", batch_tokens=64), gpu=0, model=tmp_path / "m",
            texts=tiny_collection / "corpus.parquet", tokens=None, out=files[-1],
        )  # fmt: skip
    ids, vectors = read_vectors(files[0])
    parts = [read_vectors(f) for f in files[1:]]
    assert ids == [i for part, _ in parts for i in part] and len(ids) == 160
    np.testing.assert_allclose(np.concatenate([v for _, v in parts]), vectors, atol=1e-5)
