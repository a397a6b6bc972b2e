"""Encoding texts with a dual encoder, for exact search."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from lead.config.stages import EncodeSettings
from lead.data.own import texts_table
from lead.data.tokens import Tokens
from lead.device import allow_tf32, device, keep_freed_memory, to_cpu
from lead.errors import LeadError
from lead.models.base import LayeredModel
from lead.models.bi_encoder import BiEncoder, Side
from lead.models.microbatch import MicroBatchEncoder
from lead.store.tables import SCHEMAS, open_table, read_rows, shard_rows, without_nulls
from lead.store.vectors import write_vectors

CHUNK = 1 << 18  # texts read, tokenized and sorted by length at a time


@torch.inference_mode()
def encode_ids(
    model: BiEncoder, ids: Sequence[Any], batch_tokens: int, precision: str, what: str
) -> Iterator[tuple[list[int], Tensor]]:
    """Last-layer vectors of all texts, in batches sorted by length: positions of the batch's n texts, and x [n, d].

    The model is a dual encoder; x is on the CPU. A GPU works on a batch while the one before is handed out. Whether it
    may use TF32 is the caller's choice (`allow_tf32`). Memory: two batches.
    """
    model.eval()
    arriving: list[tuple[list[int], Callable[[], Tensor]]] = []
    for group, features in MicroBatchEncoder(batch_tokens, precision).batches(model, ids, (model.n_layers,), what):
        arriving.append((group, to_cpu(model.vectors(features))))
        if len(arriving) == 2:
            positions, x = arriving.pop(0)
            yield positions, x()
    for positions, x in arriving:
        yield positions, x()


def encode(
    *, settings: EncodeSettings, gpu: int, model: Path, texts: Path, tokens: Path | None = None, out: Path
) -> None:
    """Write the vectors of all texts, or of one shard. tokens: the store of their token ids, if any.

    `texts`: a table that lead wrote, or a user's own TSV, CSV, JSONL or Parquet, which is converted first.
    Memory: the vectors (4 d bytes a text, twice that during checks and compression), and `CHUNK` texts with their
    tokens. Raises LeadError for a store of other tokens, and for ColBERT and cross encoders, whose scores are not inner
    products of single vectors. Rerank with these instead.
    """
    with texts_table(texts, out) as table:
        _encode(settings, gpu, model, table, texts, tokens, out)


def _encode(
    settings: EncodeSettings, gpu: int, model: Path, table: Path, texts: Path, tokens: Path | None, out: Path
) -> None:
    file = open_table(table)
    side: Side = "passage" if "pid" in file.schema_arrow.names else "query"
    if not file.schema_arrow.equals(SCHEMAS["corpus" if side == "passage" else "queries"]):
        raise LeadError(f"--texts {texts} holds neither passages (pid, text) nor queries (qid, text)")
    otherwise = ": it has no single vector a text; use lead rerank"
    encoder = cast(BiEncoder, LayeredModel.load(model).must_rank_by("search", str(model), otherwise)).to(device(gpu))
    allow_tf32(settings.precision)
    if encoder.device.type == "cpu":
        keep_freed_memory()
    start, stop = shard_rows(file.metadata.num_rows, settings.shard)
    vectors = np.zeros((stop - start, encoder.size), np.float32)
    how_cut = getattr(encoder.lengths, side), len(vectors), getattr(encoder.prompts, side)
    store = tokens and Tokens(tokens, encoder.tokenizer, *how_cut)
    ids: list[str] = []
    for chunk in read_rows(file, start, stop, CHUNK, file.schema_arrow.names[:1] if store else None):
        without_nulls(chunk, texts)
        first = len(ids)
        ids += chunk[0].to_pylist()
        done = f" {len(ids):,} of {len(vectors):,}" if len(vectors) > CHUNK else ""
        how = settings.batch_tokens, settings.precision, f"{side} vectors{done}"
        tokenized = store.rows(first, len(ids)) if store else encoder.tokenize(side, chunk["text"].to_pylist())
        for rows, x in encode_ids(encoder, tokenized, *how):
            vectors[first : len(ids)][rows] = x.numpy()
    write_vectors(ids, vectors, out, settings.fp16)
