"""The stage `prepare`: splits, counts, checks, and that a failure leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from lead.config.sources import Checks, FilesSource, SplitFiles
from lead.config.stages import PrepareSettings
from lead.data.prepare import prepare
from lead.errors import LeadError
from lead.store.tables import read_json, read_table

Rows = list[tuple[Any, ...]]
CORPUS: Rows = [(f"p{i}", f"passage {i}") for i in range(40)]
TRAIN: Rows = [(f"a{i}", f"train query {i}") for i in range(20)]
TEST: Rows = [(f"t{i}", f"test query {i}") for i in range(4)]
TRAIN_QRELS: Rows = [(f"a{i}", 0, f"p{i}", 1) for i in range(20)]
TEST_QRELS: Rows = [(f"t{i}", 0, f"p{i}", 2) for i in range(2)] + [("t2", 0, "p9", 0)]


def write(path: Path, rows: Rows) -> str:
    """Write rows as TSV."""
    path.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def run(folder: Path, *, checks: dict[str, float] | None = None, **changes: Any) -> dict[str, Any]:
    """Run the stage on a small collection, some of its files replaced; returns the report."""
    rows = {
        "corpus": CORPUS, "train": TRAIN, "train_qrels": TRAIN_QRELS, "test": TEST, "test_qrels": TEST_QRELS,
        "dev": None, "dev_qrels": None,
    } | changes  # fmt: skip
    paths = {name: write(folder / f"{name}.tsv", r) for name, r in rows.items() if isinstance(r, list)}
    split: dict[str, Any] = {
        name: SplitFiles(queries=paths[name], qrels=paths[f"{name}_qrels"])
        for name in ("train", "dev", "test")
        if name in paths
    }
    settings = PrepareSettings(
        source=FilesSource(kind="files", corpus=paths["corpus"], **split),
        checks=Checks(**(checks or {})),
        dev_share=changes.get("dev_share", 0.2),
        relevance=changes.get("relevance", 1),
    )
    prepare(settings=settings, out=folder / "out")
    report: dict[str, Any] = read_json(folder / "out" / "report.json")
    return report


def ids(folder: Path, name: str, column: str = "qid") -> list[str]:
    """One column of a table that was written."""
    values: list[str] = read_table(folder / "out" / f"{name}.parquet", name.split(".")[0])[column].to_pylist()
    return values


def test_files_and_report(tmp_path: Path) -> None:
    """Dev is carved from train, with its judgements; test keeps every query; the report counts it all."""
    report = run(tmp_path)
    train, dev = ids(tmp_path, "queries.train"), ids(tmp_path, "queries.dev")
    assert len(dev) == 4 and len(train) == 16 and sorted(train + dev) == sorted(q for q, _ in TRAIN)
    assert ids(tmp_path, "qrels.dev") == dev and ids(tmp_path, "qrels.train") == train
    assert ids(tmp_path, "queries.test") == [q for q, _ in TEST]
    assert ids(tmp_path, "corpus", "pid") == [p for p, _ in CORPUS]
    files = report["source"].pop("files")
    assert files["corpus"] == {
        "columns": {"pid": "column 1", "text": "column 2"}, "header": False, "quotes": False
    } and sorted(files) == ["corpus", "test.qrels", "test.queries", "train.qrels", "train.queries"]  # fmt: skip
    nothing = dict.fromkeys(
        ("unresolved_judgements", "missing_passages", "missing_judgements", "repeated_judgements", "other_queries",
         "empty_queries", "queries_in_corpus"), 0,
    )  # fmt: skip
    assert report == {
        "source": {"kind": "files"},
        "corpus": {"passages": 40, "duplicate_passages": 0, "empty_passages": 0},
        "splits": {
            "train": nothing | {"queries": 16, "judgements": 16, "unjudged_queries": 0, "leaked_queries": 0},
            "dev": {"queries": 4, "judgements": 4, "leaked_queries": 0, "queries_of_train": 0},
            "test": nothing | {"queries": 4, "judgements": 3, "unjudged_queries": 2},
        },
    }


def test_dev_depends_on_ids_alone(tmp_path: Path) -> None:
    """Neither the order of the file nor a new query moves more than a query."""
    run(tmp_path)
    before = set(ids(tmp_path, "queries.dev"))
    run(tmp_path, train=TRAIN[::-1], train_qrels=TRAIN_QRELS[::-1])
    assert set(ids(tmp_path, "queries.dev")) == before
    run(tmp_path, train=[*TRAIN, ("new", "a new query")], train_qrels=[*TRAIN_QRELS, ("new", 0, "p1", 1)])
    assert len(before - set(ids(tmp_path, "queries.dev"))) <= 1


def test_given_dev_is_used(tmp_path: Path) -> None:
    """Then nothing is carved."""
    run(tmp_path, dev=[("d1", "x"), ("d2", "y")], dev_qrels=[("d1", 0, "p1", 1)])
    assert ids(tmp_path, "queries.dev") == ["d1"]
    assert len(ids(tmp_path, "queries.train")) == 20


def test_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Everything odd is counted, dropped where it has to be, and logged with examples."""
    caplog.set_level("INFO", "lead")
    report = run(
        tmp_path,
        corpus=[*CORPUS, ("again", "passage 3"), ("padded", " passage 3 "), ("void", ""), ("blank", "  ")],
        train=[*TRAIN, ("lonely", "no judgement"), ("low", "judged irrelevant"), ("mute", "")],
        train_qrels=[*TRAIN_QRELS, ("low", 0, "p1", 0), ("a1", 0, "nowhere", 1), ("nobody", 0, "p1", 1)]
        + [("mute", 0, "p1", 1), ("mute", 0, "p1", 1)],
        checks={"empty_passages": 0.5},
    )
    assert report["corpus"] == {"passages": 44, "duplicate_passages": 2, "empty_passages": 2}
    train = report["splits"]["train"]
    assert (train["unjudged_queries"], train["unresolved_judgements"]) == (2, 2)
    assert (train["repeated_judgements"], train["empty_queries"]) == (1, 1)
    kept = ids(tmp_path, "queries.train") + ids(tmp_path, "queries.dev")
    assert len(kept) == 21 and "lonely" not in kept and "low" not in kept
    assert "nowhere" not in ids(tmp_path, "qrels.train", "pid") + ids(tmp_path, "qrels.dev", "pid")
    for line in (
        "corpus: 2 of 44 duplicate passages, e.g. again, padded (4.5%)",
        "corpus: 2 of 44 empty passages, e.g. void, blank",
        "train: 2 of 24 unresolved judgements, e.g. a1 nowhere, nobody p1",
        "train: 2 of 23 unjudged queries, e.g. lonely, low",
        "train: 1 judgements repeat another",
        "train: 1 queries have no text",
    ):
        assert line in caplog.text


