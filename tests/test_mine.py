"""Hard negatives hold no known positive, and enough else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from searching import top_k

from lead.cli import main
from lead.config.schema import Mining
from lead.config.stages import MineSettings
from lead.errors import LeadError
from lead.lists import ranked_table
from lead.retrieval.mine import (
    choose,
    drop_positives,
    known_positives,
    lowest_scores,
    mine,
    most_positives,
    with_copies,
)
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


def table_of(lists: dict[str, list[tuple[str, float]]]) -> pa.Table:
    """A `ranked` table of lists of (pid, score), best first."""
    rows = [(qid, pid, rank, s) for qid, found in lists.items() for rank, (pid, s) in enumerate(found, start=1)]
    columns = list(zip(*rows, strict=True)) if rows else [[], [], [], []]
    return pa.table(dict(zip(SCHEMAS["ranked"].names, columns, strict=True)), schema=SCHEMAS["ranked"])


def lists_of(table: pa.Table) -> dict[str, list[str]]:
    """The passages of each list; ranks must be 1, 2, .."""
    found: dict[str, list[str]] = {}
    for row in table.to_pylist():
        found.setdefault(row["qid"], []).append(row["pid"])
        assert row["rank"] == len(found[row["qid"]])
    return found


def test_a_query_is_no_negative_of_itself() -> None:
    ranked = table_of({"a": [("a", 3.0), ("b", 2.0), ("c", 1.0)], "b": [("a", 2.0), ("b", 1.0)]})
    none = SCHEMAS["qrels"].empty_table()
    assert lists_of(drop_positives(ranked, none, 2)) == {"a": ["a", "b"], "b": ["a", "b"]}
    kept = drop_positives(ranked, make_qrels([("b", "a", 1)]), 2, ignore_identical_ids=True)
    assert lists_of(kept) == {"a": ["b", "c"]}


def test_copies_of_positives_are_positives() -> None:
    texts = {
        "1": "cat",
        "2": "dog",
        "3": "cat",
        "4": " cat\n",
        "5": "cafe\u0301",
        "6": "caf\u00e9",
        "7": "Cat",
        "8": "dog",
    }
    passages = pa.table({"pid": list(texts), "text": list(texts.values())})
    positives = make_qrels(
        [("q", "3", 2), ("r", "2", 1), ("r", "1", 1), ("s", "5", 1), ("t", "lost", 1), ("u", "7", 1)]
    )
    pairs = {(row["qid"], row["pid"]) for row in with_copies(positives, passages).to_pylist()}
    assert pairs == {
        *[("q", pid) for pid in "134"],
        *[("r", pid) for pid in "12348"],
        *[("s", pid) for pid in "56"],
        ("t", "lost"),
        ("u", "7"),
    }
    assert with_copies(positives.slice(0, 0), passages).num_rows == 0


@given(
    st.integers(0, 2**32 - 1), st.sampled_from([None, 0.0, 0.7]), st.sampled_from([None, 0.0, 0.3]), st.integers(0, 3)
)
def test_filters_as_said_word_for_word(seed: int, margin: float | None, relative: float | None, skip: int) -> None:
    rng = np.random.default_rng(seed)
    lists = {}
    for qid in "abcd":
        scores = -np.sort(-rng.normal(size=int(rng.integers(0, 8))).astype(np.float32).round(1))
        lists[qid] = [(f"{qid}{i}", float(s)) for i, s in enumerate(scores)]
    lowest = {qid: float(rng.normal()) for qid in "abc"}  # d has no positive in the corpus
    positives = pa.table({"qid": list(lowest), "score": pa.array(list(lowest.values()), pa.float32())})
    mining = Mining(margin=margin, relative_margin=relative, range_min=skip, range_max=6)
    expected = {}
    for qid, found in lists.items():
        positive = float(np.float32(lowest.get(qid, np.inf)))
        left = [
            pid
            for pid, s in found
            if qid == "d"
            or (margin is None or np.float64(np.float32(s)) <= positive - margin)
            and (relative is None or np.float64(np.float32(s)) <= positive - relative * abs(positive))
        ][:6][skip:]
        expected[qid] = left
    kept, removed = choose(table_of(lists), positives, mining, 3, rng)
    assert lists_of(kept) == {qid: left[:3] for qid, left in expected.items() if left}
    assert set(removed) == {"range_min"} | {
        k for k, v in (("margin", margin), ("relative_margin", relative)) if v is not None
    }

    sampled, removed = choose(table_of(lists), positives, mining.model_copy(update={"sampling": "random"}), 3, rng)
    for qid, left in expected.items():
        drawn = lists_of(sampled).get(qid, [])
        assert len(drawn) == min(3, len(left)) and drawn == [pid for pid in left if pid in drawn]  # still best first
    assert removed["sampling"] == sum(max(0, len(left) - 3) for left in expected.values())


def test_random_negatives_are_all_equally_likely() -> None:
    ranked = table_of({"q": [(str(i), -float(i)) for i in range(6)]})
    none = pa.table({"qid": pa.array([], pa.string()), "score": pa.array([], pa.float32())})
    rng, counts = np.random.default_rng(0), dict.fromkeys(map(str, range(6)), 0)
    for _ in range(600):
        for pid in lists_of(choose(ranked, none, Mining(sampling="random"), 2, rng)[0])["q"]:
            counts[pid] += 1
    assert all(150 < count < 250 for count in counts.values())


def mined(folder: Path, passages: dict[str, list[float]], queries: dict[str, list[float]], **keys: Any) -> Any:
    """Negatives of `lead mine`, where each query's first letter says which passages are its positives."""
    write_vectors(list(passages), np.array(list(passages.values()), np.float32), folder / "p.parquet")
    write_vectors(list(queries), np.array(list(queries.values()), np.float32), folder / "q.parquet")
    rows = [(qid, pid, 1) for qid in queries for pid in passages if pid.startswith("+" + qid)]
    write_table(make_qrels(rows), folder / "qrels.parquet", "qrels")
    mine(
        settings=MineSettings(**keys),
        passages=[folder / "p.parquet"],
        queries=[folder / "q.parquet"],
        qrels=[folder / "qrels.parquet"],
        gpu=0,
        index=None,
        parts=None,
        out=folder / "n.parquet",
    )
    return lists_of(read_table(folder / "n.parquet", "ranked"))


