"""The generator of MS MARCO-shaped collections: its files are those that the readers expect, and always the same."""

from __future__ import annotations

import importlib.util
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lead.data.files import read_corpus, read_qrels, read_queries

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def marco() -> Any:
    spec = importlib.util.spec_from_file_location("marco", ROOT / "benchmarks" / "marco.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["marco"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def test_passages_have_the_shape_of_ms_marco(marco: Any, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        marco.generate(tmp_path / folder, Fraction(1, 5000), marco.PASSAGE, seed=1)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    texts = {}
    for batch in read_corpus([tmp_path / "a" / "collection.tsv"], ["text"]):
        texts |= dict(zip(batch["pid"].to_pylist(), batch["text"].to_pylist(), strict=True))
    assert list(texts) == [str(pid) for pid in range(1768)]  # 8,841,823 / 5000
    lengths = np.array([len(text.split()) for text in texts.values()])
    assert 50 < lengths.mean() < 62 and lengths.std() > 15
    for queries, qrels, n_queries, n_judged in (
        ("queries.train.tsv", "qrels.train.tsv", 101 + 61, 101),
        ("queries.dev.small.tsv", "qrels.dev.small.tsv", 7, 7),
        ("msmarco-test2019-queries.tsv", "2019qrels-pass.txt", 200, 43),
    ):
        asked = dict(zip(*read_queries([tmp_path / "a" / queries]).to_pydict().values(), strict=True))
        rows = read_qrels([tmp_path / "a" / qrels])[0].to_pylist()
        assert len(asked) == n_queries and len({row["qid"] for row in rows}) == n_judged
        # of the query's words, more are in its positive than in a passage that is anywhere
        near = [len({*asked[r["qid"]].split()} & {*texts[r["pid"]].split()}) for r in rows if r["rel"] in (1, 3)]
        far = [len({*asked[r["qid"]].split()} & {*texts["5"].split()}) for r in rows]
        assert np.mean(near) > 1.5 * np.mean(far)


def test_documents_have_a_title_and_a_body(marco: Any, tmp_path: Path) -> None:
    marco.generate(tmp_path, Fraction(1, 20_000), marco.DOCUMENT, seed=1)
    (batch,) = read_corpus([tmp_path / "msmarco-docs.tsv.gz"], ["title", "text"])
    assert batch["pid"].to_pylist() == [f"D{i}" for i in range(161)]
    assert 500 < np.mean([len(text.split()) for text in batch["text"].to_pylist()]) < 2000
    assert set(read_qrels([tmp_path / "msmarco-doctrain-qrels.tsv.gz"])[0]["pid"].to_pylist()) <= set(
        batch["pid"].to_pylist()
    )