def test_relevance_threshold(tmp_path: Path) -> None:
    """Grades below it make no training query, but stay in the qrels, which are graded."""
    qrels = [*TRAIN_QRELS[:10], *((f"a{i}", 0, f"p{i}", 2) for i in range(10, 20)), ("a10", 0, "p1", 1)]
    report = run(tmp_path, train_qrels=qrels, relevance=2)
    assert report["splits"]["train"]["unjudged_queries"] == 10
    assert report["splits"]["train"]["judgements"] + report["splits"]["dev"]["judgements"] == 11


def test_leaks_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By text, whatever its case and spaces; ids are those of a file, and unjudged queries are no leak."""
    report = run(
        tmp_path, train=[*TRAIN, ("t0", "other words"), ("b", " Test  query 1"), ("c", "test query 3")],
        train_qrels=[*TRAIN_QRELS, *((q, 0, "p1", 1) for q in ("t0", "b", "c"))],
        dev=[("d", "test query 2"), ("e", "TRAIN QUERY 5")], dev_qrels=[("d", 0, "p1", 1), ("e", 0, "p1", 1)],
    )  # fmt: skip
    assert [report["splits"][s]["leaked_queries"] for s in ("train", "dev")] == [1, 1]
    assert report["splits"]["dev"]["queries_of_train"] == 1
    assert "train: 1 queries have the text of a test query, e.g. b" in caplog.text
    assert "dev: 1 queries have the text of a train query, e.g. e" in caplog.text


def test_dev_repeats_no_question_of_train(tmp_path: Path) -> None:
    """Queries of the same text go to the same split, and single ones where they went before."""
    run(tmp_path)
    before = set(ids(tmp_path, "queries.dev"))
    train = [*TRAIN, *((f"b{i}", f"Train query {i}") for i in range(20))]
    qrels = [*TRAIN_QRELS, *((f"b{i}", 0, f"p{i}", 1) for i in range(20))]
    report = run(tmp_path, train=train, train_qrels=qrels)
    dev = set(ids(tmp_path, "queries.dev"))
    assert {qid[1:] for qid in dev if qid[0] == "a"} == {qid[1:] for qid in dev if qid[0] == "b"}
    assert len(dev) == 8 and report["splits"]["dev"]["queries_of_train"] == 0
    lonely = [*TRAIN, ("x", "Train query 0")]
    run(tmp_path, train=lonely, train_qrels=[*TRAIN_QRELS, ("x", 0, "p0", 1)])
    assert len(before ^ set(ids(tmp_path, "queries.dev"))) <= 2


def test_judgements_of_passages_that_the_corpus_lacks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In test they stay with their query, so that measures count them; in train they are dropped. Both are counted."""
    lost = [("t3", 0, "gone", 1), ("t1", 0, "gone", 2), ("t1", 0, "gone2", 1)]
    report = run(
        tmp_path, checks={"unresolved_judgements": 0.6}, test_qrels=[*TEST_QRELS, *lost, ("nobody", 0, "p1", 1)],
        train_qrels=[*TRAIN_QRELS[:-1], ("a19", 0, "gone", 1)],
    )  # fmt: skip
    table = read_table(tmp_path / "out" / "qrels.test.parquet")
    assert [(r["qid"], r["pid"]) for r in table.to_pylist()][3:] == [(q, p) for q, _, p, _ in lost]
    assert json.loads(table.schema.metadata[b"about"]) == {"missing_judgements": 3, "missing_passages": 2}
    assert "gone" not in ids(tmp_path, "qrels.train", "pid") + ids(tmp_path, "qrels.dev", "pid")
    kept = ids(tmp_path, "queries.train") + ids(tmp_path, "queries.dev")
    assert "a19" not in kept and len(kept) == 19
    test, train = (report["splits"][name] for name in ("test", "train"))
    assert (test["missing_passages"], test["missing_judgements"], test["unresolved_judgements"]) == (2, 3, 4)
    assert test["unjudged_queries"] == 1  # t2; t3 is judged, though its passage cannot be found
    assert (train["missing_passages"], train["missing_judgements"]) == (1, 1)
    assert "test: the corpus lacks 2 judged passages, e.g. gone, gone, gone2: their judgements stay" in caplog.text
    run(tmp_path)
    assert b"about" not in (read_table(tmp_path / "out" / "qrels.test.parquet").schema.metadata or {})


