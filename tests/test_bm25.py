"""BM25: scores by hand, ties, empty queries, and no positives among negatives."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lead.artifacts import SCHEMAS, read_table, write_table
from lead.config.schema import Bm25
from lead.config.stages import Bm25Settings
from lead.errors import LeadError
from lead.retrieval import bm25 as module
from lead.retrieval.bm25 import Index, bm25

PASSAGES = {
    "p3": "cats chase mice",
    "p1": "dogs chase cats and cats",
    "p2": "the mice sleep",
    "p4": "a quiet day",
}


def texts(kind: str, rows: dict[str, str]) -> pa.Table:
    return pa.table([list(rows), list(rows.values())], schema=SCHEMAS[kind])


def rank(index: Index, queries: dict[str, str], depth: int = 10) -> dict[str, list[tuple[str, float]]]:
    lists: dict[str, list[tuple[str, float]]] = {}
    for part in index.rank(texts("queries", queries), depth):
        for row in part.to_pylist():
            lists.setdefault(row["qid"], []).append((row["pid"], row["score"]))
            assert row["rank"] == len(lists[row["qid"]])
    return lists


def test_scores_by_hand() -> None:
    """Lucene's BM25: idf = ln(1 + (N - df + .5) / (df + .5)), tf / (tf + k1 (1 - b + b length / average))."""
    k1, b = 0.9, 0.4
    index = Index(texts("corpus", PASSAGES), Bm25(k1=k1, b=b))
    lengths = {"p1": 4, "p2": 2, "p3": 3, "p4": 2}  # without the stop words "and", "the", and "a"
    average = sum(lengths.values()) / 4

    def term(df: int, tf: int, pid: str) -> float:
        idf = math.log(1 + (4 - df + 0.5) / (df + 0.5))
        return idf * tf / (tf + k1 * (1 - b + b * lengths[pid] / average))

    lists = rank(index, {"q": "The CAT, sleeping!", "twice": "mice mice"})
    assert [pid for pid, _ in lists["q"]] == ["p2", "p1", "p3"]  # and not p4, which scores 0
    expected = [term(1, 1, "p2"), term(2, 2, "p1"), term(2, 1, "p3")]
    assert [score for _, score in lists["q"]] == pytest.approx(expected, rel=1e-6)
    assert dict(lists["twice"])["p2"] == pytest.approx(2 * term(2, 1, "p2"), rel=1e-6)  # as Lucene counts repeats


def test_stemmer_and_stop_words_are_choices() -> None:
    corpus = texts("corpus", PASSAGES)
    assert [pid for pid, _ in rank(Index(corpus, Bm25()), {"q": "the cat"})["q"]] == ["p1", "p3"]
    assert [pid for pid, _ in rank(Index(corpus, Bm25(stop_words=False)), {"q": "the"})["q"]] == ["p2"]
    assert rank(Index(corpus, Bm25(stemmer="none")), {"q": "cat"}) == {}
    assert len(rank(Index(corpus, Bm25(stemmer="english")), {"q": "cat"})["q"]) == 2


def test_queries_without_a_known_word_have_no_list() -> None:
    lists = rank(Index(texts("corpus", PASSAGES), Bm25()), {"a": "zebra", "b": "", "c": "the", "d": "mouse dogs"})
    assert list(lists) == ["d"]
    assert rank(Index(texts("corpus", PASSAGES), Bm25()), {}) == {}


def test_a_corpus_without_words() -> None:
    with pytest.raises(LeadError, match="no passage of the corpus has a word"):
        Index(texts("corpus", {"p": "", "q": "the"}), Bm25())


def test_lists_do_not_depend_on_corpus_order_or_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against dense scores of bm25s itself, with many ties; the lower id wins, as a string, also at the cut-off."""
    rng = np.random.default_rng(0)
    words = ["alpha", "beta", "gamma", "delta", "epsilon"]
    passages = {str(i): " ".join(rng.choice(words, size=rng.integers(0, 4))) for i in range(150)}
    queries = {f"q{i}": " ".join(rng.choice(words, size=3)) for i in range(20)}
    index = Index(texts("corpus", passages), Bm25())
    expected = rank(index, queries, depth=12)
    for qid, found in expected.items():
        dense = index.scores.toarray()
        ids = index.tokenizer.tokenize([queries[qid]], update_vocab=False, show_progress=False, allow_empty=False)[0]
        scores = {pid: np.float32(sum(dense[i, n] for i in ids)) for n, pid in enumerate(index.pids.to_pylist())}
        by_hand = sorted((pid for pid in scores if scores[pid] > 0), key=lambda pid: (-scores[pid].round(4), pid))
        assert [pid for pid, _ in found] == by_hand[:12]
    shuffled = {pid: passages[pid] for pid in rng.permutation(list(passages)).tolist()}
    assert rank(Index(texts("corpus", shuffled), Bm25()), queries, depth=12) == expected
    monkeypatch.setattr(module, "MATCHES", 100)
    assert rank(index, queries, depth=12) == expected


def test_the_stage(tmp_path: Path) -> None:
    write_table(texts("corpus", PASSAGES), tmp_path / "corpus.parquet", "corpus")
    splits = {"train": {"t1": "cats", "t2": "zebra"}, "dev": {"d1": "mice"}, "test": {"e1": "chase cats"}}
    for split, rows in splits.items():
        write_table(texts("queries", rows), tmp_path / f"queries.{split}.parquet", "queries")
    qrels = pa.table([["t1", "t1", "d1"], ["p1", "p3", "p2"], [1, 0, 2]], schema=SCHEMAS["qrels"])
    write_table(qrels, tmp_path / "qrels.parquet", "qrels")

    def run(dev: str = "dev") -> None:
        bm25(
            settings=Bm25Settings(depth=1, mine_depth=1),
            corpus=tmp_path / "corpus.parquet",
            queries=[tmp_path / "queries.train.parquet", tmp_path / f"queries.{dev}.parquet"],
            qrels=[tmp_path / "qrels.parquet"],
            test_queries=tmp_path / "queries.test.parquet",
            negatives=tmp_path / "negatives.parquet",
            ranked=tmp_path / "ranked.parquet",
        )

    run()
    ranked = read_table(tmp_path / "ranked.parquet", "ranked")
    assert ranked.select(["qid", "pid", "rank"]).to_pylist() == [{"qid": "e1", "pid": "p1", "rank": 1}]
    negatives = read_table(tmp_path / "negatives.parquet", "ranked")
    assert negatives.select(["qid", "pid", "rank"]).to_pylist() == [
        {"qid": "t1", "pid": "p3", "rank": 1},  # p1 is positive, p3 was judged not relevant
        {"qid": "d1", "pid": "p3", "rank": 1},
    ]
    before = (tmp_path / "negatives.parquet").read_bytes()
    run()
    assert (tmp_path / "negatives.parquet").read_bytes() == before
    with pytest.raises(LeadError, match="query 't1' is in"):
        run(dev="train")
