"""FD (VIRT): maps against loops, aligned tokens, one softmax only, who receives gradients (pitfalls 11, 13)."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from conftest import make_bert, make_retriever
from naive import naive_contrastive
from steps import SCORING, TRAIN, compare, gradients, naive_candidates, naive_scores, take
from tokenizers import Tokenizer
from transformers import AutoModel

from lead.config.schema import Distil, Lengths, Linear, LossWeights, ModelRef, Scoring, Train
from lead.errors import LeadError
from lead.methods.fd import map_loss
from lead.models.base import LayeredModel
from lead.models.bi_encoder import BiEncoder
from lead.models.cross_encoder import CrossEncoder
from lead.models.maps import Maps, virtual_maps
from lead.models.microbatch import MicroBatchEncoder
from lead.train.data import TrainingData
from lead.train.fd import FdStep, map_layers

QUERIES = ["array shape token", "graph edge"]
PASSAGES = ["the array shape of a token", "tree node", "path", "long cycle with the degree"]
INDEX = torch.tensor([[0, 1], [2, 3]])


def softmax(row: list[float]) -> list[float]:
    e = [math.exp(v - max(row)) for v in row]
    return [v / sum(e) for v in e]


@torch.no_grad()
def test_a_wider_linear_layer_does_not_change_the_maps_of_the_layers_below(tiny_model: Path) -> None:
    scoring, lengths = Scoring(pooling="cls", normalise="none"), Lengths(query=8, passage=24)
    maps = []
    for linear in (None, Linear(size=48)):
        ref = ModelRef(reference=f"path:{tiny_model}", linear=linear)
        model = LayeredModel.pretrained(ref, "de", scoring, lengths).eval()
        assert isinstance(model, BiEncoder)
        encode, view = MicroBatchEncoder(64, "fp32"), model.map_view()
        encoded = tuple(
            encode(view, model.tokenize(s, t), (2, 4), s) for s, t in (("query", QUERIES), ("passage", PASSAGES))
        )
        maps.append(view.maps(encoded, INDEX))
    assert torch.allclose(maps[0].to_passage, maps[1].to_passage, atol=1e-6)
    assert torch.allclose(maps[0].to_query, maps[1].to_query, atol=1e-6)


@torch.no_grad()
def test_virtual_maps_are_the_loops_over_content_tokens(tiny_model: Path) -> None:
    model = make_retriever(tiny_model).eval()
    encode, view = MicroBatchEncoder(12, "fp32"), model.map_view()
    q = encode(view, model.tokenize("query", QUERIES), (2, 4), "q")
    p = encode(view, model.tokenize("passage", PASSAGES), (2, 4), "p")
    maps = virtual_maps(q, p, INDEX, [32] * len(q.x))
    stock = AutoModel.from_pretrained(tiny_model).eval()

    def vectors(text: str, side: str, layer: int) -> torch.Tensor:
        (ids,) = model.tokenize(side, [text])
        return stock(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[layer][0, 1:-1]

    for n, (i, j) in enumerate([(0, 0), (0, 1), (1, 2), (1, 3)]):
        for row, layer in enumerate((2, 4)):
            x, y = vectors(QUERIES[i], "query", layer), vectors(PASSAGES[j], "passage", layer)
            logits = (x @ y.T / math.sqrt(32)).tolist()
            keep = maps.keep[n]
            assert int(keep.sum()) == len(x) * len(y) and bool(keep[: len(x), : len(y)].all())
            for a, values in enumerate(logits):
                got = maps.to_passage[row, n, a, : len(y)].exp().tolist()
                assert got == pytest.approx(softmax(values), abs=1e-5)
            for b, column in enumerate(zip(*logits, strict=True)):
                got = maps.to_query[row, n, : len(x), b].exp().tolist()
                assert got == pytest.approx(softmax(list(column)), abs=1e-5)


@torch.no_grad()
def test_a_cross_encoders_maps_are_its_attention_between_the_segments_normalised_once(tiny_model: Path) -> None:
    model = make_retriever(tiny_model, "ce").eval()
    texts = [QUERIES[i] for i in (0, 0, 1, 1)], PASSAGES
    pairs = model.tokenize(*texts)
    view = model.map_view()
    groups = [[1, 2], [0, 3]]
    maps = Maps.join([view.encode([pairs[i] for i in g], (2, 4)) for g in groups], groups)
    stock = AutoModel.from_pretrained(tiny_model, attn_implementation="eager").eval()
    for n, pair in enumerate(pairs):
        out = stock(
            input_ids=torch.tensor([pair.ids]), token_type_ids=torch.tensor([pair.types]), output_attentions=True
        )
        for row, layer in enumerate((2, 4)):
            attention = out.attentions[layer - 1][0].mean(0)
            for a, position in enumerate(pair.query):
                block = attention[position, list(pair.passage)]
                got = maps.to_passage[row, n, a, : len(block)].exp()
                assert torch.allclose(got, block / block.sum(), atol=1e-5)
            for b, position in enumerate(pair.passage):
                block = attention[position, list(pair.query)]
                got = maps.to_query[row, n, : len(block), b].exp()
                assert torch.allclose(got, block / block.sum(), atol=1e-5)


@torch.no_grad()
def test_teacher_and_student_see_the_same_tokens_of_every_pair(tiny_model: Path) -> None:
    dual, cross = make_retriever(tiny_model).eval(), make_retriever(tiny_model, "ce").eval()
    encode, view = MicroBatchEncoder(99, "fp32"), dual.map_view()
    long = ["the array shape " * 30, "", "path", "unheardof words here"]
    q = encode(view, dual.tokenize("query", ["a long " * 9, "graph"]), (4,), "q")
    p = encode(view, dual.tokenize("passage", long), (4,), "p")
    pairs = cross.tokenize(["a long " * 9] * 2 + ["graph"] * 2, long)
    assert torch.equal(cross.map_view().encode(pairs, (4,)).keep, virtual_maps(q, p, INDEX, [32] * len(q.x)).keep)


def test_the_map_loss_by_hand() -> None:
    # one pair, three rows over two tokens, the last row padding: (0.9-0.5)^2 + (0.1-0.5)^2 = 0.32, and 0.02
    t = torch.tensor([[[[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]]]]).log()
    s, keep = torch.full((1, 1, 3, 2), 0.5).log(), torch.tensor([[[True, True], [True, True], [False, False]]])
    assert float(map_loss(t, s, keep)) == pytest.approx(0.34)  # summed over rows
    both = t.expand(2, 2, 3, 2).clone()  # averaged over two layers and two pairs
    both[0, 1] = s[0, 0]
    assert float(map_loss(both, s.expand_as(both), keep.expand(2, 3, 2))) == pytest.approx(0.34 * 3 / 4)
    assert float(map_loss(t, s, torch.zeros_like(keep))) == 0.0


def test_layers_are_spread_evenly_or_the_last() -> None:
    assert map_layers("even", 6, 3) == [(2, 1), (4, 2), (6, 3)]
    assert map_layers("even", 4, 3) == [(1, 1), (2, 2), (4, 3)]
    assert map_layers("last", 4, 3) == [(2, 1), (3, 2), (4, 3)]


def token_states(model: LayeredModel, text: str, side: str) -> list[torch.Tensor]:
    """Outputs of every layer for a text's tokens, without the special ones at both ends."""
    limit = getattr(model.lengths, side)
    tokens = model.tokenizer([text], truncation=True, max_length=limit, return_tensors="pt")
    out = model.encoder(
        input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], output_hidden_states=True
    )
    return [h[0, 1:-1] for h in out.hidden_states]


