"""The cross encoder: its inputs, its scores at every layer, its steps, and its students (eq. 3; pitfalls 6, 10, 14)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from conftest import make_retriever
from naive import naive_contrastive, naive_lead
from steps import SCORING, TRAIN, compare, gradients, naive_candidates, naive_scores, pick, take
from transformers import AutoModel, AutoTokenizer

from lead.config.schema import Distil, Layers, Train
from lead.config.stages import RerankSettings
from lead.errors import LeadError
from lead.methods.layers import select
from lead.methods.losses import Scored, contrastive_loss
from lead.models.base import LayeredModel
from lead.models.bi_encoder import BiEncoder
from lead.models.cross_encoder import CrossEncoder
from lead.models.microbatch import MicroBatchEncoder
from lead.retrieval.rerank import rerank
from lead.store.tables import read_table, write_table
from lead.train.data import TrainingData
from lead.train.dev import DevPool
from lead.train.step import DistilStep, Step

QUERIES = ["array shape", "graph edge of a vertex path and a long cycle with the degree", "", "token"]
PASSAGES = ["the array shape " * 20, "tree node leaf", "token", ""]
ALL = (1, 2, 3, 4)


@pytest.fixture
def cross(tiny_model: Path) -> CrossEncoder:
    torch.manual_seed(5)
    return make_retriever(tiny_model, "ce").eval()


# --- inputs ----------------------------------------------------------------------------------------------------------
def test_a_short_pair_is_what_the_stock_tokenizer_makes_of_it(cross: CrossEncoder, tiny_model: Path) -> None:
    stock = AutoTokenizer.from_pretrained(tiny_model)("array shape", "tree node leaf", return_token_type_ids=True)
    (pair,) = cross.tokenize(["array shape"], ["tree node leaf"])
    assert pair.ids == stock["input_ids"] and pair.types == stock["token_type_ids"] and 1 in pair.types
    assert [pair.ids[i] for i in pair.passage] == stock["input_ids"][-4:-1]


def test_both_separators_survive_and_both_texts_are_cut_as_a_dual_encoder_cuts_them(
    cross: CrossEncoder, tiny_model: Path
) -> None:
    dual, sep = make_retriever(tiny_model), cross.tokenizer.sep_token_id
    for pair, q, p in zip(cross.tokenize(QUERIES, PASSAGES), QUERIES, PASSAGES, strict=True):
        assert pair.ids.count(sep) == 2 and pair.ids[-1] == sep and len(pair) <= 8 + 24 - 1
        assert [pair.ids[i] for i in pair.query] == dual.tokenize("query", [q])[0][1:-1]
        assert [pair.ids[i] for i in pair.passage] == dual.tokenize("passage", [p])[0][1:-1]
        assert all(pair.types[i] == 0 for i in pair.query) and all(pair.types[i] == 1 for i in pair.passage)


def test_where_the_tokenizer_keeps_the_end_of_a_text_both_models_do(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "m")
    config = json.loads((tmp_path / "m" / "tokenizer_config.json").read_text())
    (tmp_path / "m" / "tokenizer_config.json").write_text(json.dumps({**config, "truncation_side": "left"}))
    cross, dual = (make_retriever(tmp_path / "m", kind) for kind in ("ce", "de"))
    text = "array " * 20 + "shape " * 20
    (pair,) = cross.tokenize(["a"], [text])
    (own,) = dual.tokenize("passage", [text])
    assert len(own) == dual.lengths.passage and [pair.ids[i] for i in pair.passage] == own[1:-1]


def test_a_length_that_the_positions_do_not_allow_is_refused(tiny_model: Path) -> None:
    from lead.config.schema import Lengths, ModelRef, Scoring

    ref = ModelRef(reference=f"path:{tiny_model}")
    CrossEncoder.pretrained(ref, "ce", Scoring(), Lengths(query=25, passage=40))
    with pytest.raises(LeadError, match=r"65 is more than the 64 positions"):
        CrossEncoder.pretrained(ref, "ce", Scoring(), Lengths(query=26, passage=40))


# --- scores ----------------------------------------------------------------------------------------------------------
@torch.no_grad()
def test_each_layer_is_the_shared_projection_of_the_first_token(cross: CrossEncoder, tiny_model: Path) -> None:
    pairs = cross.tokenize(QUERIES, PASSAGES)
    x = MicroBatchEncoder(40, "fp32")(cross, pairs, ALL, "p").x
    stock = AutoModel.from_pretrained(tiny_model).eval()
    for n, pair in enumerate(pairs):
        ids, types = torch.tensor([pair.ids]), torch.tensor([pair.types])
        states = stock(input_ids=ids, token_type_ids=types, output_hidden_states=True).hidden_states
        for i in ALL:
            assert float(x[i - 1, n]) == pytest.approx(float(states[i][0, 0] @ cross.w.weight[0]), abs=1e-4)


def test_saved_and_loaded_it_scores_the_same_and_a_lost_projection_is_noticed(
    cross: CrossEncoder, tmp_path: Path
) -> None:
    from lead.store.atomic import atomic_folder

    pairs = cross.tokenize(QUERIES, PASSAGES)
    cross.save(tmp_path / "m")
    again = LayeredModel.load(tmp_path / "m").eval()
    assert isinstance(again, CrossEncoder)
    assert torch.equal(again.encode(pairs, ALL).x, cross.encode(pairs, ALL).x)
    with pytest.raises(LeadError, match="is a cross encoder, which cannot be used here"):
        BiEncoder.load(tmp_path / "m")
    with atomic_folder(tmp_path / "lost") as lost:
        for file in (tmp_path / "m").iterdir():
            if file.name not in ("head.safetensors", "SHA256SUMS") and file.suffix in (".json", ".safetensors"):
                (lost / file.name).write_bytes(file.read_bytes())
    with pytest.raises(LeadError, match=r"does not hold \['w.weight'\]"):
        LayeredModel.load(tmp_path / "lost")


@pytest.mark.parametrize("options", [{"normalise": "unit"}, {"layer_normalise": "unit"}])
def test_vectors_of_unit_length_make_no_sense(tiny_model: Path, options: dict[str, Any]) -> None:
    with pytest.raises(LeadError, match="scoring.ce"):
        make_retriever(tiny_model, "ce", **options)


# --- steps -----------------------------------------------------------------------------------------------------------
def ce_scores(model: CrossEncoder, batch: Any) -> dict[int, torch.Tensor]:
    """Scores [Q, 1 + n] of every layer, one pair at a time, standardised."""
    width = len(batch.passages) // len(batch.queries)
    out = {}
    layers = tuple(range(1, model.n_layers + 1))
    rows = [
        [model.encode(model.tokenize([q], [batch.passages[i * width + c]]), layers).x[:, 0] for c in range(width)]
        for i, q in enumerate(batch.queries)
    ]
    for i in layers:
        out[i] = torch.stack([torch.stack([pair[i - 1] for pair in row]) for row in rows])
    return out


@pytest.mark.parametrize("cache_above", [1, 10**9])
def test_its_warm_up_is_the_contrastive_loss_over_each_querys_own_list(
    tiny_model: Path, data: TrainingData, cache_above: int
) -> None:
    model = make_retriever(tiny_model, "ce").train()
    step = Step(model, Train(**{**TRAIN, "dropout": 0.0, "cache_above": cache_above}), seed=3)
    batch = data.batch(1)
    loss, got = take(step, batch, 1), gradients(step)
    model.zero_grad()
    want = naive_contrastive(ce_scores(model, batch)[4], naive_candidates(batch, own=True)[0])
    assert float(loss.total.detach()) == pytest.approx(float(want.detach()), rel=1e-4)
    want.backward()
    compare(got, gradients(step), 2e-3)
    assert float(got["student.w.weight"].abs().sum()) > 0


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("contrastive", ["batch", "own"])
def test_lead_from_a_cross_encoder_equals_a_naive_one(
    tiny_model: Path, teacher_folder: Path, data: TrainingData, joint: bool, contrastive: Any
) -> None:
    """The student's contrastive loss keeps cross-batch negatives (pitfall 10) unless the released way is asked for."""
    distil = Distil(layers=Layers(k=3), joint=joint, contrastive_candidates=contrastive)
    torch.manual_seed(8)
    student, teacher = make_retriever(tiny_model, "de", **SCORING), make_retriever(teacher_folder, "ce")
    step = DistilStep(student.train(), teacher, Train(**{**TRAIN, "dropout": 0.0}), distil, 3, "lead")
    batch = data.batch(2)
    loss, got = take(step, batch, 2), gradients(step)
    student.zero_grad(), teacher.zero_grad()
    s, s_layers = naive_scores(student, batch)
    own, columns = naive_candidates(batch, own=True)
    contrastive_candidates, contrastive_columns = naive_candidates(batch, own=contrastive == "own")
    t_layers = ce_scores(teacher, batch)
    if not joint:
        t_layers = {i: x.detach() for i, x in t_layers.items()}
    pairs = select(distil.layers, 6, 4, 3, 2)
    want = naive_lead(
        t_layers[6], pick(s, columns), t_layers[6], pick(s, columns), t_layers,
        {i: pick(x, columns) for i, x in s_layers.items()}, own, own, pairs, distil,
    )  # fmt: skip
    stu = naive_contrastive(pick(s, contrastive_columns), contrastive_candidates)
    total = want["total"] - want["stu"] + stu
    assert float(loss.parts["stu"].detach()) == pytest.approx(float(stu.detach()), rel=1e-3)
    assert float(loss.total.detach()) == pytest.approx(float(total.detach()), rel=1e-3)
    total.backward()
    want_grads = gradients(step)
    for grads in (got, want_grads) if not joint else ():
        assert not any(grads.pop(k).any() for k in list(grads) if k.startswith("teacher"))
    compare(got, want_grads, 3e-3)
    assert joint == ("teacher.w.weight" in got) and (not joint or float(got["teacher.w.weight"].abs().sum()) > 0)


