"""Retrievers against the stock Hugging Face models: layers, pooling, padding, tokens, scoring, files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_bert, make_retriever, make_tokenizer, vocabulary
from encoders import ALL, CLS, MASK, PAD, SEP, TEXTS, everything, features, stock_states
from torch.nn.functional import cosine_similarity, normalize

from lead.config.schema import Lengths, ModelRef, Scoring
from lead.errors import LeadError
from lead.models.base import LayeredModel
from lead.models.bi_encoder import BiEncoder
from lead.models.encoder import layer_list, load_encoder, prepare_for_training
from lead.models.features import Candidates, Features, Scores
from lead.models.scores import standardise


# --- layers and pooling ----------------------------------------------------------------------------------------------
def test_layers_1_to_n_are_the_outputs_of_the_transformer_layers_never_the_embeddings(tiny_model: Path) -> None:
    states, mask = stock_states(tiny_model, TEXTS)
    x = features(make_retriever(tiny_model), TEXTS, ALL).x
    assert len(states) == 5 and x.shape == (4, 5, 32)
    for i in ALL:
        assert torch.allclose(x[i - 1], states[i][:, 0], atol=1e-5)
        assert not torch.allclose(x[i - 1], states[i - 1][:, 0], atol=1e-1)


def test_mean_pooling_averages_the_tokens_that_are_there(tiny_model: Path) -> None:
    states, mask = stock_states(tiny_model, TEXTS)
    x = features(make_retriever(tiny_model, pooling="mean"), TEXTS, ALL).x
    for i in ALL:
        for n in range(len(TEXTS)):
            assert torch.allclose(x[i - 1, n], states[i][n, mask[n]].mean(0), atol=1e-5)


def test_colbert_keeps_every_token_and_marks_the_padding(tiny_model: Path) -> None:
    states, mask = stock_states(tiny_model, TEXTS)
    f = features(make_retriever(tiny_model, "cb"), TEXTS, ALL)
    assert f.mask is not None and torch.equal(f.mask, mask)
    for i in ALL:
        assert torch.allclose(f.x[i - 1][mask], states[i][mask], atol=1e-5)


def test_only_the_layers_asked_for_are_returned_in_that_order(tiny_model: Path) -> None:
    model = make_retriever(tiny_model)
    every, some = features(model, TEXTS, ALL), features(model, TEXTS, (2, 4))
    assert some.layers == (2, 4) and torch.equal(some.x, every.x[[1, 3]])


@pytest.mark.parametrize(("kind", "pooling"), [("de", "cls"), ("de", "mean"), ("cb", "cls")])
def test_a_text_encodes_the_same_alone_and_padded_in_a_batch(tiny_model: Path, kind: str, pooling: str) -> None:
    model = make_retriever(tiny_model, kind, pooling=pooling)
    together = features(model, TEXTS, ALL)
    for n, text in enumerate(TEXTS):
        alone = features(model, [text], ALL)
        length = alone.x.shape[2] if kind == "cb" else None
        assert torch.allclose(
            together.x[:, n] if length is None else together.x[:, n, :length], alone.x[:, 0], atol=1e-5
        )
        assert together.mask is None or int(together.mask[n].sum()) == length


def test_a_model_with_layers_kept_has_the_weights_of_those_layers(tiny_model: Path, tmp_path: Path) -> None:
    full = load_encoder(str(tiny_model), "full")
    ref = ModelRef(reference=f"path:{tiny_model}", layers=[1, 3])
    student = BiEncoder.pretrained(ref, "de", Scoring(), Lengths(query=8, passage=24))
    assert student.n_layers == 2
    big, small = (getattr(*layer_list(m)) for m in (full, student.encoder))
    for kept, original in zip(small, (big[0], big[2]), strict=True):
        for a, b in zip(kept.parameters(), original.parameters(), strict=True):
            assert torch.equal(a, b)
    states, _ = stock_states(tiny_model, TEXTS)
    x = features(student, TEXTS, (1, 2)).x
    assert torch.allclose(x[0], states[1][:, 0], atol=1e-5) and not torch.allclose(x[1], states[2][:, 0], atol=0.1)
    student.save(tmp_path / "student")
    assert torch.equal(features(BiEncoder.load(tmp_path / "student"), TEXTS, (1, 2)).x, x)


def test_layers_that_the_model_does_not_have_are_refused(tiny_model: Path) -> None:
    with pytest.raises(LeadError, match="layers has 5.*1..4"):
        BiEncoder.pretrained(ModelRef(reference=f"path:{tiny_model}", layers=[1, 5]), "de", Scoring(), Lengths())


# --- other architectures ---------------------------------------------------------------------------------------------
def other(architecture: str, folder: Path) -> Path:
    """A tiny random model of another architecture with 3 layers, and the tiny tokenizer."""
    from transformers import AutoModel, DistilBertConfig, MPNetConfig, RobertaConfig

    common = {"vocab_size": len(vocabulary()), "max_position_embeddings": 64, "pad_token_id": PAD}
    size = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    config: Any = {
        "distilbert": lambda: DistilBertConfig(dim=32, n_layers=3, n_heads=2, hidden_dim=64, **common),
        "roberta": lambda: RobertaConfig(**common, **size, type_vocab_size=1),
        "mpnet": lambda: MPNetConfig(**common, **size),
    }[architecture]()
    make_tokenizer(folder)
    torch.manual_seed(3)
    AutoModel.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("architecture", ["distilbert", "roberta", "mpnet"])
def test_other_architectures_load_and_number_their_layers_alike(architecture: str, tmp_path: Path) -> None:
    folder = other(architecture, tmp_path / architecture)
    model = make_retriever(folder)
    owner, name = layer_list(model.encoder)
    assert model.n_layers == len(getattr(owner, name)) == 3
    states, _ = stock_states(folder, TEXTS)
    x = features(model, TEXTS, (1, 2, 3)).x
    for i in (1, 2, 3):
        assert torch.allclose(x[i - 1], states[i][:, 0], atol=1e-5)
    prepare_for_training(model.encoder, 0.0)
    model.train()
    trained = model.encode(model.tokenize("passage", TEXTS), (1, 2, 3)).x
    assert torch.allclose(trained.detach(), x, atol=1e-5)  # no dropout is left, eager attention agrees
    trained.sum().backward()
    model.save(tmp_path / "saved")
    assert torch.equal(features(BiEncoder.load(tmp_path / "saved"), TEXTS, (1, 2, 3)).x, x)


@pytest.mark.parametrize("architecture", ["distilbert", "roberta", "mpnet"])
def test_a_text_of_the_greatest_allowed_length_can_be_encoded(architecture: str, tmp_path: Path) -> None:
    ref = ModelRef(reference=f"path:{other(architecture, tmp_path / architecture)}")
    refused, accepted = [], 0
    for limit in (64, 60):  # RoBERTa and MPNet number positions from the pad id + 1: fewer than 64 tokens fit
        try:
            model = BiEncoder.pretrained(ref, "de", Scoring(), Lengths(query=8, passage=limit))
        except LeadError:
            refused.append(limit)
            continue
        features(model, ["graph " * 100], (3,))
        accepted += 1
    assert accepted and refused in ([], [64])


@pytest.mark.parametrize("dropout", [None, 0.0, 0.5])
def test_dropout_is_set_everywhere_or_left_as_the_model_has_it(tiny_model: Path, dropout: float | None) -> None:
    model = make_retriever(tiny_model)
    prepare_for_training(model.encoder, dropout)
    model.train()
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.1 if dropout is None else dropout}
    ids = model.tokenize("passage", TEXTS)
    a, b = model.encode(ids, ALL).x, model.encode(ids, ALL).x
    assert torch.equal(a, b) == (dropout == 0.0)


# --- tokens ----------------------------------------------------------------------------------------------------------
def test_truncation_keeps_both_special_tokens(tiny_model: Path) -> None:
    model = make_retriever(tiny_model)
    for side, limit in (("query", 8), ("passage", 24)):
        (ids,) = model.tokenize(side, ["array matrix " * 50])
        assert len(ids) == limit and ids[0] == CLS and ids[-1] == SEP and SEP not in ids[:-1]


def test_an_empty_text_is_its_two_special_tokens_and_encodes(tiny_model: Path) -> None:
    model = make_retriever(tiny_model, "cb")
    assert model.tokenize("passage", [""]) == [[CLS, SEP]]
    assert torch.isfinite(features(model, [""], ALL).x).all()


def test_padding_uses_the_tokenizers_pad_id(tiny_model: Path) -> None:
    model = make_retriever(tiny_model, "cb")
    assert PAD != 0 and model.tokenizer.pad_token_id == PAD
    seen = []
    model.encoder.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True)
    features(model, ["array", "array matrix shape"], ALL)
    assert seen[0][0].tolist() == [CLS, vocabulary().index("array"), SEP, PAD, PAD]


def test_markers_follow_cls_within_the_length_and_differ_by_side(tiny_model: Path) -> None:
    model = make_retriever(tiny_model, "cb", markers=True)
    for side, limit, marker in (("query", 8, "[unused0]"), ("passage", 24, "[unused1]")):
        long, short = model.tokenize(side, ["array " * 50, "array"])
        assert len(long) == limit and long[-1] == SEP
        assert short == [CLS, vocabulary().index(marker), vocabulary().index("array"), SEP]


def test_markers_need_a_tokenizer_that_has_them(tiny_model: Path, tmp_path: Path) -> None:
    folder = make_bert(tmp_path / "m", layers=1)
    raw = json.loads((folder / "tokenizer.json").read_text())
    raw["model"]["vocab"]["[other]"] = raw["model"]["vocab"].pop("[unused1]")
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(LeadError, match=r"markers.*\[unused1\]"):
        make_retriever(folder, "cb", markers=True)


def test_queries_are_expanded_with_mask_tokens_that_take_part_and_passages_are_not(tiny_model: Path) -> None:
    model = make_retriever(tiny_model, "cb", expand=True)
    assert model.tokenize("query", ["array"]) == [[CLS, vocabulary().index("array"), SEP] + [MASK] * 5]
    assert len(model.tokenize("query", ["array " * 20])[0]) == 8
    assert len(model.tokenize("passage", ["array"])[0]) == 3
    f = features(model, ["array", ""], ALL, "query")
    assert f.mask is not None and f.mask.all() and f.mask.shape == (2, 8)


def test_special_tokens_can_be_left_out_of_max_sim(tiny_model: Path) -> None:
    f = features(make_retriever(tiny_model, "cb", special_tokens=False), ["array matrix", ""], ALL)
    assert f.mask is not None and f.mask.tolist() == [[False, True, True, False], [False] * 4]


# --- scores ----------------------------------------------------------------------------------------------------------
QUERIES = ["array shape", "vertex", "leaf of a tree"]


def scored(
    tiny_model: Path, kind: str = "de", candidates: Candidates | None = None, **scoring: Any
) -> tuple[Scores, Features, Features]:
    model = make_retriever(tiny_model, kind, **scoring)
    q, p = features(model, QUERIES, ALL, "query"), features(model, TEXTS, ALL)
    return model.score(q, p, candidates or everything(3, 5)), q, p


def test_raw_scores_are_inner_products_at_every_layer(tiny_model: Path) -> None:
    scores, q, p = scored(tiny_model)
    assert scores.s.dtype == scores.final.dtype == torch.float32 and scores.layers == ALL
    assert torch.equal(scores.final, scores.s[3])
    for layer in range(4):
        for i in range(3):
            for j in range(5):
                assert float(scores.s[layer, i, j]) == pytest.approx(
                    float((q.x[layer, i] * p.x[layer, j]).sum()), abs=1e-4
                )


def test_the_whole_model_and_the_layer_features_have_their_own_normalisation_and_scale(tiny_model: Path) -> None:
    raw, q, p = scored(tiny_model)
    cosine = cosine_similarity(q.x[:, :, None], p.x[:, None], dim=-1)
    keep = torch.ones(3, 5, dtype=torch.bool)
    for normalise, final in (("none", raw.final), ("unit", cosine[3])):
        for layer_normalise, expected in (
            ("none", raw.s), ("unit", cosine), ("standard", standardise(cosine, keep)),
        ):  # fmt: skip
            options = {"normalise": normalise, "scale": 20.0, "layer_normalise": layer_normalise, "layer_scale": 7.0}
            got, _, _ = scored(tiny_model, **options)
            assert torch.allclose(got.final, 20 * final, rtol=1e-4, atol=1e-3)
            assert torch.allclose(got.s, 7 * expected, rtol=1e-4, atol=1e-2)  # the last layer's feature among them


def test_standard_scores_are_standardised_over_the_querys_kept_candidates(tiny_model: Path) -> None:
    index = torch.tensor([[4, 1, 0], [2, 3, 1], [0, 1, 2]])
    keep = torch.tensor([[True, True, True], [True, False, True], [True, True, True]])
    c = Candidates(index, keep, torch.zeros_like(keep))
    scores, q, p = scored(tiny_model, candidates=c, layer_normalise="standard")
    cosine = cosine_similarity(q.x[:, :, None], p.x[:, None], dim=-1)
    kept = cosine[1, 1, [2, 1]]
    assert torch.allclose(scores.s[1, 1, [0, 2]], (kept - kept.mean()) / kept.std(unbiased=False), atol=1e-2)


def test_colbert_scores_are_max_sim_of_unit_vectors_if_asked(tiny_model: Path) -> None:
    scores, q, p = scored(tiny_model, "cb", normalise="unit", layer_normalise="unit", scale=3.0)
    assert q.mask is not None and p.mask is not None
    for i in range(3):
        for j in range(5):
            want = []
            for layer in range(4):
                cosine = normalize(q.x[layer, i][q.mask[i]], dim=-1) @ normalize(p.x[layer, j][p.mask[j]], dim=-1).T
                want.append(float(cosine.max(1).values.sum()))
            assert scores.s[:, i, j].tolist() == pytest.approx(want, abs=1e-4)
            assert float(scores.final[i, j]) == pytest.approx(3 * want[3], abs=1e-4)


def test_scores_follow_the_candidates_columns(tiny_model: Path) -> None:
    full, _, _ = scored(tiny_model, normalise="unit")
    index = torch.tensor([[4, 1], [2, 2], [0, 3]])
    keep = torch.ones(3, 2, dtype=torch.bool)
    some, _, _ = scored(tiny_model, normalise="unit", candidates=Candidates(index, keep, ~keep))
    for i in range(3):
        assert torch.equal(some.s[:, i], full.s[:, i, index[i]])
        assert torch.equal(some.final[i], full.final[i, index[i]])


def test_vectors_have_the_scores_as_inner_products(tiny_model: Path) -> None:
    for how in ("none", "unit"):
        model = make_retriever(tiny_model, normalise=how, scale=5.0)
        q, p = features(model, QUERIES, (4,), "query"), features(model, TEXTS, (4,))
        s = model.score(q, p, everything(3, 5)).final
        assert torch.allclose(5.0 * model.vectors(q) @ model.vectors(p).T, s, atol=1e-3)


# --- decoders, repeated layers, empty texts ---------------------------------------------------------------------------
@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-2 whose tokenizer adds no special token."""
    from transformers import GPT2Config, GPT2Model

    folder = tmp_path_factory.mktemp("decoder")
    tokenizer = make_tokenizer(folder)
    tokenizer.post_processor = None
    tokenizer.save(str(folder / "tokenizer.json"))
    GPT2Model(GPT2Config(vocab_size=len(vocabulary()), n_positions=64, n_embd=16, n_layer=2, n_head=2)).save_pretrained(
        folder
    )
    return folder


@pytest.mark.parametrize("kind", ["de", "ce"])
def test_a_decoder_s_first_token_is_no_vector_of_a_text(decoder: Path, kind: str) -> None:
    with pytest.raises(LeadError, match=f"scoring.{kind}: the first token's output of .* does not depend on the text"):
        LayeredModel.pretrained(ModelRef(reference=f"path:{decoder}"), kind, Scoring(), Lengths(query=8, passage=24))


def test_the_last_token_of_a_decoder_depends_on_the_text_and_not_on_padding(decoder: Path) -> None:
    model = make_retriever(decoder, "de", pooling="last").eval()
    ids = model.tokenize("passage", ["the array shape", "tree node leaf of a graph", ""])
    assert [len(i) for i in ids[2:]] == [1]  # an empty text has one token
    with torch.no_grad():
        together = model.encode(ids, (1, 2)).x
        alone = torch.cat([model.encode([i], (1, 2)).x for i in ids], 1)
    assert torch.isfinite(together).all() and torch.allclose(together, alone, atol=1e-5)
    assert not torch.allclose(together[:, 0], together[:, 1])


def test_a_layer_named_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="names a layer twice"):
        ModelRef(reference="path:x", layers=[1, 1])
