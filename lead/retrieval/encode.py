"""Encoding texts with a dual encoder, for exact search."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lead.config.stages import EncodeSettings
from lead.data.tokens import Tokens
from lead.device import device
from lead.errors import LeadError
from lead.models.base import NAMES, LayeredModel
from lead.models.microbatch import MicroBatchEncoder, micro_batches
from lead.models.retriever import Retriever, Side
from lead.store.tables import SCHEMAS, open_table, read_rows, shard_rows, without_nulls
from lead.store.vectors import write_vectors

CHUNK = 1 << 18  # texts read, tokenized and sorted by length at a time


def encode_texts(
    model: Retriever, side: Side, texts: list[str], batch_tokens: int, precision: str, what: str
) -> Iterator[tuple[list[int], Tensor, Tensor | None]]:
    """Last-layer vectors of all texts, in length-sorted batches: (positions of its n texts, x, mask).

    x [n, d] for DE; [n, T, d] with mask [n, T] for CB; on the model's device. Memory: one batch.
    """
    yield from encode_ids(model, model.tokenize(side, texts), batch_tokens, precision, what)


@torch.inference_mode()
def encode_ids(
    model: Retriever, ids: Sequence[Any], batch_tokens: int, precision: str, what: str
) -> Iterator[tuple[list[int], Tensor, Tensor | None]]:
    """As `encode_texts`, for texts that are token ids already."""
    model.eval()
    encode = MicroBatchEncoder(batch_tokens, precision)
    with tqdm(total=len(ids), desc=what, disable=None, unit="text") as bar:
        for group in micro_batches([len(i) for i in ids], batch_tokens):
            features = encode(model, [ids[i] for i in group], (model.n_layers,), what)
            yield group, model.vectors(features), features.mask
            bar.update(len(group))


def encode(
    *, settings: EncodeSettings, gpu: int, model: Path, texts: Path, tokens: Path | None = None, out: Path
) -> None:
    """Write the vectors of all texts, or of one shard of them; `tokens`: the store of their token ids, if there is one.

    Memory: the vectors (4 d bytes a text, twice while they are checked and compressed), and `CHUNK` texts with their
    tokens. Raises LeadError for a store of other tokens, and for ColBERT and cross encoders, whose scores are not inner
    products of single vectors: rerank with these instead.
    """
    file = open_table(texts)
    side: Side = "passage" if "pid" in file.schema_arrow.names else "query"
    if not file.schema_arrow.equals(SCHEMAS["corpus" if side == "passage" else "queries"]):
        raise LeadError(f"--texts {texts} holds neither passages (pid, text) nor queries (qid, text)")
    encoder = LayeredModel.load(model)
    if encoder.kind != "de":
        raise LeadError(f"{model} is a {NAMES[encoder.kind]}: it has no single vector a text; use lead rerank")
    assert isinstance(encoder, Retriever)
    encoder.to(device(gpu))
    start, stop = shard_rows(file.metadata.num_rows, settings.shard)
    vectors = np.zeros((stop - start, encoder.size), np.float32)
    store = tokens and Tokens(tokens, encoder.tokenizer, getattr(encoder.lengths, side), len(vectors))
    ids: list[str] = []
    for chunk in read_rows(file, start, stop, CHUNK, file.schema_arrow.names[:1] if store else None):
        without_nulls(chunk, texts)
        first = len(ids)
        ids += chunk[0].to_pylist()
        done = f" {len(ids):,} of {len(vectors):,}" if len(vectors) > CHUNK else ""
        how = settings.batch_tokens, settings.precision, f"{side} vectors{done}"
        if store:
            batches = encode_ids(encoder, store.rows(first, len(ids)), *how)
        else:
            batches = encode_texts(encoder, side, chunk["text"].to_pylist(), *how)
        for rows, x, _ in batches:
            vectors[first : len(ids)][rows] = x.cpu().numpy()
    write_vectors(ids, vectors, out, settings.fp16)
