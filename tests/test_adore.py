"""ADORE: the loss, negatives of every step's own search, a fixed index, and gradients in the query encoder alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_retriever
from steps import TRAIN, gradients, take
from test_losses import own, random_candidates, random_scores
from test_resume import SCORING, assert_same, inputs, killed_and_run_again, lines, outputs
from test_resume import TRAIN as LONG
from torch import Tensor

from lead.config.schema import Train
from lead.config.stages import EncodeSettings, TrainSettings
from lead.errors import LeadError
from lead.methods.adore import lambda_rank
from lead.models.bi_encoder import BiEncoder
from lead.models.features import Candidates, Scores
from lead.retrieval.encode import encode
from lead.store.vectors import read_vectors, write_vectors
from lead.train import stages
from lead.train.adore import AdoreStep, FixedPassages
from lead.train.data import TrainingData


# --- the loss --------------------------------------------------------------------------------------------------------
def scores(s: Tensor) -> Scores:
    return Scores(s[None], (1,), s)


def naive_lambda_rank(s: Tensor, candidates: Candidates) -> Tensor:
    losses = []
    for q in range(len(s)):
        kept = [c for c in range(s.shape[1]) if candidates.keep[q, c]]
        (y,) = [c for c in kept if candidates.positive[q, c]]
        rank = {c: 1 + sum(bool(s[q, other] > s[q, c]) for other in kept) for c in kept}
        pairs = [abs(1 / rank[y] - 1 / rank[c]) * torch.log(1 + torch.exp(s[q, c] - s[q, y])) for c in kept if c != y]
        losses.append(sum(pairs, torch.zeros(())) / max(1, len(pairs)))
    return sum(losses, torch.zeros(())) / len(losses)


def test_the_loss_by_hand() -> None:
    # the positive, ln 2, is second of three: first ln 6, third 0; the fourth is another positive
    s = torch.tensor([[math.log(2), math.log(6), 0.0, 9.0]])
    loss = lambda_rank(scores(s), own(0, c=4, masked=((0, 3),)))
    above, below = (1 - 1 / 2) * math.log(1 + 3), (1 / 2 - 1 / 3) * math.log(1 + 1 / 2)
    assert float(loss.total) == pytest.approx((above + below) / 2, rel=1e-6)
    assert float(loss.watch["reciprocal_rank"]) == 0.5
    alone = lambda_rank(scores(s), own(0, c=4, masked=((0, 1), (0, 2), (0, 3))))
    assert float(alone.total) == 0.0 and float(alone.watch["reciprocal_rank"]) == 1.0


def test_the_loss_and_its_gradients_equal_a_naive_one() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        q, c = int(rng.integers(1, 5)), int(rng.integers(1, 9))
        candidates, s = random_candidates(rng, q, c), random_scores(rng, q, c)
        got, want = lambda_rank(scores(s), candidates).total, naive_lambda_rank(s, candidates)
        assert float(got.detach()) == pytest.approx(float(want.detach()), rel=1e-5, abs=1e-7)
        if float(want.detach()) > 0:
            (a,), (b,) = (torch.autograd.grad(x, s) for x in (got, want))
            assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)


# --- the index -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def star(tiny_model: Path, tiny_collection: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A model folder to start from, and its passages' vectors in two shards."""
    folder = tmp_path_factory.mktemp("star")
    make_retriever(tiny_model, **SCORING.model_dump()).save(folder / "model")
    shards = [folder / f"passages.{i}of2.parquet" for i in (1, 2)]
    for i, out in enumerate(shards, 1):
        settings, corpus = EncodeSettings(shard=f"{i}of2", precision="fp32"), tiny_collection / "corpus.parquet"
        encode(settings=settings, gpu=0, model=folder / "model", texts=corpus, tokens=None, out=out)
    return {"start": folder / "model", "passages": shards}


