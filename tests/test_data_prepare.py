"""The stage `prepare`: splits, counts, checks, and that a failure leaves nothing behind."""

from __future__ import annotations

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
    assert report == {
        "source": {"kind": "files"},
        "corpus": {"passages": 40, "duplicate_passages": 0, "empty_passages": 0},
        "splits": {
            "train": {
                "queries": 16, "judgements": 16, "unjudged_queries": 0, "unresolved_judgements": 0,
                "repeated_judgements": 0, "empty_queries": 0, "leaked_queries": 0,
            },
            "dev": {"queries": 4, "judgements": 4, "leaked_queries": 0},
            "test": {
                "queries": 4, "judgements": 3, "unjudged_queries": 2, "unresolved_judgements": 0,
                "repeated_judgements": 0, "empty_queries": 0,
            },
        },
    }  # fmt: skip


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
    """By id, or by text under another id."""
    report = run(
        tmp_path, train=[*TRAIN, ("t0", "other words"), ("b", "test query 1")],
        train_qrels=[*TRAIN_QRELS, ("t0", 0, "p1", 1), ("b", 0, "p1", 1)],
        dev=[("d", "test query 2")], dev_qrels=[("d", 0, "p1", 1)],
    )  # fmt: skip
    assert [report["splits"][s]["leaked_queries"] for s in ("train", "dev")] == [2, 1]
    assert "train: 2 queries are test queries too, by id or text, e.g. t0, b" in caplog.text


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
