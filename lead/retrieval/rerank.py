"""Reranking the top of a list with ColBERT (section 4.3: the 12DE teacher's top 1000 or 100)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from lead.artifacts import read_table, write_table
from lead.config.stages import RerankSettings
from lead.device import device
from lead.errors import LeadError
from lead.models.features import Features
from lead.models.retriever import Retriever
from lead.models.scores import max_sim
from lead.retrieval.encode import encode_texts


@torch.inference_mode()
def rerank(
    *, settings: RerankSettings, gpu: int, model: Path, corpus: Path, queries: Path, ranked: Path, out: Path
) -> None:
    """Reorder the top `rerank_depth` of each list by MaxSim; passages below are dropped. Ties: smaller pid first.

    Every passage that occurs in a list is encoded once. Memory: its token vectors in half precision, 2 T d bytes each.
    """
    colbert = Retriever.load(model)
    if colbert.kind != "cb":
        raise LeadError(f"{model} is not a ColBERT; a dual encoder's own lists come from lead retrieve")
    on = device(gpu)
    colbert.to(on)
    lists = read_table(ranked, "ranked")
    lists = lists.filter(pc.less_equal(lists["rank"], settings.rerank_depth))
    passages = read_table(corpus, "corpus")
    row = pc.index_in(lists["pid"], value_set=passages["pid"])
    asked = read_table(queries, "queries")
    query = pc.index_in(lists["qid"], value_set=asked["qid"])
    if row.null_count or query.null_count:
        raise LeadError(
            f"{ranked} names passages or queries that {corpus} and {queries} do not have; they do not belong together"
        )
    rows, query_rows = row.to_numpy(zero_copy_only=False), query.to_numpy(zero_copy_only=False)
    needed, position = np.unique(rows, return_inverse=True)
    settings_ = (settings.batch_tokens, settings.precision)
    texts = encode_texts(
        colbert, "passage", passages["text"].take(pa.array(needed)).to_pylist(), *settings_, "passages"
    )
    # what a query's list holds is gathered and padded at a time; half precision keeps the store small
    store = [f.x[0, 0][f.mask[0]].half() for f in texts if f.mask is not None]
    del texts
    asked_features = encode_texts(colbert, "query", asked["text"].to_pylist(), *settings_, "queries")
    pids = lists["pid"].to_pylist()
    order: list[int] = []
    scores: list[float] = []
    for q in tqdm(range(len(asked)), desc="rerank", disable=None, unit="query"):
        members = np.flatnonzero(query_rows == q)
        if not len(members):
            continue
        s = _scores(asked_features[q], [store[position[i]] for i in members], on).tolist()
        if not np.isfinite(s).all():
            raise LeadError(f"{model}: scores are NaN or infinite: the model has diverged; train it with a lower lr")
        best = sorted(range(len(members)), key=lambda i: (-s[i], pids[members[i]]))
        order += [int(members[i]) for i in best]
        scores += [s[i] for i in best]
    qids = lists["qid"].take(pa.array(order))
    ids = np.array(query_rows[order])
    starts = np.flatnonzero(np.r_[True, ids[1:] != ids[:-1]]) if len(ids) else np.empty(0, np.int64)
    rank = np.arange(len(ids)) - np.repeat(starts, np.diff(np.r_[starts, len(ids)])) + 1
    table = pa.table(
        {
            "qid": qids,
            "pid": lists["pid"].take(pa.array(order)),
            "rank": rank.astype(np.int32),
            "score": np.array(scores, np.float32),
        }
    )
    write_table(table, out, "ranked")


def _scores(query: Features, passages: list[torch.Tensor], on: torch.device) -> torch.Tensor:
    """MaxSim [P] of one query and its passages' token vectors ([Y_i, d] each)."""
    padded = pad_sequence([p.float() for p in passages], batch_first=True).to(on)
    mask = pad_sequence([torch.ones(len(p), dtype=torch.bool) for p in passages], batch_first=True).to(on)
    assert query.mask is not None
    return max_sim(query.x[0].to(on), query.mask.to(on), padded, mask)[0].cpu()
