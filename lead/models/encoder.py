"""Loading a transformer encoder by reference, keeping some of its layers, and reading every layer's output."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lead.errors import LeadError
from lead.imports import import_transformers
from lead.pretrained import loading


def load_encoder(name: str, reference: str) -> nn.Module:
    """The transformer in `name`, in fp32, without a pooler. LeadError if a weight is not found in the checkpoint."""
    model = load_transformer(name, reference)
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # type: ignore[assignment]  # never used: scores come from hidden states
    return model


def load_transformer(name: str, reference: str, auto: str = "AutoModel") -> nn.Module:
    """The model in `name`, in fp32, by a class of transformers. LeadError if a weight is not found in the checkpoint.

    No code that comes with a model is run. Weights are safetensors where there are any; of `pytorch_model.bin`,
    all that older models have, tensors are read and nothing else.
    """
    # or transformers would ask a service to convert a model without safetensors
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"
    import_transformers()
    import transformers
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        with loading(f"'{reference}'"):
            model, info = getattr(transformers, auto).from_pretrained(
                name, output_loading_info=True, weights_only=True, dtype=torch.float32, trust_remote_code=False
            )
    finally:
        transformers_logging.set_verbosity(level)
    missing = [k for k in info["missing_keys"] if auto != "AutoModel" or not k.startswith("pooler.")]
    if missing or info["mismatched_keys"]:
        what = [str(k) for k in [*missing, *info["mismatched_keys"]]][:3]
        raise LeadError(
            f"models: '{reference}' lacks weights of its architecture ({', '.join(what)}, ..); wrong checkpoint?"
        )
    loaded: nn.Module = model
    return loaded


def depth(encoder: nn.Module) -> int:
    """Number of transformer layers: N or M."""
    return int(encoder.config.num_hidden_layers)  # type: ignore[union-attr,arg-type]


def layer_list(encoder: nn.Module) -> tuple[nn.Module, str]:
    """The module that holds the list of transformer layers, and the attribute's name, of any architecture."""
    n = depth(encoder)
    for module in encoder.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == n:
                return module, name
    raise LeadError(f"models: {type(encoder).__name__} has no list of {n} layers; its architecture is not supported")


def keep_layers(encoder: nn.Module, layers: list[int], reference: str) -> None:
    """Keep only these transformer layers (1..N), in this order: a small student from a larger model.

    Raises LeadError for a layer that is not there, and for layers whose model could not be saved and loaded again.
    """
    from transformers import AutoModel

    owner, name = layer_list(encoder)
    every = getattr(owner, name)
    for i in layers:
        if i > len(every):
            raise LeadError(f"models: layers has {i}, but '{reference}' has only layers 1..{len(every)}")
    setattr(owner, name, nn.ModuleList(every[i - 1] for i in layers))
    config: Any = encoder.config
    if getattr(config, "layer_types", None):  # ModernBERT: which layers attend to all of the text
        config.layer_types = [config.layer_types[i - 1] for i in layers]
    config.num_hidden_layers = len(layers)
    with torch.device("meta"):
        again = AutoModel.from_config(config)
    weights, expected = ({k for k in e.state_dict() if not k.startswith("pooler.")} for e in (encoder, again))
    if other := sorted(weights ^ expected):
        raise LeadError(
            f"models: layers {layers} of '{reference}' do not make a model by themselves ({other[0]}): its layers are "
            "not all built alike; keep layer 1 first"
        )


def hidden_states(
    encoder: nn.Module, ids: Tensor, mask: Tensor, layers: tuple[int, ...], types: Tensor | None = None
) -> list[Tensor]:
    """Outputs [n, T, d] of these layers (1..N; the embedding output is not a layer). ids, mask, types: [n, T]."""
    extra = {} if types is None else {"token_type_ids": types}
    out: Any = encoder(input_ids=ids, attention_mask=mask, output_hidden_states=True, **extra)
    return [out.hidden_states[i] for i in layers]