@pytest.mark.parametrize("method", ["rd", "margin_mse"])
def test_response_losses_from_a_frozen_cross_encoder(
    tiny_model: Path, teacher_folder: Path, data: TrainingData, method: str
) -> None:
    student, teacher = make_retriever(tiny_model), make_retriever(teacher_folder, "ce")
    step = DistilStep(student, teacher, Train(**TRAIN), Distil(), 3, method)
    batch = data.batch(0)
    loss = take(step, batch, 0)
    assert all(p.grad is None for p in teacher.parameters()) and not teacher.training
    contrastive = batch.candidates("batch")
    student.eval()
    side = step.encode(student, "student", step.prepare(batch).inputs["student"], (4,), 0)
    step.student.train()
    off = DistilStep(student, teacher, Train(**{**TRAIN, "dropout": 0.0}), Distil(), 3, method)
    assert float(take(off, batch, 0).parts["stu"].detach()) == pytest.approx(
        float(contrastive_loss(side.score(contrastive).final, contrastive).detach()), rel=1e-4
    )
    assert set(loss.parts) == {"stu", "rep"}


def test_margin_mse_by_hand() -> None:
    from lead.methods.margin_mse import margin_mse
    from lead.models.features import Candidates, Scores

    # margins: teacher 3 - 1 = 2, 3 - 0 = 3 (masked); student 1 - 2 = -1: (2 - -1)^2 = 9. Second query: 0 and 0.
    t = torch.tensor([[3.0, 1.0, 0.0], [5.0, 5.0, 5.0]])
    s = torch.tensor([[1.0, 2.0, 7.0], [1.0, 1.0, 1.0]])
    keep = torch.tensor([[True, True, False], [True, True, True]])
    positive = torch.tensor([[True, False, False], [True, False, False]])
    c = Candidates(torch.arange(3).expand(2, -1), keep, positive)
    scores = [Scores(x[None], (1,), x) for x in (s, t)]
    loss = margin_mse(Scored(c, scores[1], scores[0], c, scores[0], Distil(weights={"stu": 0.0})))
    assert float(loss.total) == pytest.approx((9 + 0) / 2)


