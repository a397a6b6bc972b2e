"""Measures: values computed by hand, and those of ir_measures' own command."""

from __future__ import annotations

import contextlib
import io
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ir_measures.__main__ import main_cli

from lead.config.stages import EvaluateSettings
from lead.errors import LeadError
from lead.evaluation import evaluate as module
from lead.evaluation.evaluate import evaluate, query_values
from lead.evaluation.measures import check_measures, parse_measures
from lead.store.tables import ABOUT, SCHEMAS, read_table, write_table

NAMES = ["RR@10", "AP@1000", "R@3", "nDCG@10", "P@2", "Success@1"]
QRELS = {
    "q1": {"a": 1, "b": 2, "c": 0, "z": 3},  # z is never retrieved
    "q2": {"a": 2},
    "q3": {"a": 1},  # retrieves nothing
    "q4": {"a": 0},  # judged, but nothing is relevant
}
LISTS = {
    "q1": ["x", "b", "c", "a"],
    "q2": ["x", "y", "c", "a"],
    "q4": ["a"],
    "q9": ["a"],  # not judged
}


def ranked_of(lists: dict[str, list[str]], scores: list[float] | None = None) -> pa.Table:
    rows = [(qid, pid, rank) for qid, pids in lists.items() for rank, pid in enumerate(pids, start=1)]
    columns = [*map(list, zip(*rows, strict=True)), scores or [-float(rank) for *_, rank in rows]]
    return pa.table(columns, schema=SCHEMAS["ranked"]) if rows else SCHEMAS["ranked"].empty_table()


def qrels_of(judgements: dict[str, dict[str, int]]) -> pa.Table:
    rows = [(qid, pid, rel) for qid, pids in judgements.items() for pid, rel in pids.items()]
    return pa.table(list(map(list, zip(*rows, strict=True))), schema=SCHEMAS["qrels"])


def values_of(
    ranked: pa.Table, judgements: dict[str, dict[str, int]], name: str, relevance: int = 1
) -> dict[str, float]:
    qids, values = query_values(ranked, qrels_of(judgements), [parse_measures([name], relevance)[name]])
    return dict(zip(qids, values[:, 0].tolist(), strict=True))


def log2(x: float) -> float:
    return math.log(x, 2)


@pytest.mark.parametrize(
    ("name", "relevance", "expected"),
    [
        # q1 finds its relevant a, b at ranks 4, 2 and misses z; q2 finds its one at rank 4
        ("RR@10", 1, [1 / 2, 1 / 4, 0, 0]),
        ("RR@3", 1, [1 / 2, 0, 0, 0]),
        ("RR", 1, [1 / 2, 1 / 4, 0, 0]),
        ("AP@1000", 1, [(1 / 2 + 2 / 4) / 3, 1 / 4, 0, 0]),
        ("AP@3", 1, [(1 / 2) / 3, 0, 0, 0]),
        ("R@3", 1, [1 / 3, 0, 0, 0]),
        ("R@1000", 1, [2 / 3, 1, 0, 0]),
        ("P@2", 1, [1 / 2, 0, 0, 0]),
        ("Success@2", 1, [1, 0, 0, 0]),
        # with grades from 2 on: only b and z are relevant to q1
        ("RR@10", 2, [1 / 2, 1 / 4, 0, 0]),
        ("AP@1000", 2, [(1 / 2) / 2, 1 / 4, 0, 0]),
        ("R@1000", 2, [1 / 2, 1, 0, 0]),
        ("RR@10", 3, [0, 0, 0, 0]),
        ("RR(rel=1)@10", 3, [1 / 2, 1 / 4, 0, 0]),  # what the name says comes first
        # graded, whatever the threshold: gains are the grades, discounts log2(rank + 1)
        *(
            (
                "nDCG@10",
                relevance,
                [(2 / log2(3) + 1 / log2(5)) / (3 + 2 / log2(3) + 1 / log2(4)), (2 / log2(5)) / 2, 0, 0],
            )
            for relevance in (1, 2, 3)
        ),
        ("nDCG@2", 1, [(2 / log2(3)) / (3 + 2 / log2(3)), 0, 0, 0]),
    ],
)
def test_values_by_hand(name: str, relevance: int, expected: list[float]) -> None:
    values = values_of(ranked_of(LISTS), QRELS, name, relevance)
    assert values == pytest.approx(dict(zip(("q1", "q2", "q3", "q4"), expected, strict=True)))


