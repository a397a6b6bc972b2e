"""Reranking in blocks of queries, which bound ColBERT's memory: the lists are those of all queries at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import make_retriever

from lead.config.stages import RerankSettings
from lead.models.microbatch import MicroBatchEncoder
from lead.retrieval import rerank as module
from lead.store.tables import read_table, write_table


@pytest.mark.parametrize("kind", ["cb", "ce"])
def test_blocks_do_not_matter(
    tmp_path: Path, tiny_model: Path, tiny_collection: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_retriever(tiny_model, kind).save(tmp_path / "m")
    rng = np.random.default_rng(0)
    # a list missing, lists of other lengths, queries in another order than in their file
    pairs = [(f"test{q}", f"p{p}") for q in (3, 0, 7, 11, 5) for p in rng.permutation(160)[: 4 + q]]
    rank = [1 + sum(q == other for other, _ in pairs[:i]) for i, (q, _) in enumerate(pairs)]
    columns = {"qid": [q for q, _ in pairs], "pid": [p for _, p in pairs], "rank": rank, "score": [0.0] * len(pairs)}
    write_table(pa.table(columns), tmp_path / "list.parquet", "ranked")
    made = []
    for block in (1 << 30, 1 << 15, 1):
        monkeypatch.setattr(module, "BLOCK", block)
        module.rerank(
            settings=RerankSettings(rerank_depth=12, batch_tokens=200, precision="fp32"), gpu=0, model=tmp_path / "m",
            corpus=tiny_collection / "corpus.parquet", queries=tiny_collection / "queries.test.parquet",
            ranked=tmp_path / "list.parquet", out=tmp_path / f"{block}.parquet",
        )  # fmt: skip
        made.append(read_table(tmp_path / f"{block}.parquet", "ranked"))
    assert made[0]["qid"].unique().to_pylist() == ["test0", "test3", "test5", "test7", "test11"]
    assert len(made[0]) == 4 + 7 + 9 + 11 + 12
    for other in made[1:]:
        assert other.drop(["score"]).equals(made[0].drop(["score"]))
        np.testing.assert_allclose(other["score"], made[0]["score"], rtol=1e-3)  # the store is in half precision


def test_blocks_are_whole_queries() -> None:
    queries = np.array([0, 0, 2, 3, 3, 3, 3, 3, 5])
    passages = np.array([7, 1, 7, 2, 3, 4, 5, 6, 7])

    def cut(most: int) -> list[list[int]]:
        return [queries[b].tolist() for b in module.blocks(queries, passages, most)]

    assert cut(5) == [[0, 0, 2], [3, 3, 3, 3, 3], [5]]  # 4 texts (passage 7 is held once), 6 (one query's), 2
    assert cut(3) == [[0, 0], [2], [3, 3, 3, 3, 3], [5]]  # 3, 2, 6, 2
    assert cut(11) == [queries.tolist()]  # 7 passages, 4 queries
    assert list(module.blocks(queries[:0], passages[:0], 5)) == []


def test_texts_without_tokens_score_0(tiny_model: Path) -> None:
    model = make_retriever(tiny_model, "cb", special_tokens=False).eval()
    with torch.inference_mode():
        score = model.scorer(["a matrix", ""], ["", "an array", ""], MicroBatchEncoder(100, "fp32"))
        scores = [score(q, np.array(rows)).tolist() for q in (0, 1) for rows in ([0, 1, 2], [0, 2])]
    assert scores[0][0] == scores[0][2] == 0.0 != scores[0][1]
    assert scores[1:] == [[0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0]]