@torch.no_grad()
def check_encoder(encoder: nn.Module, pad: int, reference: str) -> None:
    """Refuse a model that cannot be used as an encoder. `encoder` was made just now. Raises LeadError.

    Checked: it returns the output of every layer, padding changes no output, dropout is off when it is set to 0.
    """
    rates, why = list(_dropouts(encoder)), ""
    attention = encoder.config._attn_implementation  # type: ignore[union-attr]
    try:
        known = int(encoder.get_input_embeddings().num_embeddings)  # type: ignore[operator]
        ids = torch.tensor([[i for i in range(known) if i != pad][:9]] * 2, dtype=torch.long)  # any tokens do
        mask = torch.ones_like(ids)
        ids[1, 5:], mask[1, 5:] = pad, 0
        layers = tuple(range(1, depth(encoder) + 1))
        padded = torch.stack(hidden_states(encoder.eval(), ids, mask, layers))[:, 1, :5]
        alone = torch.stack(hidden_states(encoder, ids[1:, :5], mask[1:, :5], layers))[:, 0]
        prepare_for_training(encoder.train(), 0.0)
        trained = torch.stack(hidden_states(encoder, ids, mask, layers))[:, 1, :5]
        if _differ(padded, alone):
            why = "its output for a text depends on the padding beside it"
        elif _differ(trained, padded):
            why = "dropout of this architecture cannot be switched off"
    except Exception as e:  # whatever an architecture does that takes other inputs
        why = f"{type(e).__name__}: {' '.join(str(e).split())[:200]}"
    if why:
        raise LeadError(f"models: '{reference}' ({type(encoder).__name__}) cannot be used as an encoder: {why}")
    for module, name, rate in rates:
        setattr(module, name, rate)
    encoder.eval().set_attn_implementation(attention)  # type: ignore[operator]


@torch.no_grad()
def first_token_is_blind(encoder: nn.Module) -> bool:
    """Whether the first token's output is the same whatever tokens follow, as in a decoder."""
    ids = torch.tensor([[1, 2, 3, 4], [1, 5, 6, 7]]) % int(encoder.get_input_embeddings().num_embeddings)  # type: ignore[operator]
    last = hidden_states(encoder.eval(), ids, torch.ones_like(ids), (depth(encoder),))[0]
    return bool(torch.equal(last[0, 0], last[1, 0]))


def _differ(a: Tensor, b: Tensor) -> bool:
    """Whether outputs [.., d] differ by a thousandth: by the median, since a few dimensions of some models are huge."""
    return bool(((a - b).abs().median(-1).values > 1e-3 * b.abs().median(-1).values + 1e-6).any())


def prepare_for_training(encoder: nn.Module, dropout: float | None) -> None:
    """Set dropout (None: as the model has it) and, on the CPU, the attention whose backward pass is fastest there."""
    if dropout is not None:
        for module, name, _ in _dropouts(encoder):
            setattr(module, name, dropout)
    if next(encoder.parameters()).device.type == "cpu":
        # the backward pass of the CPU's fused attention is several times slower than two matrix products
        encoder.set_attn_implementation("eager")  # type: ignore[operator]


def _dropouts(encoder: nn.Module) -> Iterator[tuple[nn.Module, str, float]]:
    """Where an encoder drops out: module, attribute, rate."""
    for module in encoder.modules():
        for name, rate in vars(module).items():
            named = "dropout" in name or (name == "p" and isinstance(module, nn.Dropout))
            if named and isinstance(rate, int | float) and not isinstance(rate, bool):
                yield module, name, rate


def positions(encoder: nn.Module) -> int | None:
    """Longest text, in tokens, that the encoder's position embeddings allow; None where there are none."""
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Embedding) and name.endswith("position_embeddings"):
            # RoBERTa's and MPNet's count from the padding id on
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    limit = getattr(encoder.config, "max_position_embeddings", None)
    return None if limit is None else int(limit)