def test_measures_do_not_disturb_each_other() -> None:
    """All at once, as the stage computes them, equal one at a time (ndcg shares an evaluator with binary measures)."""
    measures = parse_measures([*NAMES, "RR@2", "nDCG@2", "AP"], 2)
    _, together = query_values(ranked_of(LISTS), qrels_of(QRELS), list(measures.values()))
    for column, name in zip(together.T, measures, strict=True):
        assert column.tolist() == list(values_of(ranked_of(LISTS), QRELS, name, 2).values())


def test_ranks_decide_not_scores() -> None:
    """Equal scores: pytrec_eval would put the last pid first. Ours is the order of `rank`, and of no other column."""
    lists = {"q": ["a", "b", "c"]}
    for scores in ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]):
        ranked = ranked_of(lists, scores)
        for table in (ranked, ranked.take([2, 0, 1])):
            for name in ("RR@10", "RR", "AP@10", "nDCG@10", "P@1"):  # by pytrec_eval and by MS MARCO's code
                assert values_of(table, {"q": {"a": 1}}, name) == {"q": 1.0}


@given(st.integers(0, 2**32 - 1))
def test_many_queries_against_plain_python(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pids = [f"p{i}" for i in range(12)]
    judgements = {
        f"q{i}": {pid: int(rng.integers(0, 4)) for pid in rng.choice(pids, 5, replace=False).tolist()} for i in range(7)
    }
    lists = {qid: rng.permutation(pids)[: rng.integers(0, 12)].tolist() for qid in judgements if rng.random() < 0.8}
    ranked = ranked_of(lists)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "QUERIES", 3)  # several batches
        values = {name: values_of(ranked, judgements, name, 2) for name in ("RR@4", "AP@6", "R@6")} if lists else {}
    for qid in judgements if lists else ():
        relevant = {pid for pid, rel in judgements[qid].items() if rel >= 2}
        hits = [rank for rank, pid in enumerate(lists.get(qid, []), start=1) if pid in relevant]
        precisions = [n / rank for n, rank in enumerate(hits, start=1) if rank <= 6]
        assert values["RR@4"][qid] == pytest.approx(1 / hits[0] if hits and hits[0] <= 4 else 0)
        assert values["AP@6"][qid] == pytest.approx(sum(precisions) / len(relevant) if relevant else 0)
        assert values["R@6"][qid] == pytest.approx(len(precisions) / len(relevant) if relevant else 0)


# --- the stage -------------------------------------------------------------------------------------------------------
def run(
    folder: Path,
    ranked: pa.Table,
    qrels: pa.Table,
    trec: bool = False,
    ignore_identical_ids: bool = False,
    **evaluation: Any,
) -> dict[str, Any]:
    write_table(ranked, folder / "ranked.parquet", "ranked")
    about = json.loads((qrels.schema.metadata or {}).get(ABOUT.encode(), "null"))
    write_table(qrels, folder / "qrels.parquet", "qrels", about=about)
    settings = EvaluateSettings.model_validate(
        {
            "evaluation": {"measures": NAMES, **evaluation},
            "ignore_identical_ids": ignore_identical_ids,
            "seed": 3,
            "made_by": {"model": "x"},
        }
    )
    evaluate(
        settings=settings,
        ranked=folder / "ranked.parquet",
        qrels=folder / "qrels.parquet",
        out=folder / "run.json",
        per_query=folder / "per_query.parquet",
        trec=folder / "run.trec" if trec else None,
    )
    result: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return result


def test_the_result(tmp_path: Path) -> None:
    result = run(tmp_path, ranked_of(LISTS), qrels_of(QRELS), confidence=0.9)
    assert result["metrics"]["RR@10"]["mean"] == round((1 / 2 + 1 / 4) / 4, 6)
    assert all(m["low"] <= m["mean"] <= m["high"] for m in result["metrics"].values())
    assert result["measures"] == NAMES  # the order that sorted keys lose
    assert {key: result[key] for key in ("queries", "confidence", "seed", "ranked_depth", "made_by", "relevance")} == {
        "queries": 4,
        "confidence": 0.9,
        "seed": 3,
        "ranked_depth": 4,
        "made_by": {"model": "x"},
        "relevance": 1,
    }
    assert {"lead", "ir_measures"} <= set(result["versions"])
    rows = read_table(tmp_path / "per_query.parquet", "per_query").to_pylist()
    assert [(row["qid"], row["measure"]) for row in rows] == [(qid, name) for qid in QRELS for name in sorted(NAMES)]
    means = {name: np.mean([row["value"] for row in rows if row["measure"] == name]) for name in NAMES}
    assert {name: m["mean"] for name, m in result["metrics"].items()} == pytest.approx(means, abs=1e-6)
    before = [(tmp_path / name).read_bytes() for name in ("run.json", "per_query.parquet")]
    run(tmp_path, ranked_of(LISTS), qrels_of(QRELS), confidence=0.9)
    assert [(tmp_path / name).read_bytes() for name in ("run.json", "per_query.parquet")] == before


