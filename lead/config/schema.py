"""Every key of the configuration: its type, default, bounds and meaning.

`lead schema` prints the JSON Schema generated from these models; `lead <stage> --help` prints the keys of a stage.
Defaults are the paper's (section 4.3, Table 10) wherever the paper gives a value, and of scores the preset `paper`'s.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, create_model, field_validator, model_validator

from lead.config.kinds import KINDS, Kind
from lead.config.lists import Bm25, Denoise, Evaluation, Mining, Retrieval
from lead.config.methods import STRATEGIES, StrategyName
from lead.config.phases import Align, PhaseTrain
from lead.config.recipe import ADDED, EXECUTION
from lead.config.sources import AnySource, Checks, EvaluationSource, Expect, FilesSource, PseudoQueries
from lead.config.types import Count, Name, NonNegative, Positive, PositiveInt, Precision, Reference, Seed, Strict


# --- models ----------------------------------------------------------------------------------------------------------
class Linear(Strict):
    """A linear layer after the encoder ("+linear", section 4.7): layer N + 1, selected like any other."""

    size: PositiveInt | None = Field(
        None,
        description="number of outputs; null: as many as inputs; fewer: a smaller index; more: as many as a "
        "teacher's vectors have (method align)",
    )
    identity: bool = Field(
        True, description="initial weights: the identity (its first rows, if smaller); false: random"
    )


class Prompts(Strict):
    """What a model reads before each text, such as "query: " and "passage: " (E5); counted in `lengths`."""

    query: str = Field("", description="before each query")
    passage: str = Field("", description="before each passage")


class ModelRef(Strict):
    """A pretrained encoder."""

    reference: Reference
    prompts: Prompts | None = Field(
        None,
        description="what it reads before each query and passage; null: nothing, or what a ready model says itself "
        "(method pretrained)",
        json_schema_extra=ADDED,
    )
    layers: list[PositiveInt] | None = Field(
        None, min_length=1, description="keep only these transformer layers (1..N), in this order"
    )
    linear: Linear | None = Field(None, description="append a linear layer; null: none")

    @field_validator("layers")
    @classmethod
    def _once(cls, layers: list[int] | None) -> list[int] | None:
        if layers is not None and len(set(layers)) < len(layers):
            raise ValueError(f"{layers} names a layer twice; its weights would be shared: name each once")
        return layers


class Markers(Strict):
    """Tokens that mark texts; empty: none. They are in the vocabulary of the tokenizer."""

    query: str = Field("[unused0]", description="of queries")
    passage: str = Field("[unused1]", description="of passages")


class Scoring(Strict):
    """How token vectors become a score: of the whole model (eqs. 1, 2), and of each layer (eqs. 4, 5)."""

    pooling: Literal["cls", "mean", "last"] = Field(
        "cls",
        description="DE: how token vectors become one vector of a text: the first token's, their mean, or the "
        "last token's (decoders)",
    )
    normalise: Literal["none", "unit"] = Field(
        "none", description="vectors of the final scores: raw, or of unit length"
    )
    scale: Positive = Field(1.0, description="factor on the final scores")
    layer_normalise: Literal["none", "unit", "standard"] = Field(
        "none",
        description="vectors of layer features (the last layer's too): raw; unit: of unit length; standard: of unit "
        "length, and scores have zero mean and unit variance over the candidates of each query",
    )
    layer_scale: Positive = Field(1.0, description="factor on the scores of layer features")
    markers: bool | Markers = Field(
        False, description="CB: [unused0] / [unused1] after [CLS] marks query / passage; or the tokens to do it with"
    )
    expand: bool = Field(False, description="CB: pad queries with [MASK] tokens that take part in MaxSim")
    special_tokens: bool = Field(True, description="CB: [CLS] and [SEP] take part in MaxSim")
    attend: bool = Field(
        True,
        description="CB: tokens attend to the [MASK] tokens of `expand`; false in published ColBERTs",
        json_schema_extra=ADDED,
    )
    skip: list[str] = Field(
        [],
        description="CB: tokens of passages that take no part in MaxSim, such as punctuation",
        json_schema_extra=ADDED,
    )
    head: Literal["linear", "tanh", "relu", "gelu"] = Field(
        "linear",
        description="CE: w alone (eq. 3), or w and a bias after a dense layer with this activation (trained heads)",
        json_schema_extra=ADDED,
    )


def check_scoring(kind: Kind, scoring: Scoring) -> Scoring:
    """Refuse unit length for a kind whose scores are not products of vectors. Raises ValueError."""
    if not kind.vectors and (scoring.normalise != "none" or scoring.layer_normalise == "unit"):
        raise ValueError(f"{kind.a}'s score is one number, nothing has unit length; leave `unit` out")
    return scoring


def scoring_class(kind: Kind) -> type[Scoring]:
    """`Scoring` with the defaults of a kind of model."""
    of, fields = Scoring.model_fields, dict[str, Any]()
    for key, default in kind.scoring.items():
        fields[key] = of[key].annotation, Field(default, description=of[key].description)
    return create_model("Scoring", __base__=Scoring, __doc__=Scoring.__doc__, **fields) if fields else Scoring


_BY_KIND: dict[str, Any] = {
    kind.name: (Annotated[made, AfterValidator(partial(check_scoring, kind))], made())
    for kind, made in ((kind, scoring_class(kind)) for kind in KINDS.values())
}
ScoringByKind = create_model("ScoringByKind", __base__=Strict, __doc__="`Scoring` for each kind of model.", **_BY_KIND)


class Lengths(Strict):
    """Truncation, in tokens, special tokens included."""

    query: Annotated[int, Field(ge=3)] = Field(32, description="max query length (Table 10)")
    passage: Annotated[int, Field(ge=3)] = Field(144, description="max passage length (Table 10: 144 PAS, 480 DOC)")


# --- training --------------------------------------------------------------------------------------------------------
class Train(Strict):
    """Optimisation of every run that trains (section 4.3, Table 10)."""

    steps: PositiveInt = Field(50000, description="optimizer steps")
    epochs: Positive | None = Field(
        None, description="passes over the train queries, instead of `steps`", json_schema_extra=ADDED
    )
    batch_size: PositiveInt = Field(80, description="queries in a step, over all ranks")
    negatives: Count = Field(16, description="hard negatives drawn for each query and step")
    negatives_depth: PositiveInt = Field(
        100,
        description="hard negatives are drawn from this many of the mined list; ADORE: depth of each search",
    )
    lr: Positive = Field(
        5e-5, description="peak learning rate of the model being trained (the student's when distilling)"
    )
    teacher_lr: Positive | None = Field(None, description="peak learning rate of a jointly trained teacher; null: lr")
    weight_decay: NonNegative = Field(0.01, description="AdamW weight decay (not on biases and LayerNorm)")
    warmup: Annotated[float, Field(ge=0, le=1)] = Field(0.1, description="share of steps with rising learning rate")
    clip: Positive = Field(1.0, description="largest gradient norm of a model; larger gradients are scaled down")
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None, description="dropout while training; null: that of the pretrained model"
    )
    precision: Precision = Field(
        "bf16",
        description="autocast type of the encoders; scores are fp32. fp16: with a scaled loss. Where there is no bf16, "
        "bf16 means fp16 on a GPU, fp32 on a CPU",
    )
    micro_tokens: PositiveInt = Field(
        16384,
        description="padded tokens in a micro-batch; texts are sorted by length",
        json_schema_extra=EXECUTION,
    )
    cache_above: PositiveInt = Field(
        131072,
        description="padded tokens of a model that keep their graph in a step; gradients of the others are cached",
        json_schema_extra=EXECUTION,
    )
    checkpoint_every: PositiveInt = Field(500, description="steps between checkpoints", json_schema_extra=EXECUTION)
    checkpoint_keep: PositiveInt = Field(2, description="checkpoints kept while training", json_schema_extra=EXECUTION)
    dev_every: Count = Field(
        0,
        description="steps between evaluations on dev; 0: only before the first step and after the last",
        json_schema_extra=EXECUTION,
    )
    dev_queries: Count = Field(200, description="dev queries used for it; 0: never evaluate on dev")
    dev_negatives: Count = Field(10, description="mined negatives that each dev query adds to the dev pool")
    select: Literal["last", "best"] = Field("last", description="weights kept: the last, or the best on dev (MRR@10)")

    @model_validator(mode="after")
    def _best_needs_dev(self) -> Train:
        if self.select == "best" and not self.dev_queries:
            raise ValueError("select: best needs dev_queries above 0")
        return self


class Layers(Strict):
    """Which K pairs of teacher and student layers are aligned (section 3.3, Layer Selection; section 4.5)."""

    k: PositiveInt = Field(
        5, description="number of layer pairs, K; at most M (Table 4: 5, 6); strategy pairs gives its own"
    )
    strategy: StrategyName = Field(
        "random", description="; ".join(f"{name}: {strategy.about}" for name, strategy in STRATEGIES.items())
    )
    skip: PositiveInt = Field(2, description="s of strategy skip")
    pairs: list[Annotated[list[PositiveInt], Field(min_length=2, max_length=2)]] | None = Field(
        None, description="[[teacher layer, student layer], ..] of strategy pairs"
    )


class LossWeights(Strict):
    """Factors on the four parts of eq. 12 (all 1 in the paper), and on FD's loss."""

    lyr: NonNegative = Field(1.0, description="on the layer loss (eq. 8)")
    rep: NonNegative = Field(1.0, description="on the response loss (eq. 9)")
    tch: NonNegative = Field(1.0, description="on the teacher's contrastive loss (eq. 10)")
    stu: NonNegative = Field(1.0, description="on the student's contrastive loss (eq. 11)")
    map: NonNegative = Field(1.0, description="on the map loss of FD")


