"""The stage `lead score`: a model's scores of the passages that train queries are trained with, asked once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from lead.config.stages import ScoreSettings
from lead.data.texts import mapped
from lead.device import device
from lead.models.base import LayeredModel
from lead.retrieval.mine import known_positives
from lead.retrieval.rerank import pair_rows, score_pairs
from lead.store.tables import SCHEMAS, read_table, write_table


@torch.inference_mode()
def score(
    *,
    settings: ScoreSettings,
    gpu: int,
    model: Path,
    corpus: Path,
    queries: list[Path],
    qrels: list[Path],
    negatives: Path,
    out: Path,
) -> None:
    """Write the final scores of each query's relevant passages and of the top `depth` of its negatives.

    They are the logits that the model has in training, `scoring.scale` included. Memory: as `rerank`, and the pairs.
    """
    scorer = LayeredModel.load(model).to(device(gpu)).eval()
    asked = pa.concat_tables(read_table(path, "queries") for path in queries)
    passages = mapped(corpus, out.with_name(f"{out.name}.corpus.arrow"))
    mined = read_table(negatives, "ranked")
    mined = mined.filter(pc.less_equal(mined["rank"], settings.depth)).select(["qid", "pid"])
    mined = mined.filter(pc.is_in(mined["qid"], value_set=asked["qid"]))  # dev's are in the same file
    listed = pa.concat_tables([known_positives(qrels, settings.relevance).select(["qid", "pid"]), mined])
    listed = listed.group_by(["qid", "pid"]).aggregate([])
    unknown = f"{negatives} or the judgements name ids that {corpus} or the queries do not have"
    pairs = pair_rows(listed, asked, passages, unknown)
    scores = np.empty(len(listed), np.float32)
    for own, s in score_pairs(scorer, model, (asked["text"], passages["text"]), pairs, settings):
        scores[own] = scorer.scoring.scale * s
    order = np.lexsort((pairs[1], pairs[0]))  # by query and passage, in the order of their files
    table = listed.append_column("score", pa.array(scores)).take(pa.array(order))
    write_table(table.cast(SCHEMAS["scores"]), out, "scores")
