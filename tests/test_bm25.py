"""BM25: scores by hand, ties, empty queries, and no positives among negatives."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lead.config.lists import Bm25
from lead.config.stages import Bm25Settings
from lead.errors import LeadError
from lead.retrieval import bm25 as module
from lead.retrieval.bm25 import Bm25Index, bm25
from lead.retrieval.words import Words
from lead.store.tables import SCHEMAS, read_table, write_table

PASSAGES = {
    "p3": "cats chase mice",
    "p1": "dogs chase cats and cats",
    "p2": "the mice sleep",
    "p4": "a quiet day",
}


def texts(kind: str, rows: dict[str, str]) -> pa.Table:
    return pa.table([list(rows), list(rows.values())], schema=SCHEMAS[kind])


@pytest.fixture
def index_of(tmp_path: Path) -> Callable[..., Bm25Index]:
    """Index a corpus given as {pid: text}, with settings of `Bm25`."""

    def make(passages: dict[str, str], **settings: Any) -> Bm25Index:
        write_table(texts("corpus", passages), tmp_path / "corpus.parquet", "corpus")
        return Bm25Index(tmp_path / "corpus.parquet", Bm25(**settings))

    return make


def rank(index: Bm25Index, queries: dict[str, str], depth: int = 10) -> dict[str, list[tuple[str, float]]]:
    lists: dict[str, list[tuple[str, float]]] = {}
    for part in index.rank(texts("queries", queries), depth):
        for row in part.to_pylist():
            lists.setdefault(row["qid"], []).append((row["pid"], row["score"]))
            assert row["rank"] == len(lists[row["qid"]])
    return lists


def test_scores_by_hand(index_of: Callable[..., Bm25Index]) -> None:
    """Lucene's BM25: idf = ln(1 + (N - df + .5) / (df + .5)), tf / (tf + k1 (1 - b + b length / average))."""
    k1, b = 0.9, 0.4
    index = index_of(PASSAGES, k1=k1, b=b)
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


def naive(passages: dict[str, str], query: str, k1: float, b: float) -> dict[str, float]:
    """BM25 word by word, as the formula of `Bm25Index` says it, in double precision."""
    words = Words(Bm25())
    bags = {pid: Counter(words.read([text])[0].tolist()) for pid, text in passages.items()}
    n = sum(1 for bag in bags.values() if bag)
    mean = sum(bag.total() for bag in bags.values()) / n
    scores = {}
    for pid, bag in bags.items():
        score = 0.0
        for word in filter(bag.get, words.read([query])[0].tolist()):
            df = sum(1 for other in bags.values() if word in other)
            idf = math.log(1 + (n - df + 0.5) / (df + 0.5))
            score += idf * bag[word] / (bag[word] + k1 * (1 - b + b * bag.total() / mean))
        scores[pid] = score
    return {pid: score for pid, score in scores.items() if score > 0}


def collection(rng: np.random.Generator) -> tuple[dict[str, str], dict[str, str]]:
    """Passages, some empty or alike, and queries, of few words."""
    words = ["alpha", "betas", "gamma's", "delta", "epsilon", "zetas", "the"]
    passages = {str(i): " ".join(rng.choice(words, size=rng.integers(0, 9))) for i in range(150)}
    return passages, {f"q{i}": " ".join(rng.choice(words, size=3)) for i in range(20)}


@pytest.mark.parametrize(("k1", "b"), [(0.9, 0.4), (0.82, 0.68), (1.2, 1.0)])
def test_scores_and_order_equal_a_naive_bm25(index_of: Callable[..., Bm25Index], k1: float, b: float) -> None:
    """With many ties: the lower id wins, as a string, also at the cut-off."""
    passages, queries = collection(np.random.default_rng(0))
    index = index_of(passages, k1=k1, b=b)
    lists, whole = rank(index, queries, depth=12), rank(index, queries, depth=1000)
    for qid, text in queries.items():
        scores = naive(passages, text, k1, b)
        found = whole.get(qid, [])
        assert dict(found) == pytest.approx(scores, rel=1e-5)
        assert found == sorted(found, key=lambda pair: (-pair[1], pair[0]))
        assert lists.get(qid, []) == found[:12]
    assert any(len(found) > 12 and found[11][1] == found[12][1] for found in whole.values())


