"""Denoised hard negatives (RocketQA, Qu et al. 2021): a strong model removes negatives that it scores as relevant."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from lead.config.stages import DenoiseSettings
from lead.data.texts import mapped
from lead.lists import ranks
from lead.retrieval.mine import known_positives
from lead.retrieval.rerank import load_reranker, pair_rows, score_pairs
from lead.store.tables import read_table, write_table

log = logging.getLogger("lead")


@torch.inference_mode()
def denoise(
    *,
    settings: DenoiseSettings,
    gpu: int,
    model: Path,
    corpus: Path,
    queries: list[Path],
    qrels: list[Path],
    negatives: Path,
    out: Path,
) -> None:
    """Keep the negatives that a cross encoder or ColBERT clearly ranks below a query's best positive.

    A negative stays if exp(s) / (exp(s) + exp(s+)) < `keep_below`. Here s is its score and s+ the score of the best
    known positive. This is a margin: s < s+ - ln(1 / keep_below - 1), 2.2 for .1. Only the top `depth` of a list is
    scored; the rest is dropped. Memory: as `rerank`.
    """
    scorer = load_reranker(model, gpu, "negatives are denoised by a cross encoder or a ColBERT")
    asked = pa.concat_tables(read_table(path, "queries") for path in queries)
    passages = mapped(corpus, out.with_name(f"{out.name}.corpus.arrow"))
    mined = read_table(negatives, "ranked")
    mined = mined.filter(pc.less_equal(mined["rank"], settings.depth))
    known = known_positives(qrels, settings.relevance)
    unknown = f"{negatives} or the judgements name ids that {corpus} or the queries do not have"
    (mined_q, mined_p), (known_q, known_p) = (pair_rows(table, asked, passages, unknown) for table in (mined, known))
    n = len(known_q)  # the positives of a query come before its negatives
    pairs = np.concatenate([known_q, mined_q]), np.concatenate([known_p, mined_p])
    highest = np.log(settings.keep_below) - np.log1p(-settings.keep_below)
    keep = np.zeros(len(mined), dtype=bool)
    for own, s in score_pairs(scorer, model, (asked["text"], passages["text"]), pairs, settings):
        positives = int((own < n).sum())
        if 0 < positives < len(own):
            s = scorer.scoring.scale * s
            keep[own[positives:] - n] = s[positives:] - s[:positives].max() < highest
    kept = mined.filter(pa.array(keep))
    codes = np.asarray(pc.index_in(kept["qid"], value_set=asked["qid"]), dtype=np.int64)
    kept = kept.set_column(kept.column_names.index("rank"), "rank", pa.array(ranks(codes), pa.int32()))
    write_table(kept, out, "ranked")
    log.info("denoise.keep_below removed %s of %s negatives", f"{len(mined) - len(kept):,}", f"{len(mined):,}")
