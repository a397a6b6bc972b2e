"""What a step sees: a function of (seed, step), every query once an epoch, never an answer among the negatives."""

from __future__ import annotations

import itertools
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lead.errors import LeadError
from lead.store.tables import SCHEMAS, read_table, write_table
from lead.train.data import Batch, Queries, TrainingData

Pair = tuple[str, str]


def write(folder: Path, name: str, schema: str, rows: list[tuple[object, ...]]) -> Path:
    columns = [list(c) for c in zip(*rows, strict=True)] or [[] for _ in SCHEMAS[schema].names]
    table = pa.table(dict(zip(SCHEMAS[schema].names, columns, strict=True)), schema=SCHEMAS[schema])
    write_table(table, folder / name, schema)
    return folder / name


def make(
    folder: Path,
    n_passages: int,
    positives: dict[str, list[str]],
    mined: dict[str, list[str]] | None,
    batch_size: int,
    negatives: int,
    seed: int = 1,
    grades: dict[Pair, int] | None = None,
    depth: int = 100,
    generation: int = 0,
) -> TrainingData:
    """Passages p0.. with text 'text of p0'; queries with text 'text of q0'."""
    pids = [f"p{i}" for i in range(n_passages)]
    corpus = write(folder, "corpus", "corpus", [(p, f"text of {p}") for p in pids])
    queries = write(folder, "queries", "queries", [(q, f"text of {q}") for q in positives])
    judged = [(q, p, (grades or {}).get((q, p), 1)) for q, ps in positives.items() for p in ps]
    qrels = write(folder, "qrels", "qrels", judged)
    lists = None
    if mined is not None:
        rows = [(q, p, rank, -float(rank)) for q, ps in mined.items() for rank, p in enumerate(ps, start=1)]
        lists = write(folder, "negatives", "ranked", rows)
    table = read_table(corpus, "corpus")
    judged = Queries(table["pid"], queries, qrels, lists, 1, depth)
    return TrainingData(table, judged, batch_size, negatives, seed, generation)


def name(text: str) -> str:
    return text.removeprefix("text of ")


def rows(batch: Batch) -> list[tuple[str, str, list[str]]]:
    """(query, its positive, its negatives) of a batch, as ids."""
    width = len(batch.passages) // len(batch.queries)
    passages = [name(p) for p in batch.passages]
    return [
        (name(q), passages[i * width], passages[i * width + 1 : (i + 1) * width]) for i, q in enumerate(batch.queries)
    ]


def simple(folder: Path, seed: int = 1, batch_size: int = 4, generation: int = 0) -> TrainingData:
    """10 queries with one positive each; 20 mined negatives for each."""
    positives = {f"q{i}": [f"p{i}"] for i in range(10)}
    mined = {f"q{i}": [f"p{20 + (i + k) % 30}" for k in range(20)] for i in range(10)}
    return make(folder, 50, positives, mined, batch_size, 3, seed, generation=generation)


# --- order -----------------------------------------------------------------------------------------------------------
def test_a_batch_is_a_function_of_seed_and_step_whatever_was_asked_before(tmp_path: Path) -> None:
    a, b = simple(tmp_path), simple(tmp_path)
    forward = [rows(a.batch(s)) for s in range(12)]
    assert [rows(b.batch(s)) for s in reversed(range(12))][::-1] == forward
    assert [rows(a.batch(s)) for s in (7, 0, 11)] == [forward[s] for s in (7, 0, 11)]
    assert [rows(simple(tmp_path, seed=2).batch(s)) for s in range(12)] != forward


def test_several_threads_may_ask_for_batches_at_once(tmp_path: Path) -> None:
    data, wanted = simple(tmp_path), [s * 7 % 60 for s in range(240)]
    want = {s: rows(simple(tmp_path).batch(s)) for s in range(60)}
    with ThreadPoolExecutor(4) as pool:
        assert [rows(batch) for batch in pool.map(data.batch, wanted)] == [want[s] for s in wanted]


def test_a_model_does_not_see_the_batches_of_its_warm_up_again(tmp_path: Path) -> None:
    """Neither the same queries together, nor the same negatives of a query: not even one step, in five epochs."""
    streams = [[rows(simple(tmp_path, seed, 2, generation).batch(s)) for s in range(25)]
               for seed in (1, 2) for generation in (0, 1, 2)]  # fmt: skip
    for one, other in itertools.combinations(streams, 2):
        assert not [s for s in range(25) if one[s] == other[s]]
        assert [q for s in one for q, _, _ in s] != [q for s in other for q, _, _ in s]


