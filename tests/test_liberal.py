"""Liberal for real: architectures, tokenizers, vocabularies and widths that differ between teacher and student."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import COMMON, TOPICS, make_retriever, vocabulary
from steps import TRAIN, gradients, take
from torch import nn

from lead.config.schema import Distil, Layers, Lengths, ModelRef, Scoring, Train
from lead.errors import LeadError
from lead.models.base import LayeredModel
from lead.models.encoder import check_encoder, hidden_states, load_encoder, positions, prepare_for_training
from lead.train.data import TrainingData
from lead.train.step import DistilStep

SMALL: dict[str, Any] = {"num_hidden_layers": 3, "num_attention_heads": 2, "max_position_embeddings": 66}


def byte_level_tokenizer(folder: Path, extra: int = 90) -> int:
    """A byte-level BPE tokenizer as RoBERTa's, trained on the tests' words; returns the size of its vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=256 + extra, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([*TOPICS.values(), " ".join(COMMON)], trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"unk": "<unk>", "cls": "<s>", "sep": "</s>", "pad": "<pad>", "mask": "<mask>", "bos": "<s>", "eos": "</s>"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 64}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {f"{k}_token": v for k, v in names.items()}))
    return int(tokenizer.get_vocab_size())


def make_encoder(folder: Path, architecture: str) -> Path:
    """A random 3-layer encoder of an architecture of transformers, with a tokenizer that is not the teacher's."""
    import transformers as t

    folder.mkdir(parents=True, exist_ok=True)
    size = byte_level_tokenizer(folder)
    ids = {"vocab_size": size, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    config: Any
    if architecture == "distilbert":
        config = t.DistilBertConfig(n_layers=3, n_heads=2, dim=24, hidden_dim=48, max_position_embeddings=66, **ids)
    elif architecture == "modernbert":
        config = t.ModernBertConfig(
            hidden_size=24,
            intermediate_size=32,
            cls_token_id=0,
            sep_token_id=2,
            global_attn_every_n_layers=2,
            **ids,
            **SMALL,
        )
    else:
        cls = {"roberta": t.RobertaConfig, "mpnet": t.MPNetConfig, "electra": t.ElectraConfig}[architecture]
        config = cls(hidden_size=24, intermediate_size=32, initializer_range=0.3, **ids, **SMALL)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        t.AutoModel.from_config(config).save_pretrained(folder)
    return folder


ARCHITECTURES = ["distilbert", "modernbert", "mpnet", "roberta", "electra"]


@torch.no_grad()
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_layers_are_the_stock_models_and_survive_saving(tmp_path: Path, architecture: str) -> None:
    from transformers import AutoModel

    folder = make_encoder(tmp_path / "m", architecture)
    texts = ["the array shape", "token graph", ""]
    model = make_retriever(folder).eval()
    stock = AutoModel.from_pretrained(folder).eval()
    ids = model.tokenize("passage", texts)
    x = model.encode(ids, (1, 2, 3)).x
    for n, row in enumerate(ids):
        states = stock(input_ids=torch.tensor([row]), output_hidden_states=True).hidden_states
        assert len(states) == 4
        for i in (1, 2, 3):
            assert torch.allclose(x[i - 1, n], states[i][0, 0], atol=1e-4)
    model.save(tmp_path / "saved")
    assert torch.allclose(LayeredModel.load(tmp_path / "saved").eval().encode(ids, (1, 2, 3)).x, x, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_layers_can_be_kept_and_a_cross_encoder_built(tmp_path: Path, architecture: str) -> None:
    folder = make_encoder(tmp_path / "m", architecture)
    ref = ModelRef(reference=f"path:{folder}", layers=[1, 3])
    kept = LayeredModel.pretrained(ref, "de", Scoring(), Lengths(query=8, passage=24)).eval()
    assert kept.n_layers == 2
    kept.save(tmp_path / "kept")
    ids = kept.tokenize("passage", ["the array shape", "token graph"])
    assert torch.equal(LayeredModel.load(tmp_path / "kept").eval().encode(ids, (1, 2)).x, kept.encode(ids, (1, 2)).x)
    cross = make_retriever(folder, "ce").eval()
    pairs = cross.tokenize(["the array", ""], ["token " * 40, "graph"])
    together, alone = cross.encode(pairs, (1, 2, 3)).x, cross.encode(pairs[1:], (1, 2, 3)).x
    assert torch.allclose(together[:, 1:], alone, atol=1e-4)
    assert max(map(len, pairs)) <= 8 + 24 - 1 + 1  # RoBERTa's pairs have one separator more


def test_layers_that_would_be_loaded_as_another_model_are_refused(tmp_path: Path) -> None:
    """ModernBERT's first layer has one norm less than the others."""
    ref = ModelRef(reference=f"path:{make_encoder(tmp_path / 'm', 'modernbert')}", layers=[2, 3])
    with pytest.raises(LeadError, match=r"layers \[2, 3\].*attn_norm.*keep layer 1 first"):
        LayeredModel.pretrained(ref, "de", Scoring(), Lengths(query=8, passage=24))


def test_a_cross_encoders_longest_pair_fits_its_positions(tmp_path: Path) -> None:
    """RoBERTa puts four special tokens into a pair, BERT three."""
    ref = ModelRef(reference=f"path:{make_encoder(tmp_path / 'm', 'roberta')}")
    room = positions(LayeredModel.pretrained(ref, "ce", Scoring(), Lengths(query=8, passage=24)).encoder)
    assert room is not None
    with pytest.raises(LeadError, match=f"{room + 1} is more than the {room} positions"):
        LayeredModel.pretrained(ref, "ce", Scoring(), Lengths(query=8, passage=room - 7))
    model = LayeredModel.pretrained(ref, "ce", Scoring(), Lengths(query=8, passage=room - 8)).eval()
    pairs = model.tokenize(["array " * 99], ["token " * 99])  # type: ignore[arg-type]
    assert len(pairs[0]) == room
    with torch.no_grad():
        model.encode(pairs, (1,))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["cb", "ce"])
def test_lead_from_a_wordpiece_bert_into_each(
    tmp_path: Path, tiny_model: Path, data: TrainingData, architecture: str, kind: str
) -> None:
    student, teacher = make_retriever(make_encoder(tmp_path / "m", architecture)), make_retriever(tiny_model, kind)
    assert len(student.tokenizer.get_vocab()) != len(vocabulary()) and student.width != teacher.width
    distil = Distil(layers=Layers(k=3))
    step = DistilStep(student.train(), teacher, Train(**{**TRAIN, "cache_above": 1}), distil, 3, "lead")
    before = float(take(step, data.batch(0), 0).total.detach())
    assert before > 0
    got = gradients(step)
    for name in ("student", "teacher"):
        assert sum(float(g.abs().sum()) for k, g in got.items() if k.startswith(name)) > 0


@pytest.mark.parametrize(
    ("architecture", "says"),
    [
        ("Canine", "CanineModel has no embeddings of tokens"),
        ("ConvBert", "depends on the padding beside it"),
        ("SqueezeBert", "cannot be used as an encoder: TypeError"),
        ("T5", "cannot be used as an encoder: ValueError: You must specify"),
    ],
)
def test_an_architecture_that_does_not_encode_texts_as_we_need_it_is_one_line(
    tmp_path: Path, architecture: str, says: str
) -> None:
    import transformers as t

    ids = {"vocab_size": byte_level_tokenizer(tmp_path), "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    bert = {"hidden_size": 24, "intermediate_size": 32, **SMALL, **ids}
    options = {
        "SqueezeBert": {"embedding_size": 24, **bert},
        "T5": {"d_model": 24, "d_kv": 12, "d_ff": 32, "num_layers": 3, "num_heads": 2, **ids},
    }.get(architecture, bert)
    torch.manual_seed(0)
    t.AutoModel.from_config(getattr(t, f"{architecture}Config")(**options)).save_pretrained(tmp_path)
    with pytest.raises(LeadError, match=says) as error:
        LayeredModel.pretrained(ModelRef(reference=f"path:{tmp_path}"), "de", Scoring(), Lengths(query=8, passage=24))
    assert "\n" not in str(error.value)


def test_looking_at_an_encoder_leaves_it_as_it_was(tmp_path: Path) -> None:
    made: Any = load_encoder(str(make_encoder(tmp_path, "modernbert")), "model")
    for module in made.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.3
    before = made.config._attn_implementation
    check_encoder(made, 1, "model")
    assert {m.attention_dropout for m in made.modules() if hasattr(m, "attention_dropout")} == {0.3}
    assert made.config._attn_implementation == before and not made.training


def test_dropout_that_is_no_layer_is_switched_off_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers as t

    ids = {"n_words": byte_level_tokenizer(tmp_path), "pad_index": 1, "bos_index": 0, "eos_index": 2}
    t.XLMModel(t.XLMConfig(emb_dim=24, n_layers=3, n_heads=2, dropout=0.5, **ids)).save_pretrained(tmp_path)
    made: Any = load_encoder(str(tmp_path), "model")  # it calls nn.functional.dropout with a number of its own
    check_encoder(made, 1, "model")
    asked, mask = torch.tensor([[5, 6, 7]]), torch.ones(1, 3, dtype=torch.long)
    made.train()
    once, again = (hidden_states(made, asked, mask, (3,))[0] for _ in range(2))
    assert not torch.equal(once, again)  # looking at it has not switched it off
    prepare_for_training(made, 0.0)
    once, again = (hidden_states(made, asked, mask, (3,))[0] for _ in range(2))
    assert torch.equal(once, again)

    ask = made.forward

    def noisy(**inputs: Any) -> Any:
        out = ask(**inputs)
        out.hidden_states = tuple(nn.functional.dropout(h, 0.5, made.training) for h in out.hidden_states)
        return out

    monkeypatch.setattr(made, "forward", noisy)
    with pytest.raises(LeadError, match="'model' .*dropout of this architecture cannot be switched off"):
        check_encoder(made, 1, "model")