class Distil(Strict):
    """The losses of sections 3.3 and 3.4."""

    tau: Positive = Field(1.0, description="temperature on both sides of eqs. 6 and 9 (Table 10)")
    layers: Layers = Layers()
    layer_weights: Literal["per_query", "batch", "uniform", "progress"] = Field(
        "per_query",
        description="w of eq. 7. batch: one for all queries (released code); uniform: 1/K (section 4.6); progress: "
        "larger for pairs whose student layer assigns the positive less probability than the teacher layer (ours)",
    )
    layer_weights_tau: Positive | None = Field(None, description="temperature of eq. 7; null: tau, as in the paper")
    joint: bool = Field(
        True, description="train the teacher too (section 3.4); false: frozen, L_tch and KL(s, t) removed"
    )
    detach_target: bool = Field(False, description="no gradient reaches the target side of each KL")
    layer_normalise: Literal["none", "unit", "standard"] | None = Field(
        None,
        description="layer features of both models (`scoring.*.layer_normalise`); null: as each was warmed up",
        json_schema_extra=ADDED,
    )
    candidates: Literal["batch", "own"] = Field(
        "batch",
        description="passages of a distribution: the whole (cross-)batch, or the query's own (always "
        "with a cross encoder as teacher)",
    )
    contrastive_candidates: Literal["batch", "own"] = Field(
        "batch",
        description="passages of the student's contrastive loss; own: as in the released code with a CE teacher",
    )
    map_layers: Literal["even", "last"] = Field(
        "even", description="fd: which teacher layers are compared with the student's: evenly spread, or the last M"
    )
    maps: Literal["virt", "released"] = Field(
        "virt",
        description="fd: virt: as VIRT has them; released: as the released code of LEAD has them (docs/experiments.md)",
        json_schema_extra=ADDED,
    )
    weights: LossWeights = LossWeights()


