"""Train queries that are drawn from the corpus: what they are, what is relevant to them, and a corpus alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from dag.project import empty_project, refusal

from lead.config.load import load
from lead.config.sources import BeirSource, FilesSource, HfSource, PseudoQueries
from lead.config.stages import Bm25Settings, PrepareSettings
from lead.data.prepare import prepare
from lead.data.pseudo import fitting, pseudo_queries
from lead.errors import LeadError
from lead.plan.checks import check
from lead.plan.plan import Plan
from lead.plan.stage_settings import stage_settings
from lead.plan.targets import check_target, targets, wanted
from lead.plan.verify import verify
from lead.retrieval.bm25 import bm25
from lead.store.tables import SCHEMAS, read_table, write_table

DOCS = [
    ("p0", "How to read a csv", "The reader takes a path to a file. It returns a table with one column a field."),
    ("p1", "Graph walks", "A walk visits every vertex at most twice. It stops where no edge is left to take."),
    ("p2", "Graph walks", "Part two: a walk visits every vertex at most twice! Then it goes home to sleep."),
    ("p3", "", "Too short"),
    ("p4", "Only a title", ""),
]


def passages() -> list[tuple[str, str]]:
    return [(pid, f"{title} {text}".strip()) for pid, title, text in DOCS]


def titles() -> list[tuple[str, str]]:
    return [(pid, title) for pid, title, _ in DOCS]


def drawn(way: str, texts: Any = passages, **keys: Any) -> tuple[dict[str, str], dict[str, set[str]]]:
    """Queries by id, and the passages relevant to each."""
    split, facts = pseudo_queries(PseudoQueries(**{"from": way, **keys}), texts, titles, 2)
    queries = dict(zip(split.queries["qid"].to_pylist(), split.queries["text"].to_pylist(), strict=True))
    relevant: dict[str, set[str]] = {qid: set() for qid in queries}
    for row in split.qrels.to_pylist():
        assert row["rel"] == 2
        relevant[row["qid"]].add(row["pid"])
    assert facts["queries"] == len(queries) and facts["judgements"] == split.qrels.num_rows
    return queries, relevant


def test_titles_are_queries_of_all_passages_under_them() -> None:
    queries, relevant = drawn("titles")
    assert sorted(queries.values()) == ["Graph walks", "How to read a csv"]  # not the passage that is its title
    by_text = {queries[qid]: pids for qid, pids in relevant.items()}
    assert by_text == {"Graph walks": {"p1", "p2"}, "How to read a csv": {"p0"}}


def test_passages_that_hold_a_query_are_relevant_to_it() -> None:
    texts = [
        ("a", "One two three four five. Six seven."),
        ("b", "He said: ONE two  three four five."),
        ("c", "one two"),
    ]
    for seed in range(1, 6):
        queries, relevant = drawn("sentences", lambda: texts, seed=seed)
        for qid, text in queries.items():
            if text.lower().startswith("one"):
                assert qid == "pseudo-a" and relevant[qid] == {"a", "b"}
    assert any(len(r) == 2 for r in relevant.values())


@pytest.mark.parametrize("way", ["sentences", "crops"])
def test_a_query_is_a_part_of_its_passage_whatever_the_order_of_the_corpus(way: str) -> None:
    queries, relevant = drawn(way)
    assert set(queries) <= {"pseudo-p0", "pseudo-p1", "pseudo-p2"} and len(queries) >= 2
    whole = dict(passages())
    for qid, text in queries.items():
        own = qid.removeprefix("pseudo-")
        assert own in relevant[qid] and text in whole[own]
        assert 4 <= len(text.split()) < len(whole[own].split())
    assert drawn(way, lambda: passages()[::-1]) == (queries, relevant)
    assert any(drawn(way, seed=seed)[0] != queries for seed in (2, 3, 4))


@pytest.mark.parametrize("way", ["sentences", "crops"])
def test_characters_of_scripts_without_spaces_are_words(way: str) -> None:
    texts = [(f"p{i}", f"第{i}章讲机器学习。它讲述了神经网络在第{i}个小数据集上的训练。") for i in range(10, 25)]
    texts.append(("copy", f"前言。{texts[0][1]}"))
    queries, relevant = drawn(way, lambda: texts)
    assert len(queries) >= 8 and fitting([("", text) for _, text in texts])[0] == "sentences"
    assert all(4 <= len(text) < 40 and text in dict(texts)[qid.partition("-")[2]] for qid, text in queries.items())
    assert all("copy" in pids for pids in relevant.values() if "p10" in pids)


def test_so_many_queries_and_no_more() -> None:
    many = [(f"p{i}", " ".join(f"w{i}x{j}" for j in range(12))) for i in range(200)]
    few, all_of_them = drawn("crops", lambda: many, number=30)[0], drawn("crops", lambda: many)[0]
    assert len(few) == 30 and len(all_of_them) == 200 and few.items() <= all_of_them.items()
    boilerplate = [(pid, f"{text}. See the other pages of this book.") for pid, text in many]
    queries, _ = drawn("sentences", lambda: boilerplate)
    assert queries and not any("See the" in text for text in queries.values())


def test_a_corpus_of_names_gives_half_of_their_words() -> None:
    names = [(f"p{i}", f"w{i}a w{i}b w{i}c" + " w" * (i % 5)) for i in range(40)]  # 3 to 7 words
    way, _ = fitting(("", text) for _, text in names)  # what `lead init` writes
    queries, _ = drawn(way, lambda: names)
    assert len(queries) > 30
    for qid, text in queries.items():
        whole = dict(names)[qid.removeprefix("pseudo-")]
        assert text in whole and len(text.split()) == len(whole.split()) // 2


def test_what_gives_no_query_is_refused() -> None:
    with pytest.raises(LeadError, match="passages of this source have no titles; use sentences or crops"):
        pseudo_queries(PseudoQueries(**{"from": "titles"}), passages, None, 1)
    with pytest.raises(LeadError, match="no passage gives a query"):
        drawn("crops", lambda: [("a", "short")])


# --- a corpus alone --------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BEIR folder with nothing but 60 passages."""
    folder = tmp_path_factory.mktemp("beir")
    rows = [
        {"_id": f"d{i}", "title": f"chapter {i}", "text": f"It tells of thing {i} and of no other. It ends in word{i}."}
        for i in range(60)
    ]  # fmt: skip
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.mark.parametrize("kind", ["files", "beir", "hf"])
def test_a_corpus_alone_gives_train_and_dev(
    corpus: Path, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = {
        "files": FilesSource(kind="files", corpus=str(corpus / "corpus.jsonl")),
        "beir": BeirSource(kind="beir", folder=str(corpus), train=None),
        "hf": HfSource(kind="hf", folder=str(corpus), train=None),
    }[kind]
    settings = PrepareSettings(source=source, queries=PseudoQueries(**{"from": "titles"}), dev_share=0.1)
    prepare(settings=settings, out=tmp_path)
    tables = {s: read_table(tmp_path / f"queries.{s}.parquet", "queries") for s in ("train", "dev", "test")}
    assert {name: table.num_rows for name, table in tables.items()} == {"train": 54, "dev": 6, "test": 0}
    assert "every passage begins with its query" in caplog.text
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["source"]["queries"] | {"from": "titles", "queries": 60} == report["source"]["queries"]
    every = {f"{part}_{s}": tmp_path / f"{part}.{s}.parquet" for part in ("queries", "qrels") for s in ("train", "dev")}
    bm25(  # no test query to rank, and negatives as ever
        settings=Bm25Settings(), corpus=tmp_path / "corpus.parquet",
        queries=[every["queries_train"], every["queries_dev"]], qrels=[every["qrels_train"], every["qrels_dev"]],
        test_queries=tmp_path / "queries.test.parquet", negatives=tmp_path / "n.parquet", ranked=tmp_path / "r.parquet",
    )  # fmt: skip
    assert read_table(tmp_path / "r.parquet", "ranked").num_rows == 0
    assert read_table(tmp_path / "n.parquet", "ranked").num_rows > 0


def test_judged_test_queries_stay(corpus: Path, tmp_path: Path) -> None:
    (corpus / "qrels").mkdir()
    asked = [{"_id": f"q{i}", "text": f"thing {i}"} for i in range(1, 30)]  # BEIR's file has those of all splits
    (corpus / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    (corpus / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td7\t1\n")
    settings = PrepareSettings(
        source=BeirSource(kind="beir", folder=str(corpus), train=None), queries=PseudoQueries(**{"from": "sentences"})
    )
    prepare(settings=settings, out=tmp_path)
    assert read_table(tmp_path / "queries.test.parquet")["qid"].to_pylist() == ["q1"]
    assert read_table(tmp_path / "queries.train.parquet").num_rows > 40
    with pytest.raises(LeadError, match="source.train and source.test are missing"):
        prepare(
            settings=PrepareSettings(source=FilesSource(kind="files", corpus=str(corpus / "corpus.jsonl"))),
            out=tmp_path,
        )


def test_models_of_a_corpus_alone_can_be_made_but_not_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = empty_project(tmp_path)
    file = folder / "datasets" / "mine.yaml"
    file.write_text("source: {kind: files, corpus: ../../data/corpus.jsonl}\nqueries: {from: crops}\npreset: tiny\n")
    made = Plan(load(folder / "config.yaml"))
    check(made["mine", "rd_cb"])
    assert stage_settings(made["mine", "rd_cb"], "prepare")["queries"] == {"from": "crops", "number": 100000, "seed": 1}
    assert "queries" not in stage_settings(made["tiny", "rd_cb"], "prepare")  # other datasets' recipes are as before
    for ask in (lambda: check_target(made, "all results/mine/rd_cb.json"), lambda: targets(made, "mine")):
        assert "mine.yaml: no test queries, so no results; make a model (lead run mine/best_unlabelled)" in refusal(ask)
    folder = "all results/mine"
    assert [wanted(made["mine", run]) for run in ("student", "teacher_cb", "bm25")] == [
        [f"{folder}/models/student", f"{folder}/embeddings/student/passages.parquet"],
        [f"{folder}/models/teacher_cb"],
        [f"{folder}/negatives/bm25.parquet"],
    ]
    check_target(made, "all results/mine/models/rd_cb")
    monkeypatch.chdir(tmp_path)
    assert "make one with: lead run mine" in refusal(lambda: verify(made, "mine"))
    write_table(SCHEMAS["queries"].empty_table(), Path(folder) / "data/queries.test.parquet", "queries")
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub/corpus.jsonl").touch()
    file.write_text("source: {kind: hf, folder: ../../hub}\nqueries: {from: crops}\npreset: tiny\n")
    hub = Plan(load(tmp_path / "config/config.yaml"))
    assert not hub.datasets["mine"].has_test and hub.datasets["mine"].source_files == [
        f"{tmp_path}/config/datasets/../../hub/corpus.jsonl"
    ]
    assert [state for state, _ in verify(made, "mine")] == ["stale"]  # by hand: no record of how it was made


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("source: {kind: files, corpus: c.jsonl}\n", "key 'source.train' is missing; add it, or draw train queries"),
        ("source: {kind: files, corpus: c.jsonl}\nqueries: {from: title}\n", "key 'queries.from'"),
        (
            "source: {kind: files, corpus: c.jsonl, train: {queries: q, qrels: r}}\nqueries: {from: titles}\n",
            "give either 'source.train' or 'queries'",
        ),
        ("source: {kind: evaluation, of: tiny, test: x}\nqueries: {from: titles}\n", "leave it out"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, text: str, says: str) -> None:
    folder = empty_project(tmp_path)
    preset = "" if "evaluation" in text else "preset: tiny\n"
    (folder / "datasets" / "mine.yaml").write_text(text + preset)
    message = refusal(lambda: load(folder / "config.yaml"))
    assert says in message and "mine.yaml" in message