# --- dev and reranking -----------------------------------------------------------------------------------------------
@torch.no_grad()
def test_dev_ranks_each_querys_own_passages(cross: CrossEncoder, tiny_collection: Path) -> None:
    from lead.train.data import Queries

    corpus = read_table(tiny_collection / "corpus.parquet", "corpus")
    files = [tiny_collection / f"{n}.parquet" for n in ("queries.dev", "qrels.dev", "negatives")]
    queries = Queries(corpus["pid"], *files, 1, 10)
    pool = DevPool(corpus, queries, 10, 4)
    got = pool.mrr(cross, MicroBatchEncoder(64, "fp32"))
    values = []
    for row, text in enumerate(queries.texts.to_pylist()):
        own = [*queries.positives[row], *queries.negatives[row][:4]]
        texts = corpus["text"].take(pa.array(own)).to_pylist()
        s = [float(cross.encode(cross.tokenize([text], [t]), (4,)).x[-1, 0]) for t in texts]
        n = len(queries.positives[row])
        values.append(1 / (1 + sum(x >= max(s[:n]) for x in s[n:])))
    assert got == pytest.approx(sum(values) / len(values))


@torch.no_grad()
def test_reranking_orders_the_list_by_the_pairs_scores(
    cross: CrossEncoder, tiny_collection: Path, tmp_path: Path
) -> None:
    cross.save(tmp_path / "m")
    write_table(
        pa.table(
            {"qid": ["test0"] * 5, "pid": [f"p{i}" for i in range(5)], "rank": [1, 2, 3, 4, 5], "score": [0.0] * 5}
        ),
        tmp_path / "list.parquet",
        "ranked",
    )
    files = {"corpus": tiny_collection / "corpus.parquet", "queries": tiny_collection / "queries.test.parquet"}
    rerank(
        settings=RerankSettings(rerank_depth=4, batch_tokens=50, precision="fp32"), gpu=0, model=tmp_path / "m",
        ranked=tmp_path / "list.parquet", out=tmp_path / "out.parquet", **files,
    )  # fmt: skip
    got = read_table(tmp_path / "out.parquet", "ranked")
    texts = dict(zip(*read_table(files["corpus"]).to_pydict().values(), strict=True))
    query = read_table(files["queries"])["text"][0].as_py()
    want = {f"p{i}": float(cross.encode(cross.tokenize([query], [texts[f"p{i}"]]), (4,)).x[-1, 0]) for i in range(4)}
    assert got["pid"].to_pylist() == sorted(want, key=lambda p: -want[p])
    assert got["score"].to_pylist() == pytest.approx(sorted(want.values(), reverse=True), abs=1e-5)