def test_mining_with_margins(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The positive's score is computed where the search does not reach it, and the lowest of several counts."""
    caplog.set_level("INFO")
    passages = {"n9": [9.0], "n7": [7.0], "n5": [5.0], "n3": [3.0], "+q6": [6.0], "+r4": [4.0], "+r9": [8.9]}
    queries = {"q": [1.0], "r": [1.0]}
    every = mined(tmp_path, passages, queries, mine_depth=3)
    assert every == {"q": ["n9", "+r9", "n7"], "r": ["n9", "n7", "+q6"]}
    keys: dict[str, Any] = {"mine_depth": 3, "mining": Mining(margin=1.0, range_max=7)}
    assert mined(tmp_path, passages, queries, **keys) == {"q": ["n5", "+r4", "n3"], "r": ["n3"]}
    assert "mining.margin removed 7 passages" in caplog.text
    keys["mining"] = Mining(relative_margin=0.5, range_max=7)
    assert mined(tmp_path, passages, queries, **keys) == {"q": ["n3"]}
    keys["mining"] = Mining(range_min=2)
    assert mined(tmp_path, passages, queries, **keys) == {"q": ["n7", "n5", "+r4"], "r": ["+q6", "n5", "n3"]}


def test_the_lowest_score_of_a_positive(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    p, q = rng.standard_normal((6, 4), np.float32), rng.standard_normal((3, 4), np.float32)
    for part in (0, 1):  # two shards
        write_vectors(
            [str(i) for i in range(3 * part, 3 * part + 3)], p[3 * part : 3 * part + 3], tmp_path / f"p{part}"
        )
    write_vectors(["a", "b", "c"], q, tmp_path / "q")
    positives = make_qrels([("a", "0", 1), ("a", "5", 1), ("b", "4", 1), ("c", "lost", 1)])
    found = lowest_scores([tmp_path / "p0", tmp_path / "p1"], [tmp_path / "q"], positives).to_pydict()
    assert found["qid"] == ["a", "b"]
    assert found["score"] == pytest.approx([min(q[0] @ p[0], q[0] @ p[5]), q[1] @ p[4]], rel=1e-6)


def test_copies_of_positives_in_the_corpus(tmp_path: Path) -> None:
    """`lead mine` with the corpus: the copy on top of a list is no negative, and the list is full."""
    vectors = {"a": [3.0], "copy": [3.0], "b": [2.0], "c": [1.0]}
    write_vectors(list(vectors), np.array(list(vectors.values()), np.float32), tmp_path / "p.parquet")
    write_vectors(["q"], np.ones((1, 1), np.float32), tmp_path / "q.parquet")
    write_table(make_qrels([("q", "a", 1)]), tmp_path / "qrels.parquet", "qrels")
    corpus = pa.table({"pid": list(vectors), "text": ["one", "one", "two", "three"]})
    write_table(corpus, tmp_path / "corpus.parquet", "corpus")
    mine(
        settings=MineSettings(mine_depth=2),
        passages=[tmp_path / "p.parquet"],
        queries=[tmp_path / "q.parquet"],
        qrels=[tmp_path / "qrels.parquet"],
        gpu=0,
        index=None,
        parts=None,
        corpus=tmp_path / "corpus.parquet",
        out=tmp_path / "n.parquet",
    )
    assert lists_of(read_table(tmp_path / "n.parquet", "ranked")) == {"q": ["b", "c"]}


def test_filters_of_parts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LeadError, match="not for a corpus in shards"):
        mine(
            settings=MineSettings(mining=Mining(range_min=1)),
            passages=None,
            queries=[tmp_path / "q.parquet"],
            qrels=[],
            gpu=0,
            index=None,
            parts=[tmp_path / "part.parquet"],
            out=tmp_path / "n.parquet",
        )


def test_the_keys_reach_every_stage_that_reads_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(Path(__file__).parents[1] / "config", tmp_path / "config")
    config = tmp_path / "config" / "config.yaml"
    keys = "  retrieval: {ignore_identical_ids: true}\n  mining: {margin: 0.5}\n"
    config.write_text(config.read_text() + keys)
    for stage in ("bm25", "mine", "evaluate"):
        assert main(["show", "demo/miner", "--stage", stage, "--config", str(config)]) == 0
        settings = json.loads(capsys.readouterr().out)
        assert settings["ignore_identical_ids"] is True
        assert stage != "mine" or settings["mining"]["margin"] == 0.5
    assert main(["show", "mspas/miner", "--stage", "mine", "--config", str(config)]) != 0
    assert "dataset 'mspas': `mining` needs a corpus in one shard; set shards: 1" in capsys.readouterr().err


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