def vectors_of(star: dict[str, Any]) -> Tensor:
    return torch.from_numpy(np.concatenate([read_vectors(path)[1] for path in star["passages"]]))


def make_step(star: dict[str, Any], collection: Path, **train: Any) -> AdoreStep:
    model = BiEncoder.load(star["start"]).train()
    index = FixedPassages(star["passages"], collection / "corpus.parquet", model)
    return AdoreStep(model, Train(**{**TRAIN, "negatives_depth": 6, "dropout": 0.0, **train}), 3, index)


def one_positive(data: TrainingData) -> TrainingData:
    return TrainingData(data.corpus, data.queries, 4, 0, seed=5)


def test_the_search_is_exact_whatever_the_blocks(
    star: dict[str, Any], tiny_collection: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, every = make_step(star, tiny_collection), vectors_of(star)
    queries = torch.randn(5, every.shape[1])
    for block in (1, 35, 1 << 20):
        monkeypatch.setattr("lead.train.adore.BLOCK", block)
        for k in (1, 7, 160):
            assert torch.equal(step.index.search(queries, k), (queries @ every.T).topk(k).indices)
    rows = torch.tensor([159, 0, 7, 7])
    assert torch.equal(step.index.features(rows).x[0], every[rows])


def test_vectors_that_do_not_fit_the_corpus_or_the_model_are_refused(
    star: dict[str, Any], tiny_collection: Path, tiny_model: Path, tmp_path: Path
) -> None:
    model, corpus = BiEncoder.load(star["start"]), tiny_collection / "corpus.parquet"
    first, second = star["passages"]
    for files, says in (
        ([second, first], "not of the passages in .*corpus.parquet, in their order"),
        ([first], "80 vectors for the 160 passages of .*; give all shards"),
        ([first, second, second], "not of the passages"),
    ):
        with pytest.raises(LeadError, match=says):
            FixedPassages(files, corpus, model)
    write_vectors([f"p{i}" for i in range(160)], np.ones((160, 3)), tmp_path / "narrow.parquet")
    with pytest.raises(LeadError, match="holds vectors of width 3, the model's have 32; encode"):
        FixedPassages([tmp_path / "narrow.parquet"], corpus, model)
    with pytest.raises(LeadError, match="the model is a ColBERT"):
        FixedPassages([first, second], corpus, make_retriever(tiny_model, "cb"))


# --- the step --------------------------------------------------------------------------------------------------------
def test_negatives_are_the_top_of_the_search_and_never_known_to_be_relevant(
    star: dict[str, Any], tiny_collection: Path, data: TrainingData
) -> None:
    step, every, seen = make_step(star, tiny_collection), vectors_of(star), 0
    for number in range(8):
        batch = one_positive(data).batch(number)
        # queries that lie on their own positives find them at the top
        queries = every[batch.positives[:, 0]]
        rows, candidates = step.candidates(queries, batch.positives)
        ranked = (queries @ every.T).argsort(descending=True)
        for q in range(4):
            known = [p for p in batch.positives[q].tolist() if p >= 0]
            seen += len(known)
            want = [p for p in ranked[q].tolist() if p not in known][:6]
            got = rows[q][candidates.keep[q] & ~candidates.positive[q]].tolist()
            assert got == want
            assert rows[q][candidates.positive[q]].tolist() == known[:1]
    assert seen > 32  # some queries have two


def test_the_drawn_positive_stands_first_among_all_that_are_known(data: TrainingData) -> None:
    corpus = data.corpus["text"].to_pylist()
    for number in range(8):
        batch = data.batch(number)
        for q, known in enumerate(batch.positives.tolist()):
            assert corpus[known[0]] == batch.passages[3 * q]
            texts = {corpus[p] for p in known if p >= 0}
            assert {batch.passages[p] for p in range(12) if batch.relevant[q, p]} <= texts


@pytest.mark.parametrize("cache_above", [1, 10**9], ids=["cached", "with-graph"])
def test_a_step_equals_a_naive_one_and_leaves_the_passages_as_they_are(
    star: dict[str, Any], tiny_collection: Path, data: TrainingData, cache_above: int
) -> None:
    step = make_step(star, tiny_collection, cache_above=cache_above)
    batch, every = one_positive(data).batch(0), vectors_of(star)
    before = step.index.vectors.clone()
    loss = take(step, batch, 0)
    assert torch.equal(step.index.vectors, before) and not step.index.vectors.requires_grad
    got = gradients(step)

    naive, total = BiEncoder.load(star["start"]), torch.zeros(())
    for q, text in enumerate(batch.queries):
        ids = torch.tensor(naive.tokenize("query", [text]))
        x = naive.encoder(input_ids=ids).last_hidden_state[0, 0]
        s = 10.0 * every @ (x / x.norm())
        known = [p for p in batch.positives[q].tolist() if p >= 0]
        negatives = [p for p in s.argsort(descending=True).tolist() if p not in known][:6]
        total = total + naive_lambda_rank(s[[known[0], *negatives]][None], own(0, c=7)) / len(batch.queries)
    assert float(loss.total.detach()) == pytest.approx(float(total.detach()), rel=1e-4)
    total.backward()
    assert sum(float(g.abs().sum()) for g in got.values()) > 0
    size = max(float(p.grad.abs().max()) for p in naive.parameters() if p.grad is not None)
    for name, p in naive.named_parameters():
        want = torch.zeros_like(p) if p.grad is None else p.grad
        assert float((got[f"student.{name}"] - want).abs().max()) < 1e-4 * size, name


# --- the stage -------------------------------------------------------------------------------------------------------
def test_the_stage_learns_queries_and_looks_at_dev_with_the_fixed_passages(
    star: dict[str, Any], tiny_collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenize, sides = BiEncoder.tokenize, set()

    def noted(model: BiEncoder, side: Any, texts: list[str]) -> list[list[int]]:
        sides.add(side)
        return tokenize(model, side, texts)

    monkeypatch.setattr(BiEncoder, "tokenize", noted)
    train = LONG.model_copy(update={"steps": 24, "dropout": 0.0, "precision": "fp32", "dev_every": 8})
    before = [path.read_bytes() for path in star["passages"]]
    stages.train(settings=TrainSettings(train=train), gpu=0, **inputs(tiny_collection), **star, **outputs(tmp_path))
    assert sides == {"query"} and [path.read_bytes() for path in star["passages"]] == before
    log = lines(tmp_path / "metrics.jsonl")
    ranks = [line["reciprocal_rank"] for line in log if "loss" in line]
    assert len(ranks) == 24 and sum(ranks[-6:]) > sum(ranks[:6])
    dev = [line["dev_mrr10"]["model"] for line in log if "dev_mrr10" in line]
    assert len(dev) == 4

    # before the first step the model's own passages are those of the index
    plain = outputs(tmp_path / "plain")
    first = train.model_copy(update={"steps": 1})
    stages.train(settings=TrainSettings(train=first), gpu=0, start=star["start"], **inputs(tiny_collection), **plain)
    assert lines(plain["metrics"])[0]["dev_mrr10"]["model"] == pytest.approx(dev[0], abs=1e-6)


@pytest.mark.slow
def test_killed_and_run_again_it_ends_in_the_same_bytes(
    star: dict[str, Any], tiny_collection: Path, tmp_path: Path
) -> None:
    settings = TrainSettings(train=LONG)
    undisturbed, paths = outputs(tmp_path / "undisturbed"), outputs(tmp_path / "killed")
    stages.train(settings=settings, gpu=0, **inputs(tiny_collection), **star, **undisturbed)
    given = inputs(tiny_collection) | {"start": star["start"]} | paths
    # a list of paths is one option with several values
    killed_and_run_again("train", settings, given | {"passages": star["passages"]}, paths["state"])
    assert_same(paths, undisturbed, ("out",))