def test_measures_over_missing_passages_are_those_of_ir_measures(tmp_path: Path) -> None:
    """The same judgements and run, once through the stages, once through the library."""
    import ir_measures

    from lead.config.stages import EvaluateSettings, ExternalSettings
    from lead.data.external_run import external
    from lead.evaluation.evaluate import evaluate

    qrels = [*((f"t{i}", 0, f"p{i}", 1) for i in range(3)), ("t3", 0, "gone", 1), ("t2", 0, "gone2", 2)]
    lists = [(f"t{i}", "Q0", f"p{(i + k) % 40}", k, 10.0 - k, "x") for i in range(4) for k in range(1 - i % 2, 6)]
    (tmp_path / "run.txt").write_text("".join(" ".join(map(str, row)) + "\n" for row in lists))
    run(tmp_path, test_qrels=qrels, checks={"unresolved_judgements": 0.5})
    out, names = tmp_path / "out", ["RR@10", "R@5", "nDCG@10", "AP@100", "P@1"]
    external(
        settings=ExternalSettings(external_run=str(tmp_path / "run.txt")), corpus=out / "corpus.parquet",
        queries=out / "queries.test.parquet", out=tmp_path / "run.parquet",
    )  # fmt: skip
    settings = EvaluateSettings.model_validate({"evaluation": {"measures": names, "resamples": 10}})
    evaluate(
        settings=settings, ranked=tmp_path / "run.parquet", qrels=out / "qrels.test.parquet",
        out=tmp_path / "result.json", per_query=tmp_path / "per_query.parquet", trec=None,
    )  # fmt: skip
    theirs = ir_measures.calc_aggregate(
        [ir_measures.parse_measure(name) for name in names],
        [ir_measures.Qrel(q, p, rel) for q, _, p, rel in qrels],
        [ir_measures.ScoredDoc(q, p, score) for q, _, p, _, score, _ in lists],
    )
    ours = {name: value["mean"] for name, value in read_json(tmp_path / "result.json")["metrics"].items()}
    assert ours == pytest.approx({str(measure): value for measure, value in theirs.items()}, abs=1e-6)
    assert ours["RR@10"] < 1