def test_nothing_retrieved_counts_zero(tmp_path: Path) -> None:
    result = run(tmp_path, ranked_of({}), qrels_of(QRELS))
    assert {m["mean"] for m in result["metrics"].values()} == {0.0}
    assert result["ranked_depth"] == 0


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(LeadError, match="no query of .*ranked.parquet is judged in .*qrels.parquet"):
        run(tmp_path, ranked_of({"other": ["a"]}), qrels_of(QRELS))
    with pytest.raises(LeadError, match="qrels.parquet holds no judgement"):
        run(tmp_path, ranked_of(LISTS), qrels_of(QRELS).slice(0, 0))
    with pytest.raises(LeadError, match="query 'q1' lists a passage twice"):
        run(tmp_path, ranked_of({"q1": ["a", "a"]}), qrels_of(QRELS))
    with pytest.raises(LeadError, match="query 'q1' .*ranks are not 1, 2"):
        run(tmp_path, ranked_of(LISTS).slice(1), qrels_of(QRELS))
    assert not (tmp_path / "run.json").exists()


def test_trec_run_file(tmp_path: Path) -> None:
    run(tmp_path, ranked_of({"q1": ["x", "b"], "q2": ["a"]}, [0.1, 0.05, 2.0]), qrels_of(QRELS), trec=True)
    assert (tmp_path / "run.trec").read_text() == (
        "q1 Q0 x 1 0.100000001 lead\nq1 Q0 b 2 0.0500000007 lead\nq2 Q0 a 1 2 lead\n"
    )
    with pytest.raises(LeadError, match="pid 'x y' holds white space"):
        run(tmp_path, ranked_of({"q1": ["x y"]}), qrels_of(QRELS), trec=True)