# --- the whole -------------------------------------------------------------------------------------------------------
class Settings(Strict):
    """All settings of a run, merged in this order: defaults < preset < dataset < config.yaml < experiment row."""

    seed: Seed = Field(1, description="seed of data order, sampling, dropout and layer selection")
    models: dict[Name, ModelRef] = Field(
        description="pretrained encoders to start from: `teacher`, `student`, and more by names of yours"
    )
    lengths: Lengths = Lengths()
    scoring: ScoringByKind = ScoringByKind()
    train: Train = Train()
    phases: PhaseTrain = PhaseTrain()
    align: Align = Align()
    distil: Distil = Distil()
    bm25: Bm25 = Bm25()
    denoise: Denoise = Denoise()
    mining: Mining = Mining()
    retrieval: Retrieval = Retrieval()
    evaluation: Evaluation = Evaluation()
    checks: Checks = Checks()
    dev_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.05, description="share of train queries carved as dev (by hash)"
    )

    @model_validator(mode="after")
    def _teacher_and_student(self) -> Settings:
        if missing := {"teacher", "student"} - set(self.models):
            raise ValueError(f"models.{sorted(missing)[0]} is missing")
        return self


class Dataset(Strict):
    """A file of config/datasets/: where the data is, and settings that differ from the preset."""

    about: str = Field("", description="one line for people")
    source: AnySource
    queries: PseudoQueries | None = Field(
        None, description="where train queries come from the corpus itself; null: they are those of the source"
    )
    preset: Name = Field("paper", description="a file of config/presets/")
    expect: Expect = Expect()
    shards: Annotated[int, Field(ge=1, le=9999)] = Field(
        1, description="parts of the corpus; each is encoded, mined and searched by a job; models share its token ids"
    )
    gpus: PositiveInt = Field(1, description="GPUs that a training job asks for; it uses the granted ones")
    external_run: str | None = Field(
        None,
        min_length=1,
        description="ranked lists that come with the test queries, for the run `external` and `retrieval.rerank_from`: "
        "MS MARCO's top1000 or run, a TREC run, Parquet or JSONL (qid, pid, score), .gz too; or ir_datasets:ID",
    )
    scores: dict[Name, str] = Field(
        {},
        description="files of scores from elsewhere, by name (Parquet or TSV: qid, pid, score), for a row's `scores`",
    )
    runs: list[str] | None = Field(
        None, min_length=1, description="the runs of its default target; null: every run that makes sense"
    )
    repeats: dict[str, PositiveInt] = Field({}, description="number of seeds of a run in its tables; 1 for all others")
    settings: dict[str, Any] = Field({}, description="any keys of Settings")

    @model_validator(mode="after")
    def _train_queries(self) -> Dataset:
        """Train queries are the source's or drawn from its corpus. Only in the second case is `test` optional."""
        source, drawn = self.source, self.queries is not None
        if drawn and isinstance(source, EvaluationSource):
            raise ValueError("key 'queries' is of a dataset with a corpus of its own; leave it out")
        if drawn and isinstance(source, FilesSource) and source.train is not None:
            raise ValueError("give either 'source.train' or 'queries', which draws train queries from the corpus")
        for key in () if drawn else ("train", "test"):
            if getattr(source, key, key) is None:
                remedy = "add it, or draw train queries from the corpus (`queries: {from: sentences}`)"
                raise ValueError(f"key 'source.{key}' is missing; {remedy}")
        return self