@pytest.mark.parametrize("kind", ["cb", "ce"])
def test_a_diverged_model_is_not_ranked_with(
    tiny_model: Path, tiny_collection: Path, tmp_path: Path, kind: str
) -> None:
    model = make_retriever(tiny_model, kind)
    with torch.no_grad():
        next(model.encoder.parameters()).fill_(float("nan"))
    model.save(tmp_path / "m")
    ranked = {"qid": ["test0"], "pid": ["p1"], "rank": [1], "score": [0.0]}
    write_table(pa.table(ranked), tmp_path / "list.parquet", "ranked")
    with pytest.raises(LeadError, match="NaN or infinite"):
        rerank(
            settings=RerankSettings(), gpu=0, model=tmp_path / "m", ranked=tmp_path / "list.parquet",
            corpus=tiny_collection / "corpus.parquet", queries=tiny_collection / "queries.test.parquet",
            out=tmp_path / "o.parquet",
        )  # fmt: skip


# --- denoised negatives ----------------------------------------------------------------------------------------------
@torch.no_grad()
def test_negatives_that_the_model_holds_for_relevant_are_taken_out(
    cross: CrossEncoder, tiny_collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lead.config.stages import DenoiseSettings
    from lead.retrieval import rerank
    from lead.retrieval.denoise import denoise

    cross.save(tmp_path / "m")
    monkeypatch.setattr(rerank, "BLOCK", 1 << 15)  # a few queries
    names = ("queries.train", "queries.dev", "qrels.train", "qrels.dev")
    files = {name: tiny_collection / f"{name}.parquet" for name in names}
    text = dict(zip(*read_table(tiny_collection / "corpus.parquet").to_pydict().values(), strict=True))
    query = {q: t for n in names[:2] for q, t in zip(*read_table(files[n]).to_pydict().values(), strict=True)}
    positives: dict[str, list[str]] = {}
    for name in names[2:]:
        for row in read_table(files[name]).to_pylist():
            positives.setdefault(row["qid"], []).append(row["pid"])

    def score(qid: str, pid: str) -> float:
        return float(cross.encode(cross.tokenize([query[qid]], [text[pid]]), (4,)).x[-1, 0])

    chances = {}  # that the negative is the better passage, by the model
    for row in read_table(tiny_collection / "negatives.parquet").to_pylist():
        if row["rank"] <= 6:
            s, best = score(row["qid"], row["pid"]), max(score(row["qid"], p) for p in positives[row["qid"]])
            chances[row["qid"], row["pid"]] = float(1 / (1 + torch.tensor(best - s).exp()))
    for keep_below in (0.02, 0.5, 0.98):
        out = tmp_path / f"{keep_below}.parquet"
        denoise(
            settings=DenoiseSettings(depth=6, keep_below=keep_below, precision="fp32"), gpu=0, model=tmp_path / "m",
            corpus=tiny_collection / "corpus.parquet", queries=[files["queries.train"], files["queries.dev"]],
            qrels=[files["qrels.train"], files["qrels.dev"]], negatives=tiny_collection / "negatives.parquet", out=out,
        )  # fmt: skip
        got = read_table(out, "ranked").to_pylist()
        assert [(row["qid"], row["pid"]) for row in got] == [pair for pair, c in chances.items() if c < keep_below]
        assert all(row["rank"] >= 1 for row in got) and len({(r["qid"], r["rank"]) for r in got}) == len(got)