def test_lists_depend_neither_on_order_nor_shards_nor_batches(
    index_of: Callable[..., Bm25Index], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    passages, queries = collection(rng)
    expected = rank(index_of(passages), queries, depth=12)
    shuffled = {pid: passages[pid] for pid in rng.permutation(list(passages)).tolist()}
    assert rank(index_of(shuffled), queries, depth=12) == expected
    monkeypatch.setattr(module, "SHARD", 17)
    monkeypatch.setattr(module, "BATCH", 3)
    index = index_of(shuffled)
    assert len(index.shards) == 9
    assert rank(index, queries, depth=12) == expected
    monkeypatch.setattr(module, "READ", 3)
    monkeypatch.setattr(module, "TEXTS", 300)  # bytes: long texts come in smaller shards
    index = index_of(shuffled)
    assert len(index.shards) > 9 and rank(index, queries, depth=12) == expected


def test_stemmer_and_stop_words_are_choices(index_of: Callable[..., Bm25Index]) -> None:
    assert [pid for pid, _ in rank(index_of(PASSAGES), {"q": "the cat"})["q"]] == ["p1", "p3"]
    assert [pid for pid, _ in rank(index_of(PASSAGES, stop_words=False), {"q": "the"})["q"]] == ["p2"]
    assert rank(index_of(PASSAGES, stemmer="none"), {"q": "cat"}) == {}
    assert len(rank(index_of(PASSAGES, stemmer="english"), {"q": "cat"})["q"]) == 2


def test_queries_without_a_known_word_have_no_list(index_of: Callable[..., Bm25Index]) -> None:
    lists = rank(index_of(PASSAGES), {"a": "zebra", "b": "", "c": "the", "d": "mouse dogs"})
    assert list(lists) == ["d"]
    assert rank(index_of(PASSAGES), {}) == {}


@pytest.mark.parametrize("passages", [{"p": "", "q": "the"}, {}])
def test_a_corpus_without_words(index_of: Callable[..., Bm25Index], passages: dict[str, str]) -> None:
    with pytest.raises(LeadError, match="no passage of the corpus has a word"):
        index_of(passages)


def test_every_script_is_found(index_of: Callable[..., Bm25Index], caplog: pytest.LogCaptureFixture) -> None:
    """A word ranks first the passage that holds it, and not one that holds half of it or shares a letter."""
    passages = {
        "zh": "故乡的月亮很圆。",
        "ja": "天気予報によると明日は雨です。",
        "hi": "तारा",
        "hi2": "तार",
        "fr": "crème brûlée",
        "tr": "İstanbul",
        "th": "อากาศวันนี้ดีมาก",
    }
    queries = {
        "zh": "故乡",
        "ja": "天気",
        "hi": "तारा",
        "hi2": "तार",
        "fr": unicodedata.normalize("NFD", "brûlée"),
        "tr": "istanbul",
        "th": "อากาศ",
    }
    for analyser in ("english", "unicode", "code"):
        lists = rank(index_of(passages, analyser=analyser), queries)
        assert {qid: [pid for pid, _ in found] for qid, found in lists.items()} == {qid: [qid] for qid in queries}
    assert not caplog.messages


def test_many_queries_that_find_nothing_are_told(
    index_of: Callable[..., Bm25Index], caplog: pytest.LogCaptureFixture
) -> None:
    queries = {f"q{i}": "cats" for i in range(4)}
    rank(index_of(PASSAGES), {**queries, "x": "zebra"})
    assert not caplog.messages  # one in five
    rank(index_of(PASSAGES), {**queries, "x": "zebra", "y": ""})
    assert caplog.messages == [
        "2 of 6 queries share no word with any passage; is bm25.analyser 'english' right for this language?"
    ]


def stage(
    folder: Path, passages: dict[str, str], queries: dict[str, str], relevant: dict[str, str], **keys: Any
) -> Any:
    """Negatives of `lead bm25` as {qid: [pid, ..]}; relevant: {qid: pid}."""
    write_table(texts("corpus", passages), folder / "corpus.parquet", "corpus")
    write_table(texts("queries", queries), folder / "queries.parquet", "queries")
    qrels = pa.table([list(relevant), list(relevant.values()), [1] * len(relevant)], schema=SCHEMAS["qrels"])
    write_table(qrels, folder / "qrels.parquet", "qrels")
    bm25(
        settings=Bm25Settings(**keys),
        corpus=folder / "corpus.parquet",
        queries=[folder / "queries.parquet"],
        qrels=[folder / "qrels.parquet"],
        test_queries=folder / "queries.parquet",
        negatives=folder / "negatives.parquet",
        ranked=folder / "ranked.parquet",
    )
    found: dict[str, list[str]] = {}
    for row in read_table(folder / "negatives.parquet", "ranked").to_pylist():
        found.setdefault(row["qid"], []).append(row["pid"])
    return found


def test_copies_of_a_positive_are_no_negatives(tmp_path: Path) -> None:
    passages = {"a": "cats chase mice", "b": "cats sleep", "copy": "cats chase mice", "copy2": " cats chase mice\u200b"}
    queries, relevant = {"q": "cats chase", "r": "sleep cats"}, {"q": "a", "r": "b"}
    found = stage(tmp_path, passages, queries, relevant, mine_depth=1)
    assert found == {"q": ["b"], "r": ["a"]}  # full, though three copies are above it


def test_queries_that_are_passages(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    passages = {"1": "cats chase mice", "2": "cats chase dogs", "3": "cats sleep"}
    queries, relevant = {"1": "cats chase mice", "2": "cats chase dogs"}, {"1": "3", "2": "3"}
    assert stage(tmp_path, passages, queries, relevant, mine_depth=1) == {"1": ["1"], "2": ["2"]}
    assert "set retrieval.ignore_identical_ids: true" in caplog.text
    caplog.clear()
    found = stage(tmp_path, passages, queries, relevant, mine_depth=1, ignore_identical_ids=True)
    assert found == {"1": ["2"], "2": ["1"]} and not [r for r in caplog.records if r.levelname == "WARNING"]


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