def by_ir_measures(qrels: Path, trec: Path, names: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What ir_measures' own command says of the same files, with the providers that it chooses itself."""
    monkeypatch.setattr(sys, "argv", ["ir_measures", str(qrels), str(trec), *names, "--places", "9"])
    with contextlib.redirect_stdout(io.StringIO()) as out:
        main_cli()
    return {name: float(value) for name, value in (line.split("\t") for line in out.getvalue().splitlines())}


@pytest.mark.parametrize("seed", range(12))
def test_the_command_of_ir_measures_says_the_same_of_the_exported_run(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ties, judged passages in no list, queries without a list, lists without a judgement, grades, nothing relevant."""
    rng = np.random.default_rng(seed)
    pids = [f"d{i}" for i in range(30)]
    judged: dict[str, dict[str, int]] = {}
    lists: dict[str, list[str]] = {}
    scores: list[float] = []
    for q in range(15):
        if q % 5 != 1:
            some = [*rng.choice(pids, int(rng.integers(1, 6)), replace=False), *(["lost"] if q % 3 == 0 else [])]
            judged[f"q{q}"] = {str(pid): int(rng.integers(0, 4)) for pid in some}
        if q % 5 != 2:
            lists[f"q{q}"] = list(map(str, rng.permutation(pids)[: int(rng.integers(1, 30))]))
            scores += (-np.sort(-rng.integers(-2, 3, len(lists[f"q{q}"])) / 2)).tolist()  # many ties, zeros among them
    names = [
        "RR@10",
        "RR",
        "nDCG@10",
        "AP@1000",
        "AP",
        "R@20",
        "P@5",
        "Success@5",
        "Rprec",
        "RR(rel=2)@10",
        "AP(rel=3)",
    ]
    result = run(tmp_path, ranked_of(lists, scores), qrels_of(judged), trec=True, measures=names)
    lines = [f"{qid} 0 {pid} {rel}\n" for qid, some in judged.items() for pid, rel in some.items()]
    (tmp_path / "qrels.txt").write_text("".join(lines))
    expected = by_ir_measures(tmp_path / "qrels.txt", tmp_path / "run.trec", names, monkeypatch)
    assert set(expected) == set(names)
    assert {name: result["metrics"][name]["mean"] for name in names} == pytest.approx(expected, abs=1e-6)


def test_judged_passages_that_the_corpus_lacks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They stay in the denominators, and the result and one warning tell their number."""
    judged = {f"q{i}": {f"d{i}": 1} for i in range(20)} | {"q1": {"lost": 1}, "q2": {"d2": 1, "lost": 1}}
    lists = {f"q{i}": [f"d{i}"] for i in range(20)}
    result = run(tmp_path, ranked_of(lists), qrels_of(judged), measures=["RR@10", "R@10"])
    assert result["missing_passages"] == 0 and "not in the corpus" not in caplog.text
    caplog.clear()
    table = qrels_of(judged).replace_schema_metadata({ABOUT: json.dumps({"missing_passages": 2})})
    result = run(tmp_path, ranked_of(lists), table, measures=["RR@10", "R@10"])
    assert result["missing_passages"] == 2
    assert [m for m in caplog.messages if "corpus" in m] == [
        "2 judged passages are not in the corpus; they count as not found"
    ]
    assert {name: m["mean"] for name, m in result["metrics"].items()} == {"RR@10": 0.95, "R@10": 0.925}


def test_queries_that_are_passages(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    judged = {"a": {"x": 1}, "b": {"y": 1}, "c": {"z": 1}}
    lists = {"a": ["a", "x", "b"], "b": ["y", "b"], "c": ["c"]}
    result = run(tmp_path, ranked_of(lists), qrels_of(judged), measures=["RR@10"])
    assert result["metrics"]["RR@10"]["mean"] == 0.5 and not result["ignore_identical_ids"]
    assert "2 of 3 queries have the passage with their own id at rank 1" in caplog.text
    assert "retrieval.ignore_identical_ids: true" in caplog.text
    caplog.clear()
    result = run(tmp_path, ranked_of(lists), qrels_of(judged), True, True, measures=["RR@10"])
    assert result["metrics"]["RR@10"]["mean"] == round(2 / 3, 6) and result["ignore_identical_ids"]
    assert "own id" not in caplog.text
    assert [line.split()[:4:3] for line in (tmp_path / "run.trec").read_text().splitlines()] == [
        ["a", "1"],
        ["a", "2"],
        ["b", "1"],
    ]
    own = {"a": {"a": 1}, "b": {"b": 2}}  # ids that are the same by design: queries numbered as their passages
    run(tmp_path, ranked_of({"a": ["a"], "b": ["b"]}), qrels_of(own), measures=["RR@10"])
    assert "own id" not in caplog.text


def test_tied_scores_are_told_apart_in_a_trec_run(tmp_path: Path) -> None:
    lists = {"q1": ["x", "b", "c"], "q2": ["a", "b"]}
    run(tmp_path, ranked_of(lists, [0.5, 0.5, 0.5, 0.0, 0.0]), qrels_of(QRELS), trec=True)
    rows = [line.split() for line in (tmp_path / "run.trec").read_text().splitlines()]
    assert [row[2] for row in rows] == ["x", "b", "c", "a", "b"]
    scores = np.array([row[4] for row in rows], np.float32)
    assert scores[0] > scores[1] > scores[2] > 0.4999999 and scores[3] == 0 > scores[4]


# --- names of measures -----------------------------------------------------------------------------------------------
def test_valid_measures() -> None:
    check_measures([*NAMES, "AP(rel=2)@100", "MRR@10", "Rprec", "nDCG(gains={1:0,2:1})@10"])


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("ndcg@10", "did you mean 'nDCG'"),
        ("mrr@10", "did you mean 'MRR'"),
        ("Recal@10", "did you mean 'Recall'"),
        ("RR@", "examples: RR@10"),
        ("RR@0", "examples"),
        ("RR@x", "examples"),
        ("R", "examples"),  # needs a cut-off
        ("RR(foo=1)@10", "examples"),
        ("RR(rel='a')@10", "examples"),
        ("NumQ@10", "examples"),
        ("", "examples"),
        ("__import__('os')", "examples"),
        ("RBP(p=0.8)", "examples"),  # known, but needs a package that is not installed
    ],
)
def test_malformed_measures(name: str, hint: str) -> None:
    with pytest.raises(LeadError) as error:
        check_measures(["RR@10", name])
    assert repr(name) in str(error.value) and hint in str(error.value) and "\n" not in str(error.value)


def test_a_measure_twice() -> None:
    with pytest.raises(LeadError, match="'RR@10' is listed twice"):
        check_measures(["RR@10", "R@5", "RR@10"])
