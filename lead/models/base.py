"""Transformer layers whose outputs are scored (section 3.2): the base of dual encoder, ColBERT and cross encoder."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import pad

from lead.config.checks import check_linear
from lead.config.kinds import KINDS, Kind
from lead.config.load import validate
from lead.config.recipe import recipe
from lead.config.schema import Lengths, Linear, ModelRef, Prompts, Scoring, check_scoring
from lead.device import to_device
from lead.errors import LeadError
from lead.lists import Floats, Ints
from lead.models.encoder import (
    check_encoder,
    depth,
    first_token_is_blind,
    hidden_states,
    keep_layers,
    load_encoder,
    positions,
)
from lead.models.features import Candidates, Features, Scores
from lead.models.maps import MapView
from lead.models.microbatch import MicroBatchEncoder
from lead.pretrained import loading, resolve
from lead.store.atomic import atomic_folder
from lead.store.checksums import check_folder
from lead.tokenizer import load_tokenizer, tokenizer_sum

DESCRIPTION, HEAD = "lead.json", "head.safetensors"
Columns = Callable[[Tensor], Tensor]
Scorer = Callable[[int, Ints], Floats]  # row of a query, rows of passages [P] -> scores [P] in fp32


class Ranks(Protocol):
    """The processes that share a global batch, as `lead.train.exchange.Exchange` makes them."""

    def features(self, x: Features) -> Features:
        """Features of all ranks' texts."""

    def columns(self, s: Tensor) -> Tensor:
        """From scores [Q, p] of all queries and this rank's passages to [q, P]: this rank's queries, all passages."""


