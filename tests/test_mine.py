"""Hard negatives hold no known positive, and enough else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from searching import top_k

from lead.config.stages import MineSettings
from lead.errors import LeadError
from lead.lists import ranked_table
from lead.retrieval.mine import drop_positives, known_positives, mine, most_positives
from lead.store.tables import SCHEMAS, read_table, write_table
from lead.store.vectors import write_vectors


def make_qrels(rows: list[tuple[str, str, int]]) -> pa.Table:
    return pa.table(dict(zip(("qid", "pid", "rel"), zip(*rows, strict=True), strict=True)), schema=SCHEMAS["qrels"])


@st.composite
def lists_and_positives(draw: st.DrawFn) -> tuple[dict[str, list[str]], set[tuple[str, str]]]:
    """Lists of up to 8 queries over ids that invite mistakes (numbers, separators, unicode), and positives."""
    ids = st.sampled_from(["1", "01", "10", "a\tb", "a", "b\t", "é", ""])
    lists = draw(st.dictionaries(ids, st.lists(ids, unique=True), max_size=8))
    return lists, draw(st.sets(st.tuples(ids, ids), max_size=20))


@given(lists_and_positives(), st.integers(1, 9))
def test_no_positive_is_left_and_the_order_is_kept(
    case: tuple[dict[str, list[str]], set[tuple[str, str]]], depth: int
) -> None:
    lists, positive = case
    rows = [(qid, pid, rank, -float(rank)) for qid, pids in lists.items() for rank, pid in enumerate(pids, start=1)]
    columns = list(zip(*rows, strict=True)) if rows else [[], [], [], []]
    ranked = pa.table(dict(zip(SCHEMAS["ranked"].names, columns, strict=True)), schema=SCHEMAS["ranked"])
    rel = [(qid, pid, 1) for qid, pid in sorted(positive)]
    positives = make_qrels(rel) if rel else SCHEMAS["qrels"].empty_table()
    negatives = drop_positives(ranked, positives, depth)
    assert negatives.schema == SCHEMAS["ranked"]
    expected = [
        (qid, pid, rank)
        for qid, pids in lists.items()
        for rank, pid in enumerate([pid for pid in pids if (qid, pid) not in positive][:depth], start=1)
    ]
    assert list(zip(*(negatives[name].to_pylist() for name in ("qid", "pid", "rank")), strict=True)) == expected


def test_ids_of_another_type_are_an_error_not_a_mismatch() -> None:
    ranked = ranked_table(pa.array(["1"]), pa.array(["7"]), np.array([0]), np.array([0]), np.array([1.0]))
    with pytest.raises((pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError)):
        drop_positives(ranked, pa.table({"qid": [1], "pid": [7], "rel": [1]}), 1)


def test_all_positives_of_all_files_from_the_relevance_on(tmp_path: Path) -> None:
    write_table(make_qrels([("a", "1", 0), ("a", "2", 1), ("a", "3", 2)]), tmp_path / "train.parquet", "qrels")
    write_table(make_qrels([("b", "1", 3), ("b", "2", 2), ("a", "3", 2)]), tmp_path / "dev.parquet", "qrels")
    positives = known_positives([tmp_path / "train.parquet", tmp_path / "dev.parquet"], 2)
    assert set(zip(positives["qid"].to_pylist(), positives["pid"].to_pylist(), strict=True)) == {
        ("a", "3"),
        ("b", "1"),
        ("b", "2"),
    }
    assert most_positives(positives) == 2
    assert most_positives(positives.slice(0, 0)) == 0


def test_mine(tmp_path: Path) -> None:
    """Each list is the exact ranking without positives, and full though the positives are on top."""
    rng = np.random.default_rng(0)
    passages = rng.standard_normal((60, 6), dtype=np.float32)
    queries = rng.standard_normal((7, 6), dtype=np.float32)
    pids, qids = [str(i) for i in range(60)], [str(i) for i in range(7)]  # the same strings
    order = [[pids[i] for i in row] for row in top_k(queries, passages, 60, pids)[0]]
    positives = {qid: order[i][: i * 2] for i, qid in enumerate(qids)}  # 0, 2, .. 12 positives, the very top
    write_vectors(pids, passages, tmp_path / "p.parquet")
    for split, part in (("train", slice(0, 4)), ("dev", slice(4, 7))):
        write_vectors(qids[part], queries[part], tmp_path / f"q.{split}.parquet")
        rows = [(qid, pid, 1) for qid in qids[part] for pid in positives[qid]]
        write_table(make_qrels([*rows, (qids[part][0], order[0][20], 0)]), tmp_path / f"qrels.{split}.parquet", "qrels")
    splits = ("train", "dev")
    mine(
        settings=MineSettings(mine_depth=10),
        passages=[tmp_path / "p.parquet"],
        queries=[tmp_path / f"q.{s}.parquet" for s in splits],
        qrels=[tmp_path / f"qrels.{s}.parquet" for s in splits],
        gpu=0,
        index=None,
        parts=None,
        out=tmp_path / "n.parquet",
    )
    negatives = read_table(tmp_path / "n.parquet", "ranked").to_pydict()
    assert negatives["qid"] == [qid for qid in qids for _ in range(10)]
    assert negatives["rank"] == list(range(1, 11)) * 7
    assert negatives["pid"] == [pid for i in range(7) for pid in order[i][i * 2 : i * 2 + 10]]


def test_a_query_id_in_two_files(tmp_path: Path) -> None:
    write_vectors(["1"], np.ones((1, 2), np.float32), tmp_path / "v.parquet")
    write_table(make_qrels([("1", "9", 1)]), tmp_path / "qrels.parquet", "qrels")
    with pytest.raises(LeadError, match="query '1' is in"):
        mine(
            settings=MineSettings(),
            passages=[tmp_path / "v.parquet"],
            queries=[tmp_path / "v.parquet"] * 2,
            qrels=[tmp_path / "qrels.parquet"],
            gpu=0,
            index=None,
            parts=None,
            out=tmp_path / "n.parquet",
        )
