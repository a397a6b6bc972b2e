"""Equal texts are one passage, whatever their ids: groups, and what training makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_data_order import make, rows, write

from lead.data.copies import passage_form, query_form, repeated, rows_with_copies, same_text
from lead.data.texts import mapped
from lead.store.tables import read_table
from lead.train.data import Queries, TrainingData
from lead.train.dev import DevPool


@given(st.lists(st.sampled_from(["a", "b", " a", "a\u200b", "A", "\u00e9", "e\u0301", "", "\ufeff", "a b", "a  b"])))
def test_groups_are_those_of_equal_forms(texts: list[str]) -> None:
    """A group is the row of the first passage of its text, also where the corpus is in chunks."""
    forms = [passage_form(text) for text in texts]
    expected = [forms.index(form) for form in forms]
    cut = len(texts) // 2
    chunked = pa.chunked_array([texts[:cut], texts[cut:]], pa.string())
    group = same_text(chunked)
    assert group.tolist() == expected
    for first, members in repeated(group).items():
        assert members.tolist() == [row for row, g in enumerate(expected) if g == first] and len(members) > 1


def test_forms() -> None:
    """Passages keep case and inner spaces: code and poems differ by them. Queries do not."""
    assert passage_form(" e\u0301\u200b\n") == passage_form("\u00e9") == "\u00e9"
    assert passage_form("a  b") != passage_form("a b") and passage_form("A") != passage_form("a")
    assert query_form(" What  IS\u00a0it?") == query_form("what is it?") and query_form("Stra\u00dfe") == query_form(
        "STRASSE"
    )
    assert passage_form("\ufeff\u200b \u3164") == query_form("\u2060") == ""


def test_copies_come_behind_the_rows_that_have_them() -> None:
    group = np.array([0, 1, 0, 3, 1, 0])
    groups = repeated(group)
    assert rows_with_copies(np.array([2, 3]), group, groups).tolist() == [2, 3, 0, 5]
    assert rows_with_copies(np.array([4, 1]), group, groups).tolist() == [4, 1]
    assert rows_with_copies(np.array([3]), group, groups).tolist() == [3]
    assert repeated(np.arange(3)) == {}


@pytest.fixture
def data(tmp_path: Path) -> tuple[pa.Table, tuple[Path, Path, Path]]:
    """20 passages of which p10..p19 repeat p0..p9; query i is judged to be answered by p_i or its copy."""
    texts = [f"text of p{i % 10}" + " " * (i // 10) for i in range(20)]
    corpus = write(tmp_path, "corpus", "corpus", [(f"p{i}", text) for i, text in enumerate(texts)])
    queries = write(tmp_path, "queries", "queries", [(f"q{i}", f"text of q{i}") for i in range(10)])
    qrels = write(tmp_path, "qrels", "qrels", [(f"q{i}", f"p{i + 10 * (i % 2)}", 1) for i in range(10)])
    mined = [(f"q{i}", f"p{p}", rank, -float(rank)) for i in range(10) for rank, p in enumerate(range(20), 1)]
    negatives = write(tmp_path, "negatives", "ranked", [row for row in mined if row[1] != f"p{row[0][1:]}"])
    return mapped(corpus, tmp_path / "x"), (queries, qrels, negatives)


def test_a_copy_of_the_answer_is_never_a_negative(data: tuple[pa.Table, tuple[Path, Path, Path]]) -> None:
    """Neither mined, nor drawn at random, nor in the batch; the drawn positive is the judged one."""
    corpus, (queries, qrels, negatives) = data
    for file in (negatives, None):
        judged = Queries(corpus["pid"], queries, qrels, file, 1, 100, same_text(corpus["text"]))
        stream = TrainingData(corpus, judged, 10, 4, seed=3)
        for step in range(20):
            batch = stream.batch(step)
            forms = [text.strip() for text in batch.passages]
            for q, (query, positive, others) in enumerate(rows(batch)):
                answer = f"p{query[1:]}"
                assert positive.strip() == answer and positive.endswith(" ") == bool(int(query[1:]) % 2)
                assert answer not in [other.strip() for other in others]
                assert batch.relevant[q].tolist() == [form == f"text of {answer}" for form in forms]


def test_in_dev_a_copy_is_relevant_too(data: tuple[pa.Table, tuple[Path, Path, Path]]) -> None:
    corpus, (queries, qrels, negatives) = data
    judged = Queries(corpus["pid"], queries, qrels, negatives, 1, 100, same_text(corpus["text"]))
    pool = DevPool(corpus, judged, 10, None)
    assert pool.relevant.sum(1).tolist() == [2] * 10


def test_without_copies_batches_are_what_they_were(tmp_path: Path) -> None:
    plain = make(tmp_path, 30, {f"q{i}": [f"p{i}", f"p{i + 1}"] for i in range(8)}, None, 4, 3)
    files = (tmp_path / "queries", tmp_path / "qrels", None)
    corpus = read_table(tmp_path / "corpus", "corpus")
    grouped = TrainingData(corpus, Queries(corpus["pid"], *files, 1, 100, same_text(corpus["text"])), 4, 3, 1, 0)
    for step in range(6):
        one, other = plain.batch(step), grouped.batch(step)
        assert (one.queries, one.passages) == (other.queries, other.passages)
        assert one.relevant.equal(other.relevant) and one.positives.equal(other.positives)
