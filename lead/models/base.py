"""A pile of layers (section 3.2): what dual encoder, ColBERT and cross encoder have in common."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import pad

from lead.config.load import validate
from lead.config.schema import Lengths, Linear, ModelRef, Scoring
from lead.errors import LeadError
from lead.models.encoder import check_encoder, depth, hidden_states, keep_layers, load_encoder, positions
from lead.models.features import Features, Scores
from lead.pretrained import loading, resolve
from lead.store.atomic import atomic_folder
from lead.store.tables import check_folder
from lead.tokenizer import load_tokenizer

Kind = Literal["de", "cb", "ce"]
DESCRIPTION, HEAD = "lead.json", "head.safetensors"
NAMES = {"de": "dual encoder", "cb": "ColBERT", "ce": "cross encoder"}


class LayeredModel(nn.Module):
    """Transformer layers 1..n and, if `linear` is given, a linear layer n + 1 (section 4.7, "+linear")."""

    classes: ClassVar[dict[str, type[LayeredModel]]] = {}
    kinds: ClassVar[tuple[Kind, ...]] = ()

    def __init_subclass__(cls) -> None:
        """Register a subclass as what reads and makes models of its kinds."""
        LayeredModel.classes |= dict.fromkeys(cls.kinds, cls)

    def __init__(
        self,
        encoder: nn.Module,
        tokenizer: Any,
        kind: Kind,
        scoring: Scoring,
        lengths: Lengths,
        linear: Linear | None = None,
    ) -> None:
        """`encoder`: a transformers encoder; `tokenizer`: its fast tokenizer. LeadError if they do not fit."""
        super().__init__()
        self.encoder, self.tokenizer, self.kind = encoder, tokenizer, kind
        self.scoring, self.lengths = scoring, lengths
        self.width = self.size = int(encoder.config.hidden_size)  # type: ignore[union-attr,arg-type]
        check_vocabulary(encoder, tokenizer)
        self.linear = None
        if linear is not None:
            self.size = linear.size or self.width
            if self.size > self.width:
                raise LeadError(f"models: linear.size {self.size} is more than the encoder's {self.width}; lower it")
            self.linear = nn.Linear(self.width, self.size)
            if linear.identity:
                nn.init.eye_(self.linear.weight)
                nn.init.zeros_(self.linear.bias)
        self.n_layers = depth(encoder) + (linear is not None)
        self.build()

    def build(self) -> None:
        """What a kind of model adds to the pile. Raises LeadError for scoring that makes no sense for it."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.encoder.parameters()).device

    def states(self, ids: Tensor, mask: Tensor, layers: tuple[int, ...], types: Tensor | None = None) -> list[Tensor]:
        """Outputs [n, T, width] in fp32 of these layers (1..N). ids, mask, types: [n, T].

        A linear layer with fewer outputs is padded with zeros: neither inner products nor lengths of vectors change.
        """
        last = depth(self.encoder)
        out = hidden_states(self.encoder, ids, mask, tuple(min(i, last) for i in layers), types)
        if self.linear is not None and layers[-1] > last:
            out[-1] = pad(self.linear(out[-1]), (0, self.width - self.size))
        return [h.float() for h in out]

    def encode(self, ids: Any, layers: tuple[int, ...]) -> Features:
        """Features of one micro-batch of tokenized texts (DE, CB) or pairs (CE) at these layers (1..N), in fp32."""
        raise NotImplementedError

    def score(self, *features: Any) -> Scores:
        """Scores of candidates (the last argument) at every encoded layer, the last among them, from `Features`."""
        raise NotImplementedError

    def padded(self, ids: list[list[int]], fill: int) -> tuple[Tensor, Tensor]:
        """Lists of numbers as a matrix [n, T] on the model's device, and its mask: true where there is a number."""
        padded = torch.full((len(ids), max(map(len, ids))), fill)
        mask = torch.zeros(padded.shape, dtype=torch.bool)
        for row, i in enumerate(ids):
            padded[row, : len(i)] = torch.tensor(i)
            mask[row, : len(i)] = True
        return padded.to(self.device), mask.to(self.device)

    # --- on disk -----------------------------------------------------------------------------------------------------
    def save(self, folder: str | Path) -> None:
        """Write a transformers folder (safetensors, tokenizer) plus what is ours and checksums, atomically."""
        head = {k: v.contiguous() for k, v in self.state_dict().items() if not k.startswith("encoder.")}
        with atomic_folder(folder) as temporary:
            self.encoder.save_pretrained(temporary)  # type: ignore[operator]
            # whether HF_HUB_OFFLINE was set is no property of a tokenizer
            self.tokenizer.init_kwargs.pop("local_files_only", None)
            self.tokenizer.save_pretrained(temporary)
            if head:
                save_file(head, temporary / HEAD)
            description = {
                "kind": self.kind,
                "scoring": self.scoring.model_dump(),
                "lengths": self.lengths.model_dump(),
                **({} if self.linear is None else {"linear": {"size": self.size, "identity": True}}),
            }
            (temporary / DESCRIPTION).write_text(json.dumps(description, indent=2, sort_keys=True) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read what `save` wrote, checksums verified. Raises LeadError for a damaged or foreign folder."""
        from lead.models import cross_encoder, retriever  # noqa: F401  (both register what they make)

        folder = check_folder(folder)
        where = str(folder / DESCRIPTION)
        try:
            description = json.loads((folder / DESCRIPTION).read_text())
            kind = description["kind"]
            made_by = LayeredModel.classes[kind]
            scoring = validate(Scoring, description["scoring"], where, prefix=("scoring",))
            lengths = validate(Lengths, description["lengths"], where, prefix=("lengths",))
            linear = validate(Linear, description["linear"], where) if "linear" in description else None
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise LeadError(f"{where} is missing or not understood ({e}); rerun the stage that makes it") from e
        if not issubclass(made_by, cls):
            raise LeadError(f"{folder} is a {NAMES[kind]}, which cannot be used here")
        encoder, tokenizer = load_encoder(str(folder), str(folder)), load_tokenizer(str(folder), str(folder))
        model = made_by(encoder, tokenizer, kind, scoring, lengths, linear)
        expected = {k for k in model.state_dict() if not k.startswith("encoder.")}
        with loading(f"'{folder / HEAD}'"):
            head = load_file(folder / HEAD) if (folder / HEAD).exists() else {}
            if expected != set(head):
                raise ValueError(f"it does not hold {sorted(expected ^ set(head))}; rerun the stage")
            model.load_state_dict(head, strict=False)  # all that is not the encoder's, as was just checked
        return model

    @classmethod
    def pretrained(cls, model: ModelRef, kind: Kind, scoring: Scoring, lengths: Lengths) -> Self:
        """A model that has not been trained to retrieve: a pretrained encoder by reference. Raises LeadError."""
        name = resolve(model.reference)
        encoder = load_encoder(name, model.reference)
        tokenizer = load_tokenizer(name, model.reference)
        check_vocabulary(encoder, tokenizer)
        check_encoder(encoder, tokenizer.pad_token_id or 0, model.reference)
        if model.layers is not None:
            keep_layers(encoder, model.layers, model.reference)
        longest = positions(encoder)
        asked = {"query": lengths.query, "passage": lengths.passage}
        if kind == "ce":  # both are cut as if each stood alone, with two special tokens of its own
            special = tokenizer.num_special_tokens_to_add(pair=True)
            asked = {"query + lengths.passage": lengths.query + lengths.passage - 4 + special}
        for side, limit in asked.items():
            if longest is not None and limit > longest:
                raise LeadError(f"lengths.{side}: {limit} is more than the {longest} positions of '{model.reference}'")
        made = LayeredModel.classes[kind](encoder, tokenizer, kind, scoring, lengths, model.linear)
        assert isinstance(made, cls)
        return made


def check_vocabulary(encoder: nn.Module, tokenizer: Any) -> None:
    """Refuse a tokenizer with ids that the encoder has no embeddings of. Raises LeadError."""
    try:
        known = int(encoder.get_input_embeddings().num_embeddings)  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        raise LeadError(f"models: {type(encoder).__name__} has no embeddings of tokens: no encoder of texts") from None
    if (highest := max(tokenizer.get_vocab().values())) >= known:
        raise LeadError(f"models: the tokenizer has an id {highest}, the encoder embeddings of 0 to {known - 1} only")
