"""What quantization costs and gains: RR@10 on dev queries and passages a second, of ONNX with and without it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from tqdm import tqdm

from lead.data.texts import take_texts
from lead.evaluation.evaluate import drop_own_ids, query_values
from lead.evaluation.measures import parse_measures
from lead.evaluation.stats import bootstrap_interval
from lead.export.onnx import OnnxEncoder
from lead.lists import alphabetical, ranked_table
from lead.models.dual_encoder import DualEncoder
from lead.retrieval.search import search
from lead.store.tables import read_table

MEASURE = "RR@10"
QUERIES, PASSAGES = 500, 20_000  # at most: evenly spaced dev queries, and passages that they rank
NEGATIVES = 20  # mined for each query, among these passages
CHUNK = 256  # passages that one model encodes before the other does, so that a busy machine slows down both


@dataclass(frozen=True)
class Quality:
    """RR@10 and passages a second of both models, and the mean difference of the second from the first."""

    rr: tuple[float, float]
    difference: float
    interval: tuple[float, float]  # of the difference, 95%
    speed: tuple[float, float]
    queries: int
    passages: int
    whole: bool  # whether the passages are the whole corpus
    threads: int


@dataclass(frozen=True)
class Dev:
    """Dev queries, their judgements, and the passages that they rank."""

    queries: pa.Table
    qrels: pa.Table
    passages: pa.Table
    whole: bool
    relevance: int  # from which a judgement counts


def read_dev(folder: Path, negatives: Path, relevance: int) -> Dev:
    """At most QUERIES dev queries, with the whole corpus or PASSAGES of it: relevant, mined, and evenly spaced ones.

    folder: of a collection's data. negatives: mined lists; may be missing. Memory: the corpus.
    """
    corpus, queries = (
        read_table(folder / "corpus.parquet", "corpus"),
        read_table(folder / "queries.dev.parquet", "queries"),
    )
    rows = np.unique(np.linspace(0, len(queries) - 1, min(QUERIES, len(queries))).astype(int))
    queries = queries.take(pa.array(rows))
    qrels = read_table(folder / "qrels.dev.parquet", "qrels")
    qrels = qrels.filter(pc.is_in(qrels["qid"], value_set=queries["qid"].combine_chunks()))
    if len(corpus) <= PASSAGES:
        return Dev(queries, qrels, corpus, True, relevance)
    wanted = [qrels.filter(pc.greater_equal(qrels["rel"], relevance))["pid"]]
    if negatives.exists():
        mined = read_table(negatives, "ranked")
        near = pc.and_(
            pc.is_in(mined["qid"], value_set=queries["qid"].combine_chunks()), pc.less_equal(mined["rank"], NEGATIVES)
        )
        wanted.append(mined.filter(near)["pid"])
    near = np.flatnonzero(pc.is_in(corpus["pid"], value_set=pa.chunked_array([c for w in wanted for c in w.chunks])))
    others = np.linspace(0, len(corpus) - 1, max(0, PASSAGES - len(near))).astype(int)
    rows = np.union1d(near, others)
    found = {"pid": corpus["pid"].take(pa.array(rows)), "text": take_texts(corpus["text"], rows)}
    return Dev(queries, qrels, pa.table(found, schema=corpus.schema), False, relevance)


def compare(model: DualEncoder, encoders: tuple[OnnxEncoder, OnnxEncoder], dev: Dev, same: bool) -> Quality:
    """Quality of both encoders of a model. Memory: the passages' vectors of both.

    same: whether a passage with the query's id is left out of its list.
    """
    ids = model.tokenize("passage", dev.passages["text"].to_pylist())
    for encoder in encoders:  # the first texts of a session take longer, and are not measured
        encoder.encode(ids[:CHUNK])
        encoder.seconds = 0.0
    parts: tuple[list[Any], list[Any]] = ([], [])
    for start in tqdm(range(0, len(ids), CHUNK), desc="dev passages", unit="chunk", disable=None):
        for encoder, found in zip(encoders, parts, strict=True):
            found.append(encoder.encode(ids[start : start + CHUNK]))
    speed = tuple(len(ids) / encoder.seconds for encoder in encoders)
    asked = model.tokenize("query", dev.queries["text"].to_pylist())
    values = [
        _values(encoder.encode(asked), np.concatenate(found), dev, same)
        for encoder, found in zip(encoders, parts, strict=True)
    ]
    difference = values[1] - values[0]
    return Quality(
        (float(values[0].mean()), float(values[1].mean())),
        float(difference.mean()),
        bootstrap_interval(difference, 2000, 0.95, 1),
        (speed[0], speed[1]),
        len(difference),
        len(ids),
        dev.whole,
        torch.get_num_threads(),
    )


def _values(queries: Any, passages: Any, dev: Dev, same: bool) -> Any:
    """RR@10 of each judged query, from vectors."""
    qids, pids = dev.queries["qid"].combine_chunks(), dev.passages["pid"].combine_chunks()
    measures: Mapping[str, Any] = parse_measures([MEASURE], dev.relevance)
    lists = pa.concat_tables(
        ranked_table(qids, pids, np.repeat(rows, found.shape[1]), found.ravel(), scores.ravel())
        for rows, found, scores in search(queries, passages, 10 + same, alphabetical(pids))
    )
    return query_values(drop_own_ids(lists) if same else lists, dev.qrels, [measures[MEASURE]])[1][:, 0]
