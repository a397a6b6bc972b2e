"""Where a dataset comes from, and what must be true of it. Part of `lead.config.schema`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from lead.config.types import Name, PositiveInt, Strict

IR_DATASETS = "ir_datasets:"  # before an id of the library, where a file could stand


class PydocsSource(Strict):
    """Docstrings of installed packages: query = summary line, passage = the rest."""

    kind: Literal["pydocs"]
    packages: list[str] = Field(min_length=1, description="import names; sources are parsed, never imported")
    evaluation: PositiveInt = Field(1000, description="queries held out for evaluation (by hash)")
    passages: PositiveInt | None = Field(None, description="keep only about this many passages (by hash); null: all")


class SplitFiles(Strict):
    """Queries and relevance judgements of one split."""

    queries: str = Field(description="TSV (id, text), JSONL (_id, text) or Parquet (qid, text); .gz too")
    qrels: str = Field(
        description="TREC (qid, any, pid, rel), BEIR TSV with header, or Parquet (qid, pid, rel); .gz too"
    )


class FilesSource(Strict):
    """A collection on disk. Paths are relative to the dataset file."""

    kind: Literal["files"]
    corpus: str = Field(
        description="TSV (id, [title,] text), JSONL (_id, title, text) or Parquet (pid, [title,] text); .gz too"
    )
    fields: list[Literal["title", "text"]] = Field(
        ["title", "text"],
        min_length=1,
        description="what a passage is made of, in this order; a missing title is skipped",
    )
    train: SplitFiles
    test: SplitFiles = Field(description="the evaluation split")
    dev: SplitFiles | None = Field(None, description="null: carved from train")


class IrDatasetsSource(Strict):
    """A collection of the library ir_datasets, which downloads it."""

    kind: Literal["ir_datasets"]
    corpus: str = Field(description="id whose docs are the corpus, such as msmarco-passage")
    fields: list[str] = Field(["text"], min_length=1, description="what a passage is made of, in this order")
    train: str = Field(description="id whose queries and qrels are the train split")
    test: str = Field(description="id of the evaluation split")
    dev: str | None = Field(None, description="id of the dev split; null: carved from train")


class EvaluationSource(Strict):
    """More evaluation queries for another dataset: corpus, models, embeddings and index are that one's."""

    kind: Literal["evaluation"]
    of: Name = Field(description="the dataset that everything but the queries comes from")
    test: SplitFiles | str = Field(description="files of queries and qrels, or an id of ir_datasets")


AnySource = Annotated[PydocsSource | FilesSource | IrDatasetsSource | EvaluationSource, Field(discriminator="kind")]


class Expect(Strict):
    """Counts that are known of a collection; others stop the stage, for something is missing."""

    passages: PositiveInt | None = Field(None, description="passages of the corpus")
    train: PositiveInt | None = Field(None, description="judged train queries, dev carved from them included")
    test: PositiveInt | None = Field(None, description="judged evaluation queries")


class Checks(Strict):
    """Shares above which prepared data makes no sense and the stage stops."""

    duplicate_passages: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5, description="passages whose text occurs before"
    )
    unjudged_queries: Annotated[float, Field(ge=0, le=1)] = Field(0.9, description="queries without a relevant passage")
    unresolved_judgements: Annotated[float, Field(ge=0, le=1)] = Field(
        0.1, description="judgements of unknown qid or pid"
    )
    empty_passages: Annotated[float, Field(ge=0, le=1)] = Field(0.1, description="passages without text")