class LayeredModel(nn.Module):
    """Transformer layers 1..n and, if `linear` is given, a linear layer n + 1 (section 4.7, "+linear").

    Each kind of model (lead/config/kinds.py) is a subclass. A method here that a subclass overrides says so.
    """

    kind: ClassVar[str]  # its name in KINDS

    def __init__(
        self,
        encoder: nn.Module,
        tokenizer: Any,
        scoring: Scoring,
        lengths: Lengths,
        linear: Linear | None = None,
        prompts: Prompts | None = None,
    ) -> None:
        """`encoder`: a transformers encoder; `tokenizer`: its fast tokenizer. LeadError if they do not fit."""
        super().__init__()
        self.encoder, self.tokenizer = encoder, tokenizer
        self.scoring, self.lengths, self.prompts = scoring, lengths, prompts or Prompts()
        self.width = self.size = int(encoder.config.hidden_size)  # type: ignore[union-attr,arg-type]
        self.set_scoring()
        self.tokenizing = threading.Lock()  # a tokenizer stores how it cuts texts, so one thread at a time may use it
        check_vocabulary(encoder, tokenizer)
        self.linear = None
        if linear is not None:
            self.size = linear.size or self.width
            check_linear(self.size, self.width, self.about)
            self.linear = nn.Linear(self.width, self.size)
            if linear.identity:
                nn.init.eye_(self.linear.weight)
                nn.init.zeros_(self.linear.bias)
        self.wide = max(self.width, self.size)  # of features
        self.n_layers = depth(encoder) + (linear is not None)
        self.build()

    def set_scoring(self, **keys: Any) -> None:
        """Replace keys of `scoring`, after a check against the kind. Raises LeadError."""
        scoring = self.scoring.model_copy(update=keys)
        try:
            self.scoring = check_scoring(self.about, scoring)
        except ValueError as e:
            raise LeadError(f"scoring.{self.kind}: {e}") from None

    # --- what a kind of model decides ---------------------------------------------------------------------------------
    def build(self) -> None:
        """Add the parts that this kind of model needs. Raises LeadError if its scoring is not possible. Overridden."""

    @property
    def about(self) -> Kind:
        """The record of its kind: title, most candidates that it scores, whether it searches or reranks."""
        return KINDS[self.kind]

    def reads_first_token(self) -> bool:
        """Whether scores come from the first token's output alone. Overridden."""
        return False

    @property
    def tokenization(self) -> tuple[object, ...]:
        """Equal for two models exactly if `tokenize_batch` gives the same for all texts. Extended.

        Here: the tokenizer, where texts are cut, and what is read before them.
        """
        cuts = self.tokenizer.truncation_side, self.lengths.query, self.lengths.passage
        return tokenizer_sum(self.tokenizer), *cuts, self.prompts.query, self.prompts.passage

    def tokenize_batch(self, queries: list[str], passages: list[str]) -> dict[str, list[Any]]:
        """Tokenize Q queries and Q (1 + n) passages, each query's own in a row; return the inputs by name. Overridden.

        It waits while another thread tokenizes with this model, so threads may call it at any time.
        """
        raise NotImplementedError

    def encode(self, ids: Any, layers: tuple[int, ...]) -> Features:
        """Features of one micro-batch of one input at these layers (1..N), in fp32. Overridden."""
        raise NotImplementedError

    def exchange(self, features: tuple[Features, ...], ranks: Ranks) -> tuple[Features, ...]:
        """Replace this rank's features by those of all ranks where scores need them. Overridden; here nothing travels.

        features: one for each input of `tokenize_batch`, in its order.
        """
        return features

    def score(self, *features: Any) -> Scores:
        """Scores of candidates (the last argument) at every encoded layer, the last among them. Overridden."""
        raise NotImplementedError

    def score_batch(self, features: tuple[Features, ...], candidates: Candidates, ranks: Ranks) -> Scores:
        """Scores of candidates of the global batch, from what `exchange` returned. Overridden."""
        return self.score(*features, candidates)

    def scorer(self, queries: list[str], passages: list[str], encode: MicroBatchEncoder) -> Scorer:
        """Return a function that scores rows of passages for a row of queries. Overridden where `ranks_by: rerank`."""
        raise NotImplementedError

    def map_view(self, released: bool = False) -> MapView:
        """The model seen as query-passage maps, for FD; `released`: as the released code does. Overridden."""
        raise NotImplementedError

    def write_others(self, folder: Path) -> None:
        """Write into a model folder what other libraries read there. Overridden; here nothing."""

    @classmethod
    def longest(cls, lengths: Lengths, tokenizer: Any) -> dict[str, int]:
        """Most tokens that the encoder reads at a time, by the key of `lengths` that decides it. Overridden."""
        return {"query": lengths.query, "passage": lengths.passage}

    def must_rank_by(self, way: Literal["search", "rerank"], what: str, otherwise: str) -> Self:
        """Return the model if it ranks that way. Else raises LeadError: "`what` is a cross encoder`otherwise`"."""
        if self.about.ranks_by != way:
            raise LeadError(f"{what} is {self.about.a}{otherwise}")
        return self

    # --- what all have in common --------------------------------------------------------------------------------------
    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.encoder.parameters()).device

    def states(self, ids: Tensor, mask: Tensor, layers: tuple[int, ...], types: Tensor | None = None) -> list[Tensor]:
        """Outputs [n, T, wide] in fp32 of these layers (1..N). ids, mask, types: [n, T].

        Where the linear layer has more outputs, or fewer, the narrower are padded with zeros: neither inner products
        nor lengths of vectors change.
        """
        last = depth(self.encoder)
        out = hidden_states(self.encoder, ids, mask, tuple(min(i, last) for i in layers), types)
        if self.linear is not None and layers[-1] > last:
            out[-1] = self.linear(out[-1])
        return [(h if h.shape[-1] == self.wide else pad(h, (0, self.wide - h.shape[-1]))).float() for h in out]

    def width_of(self, layer: int) -> int:
        """Numbers in an output of this layer, without padding."""
        return self.width if layer <= depth(self.encoder) else self.size

    def padded(self, ids: list[list[int]], fill: int) -> tuple[Tensor, Tensor]:
        """Lists of numbers as a matrix [n, T] on the model's device, and its mask: true where there is a number."""
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        mask = np.arange(lengths.max()) < lengths[:, None]
        padded = np.full(mask.shape, fill)
        padded[mask] = np.fromiter(chain.from_iterable(ids), np.int64, int(lengths.sum()))
        numbers, known = (to_device(torch.from_numpy(x), self.device) for x in (padded, mask))
        return numbers, known

    # --- on disk -----------------------------------------------------------------------------------------------------
    def save(self, folder: str | Path) -> None:
        """Write the model's files and their checksums, atomically."""
        with atomic_folder(folder) as temporary:
            self.write(temporary)

    def write(self, folder: Path) -> None:
        """Write a transformers folder (safetensors, tokenizer), lead.json, and what other libraries read."""
        head = {k: v.contiguous() for k, v in self.state_dict().items() if not k.startswith("encoder.")}
        with self.tokenizing:
            self.encoder.save_pretrained(folder)  # type: ignore[operator]
            # a tokenizer must not store whether HF_HUB_OFFLINE was set
            self.tokenizer.init_kwargs.pop("local_files_only", None)
            # .. nor how it was last called, and others shall pad as `padded` does
            self.tokenizer.backend_tokenizer.no_truncation()
            self.tokenizer.backend_tokenizer.no_padding()
            self.tokenizer.padding_side = "right"
            if self.tokenizer.pad_token is None:  # as in many decoders; others cannot make a batch without one
                self.tokenizer.pad_token = self.tokenizer.eos_token or self.tokenizer.unk_token
            self.tokenizer.save_pretrained(folder)
        if head:
            save_file(head, folder / HEAD)
        description = {
            "kind": self.kind,
            "scoring": recipe(self.scoring),
            "lengths": self.lengths.model_dump(),
            **({} if self.linear is None else {"linear": {"size": self.size, "identity": True}}),
            **({} if self.prompts == Prompts() else {"prompts": self.prompts.model_dump()}),
        }
        (folder / DESCRIPTION).write_text(json.dumps(description, indent=2, sort_keys=True) + "\n")
        self.write_others(folder)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read what `save` wrote, checksums verified. Raises LeadError for a damaged or foreign folder."""
        folder = check_folder(folder)
        where = str(folder / DESCRIPTION)
        try:
            description = json.loads((folder / DESCRIPTION).read_text())
            kind = KINDS.get(description["kind"])
            if kind is None:
                raise ValueError(f"no kind {description['kind']!r}")
            scoring = validate(Scoring, description["scoring"], where, prefix=("scoring",))
            lengths = validate(Lengths, description["lengths"], where, prefix=("lengths",))
            linear = validate(Linear, description["linear"], where) if "linear" in description else None
            prompts = validate(Prompts, description.get("prompts", {}), where)
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise LeadError(f"{where} is missing or not understood ({e}); rerun the stage that makes it") from e
        made_by: type[LayeredModel] = kind.load()
        if not issubclass(made_by, cls):
            raise LeadError(f"{folder} is {kind.a}, which cannot be used here")
        encoder, tokenizer = load_encoder(str(folder), str(folder)), load_tokenizer(str(folder), str(folder))
        model = made_by(encoder, tokenizer, scoring, lengths, linear, prompts)
        expected = {k for k in model.state_dict() if not k.startswith("encoder.")}
        with loading(f"'{folder / HEAD}'"):
            head = load_file(folder / HEAD) if (folder / HEAD).exists() else {}
            if expected != set(head):
                raise ValueError(f"it does not hold {sorted(expected ^ set(head))}; rerun the stage")
            model.load_state_dict(head, strict=False)  # everything but the encoder's weights, as was just checked
        return model

    @classmethod
    def pretrained(cls, model: ModelRef, kind: str, scoring: Scoring, lengths: Lengths) -> Self:
        """A model that has not been trained to retrieve: a pretrained encoder by reference. Raises LeadError."""
        name = resolve(model.reference)
        encoder, tokenizer = load_encoder(name, model.reference), load_tokenizer(name, model.reference)
        made = cls.around(encoder, tokenizer, model, kind, scoring, lengths)
        if not isinstance(made, cls):
            raise LeadError(f"models: kind {kind} is {KINDS[kind].a}, which cannot be used here")
        return made

    @staticmethod
    def around(
        encoder: nn.Module, tokenizer: Any, model: ModelRef, kind: str, scoring: Scoring, lengths: Lengths
    ) -> LayeredModel:
        """A model of this kind around an encoder loaded just now from `model`. LeadError if they do not fit."""
        made_by: type[LayeredModel] = KINDS[kind].load()
        check_vocabulary(encoder, tokenizer)
        check_encoder(encoder, tokenizer.pad_token_id or 0, model.reference)
        if model.layers is not None:
            keep_layers(encoder, model.layers, model.reference)
        longest = positions(encoder)
        for key, limit in made_by.longest(lengths, tokenizer).items():
            if longest is not None and limit > longest:
                raise LeadError(f"lengths.{key}: {limit} is more than the {longest} positions of '{model.reference}'")
        made = made_by(encoder, tokenizer, scoring, lengths, model.linear, model.prompts)
        if made.reads_first_token() and first_token_is_blind(encoder):
            raise LeadError(
                f"scoring.{kind}: the first token's output of '{model.reference}' does not depend on the text after it "
                "(a decoder): every text would have one vector; "
                + ("set pooling: mean or last" if kind == "de" else "use an encoder")
            )
        return made


def check_vocabulary(encoder: nn.Module, tokenizer: Any) -> None:
    """Refuse a tokenizer with ids that the encoder has no embeddings of. Raises LeadError."""
    try:
        known = int(encoder.get_input_embeddings().num_embeddings)  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        raise LeadError(f"models: {type(encoder).__name__} has no embeddings of tokens: no encoder of texts") from None
    if (highest := max(tokenizer.get_vocab().values())) >= known:
        raise LeadError(f"models: the tokenizer has an id {highest}, the encoder embeddings of 0 to {known - 1} only")
