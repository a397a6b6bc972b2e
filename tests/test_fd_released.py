"""FD as the released code computes it: each difference from ours, against loops (docs/experiments.md)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import make_bert, make_retriever
from steps import SCORING, TRAIN, compare, gradients, take
from torch import Tensor

from lead.config.schema import Distil, LossWeights, Train
from lead.models.base import LayeredModel
from lead.models.maps import released_attention
from lead.train.data import TrainingData
from lead.train.fd import FdStep, map_layers

LONGEST = 24  # tokens of a passage


def states(model: LayeredModel, text: str, side: str, layer: int) -> Tensor:
    """A layer's outputs for all tokens of a text, [CLS] and [SEP] too."""
    limit = getattr(model.lengths, side)
    tokens = model.tokenizer([text], truncation=True, max_length=limit, return_tensors="pt")
    given = {key: tokens[key] for key in ("input_ids", "attention_mask")}
    hidden: Tensor = model.encoder(**given, output_hidden_states=True).hidden_states[layer][0]
    return hidden


def naive_map(model: LayeredModel, query: str, passage: str, layer: int) -> Tensor:
    """Raw products of all tokens, a distribution over the passage for each token of the query: [x + 2, y + 2]."""
    return (states(model, query, "query", layer) @ states(model, passage, "passage", layer).T).softmax(1)


def naive_attention(model: LayeredModel, query: str, passage: str, layer: int) -> Tensor:
    """The cross encoder's attention, softmaxed once more, in the upper left corner of [x + 2, y + 2]."""
    (pair,) = model.tokenize([query], [passage])  # type: ignore[operator]
    given = {"input_ids": torch.tensor([pair.ids]), "token_type_ids": torch.tensor([pair.types])}
    attention = model.encoder(**given, output_attentions=True).attentions[layer - 1][0].mean(0)
    table = torch.full((len(pair.query) + 2, LONGEST), -1e9)
    table[:-2, : len(pair.passage)] = attention[list(pair.query)][:, list(pair.passage)]
    return table.softmax(1)[:, : len(pair.passage) + 2]


@pytest.mark.parametrize("kind", ["de", "cb", "ce"])
def test_a_step_equals_a_naive_one(tiny_model: Path, tmp_path: Path, data: TrainingData, kind: str) -> None:
    """One direction, no 1 / sqrt(d), special tokens, every passage of the batch (of a cross encoder its own)."""
    student = make_retriever(tiny_model, **SCORING).train()
    teacher = make_retriever(make_bert(tmp_path / "t", 6, hidden=16, seed=1), kind)
    distil = Distil(maps="released", weights=LossWeights(stu=0.0))
    step, batch = FdStep(student, teacher, Train(**{**TRAIN, "dropout": 0.0}), distil, 3), data.batch(1)
    loss = take(step, batch, 1)
    got = {k: g for k, g in gradients(step).items() if k.startswith("student")}
    student.zero_grad(set_to_none=True)
    maps, pairs = torch.zeros(()), 0
    for i, own in enumerate(batch.own().tolist()):
        for j in own if kind == "ce" else range(len(batch.passages)):
            pairs += 1
            for a, b in map_layers("even", 6, 4):
                with torch.no_grad():
                    taught = (naive_attention if kind == "ce" else naive_map)(
                        teacher, batch.queries[i], batch.passages[j], a
                    )
                maps = maps + (taught - naive_map(student, batch.queries[i], batch.passages[j], b)).square().sum() / 4
    assert pairs == (12 if kind == "ce" else 48)
    (maps / pairs).backward()
    assert loss.parts["map"].item() == pytest.approx(maps.item() / pairs, rel=1e-4)
    compare(got, {k: g for k, g in gradients(step).items() if k.startswith("student")}, 1e-3)


def test_a_second_softmax_leaves_a_cross_encoders_rows_nearly_uniform() -> None:
    """Attention .9 and .1 becomes e^.9 / (e^.9 + e^.1) = .69 and .31; the rows that are left over hold 1 / 24."""
    block, keep = torch.tensor([[[[0.9, 0.1]]]]), torch.ones(1, 1, 2, dtype=torch.bool)
    maps = released_attention(block, keep, LONGEST)
    assert maps.keep.shape == (1, 3, 4) and bool(maps.keep.all())
    got = maps.to_passage[0, 0].exp()
    assert got[0].tolist() == pytest.approx([0.690, 0.310, 0.0, 0.0], abs=1e-3)
    assert got[1:].flatten().tolist() == pytest.approx([1 / 24] * 8)


def test_texts_of_other_lengths_in_a_batch_are_padded() -> None:
    """Of a pair of one and two tokens beside one of two and three, places 3 + 2 and 4 + 2 on are padding."""
    keep = torch.zeros(2, 2, 3, dtype=torch.bool)
    keep[0, :1, :2], keep[1] = True, True
    maps = released_attention(torch.rand(1, 2, 2, 3) * keep, keep, LONGEST)
    assert maps.keep.sum((1, 2)).tolist() == [3 * 4, 4 * 5]
    assert maps.to_passage[0, 1, :2].exp().sum(-1).tolist() == pytest.approx([1.0, 1.0])
