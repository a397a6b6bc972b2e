"""Texts and encodings of tiny models, the stock model's too, for the tests of retrievers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from conftest import vocabulary
from torch import Tensor

from lead.models.bi_encoder import BiEncoder
from lead.models.features import Candidates, Features

TEXTS = [
    "the array shape",
    "token",
    "graph edge of a vertex path and a long cycle with the degree",
    "tree node leaf",
    "",
]
ALL = (1, 2, 3, 4)
CLS, SEP, PAD, MASK = (vocabulary().index(f"[{name}]") for name in ("CLS", "SEP", "PAD", "MASK"))


def stock_states(folder: Path, texts: list[str]) -> tuple[tuple[Tensor, ...], Tensor]:
    """hidden_states (embeddings first) and mask of the stock model, on a batch padded by its own tokenizer."""
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder).eval()
    batch = AutoTokenizer.from_pretrained(folder)(
        texts, padding=True, truncation=True, max_length=24, return_tensors="pt"
    )
    with torch.no_grad():
        out = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True)
    return out.hidden_states, batch["attention_mask"].bool()


@torch.no_grad()
def features(model: BiEncoder, texts: list[str], layers: tuple[int, ...], side: Any = "passage") -> Features:
    return model.eval().encode(model.tokenize(side, texts), layers)


def everything(q: int, p: int) -> Candidates:
    keep = torch.ones(q, p, dtype=torch.bool)
    return Candidates(torch.arange(p).expand(q, -1), keep, torch.zeros_like(keep))
