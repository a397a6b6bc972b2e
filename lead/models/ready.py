"""The stage `lead pretrained`: a ready retriever as a model folder of ours, without training.

Its vectors or scores are those of the library that it was made with. What its folder says of itself holds: pooling,
normalisation, markers, prompts, lengths, projection, head. A transformer alone says nothing: it takes the settings.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lead.config.load import validate
from lead.config.schema import Lengths, Linear, Prompts, Scoring
from lead.config.stages import PretrainedSettings
from lead.errors import LeadError
from lead.models.base import LayeredModel
from lead.models.cross_encoder import ACTIVATIONS
from lead.models.encoder import depth, hidden_states, load_encoder, load_transformer, positions
from lead.models.layouts import Layout, read_layout
from lead.pretrained import download, loading
from lead.store.atomic import check_replaceable
from lead.tokenizer import load_tokenizer

log = logging.getLogger("lead")

T = TypeVar("T", Scoring, Lengths)
QUERY_OF_PAIR = 128  # tokens of its own length that a cross encoder leaves to the query, at most a quarter


def pretrained(*, settings: PretrainedSettings, out: Path) -> None:
    """Write a ready retriever as a model folder. Memory: the model. Raises LeadError where it has no counterpart."""
    check_replaceable(out)
    model = ready(settings)
    prompts = model.prompts.model_dump()
    log.info("lengths %s, prompts %s, scoring %s", model.lengths.model_dump(), prompts, model.scoring.model_dump())
    model.save(out)


@torch.no_grad()
def ready(settings: PretrainedSettings) -> LayeredModel:
    """A ready retriever, in eval mode. Raises LeadError."""
    reference, kind = settings.model.reference, settings.kind
    layout = read_layout(download(reference), kind)
    weights: dict[str, Tensor] = {}
    if kind == "ce":
        encoder, layout.scoring["head"], weights = trained_head(layout.encoder, reference)
    else:
        encoder = load_encoder(str(layout.encoder), reference)
    tokenizer = load_tokenizer(str(layout.encoder), reference)
    if layout.lower_case and tokenizer.tokenize("A") != tokenizer.tokenize("a"):
        raise LeadError(f"models: '{reference}' reads texts in lower case (do_lower_case), its tokenizer does not")
    linear = None
    if layout.projection is not None:
        (size, width), own = layout.projection[0].shape, int(encoder.config.hidden_size)  # type: ignore[union-attr,arg-type]
        if width != own:
            raise LeadError(f"models: '{reference}' projects {width} outputs, but its encoder has {own}")
        linear, weights = Linear(size=size), dict(zip(("linear.weight", "linear.bias"), layout.projection, strict=True))
    prompts = settings.model.prompts or Prompts(**layout.prompts)
    model = LayeredModel.around(
        encoder,
        tokenizer,
        settings.model.model_copy(update={"linear": linear, "prompts": prompts}),
        kind,
        _said(settings.scoring, layout.scoring, settings),
        _said(settings.lengths, _lengths(kind, layout, encoder, tokenizer), settings),
    )
    if unread := model.load_state_dict(weights, strict=False).unexpected_keys:
        raise LeadError(f"scoring.{kind}: as it is given, it leaves out {unread[0]} of '{reference}'; leave `head` out")
    return model.eval()


def _said(defaults: T, said: dict[str, Any], settings: PretrainedSettings) -> T:
    """The defaults, changed to what a model says of itself, but for the keys that the run itself gives. LeadError."""
    ungiven = {key: value for key, value in said.items() if key not in settings.given}
    where = f"models: '{settings.model.reference}'"
    return validate(type(defaults), defaults.model_dump() | ungiven, where)


def _lengths(kind: str, layout: Layout, encoder: nn.Module, tokenizer: Any) -> dict[str, int]:
    """A model's own lengths, as far as it says them: at most the positions that it has."""
    most, longest = positions(encoder), tokenizer.model_max_length
    known = [limit for limit in (most, longest) if limit is not None and limit < 1 << 30]
    if kind == "ce":
        if not known:
            return {}
        longest = min(known) + 4 - tokenizer.num_special_tokens_to_add(pair=True)  # each has two special tokens
        query = min(QUERY_OF_PAIR, longest // 4)
        return {"query": query, "passage": longest - query}
    if layout.alone:
        return {}
    said = {"query": layout.query, "passage": layout.passage}  # wins over the tokenizer's
    limits = {side: known if length is None else [length, most or length] for side, length in said.items()}
    return {side: min(limit) for side, limit in limits.items() if limit}


def trained_head(folder: Path, reference: str) -> tuple[nn.Module, str, dict[str, Tensor]]:
    """The encoder of a cross encoder, the activation of its head (`scoring.head`), and the head's weights.

    A head with two labels scores by the difference of its logits, the second minus the first. Raises LeadError for
    another number, and for a head that is no dense layer, activation and projection of the first token's output.
    """
    with loading(f"'{folder}'"):
        made_for = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or []
    if not any(str(name).endswith("ForSequenceClassification") for name in made_for):
        raise LeadError(
            f"models: '{reference}' ({', '.join(map(str, made_for))}) has no trained head: it is no cross encoder; "
            "train it with method contrastive"
        )
    whole: Any = load_transformer(str(folder), reference, "AutoModelForSequenceClassification").eval()
    encoder = getattr(whole, whole.base_model_prefix)
    known = dict(whole.named_modules())
    dense = next((m for name, m in known.items() if name.endswith(DENSE) and isinstance(m, nn.Linear)), None)
    out = next((m for name, m in known.items() if name in OUT and isinstance(m, nn.Linear)), None)
    if out is not None and len(out.weight) > 2:
        raise LeadError(f"models: '{reference}' has {len(out.weight)} labels; a head for relevance has one or two")
    ids = torch.tensor([[i % encoder.get_input_embeddings().num_embeddings for i in range(5, 12)]])
    mask = torch.ones_like(ids)
    logits = whole(input_ids=ids, attention_mask=mask).logits[0]
    first = hidden_states(encoder, ids, mask, (depth(encoder),))[0][0, 0]
    for name, activation in ACTIVATIONS.items():
        if dense is None or out is None or dense.weight.shape[1:] != first.shape or out.weight.shape[1:] != first.shape:
            break
        if torch.allclose(out(activation(dense(first))), logits, rtol=1e-4, atol=1e-5):
            w, b = (x if len(x) == 1 else x[1:] - x[:1] for x in (out.weight, _bias(out)))
            if getattr(encoder, "pooler", None) is not None:
                encoder.pooler = None  # its dense layer is the head's
            return encoder, name, {"dense.weight": dense.weight, "dense.bias": _bias(dense), "w.weight": w, "w.bias": b}
    raise LeadError(
        f"models: the head of '{reference}' ({type(whole).__name__}) is not a dense layer, {' or '.join(ACTIVATIONS)}, "
        "and a projection of the first token's output; take another cross encoder"
    )


# where the parts of a head lie, by architecture: BERT and ALBERT, RoBERTa and ELECTRA, DistilBERT, DeBERTa
DENSE = ("pooler.dense", "classifier.dense", "pre_classifier", "pooler")
OUT = ("classifier", "classifier.out_proj")


def _bias(layer: nn.Linear) -> Tensor:
    return torch.zeros(len(layer.weight)) if layer.bias is None else layer.bias
