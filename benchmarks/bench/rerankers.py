"""Reranking and denoising: the scores of listed pairs, which is what both stages spend their time on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from contestants import LONGEST, MODEL, Request, _minilm, _texts

LISTS = 4, 12  # queries of a request, and passages of each
QUERY, BATCH = 24, 32  # tokens of a query; pairs or texts that a peer reads at a time


def _lists(inputs: Path) -> tuple[list[str], list[str]]:
    """Queries, and the passages of all lists; the first list comes first."""
    queries, n = LISTS[0], LISTS[0] * LISTS[1]
    corpus = _texts(inputs, "corpus")
    return _texts(inputs, "queries.test")[:queries], corpus[:: len(corpus) // n][:n]


def _ours(inputs: Path, kind: str) -> Request:
    import pyarrow as pa

    from lead.config.stages import RerankSettings
    from lead.retrieval.rerank import score_pairs

    model, (queries, passages) = _minilm(kind, LONGEST).eval(), _lists(inputs)
    texts = pa.chunked_array([queries]), pa.chunked_array([passages])
    pairs = np.repeat(np.arange(LISTS[0]), LISTS[1]), np.arange(len(passages))
    settings = RerankSettings(precision="fp32")

    def request() -> list[list[float]]:
        import torch

        with torch.inference_mode():
            return [scores.tolist() for _, scores in score_pairs(model, Path("model"), texts, pairs, settings)]

    return request


def lead_cross_encoder(inputs: Path) -> Request:
    """Scores of 48 pairs by a cross encoder of 6 layers."""
    return _ours(inputs, "ce")


def sentence_transformers_cross_encoder(inputs: Path) -> Request:
    """The same by `CrossEncoder.predict`, which pads each batch to its longest pair."""
    from sentence_transformers import CrossEncoder

    from lead.pretrained import resolve

    model = CrossEncoder(resolve(MODEL), num_labels=1, max_length=QUERY + LONGEST, device="cpu")
    queries, passages = _lists(inputs)
    pairs = list(zip(np.repeat(queries, LISTS[1]).tolist(), passages, strict=True))
    return lambda: model.predict(pairs, batch_size=BATCH, show_progress_bar=False).tolist()


def lead_colbert(inputs: Path) -> Request:
    """MaxSim of 48 pairs by a ColBERT of 6 layers; every passage is in one list."""
    return _ours(inputs, "cb")


def padded_colbert(inputs: Path) -> Request:
    """The same in plain PyTorch: batches in the given order, each padded to its longest text."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    from lead.pretrained import resolve

    tokenizer, model = AutoTokenizer.from_pretrained(resolve(MODEL)), AutoModel.from_pretrained(resolve(MODEL)).eval()
    queries, passages = _lists(inputs)

    def vectors(texts: list[str], longest: int) -> tuple[Any, Any]:
        read = tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        return torch.nn.functional.normalize(model(**read).last_hidden_state, dim=-1), read["attention_mask"].bool()

    @torch.inference_mode()
    def request() -> list[float]:
        (x, real), scores = vectors(queries, QUERY), []
        for start in range(0, len(passages), BATCH):
            y, kept = vectors(passages[start : start + BATCH], LONGEST)
            of = torch.arange(start, start + len(y)) // LISTS[1]
            each = torch.einsum("pxd,pyd->pxy", x[of], y).masked_fill(~kept[:, None], -torch.inf).amax(2)
            scores += each.masked_fill(~real[of], 0).sum(1).tolist()
        return scores

    return request