@pytest.mark.parametrize("batch_size", [1, 3, 4, 10])
def test_every_query_occurs_once_in_an_epoch_also_where_batches_straddle_epochs(
    tmp_path: Path, batch_size: int
) -> None:
    data = simple(tmp_path, batch_size=batch_size)
    stream = [q for step in range(60) for q, _, _ in rows(data.batch(step))]
    epochs = [stream[i : i + 10] for i in range(0, len(stream) // 10 * 10, 10)]
    assert all(sorted(epoch) == sorted(f"q{i}" for i in range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_negatives_are_drawn_anew_in_every_epoch(tmp_path: Path) -> None:
    data = simple(tmp_path, batch_size=10)
    drawn = [{q: tuple(n) for q, _, n in rows(data.batch(step))} for step in range(3)]
    assert all(drawn[0][q] != drawn[1][q] for q in drawn[0])
    assert len({n for epoch in drawn for ns in epoch.values() for n in ns}) > 20


# --- who is a negative -----------------------------------------------------------------------------------------------
@st.composite
def collections(draw: st.DrawFn) -> tuple[int, dict[str, list[str]], dict[str, list[str]] | None, int, int]:
    """A small collection with several positives a query, and mined lists that may hold them (a stale file)."""
    n = draw(st.integers(8, 14))
    pids = st.integers(0, n - 1).map(lambda i: f"p{i}")
    qids = [f"q{i}" for i in range(draw(st.integers(1, 5)))]
    positives = {q: draw(st.lists(pids, unique=True, min_size=1, max_size=3)) for q in qids}
    mined = draw(st.none() | st.fixed_dictionaries({q: st.lists(pids, unique=True, max_size=8) for q in qids}))
    if mined is not None and not any(mined.values()):
        mined = None
    return n, positives, mined, draw(st.integers(1, len(qids))), draw(st.integers(0, 4))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(collections(), st.integers(0, 1000))
def test_no_answer_is_ever_a_negative_also_with_a_stale_file(
    case: tuple[int, dict[str, list[str]], dict[str, list[str]] | None, int, int], seed: int
) -> None:
    n, positives, mined, batch_size, negatives = case
    with tempfile.TemporaryDirectory() as folder:
        data = make(Path(folder), n, positives, mined, batch_size, negatives, seed)
        for step in range(4):
            batch = data.batch(step)
            for q, positive, drawn in rows(batch):
                assert positive in positives[q]
                assert len(drawn) == len(set(drawn)) == negatives
                assert not set(drawn) & set(positives[q])
                usable = [p for p in (mined or {}).get(q, []) if p not in positives[q]]
                assert len(set(drawn) & set(usable)) >= min(negatives, len(usable))  # mined ones first, then random
            # by id, wherever in the batch the passage stands
            want = [[name(p) in positives[name(q)] for p in batch.passages] for q in batch.queries]
            assert batch.relevant.tolist() == want
            for which in ("batch", "own"):
                c = batch.candidates(which)
                for i, (q, positive, _) in enumerate(rows(batch)):
                    seen = [name(batch.passages[j]) for j in c.index[i].tolist()]
                    kept = [p for p, k in zip(seen, c.keep[i].tolist(), strict=True) if k]
                    assert [p for p, y in zip(seen, c.positive[i].tolist(), strict=True) if y] == [positive]
                    assert [p for p in kept if p in positives[q]] == [positive]
                    assert sorted(p for p in seen if p not in positives[q]) == sorted(p for p in kept if p != positive)


def test_queries_without_mined_negatives_get_random_ones_that_are_not_relevant(tmp_path: Path) -> None:
    data = make(tmp_path, 12, {"q0": ["p0", "p1"], "q1": ["p2"]}, {"q1": ["p3", "p4", "p5"]}, 2, 3)
    seen: dict[str, set[str]] = {"q0": set(), "q1": set()}
    for step in range(60):
        for q, _, drawn in rows(data.batch(step)):
            seen[q] |= set(drawn)
    assert seen["q0"] == {f"p{i}" for i in range(2, 12)}  # all but its answers
    assert seen["q1"] == {"p3", "p4", "p5"}


def test_negatives_beyond_the_mined_ones_are_random(tmp_path: Path) -> None:
    data = make(tmp_path, 12, {"q0": ["p0"]}, {"q0": ["p3"]}, 1, 3)
    for step in range(20):
        ((_, _, drawn),) = rows(data.batch(step))
        assert "p3" in drawn and len(set(drawn)) == 3 and "p0" not in drawn


def test_only_the_top_of_the_mined_list_is_drawn_from(tmp_path: Path) -> None:
    mined = {"q0": [f"p{i}" for i in range(1, 11)]}
    data = make(tmp_path, 20, {"q0": ["p0"]}, mined, 1, 2, depth=4)
    assert {n for s in range(40) for n in rows(data.batch(s))[0][2]} == {"p1", "p2", "p3", "p4"}


def test_every_positive_is_drawn_at_some_step(tmp_path: Path) -> None:
    data = make(tmp_path, 20, {"q0": ["p0", "p7", "p9"]}, None, 1, 2)
    assert {rows(data.batch(s))[0][1] for s in range(40)} == {"p0", "p7", "p9"}


def test_judgements_below_the_threshold_are_no_answers_and_queries_without_answers_are_left_out(tmp_path: Path) -> None:
    grades = {("q0", "p1"): 0, ("q1", "p2"): 0}
    data = make(tmp_path, 10, {"q0": ["p0", "p1"], "q1": ["p2"]}, None, 1, 1, grades=grades)
    assert len(data.queries) == 1
    stream = [rows(data.batch(s))[0] for s in range(60)]
    assert {(q, p) for q, p, _ in stream} == {("q0", "p0")}
    assert "p1" in {n for _, _, ns in stream for n in ns}


# --- layout and candidates -------------------------------------------------------------------------------------------
def test_own_candidates_are_the_querys_list_and_batch_candidates_every_passage(tmp_path: Path) -> None:
    batch = simple(tmp_path).batch(0)
    own, everything = batch.candidates("own"), batch.candidates("batch")
    assert own.index.tolist() == [[4 * q + i for i in range(4)] for q in range(4)]
    assert everything.index.tolist() == [list(range(16))] * 4
    assert own.positive.tolist() == [[True, False, False, False]] * 4
    assert everything.positive.nonzero().tolist() == [[q, 4 * q] for q in range(4)]


def test_another_querys_passage_that_answers_mine_is_masked_out_in_the_batch(tmp_path: Path) -> None:
    # both queries have p0 as their only answer: each sees it twice, once as its positive, once masked
    data = make(tmp_path, 6, {"q0": ["p0"], "q1": ["p0"]}, {"q0": ["p3"], "q1": ["p4"]}, 2, 1)
    batch = data.batch(0)
    assert [p == "text of p0" for p in batch.passages] == [True, False, True, False]
    c = batch.candidates("batch")
    assert c.keep.tolist() == [[True, True, False, True], [False, True, True, True]]
    assert c.positive.tolist() == [[True, False, False, False], [False, False, True, False]]


# --- what cannot be trained on ---------------------------------------------------------------------------------------
def test_a_batch_larger_than_the_queries_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LeadError, match="train.batch_size: 3 .*2 train queries"):
        make(tmp_path, 10, {"q0": ["p0"], "q1": ["p1"]}, None, 3, 1)


def test_more_negatives_than_the_corpus_has_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LeadError, match="train.negatives"):
        make(tmp_path, 5, {"q0": ["p0"]}, None, 1, 5)


def test_more_negatives_than_passages_that_do_not_answer_are_refused_not_waited_for(tmp_path: Path) -> None:
    with pytest.raises(LeadError, match="train.negatives"):
        make(tmp_path, 8, {"q0": ["p0", "p1", "p2", "p3"]}, None, 1, 5)


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LeadError, match="qrels.*do not belong together"):
        make(tmp_path, 5, {"q0": ["x0"]}, None, 1, 1)
    with pytest.raises(LeadError, match="negatives.*do not belong together"):
        make(tmp_path, 5, {"q0": ["p0"]}, {"q0": ["x1"]}, 1, 1)
    with pytest.raises(LeadError, match="no query has a relevant passage"):
        make(tmp_path, 5, {"q0": ["p0"]}, None, 1, 1, grades={("q0", "p0"): 0})
