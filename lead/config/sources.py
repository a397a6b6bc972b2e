"""Where a dataset comes from, and what it must fulfil. Part of `lead.config.schema`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, create_model, model_validator

from lead.config.recipe import ADDED
from lead.config.types import Name, PositiveInt, Seed, Strict

IR_DATASETS = "ir_datasets:"  # before an id of the library, where a file could stand


class Source(Strict):
    """Where a dataset comes from. A source is a subclass, a member of `AnySource` and a function (docs/extending.md).

    collect: "module:function" that reads a source of this class and returns a `lead.data.collection.Collection`.
    paths: the keys that hold paths of files, relative to the dataset file.
    """

    collect: ClassVar[str]
    paths: ClassVar[frozenset[str]] = frozenset()

    @property
    def on_disk(self) -> bool:
        """Whether `paths` are on this machine, not in a repository of the hub."""
        return bool(self.paths)


class PydocsSource(Source):
    """Docstrings of packages: query = summary line, passage = the rest."""

    collect = "lead.data.pydocs:collect"
    paths = frozenset({"folder", "requirements"})
    kind: Literal["pydocs"]
    packages: list[str] = Field(min_length=1, description="import names; sources are parsed, never imported")
    folder: str | None = Field(
        None,
        min_length=1,
        description="of the packages (pip install --target), relative to the dataset file; null: the environment",
        json_schema_extra=ADDED,
    )
    requirements: str | None = Field(
        None,
        min_length=1,
        description="instead of folder: a file of pinned packages with hashes, relative to the dataset file; the "
        "workflow keeps their sources in results/{dataset}/packages (`lead packages`)",
        json_schema_extra=ADDED,
    )
    evaluation: PositiveInt = Field(1000, description="queries held out for evaluation (by hash)")
    passages: PositiveInt | None = Field(None, description="keep only about this many passages (by hash); null: all")

    @property
    def on_disk(self) -> bool:
        """Whether the packages are in a folder, not in the environment."""
        return self.folder is not None or self.requirements is not None

    @model_validator(mode="after")
    def _one_place(self) -> PydocsSource:
        if self.folder is not None and self.requirements is not None:
            raise ValueError("give either `folder` or `requirements`")
        return self


class SplitFiles(Strict):
    """Queries and relevance judgements of one split."""

    queries: str = Field(description="TSV or CSV (id, text), JSONL (_id, text) or Parquet (qid, text); .gz or .zst too")
    qrels: str = Field(
        description="TREC (qid, any, pid, rel), TSV, CSV, JSONL or Parquet (qid, pid, rel); .gz or .zst too"
    )


Fields = Annotated[
    list[Literal["title", "text"]],
    Field(min_length=1, description="fields that make up a passage, in this order; a missing title is skipped"),
]


class FilesSource(Source):
    """A collection on disk. Paths are relative to the dataset file. Header lines and field names tell the columns."""

    collect = "lead.data.files:collect"
    paths = frozenset({"corpus", "queries", "qrels"})
    kind: Literal["files"]
    corpus: str = Field(
        description="TSV or CSV (id, [title,] text, or as its header says), JSONL (_id, title, text) or Parquet; "
        ".gz or .zst too"
    )
    fields: Fields = ["title", "text"]
    train: SplitFiles | None = Field(None, description="null: drawn from the corpus (key `queries` of the dataset)")
    test: SplitFiles | None = Field(
        None, description="the evaluation split; null, where train is drawn from the corpus: models only, no results"
    )
    dev: SplitFiles | None = Field(None, description="null: carved from train")


class BeirSource(Source):
    """A folder in BEIR's layout: corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv; .gz or .zst too."""

    collect = "lead.data.files:collect"
    paths = frozenset({"folder"})
    kind: Literal["beir"]
    folder: str = Field(min_length=1, description="relative to the dataset file")
    fields: Fields = ["title", "text"]
    train: str | None = Field("train", min_length=1, description="name of the judgements in qrels/ to train on")
    test: str = Field("test", min_length=1, description="name of those to evaluate on")
    dev: str | None = Field(None, min_length=1, description="null: qrels/dev if it is there, else carved from train")


