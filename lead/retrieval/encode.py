"""Encoding texts with a dual encoder, for exact search."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lead.artifacts import SCHEMAS, read_table
from lead.config.stages import EncodeSettings
from lead.device import device
from lead.errors import LeadError
from lead.models.micro import MicroEncoder, micro_batches
from lead.models.pile import NAMES, Pile
from lead.models.retriever import Retriever, Side
from lead.retrieval.search import write_vectors


@torch.inference_mode()
def encode_texts(
    model: Retriever, side: Side, texts: list[str], batch_tokens: int, precision: str, what: str
) -> Iterator[tuple[list[int], Tensor, Tensor | None]]:
    """Last-layer vectors of all texts, in length-sorted batches: (positions of its n texts, x, mask).

    x [n, d] for DE; [n, T, d] with mask [n, T] for CB; on the model's device. Memory: one batch.
    """
    model.eval()
    ids = [i for start in range(0, len(texts), 4096) for i in model.tokenize(side, texts[start : start + 4096])]
    encode = MicroEncoder(batch_tokens, precision)
    with tqdm(total=len(texts), desc=what, disable=None, unit="text") as bar:
        for group in micro_batches([len(i) for i in ids], batch_tokens):
            features = encode(model, [ids[i] for i in group], (model.n_layers,), what)
            yield group, model.vectors(features), features.mask
            bar.update(len(group))


def encode(*, settings: EncodeSettings, gpu: int, model: Path, texts: Path, out: Path) -> None:
    """Write the vectors of every text. Memory: all vectors (4 d bytes a text) and one batch's activations.

    Raises LeadError for ColBERT and CE, whose scores are not inner products of single vectors: rerank with it instead.
    """
    table = read_table(texts)
    side: Side = "passage" if "pid" in table.column_names else "query"
    if not table.schema.equals(SCHEMAS["corpus" if side == "passage" else "queries"]):
        raise LeadError(f"--texts {texts} holds neither passages (pid, text) nor queries (qid, text)")
    encoder = Pile.load(model)
    if encoder.kind != "de":
        raise LeadError(f"{model} is a {NAMES[encoder.kind]}: it has no single vector a text; use lead rerank")
    assert isinstance(encoder, Retriever)
    encoder.to(device(gpu))
    texts_ = table["text"].to_pylist()
    vectors = np.zeros((len(texts_), encoder.size), np.float32)
    for rows, x, _ in encode_texts(encoder, side, texts_, settings.batch_tokens, settings.precision, f"{side} vectors"):
        vectors[rows] = x.cpu().numpy()
    write_vectors(table["pid" if side == "passage" else "qid"].to_pylist(), vectors, out, settings.fp16)