def test_one_file_of_queries_for_all_splits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As BEIR has it, also as copies of the file: each split is its judged queries, and nothing is refused."""
    caplog.set_level("INFO", "lead")
    every = [*TRAIN, *TEST, ("d", "a dev query"), ("nobody", "not judged anywhere")]
    parts = {"dev_qrels": [("d", 0, "p1", 1)], "test_qrels": [("t0", 0, "p0", 1), ("t1", 0, "p1", 0)]}
    reports = [run(tmp_path, train=every, test=every, dev=every, **parts)]
    for name in ("test", "dev"):  # the same file, by a link
        (tmp_path / f"{name}.tsv").unlink()
        (tmp_path / f"{name}.tsv").symlink_to(tmp_path / "train.tsv")
    settings = PrepareSettings.model_validate({"source": {"kind": "files", "corpus": str(tmp_path / "corpus.tsv")} | {
        name: {"queries": str(tmp_path / f"{name}.tsv"), "qrels": str(tmp_path / f"{name}_qrels.tsv")}
        for name in ("train", "dev", "test")}})  # fmt: skip
    prepare(settings=settings, out=tmp_path / "out")
    reports.append(read_json(tmp_path / "out" / "report.json"))
    assert [len(ids(tmp_path, f"queries.{name}")) for name in ("train", "dev", "test")] == [20, 1, 2]
    for report, unjudged in zip(reports, (3, 0), strict=True):  # of copies, t2, t3 and `nobody` are nobody's
        train = report["splits"]["train"]
        assert (train["leaked_queries"], report["splits"]["dev"]["leaked_queries"]) == (0, 0)
        assert (train["unjudged_queries"], train["other_queries"]) == (unjudged, 6 - unjudged)
    assert "train: 6 queries of its file are not judged here: they are left out" in caplog.text


def test_queries_that_are_passages_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where ids and texts agree (ArguAna, Quora). Ids alone may agree by chance, as the numbers of MS MARCO do."""
    report = run(tmp_path)
    assert report["splits"]["test"]["queries_in_corpus"] == 0 and "ignore_identical_ids" not in caplog.text
    numbers = [(f"p{i}", f"query {i}") for i in range(4)]
    qrels = [(f"p{i}", 0, f"p{i + 5}", 1) for i in range(4)]
    assert run(tmp_path, test=numbers, test_qrels=qrels)["splits"]["test"]["queries_in_corpus"] == 0
    same = [(f"p{i}", f"Passage  {i}") for i in range(4)]
    assert run(tmp_path, test=same, test_qrels=qrels)["splits"]["test"]["queries_in_corpus"] == 4
    assert "test: 4 queries are passages of the corpus under the same id, e.g. p0, p1, p2: set `ignore_" in caplog.text
    own = [(f"p{i}", 0, f"p{i}", 1) for i in range(4)]  # a docstring and its summary: the passage is the answer
    assert run(tmp_path, test=same, test_qrels=own)["splits"]["test"]["queries_in_corpus"] == 0


