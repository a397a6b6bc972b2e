"""The settings that each stage reads. Nothing else in the configuration can change its output.

The workflow passes them as JSON, in two parts: the recipe (`--settings`) and the execution (`--execution`). A change of
the recipe reruns the stage; the execution may change at any time (lead.config.recipe).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from lead.config.kinds import KINDS, KindName
from lead.config.lists import Bm25, Evaluation, Mining
from lead.config.methods import DistilMethodName
from lead.config.phases import Align, Between
from lead.config.recipe import ADDED, EXECUTION
from lead.config.schema import Distil, Lengths, ModelRef, Scoring, Train
from lead.config.sources import AnySource, Checks, Expect, PseudoQueries
from lead.config.types import Positive, PositiveInt, Precision, Reference, Seed, Strict

OwnIds = Annotated[bool, Field(description="leave out the passage with the query's own id")]


class PackagesSettings(Strict):
    """Read by `lead packages`."""

    python: str = Field("3.12", pattern=r"^3\.\d+$", description="the Python whose wheels are taken, on any machine")


class PrepareSettings(Strict):
    """Read by `lead prepare`."""

    source: AnySource = Field(description="the same key of the dataset file")
    queries: PseudoQueries | None = Field(
        None, description="draw train queries from the corpus; null: the source's", json_schema_extra=ADDED
    )
    dev_share: Annotated[float, Field(gt=0, lt=1)] = 0.05
    relevance: PositiveInt = 1
    checks: Checks = Checks()
    expect: Expect = Expect()


class Bm25Settings(Strict):
    """Read by `lead bm25`."""

    bm25: Bm25 = Bm25()
    depth: PositiveInt = 1000
    mine_depth: PositiveInt = 100
    relevance: PositiveInt = 1
    ignore_identical_ids: OwnIds = False


class ExternalSettings(Strict):
    """Read by `lead external`."""

    external_run: str = Field(min_length=1, description="file of ranked lists, or ir_datasets:ID")
    depth: PositiveInt = 1000


Generation = Annotated[
    int,
    Field(ge=0, description="number of earlier trainings of the model; with the seed it decides the order of batches"),
]


class OfKind(Strict):
    """Settings of a stage that makes a model of a kind: `scoring` has the defaults of that kind."""

    @model_validator(mode="before")
    @classmethod
    def _scoring_of_kind(cls, tree: Any) -> Any:
        kind = KINDS.get(str(tree.get("kind"))) if isinstance(tree, dict) else None
        given = tree.get("scoring", {}) if kind is not None else None
        return {**tree, "scoring": {**kind.scoring, **given}} if kind is not None and isinstance(given, dict) else tree


class TrainSettings(OfKind):
    """Read by `lead train`."""

    seed: Seed = 1
    model: ModelRef | None = Field(
        None, description="pretrained encoder to start from; null: the model given by --start"
    )
    kind: KindName = "de"
    scoring: Scoring = Scoring()
    lengths: Lengths = Lengths()
    train: Train = Train()
    generation: Generation = 0
    relevance: PositiveInt = 1


class PretrainedSettings(OfKind):
    """Read by `lead pretrained`."""

    model: ModelRef
    kind: KindName = "de"
    scoring: Scoring = Field(Scoring(), description="scales and layer features; the rest where the model says nothing")
    lengths: Lengths = Field(Lengths(), description="where the model says nothing of its own")
    given: list[str] = Field([], description="keys of scoring and lengths that win over what the model says of itself")

    @model_validator(mode="after")
    def _as_it_is(self) -> PretrainedSettings:
        if self.model.linear is not None:
            raise ValueError("method pretrained trains nothing, so `linear` would be an untrained layer; leave it out")
        return self


class DistilSettings(Strict):
    """Read by `lead distil`."""

    seed: Seed = 1
    method: DistilMethodName = "lead"
    score_weights: list[float] | None = Field(
        None, description="factors on --scores, one for each file; null: 1", json_schema_extra=ADDED
    )
    train: Train = Train()
    distil: Distil = Distil()
    generation: Generation = 0
    relevance: PositiveInt = 1


class AlignSettings(Strict):
    """Read by `lead align`."""

    seed: Seed = 1
    model: ModelRef | None = Field(
        None, description="pretrained encoder to start from; null: the model given by --start"
    )
    scoring: Scoring = Scoring()
    lengths: Lengths = Lengths()
    train: Train = Train()
    loss: Literal["squared", "cosine"] = Field("squared", description=Align.model_fields["loss"].description)
    epochs: Positive | None = Field(None, description="passes over the texts; null: train.steps steps")
    between: Between | None = Field(None, description="fewest and most steps", json_schema_extra=ADDED)
    generation: Generation = 0
    relevance: PositiveInt = 1


Shard = Annotated[
    Annotated[str, Field(pattern=r"^[1-9][0-9]*of[1-9][0-9]*$")] | None,
    Field(description="which part of the texts, such as 3of8; null: all"),
]


class TokenizeSettings(Strict):
    """Read by `lead tokenize`."""

    reference: Reference = Field(description="pretrained encoder that the tokenizer belongs to")
    length: Annotated[int, Field(ge=3)] = Field(144, description="tokens that a passage is cut to")
    prompt: str = Field("", description="what the encoder reads before each passage", json_schema_extra=ADDED)
    shard: Shard = None


class EncodeSettings(Strict):
    """Read by `lead encode`."""

    shard: Shard = None
    fp16: bool = False
    batch_tokens: PositiveInt = Field(16384, json_schema_extra=EXECUTION)
    precision: Precision = "bf16"


class IndexSettings(Strict):
    """Read by `lead index`."""

    index: str = Field(min_length=1, description="faiss's index_factory string, such as IVF1024,Flat or HNSW32")
    seed: int = Field(1, ge=0, description="seed of the sample that the index is trained on")


class MineSettings(Strict):
    """Read by `lead mine`."""

    mine_depth: PositiveInt = 100
    relevance: PositiveInt = 1
    mining: Mining = Mining()
    ignore_identical_ids: OwnIds = False
    index_parameters: str | None = Field(None, description="of approximate indexes, such as nprobe=16; null: faiss's")


class DenoiseSettings(Strict):
    """Read by `lead denoise`."""

    depth: PositiveInt = Field(100, description="negatives of a list that are scored; the rest is dropped")
    keep_below: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1, description="a negative stays if its probability of beating the best positive is lower"
    )
    relevance: PositiveInt = 1
    batch_tokens: PositiveInt = Field(16384, json_schema_extra=EXECUTION)
    precision: Precision = "bf16"


class ScoreSettings(Strict):
    """Read by `lead score`."""

    depth: PositiveInt = Field(100, description="negatives of a list that are scored, beside the relevant passages")
    relevance: PositiveInt = 1
    batch_tokens: PositiveInt = Field(16384, json_schema_extra=EXECUTION)
    precision: Precision = "bf16"


class RetrieveSettings(Strict):
    """Read by `lead retrieve`."""

    depth: PositiveInt = 1000
    index_parameters: str | None = Field(None, description="of approximate indexes, such as nprobe=16; null: faiss's")


class RerankSettings(Strict):
    """Read by `lead rerank`."""

    rerank_depth: PositiveInt = 1000
    batch_tokens: PositiveInt = Field(16384, json_schema_extra=EXECUTION)
    precision: Precision = "bf16"


class EvaluateSettings(Strict):
    """Read by `lead evaluate`."""

    evaluation: Evaluation = Evaluation()
    ignore_identical_ids: OwnIds = False
    seed: Seed = 1
    made_by: dict[str, Any] = Field(
        {}, description="dataset, run and settings of the stages behind the list, copied into the result"
    )