class HfSource(Source):
    """A dataset in MTEB's layout: configurations corpus, queries and default (or qrels), as Parquet, JSONL or TSV."""

    collect = "lead.data.files:collect"
    paths = frozenset({"folder", "qrels"})
    kind: Literal["hf"]
    folder: str | None = Field(None, min_length=1, description="a downloaded repository, relative to the dataset file")
    repository: str | None = Field(
        None, pattern=r"^[\w.-]+/[\w.-]+$", description="instead of folder: its name on the hub, such as mteb/scifact"
    )
    revision: str | None = Field(None, min_length=1, description="commit or tag of the repository; null: the newest")
    qrels: str | None = Field(
        None,
        min_length=1,
        description="folder or repository of the judgements, if they are not with the rest (BeIR/scifact-qrels)",
    )
    fields: Fields = ["title", "text"]
    train: str | None = Field("train", min_length=1, description="split of the judgements to train on")
    test: str = Field("test", min_length=1, description="split to evaluate on")
    dev: str | None = Field(
        None, min_length=1, description="null: the split dev or validation if there is one, else carved from train"
    )

    @property
    def on_disk(self) -> bool:
        """Whether it is a folder, not a repository."""
        return self.repository is None

    @model_validator(mode="after")
    def _one_place(self) -> HfSource:
        if (self.folder is None) == (self.repository is None):
            raise ValueError("give either `folder` or `repository`")
        if self.revision is not None and self.repository is None:
            raise ValueError("`revision` is that of a `repository`; leave it out")
        return self


class IrDatasetsSource(Source):
    """A collection of the library ir_datasets, which downloads it."""

    collect = "lead.data.ir:collect"
    kind: Literal["ir_datasets"]
    corpus: str = Field(description="id whose docs are the corpus, such as msmarco-passage")
    fields: list[str] = Field(["text"], min_length=1, description="fields that make up a passage, in this order")
    train: str | None = Field(
        None, description="id whose queries and qrels are the train split; null: drawn from the corpus (key `queries`)"
    )
    test: str = Field(description="id of the evaluation split")
    dev: str | None = Field(None, description="id of the dev split; null: carved from train")


class EvaluationSource(Source):
    """More evaluation queries for another dataset, which gives corpus, models, embeddings and index."""

    paths = frozenset({"queries", "qrels"})
    kind: Literal["evaluation"]
    of: Name = Field(description="the dataset that corpus and models come from")
    test: SplitFiles | str = Field(description="files of queries and qrels, or an id of ir_datasets")


OnDisk = FilesSource | BeirSource | HfSource
AnySource = Annotated[
    PydocsSource
    | FilesSource
    | BeirSource
    | HfSource
    | IrDatasetsSource
    | EvaluationSource,
    Field(discriminator="kind"),
]  # fmt: skip
KINDS_OF_SOURCE = tuple(get_args(cls.model_fields["kind"].annotation)[0] for cls in get_args(get_args(AnySource)[0]))


_KEYS_OF_QUERIES: dict[str, Any] = {
    "from": (
        Literal["titles", "sentences", "crops"],
        Field(description="titles: of passages (of files); sentences: one of a passage; crops: 4 to 20 words of it"),
    ),
    "number": (PositiveInt, Field(100_000, description="at most so many queries, one a passage")),
    "seed": (Seed, Field(1, description="seed of which passages, and what of them")),
}
PseudoQueries = create_model(  # `from` is a word of Python
    "PseudoQueries", __base__=Strict, __doc__="Train queries that are drawn from the corpus itself.", **_KEYS_OF_QUERIES
)


class Expect(Strict):
    """Known counts of a collection. Preparation stops if a count differs: something is missing."""

    passages: PositiveInt | None = Field(None, description="passages of the corpus")
    train: PositiveInt | None = Field(None, description="judged train queries, dev carved from them included")
    test: PositiveInt | None = Field(None, description="judged evaluation queries")


class Checks(Strict):
    """Largest shares of unusual data. Preparation stops above them."""

    duplicate_passages: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5, description="passages whose text occurs before"
    )
    unjudged_queries: Annotated[float, Field(ge=0, le=1)] = Field(0.9, description="queries without a relevant passage")
    unresolved_judgements: Annotated[float, Field(ge=0, le=1)] = Field(
        0.1, description="judgements of unknown qid or pid"
    )
    empty_passages: Annotated[float, Field(ge=0, le=1)] = Field(0.1, description="passages without text")