@pytest.mark.parametrize("blank", ["\u200b", "\ufeff", "\u200d\u2060 \xad", "\u3164", "\u2028 \x0b"])
def test_texts_that_show_nothing_are_empty(tmp_path: Path, blank: str) -> None:
    """Whatever they are written with."""
    report = run(tmp_path, corpus=[*CORPUS, ("void", blank)], train=[*TRAIN, ("q", blank)],
                 train_qrels=[*TRAIN_QRELS, ("q", 0, "p1", 1)])  # fmt: skip
    assert report["corpus"] == {"passages": 41, "duplicate_passages": 0, "empty_passages": 1}
    assert report["splits"]["train"]["empty_queries"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corpus": [(f"p{i}", "same") for i in range(20)]},
         "checks.duplicate_passages: corpus: 19 of 20 .*, e.g. p1, p2, p3: 0.95 is above the limit"),
        ({"corpus": [*CORPUS[:20], *((f"e{i}", "") for i in range(10))]}, "checks.empty_passages: .* e0, e1, e2: 0.33"),
        ({"test_qrels": [("t1", 0, "p1", 1), ("t1", 0, "px", 1)]}, "checks.unresolved_judgements: test: .* t1 px: 0.5"),
        ({"train_qrels": TRAIN_QRELS[:1]}, "checks.unjudged_queries: train: .* a1, a2, a3: 0.95 "),
        ({"corpus": []}, "source.corpus holds no passages"),
        ({"train": [], "train_qrels": []}, "the train split has no query with a relevant passage"),
        ({"test": [], "test_qrels": []}, "the test split has no query with a relevant passage"),
        ({"train": TRAIN[:1], "train_qrels": TRAIN_QRELS[:1]}, "the train split has one query"),
        ({"dev": TRAIN[:2], "dev_qrels": TRAIN_QRELS[:2]}, "source.dev: query id a0 is in train too, and 1 others"),
        ({"corpus": [*CORPUS, ("p1", "twice")]}, "corpus.tsv:41: passage id p1 occurs before, in line 2"),
    ],
)  # fmt: skip
def test_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """One line that names the key, the share, the limit and examples; no file is left."""
    with pytest.raises(LeadError, match=message) as caught:
        run(tmp_path, **changes)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").iterdir())


def test_limits_are_settings(tmp_path: Path) -> None:
    """What is refused by default passes under a higher limit."""
    report = run(tmp_path, train_qrels=TRAIN_QRELS[:2], checks={"unjudged_queries": 1})
    assert report["splits"]["train"]["unjudged_queries"] == 18


def test_one_row_group_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader can stream the corpus too, and examples are found whatever the batch."""
    monkeypatch.setattr("lead.data.collection.BATCH_ROWS", 7)
    doubled = [*CORPUS[:38], ("p38", "passage 1"), ("p39", "passage 1")]
    with pytest.raises(LeadError, match="e.g. p38, p39:"):
        run(tmp_path, corpus=doubled, checks={"duplicate_passages": 0})
    run(tmp_path)
    assert pq.ParquetFile(tmp_path / "out" / "corpus.parquet").num_row_groups == 6
