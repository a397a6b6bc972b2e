"""Encoding texts with a dual encoder, for exact search."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from lead.artifacts import SCHEMAS, read_table
from lead.config.stages import EncodeSettings
from lead.device import device
from lead.errors import LeadError
from lead.models.features import Features
from lead.models.micro import MicroEncoder, micro_batches
from lead.models.retriever import Retriever, Side
from lead.retrieval.search import write_vectors


@torch.inference_mode()
def encode_texts(
    model: Retriever, side: Side, texts: list[str], batch_tokens: int, precision: str, what: str
) -> list[Features]:
    """Last-layer features (n = 1 each, on the CPU) of all texts, in their order, encoded in length-sorted batches."""
    model.eval()
    ids = [i for start in range(0, len(texts), 4096) for i in model.tokenize(side, texts[start : start + 4096])]
    encode = MicroEncoder(batch_tokens, precision)
    out: list[Features | None] = [None] * len(texts)
    bar = tqdm(total=len(texts), desc=what, disable=None, unit="text")
    for group in micro_batches([len(i) for i in ids], batch_tokens):
        f = encode(model, [ids[i] for i in group], (model.n_layers,), what)
        x, mask = model.vectors(f).cpu(), None if f.mask is None else f.mask.cpu()
        for n, i in enumerate(group):
            # copies, not views: a view would keep the whole batch alive
            out[i] = Features(x[n][None, None].clone(), f.layers, None if mask is None else mask[n][None].clone())
        bar.update(len(group))
    bar.close()
    return [f for f in out if f is not None]


def encode(*, settings: EncodeSettings, gpu: int, model: Path, texts: Path, out: Path) -> None:
    """Write the vectors of every text. Memory: all vectors (4 d bytes a text) and one batch's activations.

    Raises LeadError for a ColBERT, whose scores are not inner products of single vectors: rerank with it instead.
    """
    table = read_table(texts)
    side: Side = "passage" if "pid" in table.column_names else "query"
    if not table.schema.equals(SCHEMAS["corpus" if side == "passage" else "queries"]):
        raise LeadError(f"--texts {texts} holds neither passages (pid, text) nor queries (qid, text)")
    encoder = Retriever.load(model)
    if encoder.kind != "de":
        raise LeadError(f"{model} is a ColBERT: it has no single vector a text; use lead rerank")
    encoder.to(device(gpu))
    features = encode_texts(
        encoder, side, table["text"].to_pylist(), settings.batch_tokens, settings.precision, f"{side} vectors"
    )
    vectors = torch.cat([f.x[0] for f in features]).numpy() if features else np.zeros((0, 1), np.float32)
    write_vectors(table["pid" if side == "passage" else "qid"].to_pylist(), vectors, out, settings.fp16)
