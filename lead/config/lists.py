"""Keys of retrieval and evaluation: BM25, mining, denoising, search and measures."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lead.config.recipe import EXECUTION
from lead.config.types import Count, Name, NonNegative, PositiveInt, Seed, Strict


class Denoise(Strict):
    """Removal of hard negatives that a strong model scores as relevant (RocketQA)."""

    depth: PositiveInt = Field(100, description="negatives of a list that are scored; the rest is dropped")
    keep_below: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1, description="a negative stays if its probability of beating the best positive is lower"
    )


class Bm25(Strict):
    """BM25, for negatives and as a run. Defaults are those of Anserini."""

    k1: NonNegative = Field(
        0.9, description="saturation: with a lower value, further occurrences of a word add less to the score"
    )
    b: Annotated[float, Field(ge=0, le=1)] = Field(0.4, description="length normalisation: 0 none, 1 full")
    analyser: Literal["english", "unicode", "code"] = Field(
        "english",
        description="what a word is; english: as Lucene's EnglishAnalyzer; unicode: any language, no stems or stop "
        "words; code: english, and the parts of identifiers at _, . and camelCase",
    )
    stemmer: Literal["porter", "english", "none"] | None = Field(
        None, description="porter: Lucene's; english: Porter2; null: porter, and none with analyser unicode"
    )
    stop_words: bool | None = Field(
        None, description="leave out Lucene's 33 English stop words; null: yes, and no with analyser unicode"
    )


class Mining(Strict):
    """Which of the passages that `lead mine` finds become negatives, by the miner's scores. See `denoise` too.

    As in sentence-transformers' mine_hard_negatives. Without these keys: all but known positives.
    """

    margin: NonNegative | None = Field(None, description="how far below the lowest-scoring positive a negative scores")
    relative_margin: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="the margin as a share of that score: .05 keeps negatives up to 95 % of it"
    )
    range_min: Count = Field(0, description="skip this many of the best remaining passages")
    range_max: PositiveInt | None = Field(
        None, description="look at this many of the best passages; null: range_min + retrieval.mine_depth"
    )
    sampling: Literal["top", "random"] = Field(
        "top", description="which of the remaining passages: the top, or a random sample"
    )
    seed: Seed = Field(1, description="seed of random sampling")

    @model_validator(mode="after")
    def _range(self) -> Mining:
        if self.range_max is not None and self.range_max <= self.range_min:
            raise ValueError(f"range_max {self.range_max} leaves nothing after range_min {self.range_min}; raise it")
        return self


class Retrieval(Strict):
    """Search: the depth of each list (section 4.3), and the index."""

    depth: PositiveInt = Field(1000, description="passages in a ranked list")
    mine_depth: PositiveInt = Field(100, description="hard negatives mined for a query")
    ignore_identical_ids: bool = Field(
        False,
        description="leave the passage with the query's own id out of negatives and of evaluated lists, as BEIR does: "
        "for collections whose queries are passages (ArguAna, Quora)",
    )
    rerank_depth: PositiveInt = Field(1000, description="passages reranked by CB and CE (1000 PAS, 100 DOC)")
    cross_depth: PositiveInt | None = Field(None, description="passages reranked by CE; null: rerank_depth")
    rerank_from: Name = Field(
        "teacher_de", description="run whose list CB and CE rerank: a dual encoder's, `bm25` or `external`"
    )
    index: str | None = Field(
        None, min_length=1, description="faiss's index_factory string (IVF1024,Flat; HNSW32; ..); null: exact search"
    )
    index_parameters: str | None = Field(
        None,
        min_length=1,
        description="parameters of a search in that index: nprobe=16, efSearch=128, ..; null: faiss's defaults",
    )
    fp16: bool = Field(False, description="store embeddings in half precision")
    batch_tokens: PositiveInt = Field(16384, description="padded tokens encoded at a time", json_schema_extra=EXECUTION)


class Evaluation(Strict):
    """The measures and their confidence intervals."""

    measures: list[str] = Field(["RR@10", "AP@1000", "R@1000"], min_length=1, description="as ir_measures writes them")
    relevance: PositiveInt = Field(
        1, description="grade from which a passage is relevant for binary measures and training"
    )
    resamples: PositiveInt = Field(1000, description="bootstrap resamples of the confidence intervals")
    confidence: Annotated[float, Field(gt=0, lt=1)] = Field(0.95, description="of these intervals")