def naive_maps(model: LayeredModel, query: str, passage: str, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The maps of one pair at one layer: [x, y], each row a distribution; and [y, x]."""
    if not isinstance(model, CrossEncoder):
        x, y = token_states(model, query, "query")[layer], token_states(model, passage, "passage")[layer]
        logits = x @ y.T / math.sqrt(x.shape[1])
        return logits.softmax(1), logits.T.softmax(1)
    (pair,) = model.tokenize([query], [passage])
    out = model.encoder(
        input_ids=torch.tensor([pair.ids]), token_type_ids=torch.tensor([pair.types]), output_attentions=True
    )
    attention = out.attentions[layer - 1][0].mean(0)
    q, p = list(pair.query), list(pair.passage)
    block, back = attention[q][:, p], attention[p][:, q]
    return block / block.sum(1, keepdim=True), back / back.sum(1, keepdim=True)


@pytest.mark.parametrize("kind", ["de", "cb", "ce"])
@pytest.mark.parametrize("spread", ["even", "last"])
def test_a_step_equals_a_naive_one(
    tiny_model: Path, tmp_path: Path, data: TrainingData, kind: str, spread: str
) -> None:
    """Both directions, the layers of `map_layers`, L_stu over the whole batch, and their weights."""
    torch.manual_seed(2)
    student = make_retriever(tiny_model, **SCORING).train()
    teacher = make_retriever(make_bert(tmp_path / "t", 6, hidden=16, seed=1), kind)
    distil = Distil(map_layers=spread, weights=LossWeights(map=0.7, stu=1.3))
    step, batch = FdStep(student, teacher, Train(**{**TRAIN, "dropout": 0.0}), distil, 3), data.batch(1)
    loss = take(step, batch, 1)
    got = {k: g for k, g in gradients(step).items() if k.startswith("student")}
    for model in (student, teacher):
        model.zero_grad(set_to_none=True)

    maps, pairs = torch.zeros(()), 0
    for i, passages in enumerate(batch.own().tolist()):
        for j in passages:
            pairs += 1
            for a, b in map_layers(spread, 6, 4):
                with torch.no_grad():
                    t = naive_maps(teacher, batch.queries[i], batch.passages[j], a)
                s = naive_maps(student, batch.queries[i], batch.passages[j], b)
                maps = maps + sum((x - y).square().sum() for x, y in zip(t, s, strict=True)) / 4
    contrastive = naive_contrastive(naive_scores(student, batch)[0], naive_candidates(batch, own=False)[0])
    (0.7 * maps / pairs + 1.3 * contrastive).backward()
    assert float(loss.parts["map"].detach()) == pytest.approx(float(maps.detach()) / pairs, rel=1e-4)
    assert float(loss.parts["stu"].detach()) == pytest.approx(float(contrastive.detach()), rel=1e-4)
    assert float(loss.total.detach()) == pytest.approx(
        float((0.7 * maps / pairs + 1.3 * contrastive).detach()), rel=1e-4
    )
    want = {k: g for k, g in gradients(step).items() if k.startswith("student")}
    compare(got, want, 1e-3)


@pytest.mark.parametrize("kind", ["de", "cb", "ce"])
def test_a_step_from_each_kind_of_teacher(tiny_model: Path, tmp_path: Path, data: TrainingData, kind: str) -> None:
    results = []
    for cache_above in (1, 10**9):
        torch.manual_seed(2)
        student = make_retriever(tiny_model).train()
        teacher = make_retriever(make_bert(tmp_path / f"t{cache_above}", 6, hidden=16, seed=1), kind)
        step = FdStep(student, teacher, Train(**{**TRAIN, "cache_above": cache_above, "dropout": 0.2}), Distil(), 3)
        loss = take(step, data.batch(1), 1)
        assert set(loss.parts) == {"stu", "map"} and float(loss.parts["map"].detach()) > 0
        assert not teacher.training and all(p.grad is None for p in teacher.parameters())
        results.append({k: g for k, g in gradients(step).items() if k.startswith("student")})
    compare(*results, 1e-4)


def test_another_tokenizer_is_refused_in_one_line(tiny_model: Path, tmp_path: Path) -> None:
    student, teacher = make_retriever(tiny_model), make_retriever(make_bert(tmp_path / "t", 6))
    teacher.tokenizer.add_tokens(["anotherword"])
    with pytest.raises(LeadError, match="must have the same tokenizer") as error:
        FdStep(student, teacher, Train(**TRAIN), Distil(), 3)
    assert "\n" not in str(error.value)
    teacher = make_retriever(make_bert(tmp_path / "u", 6))
    rules = json.loads(teacher.tokenizer.backend_tokenizer.to_str())
    rules["normalizer"]["lowercase"] = False  # the same words, but another cut of "The"
    teacher.tokenizer.backend_tokenizer.normalizer = Tokenizer.from_str(json.dumps(rules)).normalizer
    with pytest.raises(LeadError, match="must have the same tokenizer"):
        FdStep(student, teacher, Train(**TRAIN), Distil(), 3)


@torch.no_grad()
def test_a_literal_separator_in_a_text_is_a_token_like_any_other(tiny_model: Path) -> None:
    dual, cross = make_retriever(tiny_model).eval(), make_retriever(tiny_model, "ce").eval()
    texts = ["the [SEP] array [CLS]", "tree node", "[SEP]", "path"]
    encode, view = MicroBatchEncoder(99, "fp32"), dual.map_view()
    q = encode(view, dual.tokenize("query", ["a [SEP] token", "graph"]), (4,), "q")
    p = encode(view, dual.tokenize("passage", texts), (4,), "p")
    pairs = cross.tokenize(["a [SEP] token"] * 2 + ["graph"] * 2, texts)
    keep = cross.map_view().encode(pairs, (4,)).keep
    assert torch.equal(keep, virtual_maps(q, p, INDEX, [32] * len(q.x)).keep) and bool(keep[2, 0, 0])


@pytest.mark.parametrize(
    ("student_layers", "options", "says"),
    [
        ([1, 2, 3, 4], {}, "the student has 4 transformer layers, the teacher only 2"),
        ([1], {"expand": True}, "set both"),
    ],
)
def test_models_that_fd_cannot_align_are_refused(
    tiny_model: Path, tmp_path: Path, student_layers: list[int], options: dict[str, bool], says: str
) -> None:
    from lead.config.schema import Lengths, ModelRef, Scoring
    from lead.models.base import LayeredModel

    ref = ModelRef(reference=f"path:{tiny_model}", layers=student_layers)
    student = LayeredModel.pretrained(ref, "de", Scoring(), Lengths(query=8, passage=24))
    teacher = make_retriever(make_bert(tmp_path / "t", 2), "cb", **options)
    with pytest.raises(LeadError, match=says):
        FdStep(student, teacher, Train(**TRAIN), Distil(), 3)
