"""Reranking the top of a list with ColBERT or a cross encoder (section 4.3: the 12DE teacher's top 1000 or 100)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from tqdm import tqdm

from lead.config.stages import DenoiseSettings, RerankSettings, ScoreSettings
from lead.data.texts import mapped, take_texts
from lead.device import allow_tf32, device, keep_freed_memory
from lead.errors import LeadError
from lead.lists import Floats, Ints, alphabetical, best, ranked_table
from lead.models.base import LayeredModel
from lead.models.microbatch import MicroBatchEncoder
from lead.store.tables import read_table, write_table

BLOCK = 8 << 30  # bytes of ColBERT's token vectors in memory at a time; on a GPU at most half of what is free


@torch.inference_mode()
def rerank(
    *, settings: RerankSettings, gpu: int, model: Path, corpus: Path, queries: Path, ranked: Path, out: Path
) -> None:
    """Reorder the top `rerank_depth` of each list by the scores of a ColBERT or a cross encoder.

    Lower passages are dropped; ties go to the smaller pid. ColBERT encodes each passage of a block of queries once, a
    cross encoder every pair. Memory: the lists, and ColBERT's token vectors of a block (2 T d bytes a passage). A block
    has at most `BLOCK` bytes, and half of a GPU's free memory, unless one list needs more.
    """
    reranker = load_reranker(model, gpu, "its own lists come from lead retrieve")
    lists = read_table(ranked, "ranked")
    lists = lists.filter(pc.less_equal(lists["rank"], settings.rerank_depth))
    passages = mapped(corpus, out.with_name(f"{out.name}.corpus.arrow"))
    asked = read_table(queries, "queries")
    unknown = (
        f"{ranked} names passages or queries that {corpus} and {queries} do not have; give files of one collection"
    )
    query_rows, rows = pair_rows(lists, asked, passages, unknown)
    needed, position = np.unique(rows, return_inverse=True)
    names = passages["pid"].combine_chunks().take(pa.array(needed))
    alphabetically = alphabetical(names)
    order: list[Ints] = [np.empty(0, np.int64)]
    scores: list[Floats] = [np.empty(0, np.float32)]
    texts = asked["text"], passages["text"]
    for own, s in score_pairs(reranker, model, texts, (query_rows, rows), settings):
        top = best(s, alphabetically[position[own]], len(own))
        order.append(own[top])
        scores.append(s[top])
    final = np.concatenate(order)
    qids = asked["qid"].combine_chunks()
    write_table(ranked_table(qids, names, query_rows[final], position[final], np.concatenate(scores)), out, "ranked")


def load_reranker(folder: Path, gpu: int, otherwise: str) -> LayeredModel:
    """A model that reranks, in eval mode on its device. LeadError for a dual encoder: `otherwise` ends its message."""
    return LayeredModel.load(folder).must_rank_by("rerank", str(folder), f"; {otherwise}").to(device(gpu)).eval()


def pair_rows(pairs: pa.Table, queries: pa.Table, passages: pa.Table, unknown: str) -> tuple[Ints, Ints]:
    """Rows [n] in `queries` and in `passages` of n pairs (qid, pid). Raises LeadError(unknown) for ids not there."""
    q = pc.index_in(pairs["qid"], value_set=queries["qid"])
    p = pc.index_in(pairs["pid"], value_set=passages["pid"])
    if q.null_count or p.null_count:
        raise LeadError(unknown)
    return q.to_numpy().astype(np.int64), p.to_numpy().astype(np.int64)


def score_pairs(
    model: LayeredModel,
    folder: Path,
    texts: tuple[pa.ChunkedArray, pa.ChunkedArray],
    pairs: tuple[Ints, Ints],
    settings: RerankSettings | DenoiseSettings | ScoreSettings,
) -> Iterator[tuple[Ints, Floats]]:
    """Yield, query by query, the positions of its pairs [P] and their scores [P] by the model in `folder`, in fp32.

    texts: of queries and of passages. pairs [n], [n]: their rows. Memory: as in `rerank`. Raises LeadError for scores
    that are not finite.
    """
    if model.device.type == "cpu":
        keep_freed_memory()
    (queries, corpus), (asked, listed) = texts, pairs
    members = np.argsort(asked, kind="stable")
    room = torch.cuda.mem_get_info(model.device)[0] // 2 if model.device.type == "cuda" else BLOCK
    most = min(BLOCK, room) // (2 * model.lengths.passage * model.size)
    with tqdm(total=len(np.unique(asked)), desc="score", disable=None, unit="query") as progress:
        for block in blocks(asked[members], listed[members], most):
            part = members[block]
            held, places = np.unique(listed[part], return_inverse=True)
            questions, at = np.unique(asked[part], return_inverse=True)
            some = queries.take(pa.array(questions)).to_pylist(), take_texts(corpus, held)
            allow_tf32(settings.precision)
            score = model.scorer(*some, MicroBatchEncoder(settings.batch_tokens, settings.precision))
            for q, own in enumerate(np.split(np.arange(len(part)), np.cumsum(np.bincount(at))[:-1])):
                s = score(q, places[own])
                if not np.isfinite(s).all():
                    raise LeadError(
                        f"{folder}: scores are NaN or infinite: the model has diverged; train it with a lower lr"
                    )
                yield part[own], s
                progress.update()


def blocks(queries: Ints, passages: Ints, most: int) -> Iterator[slice]:
    """Cut pairs, sorted by query, into blocks of whole queries.

    A block has at most `most` different passages, or one query. queries, passages [pairs]: rows of the texts.
    """
    starts = [*np.flatnonzero(np.diff(queries, prepend=-1)).tolist(), len(queries)]
    last_in = np.full(passages.max(initial=-1) + 1, -1)  # the last block with each passage
    block = first = held = 0
    for begin, end in zip(starts[:-1], starts[1:], strict=True):
        rows = passages[begin:end]
        new = 1 + int((last_in[rows] != block).sum())
        if held and held + new > most:
            yield slice(first, begin)
            first, held, block, new = begin, 0, block + 1, 1 + len(rows)
        last_in[rows] = block
        held += new
    if first < len(queries):
        yield slice(first, len(queries))
