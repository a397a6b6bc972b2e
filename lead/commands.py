"""The stages as data: inputs, outputs and function of each command. The command line is built from them."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Stage:
    """One command. Inputs and outputs: name and help of an option. `?` after a name: optional; `+`: many paths."""

    about: str
    function: str  # "module:name", called with one keyword a path, `settings`, and `gpu` if `gpu` is true
    settings: str  # class in lead.config.stages
    inputs: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    gpu: bool = False
    ranks: bool = False  # whether several processes can share its work, one a GPU


CORPUS = "passages (Parquet: pid, text)"
QUERIES = "queries (Parquet: qid, text)"
QRELS = "relevance judgements (Parquet: qid, pid, rel)"
RANKED = "ranked lists (Parquet: qid, pid, rank, score)"
INDEX = "one index for each file of --passages, in the same order; default: exact search"
SEARCHED = "vectors of the corpus: one file, or its shards, which are searched one after the other"
PARTS = "instead of --passages: the results of this command for each shard, to be merged"
TRAINING_INPUTS = {
    "corpus": CORPUS,
    "queries": QUERIES + ": those that are trained on",
    "qrels": QRELS + " of the train queries",
    "dev-queries": QUERIES + ": those that checkpoints are compared on",
    "dev-qrels": QRELS + " of the dev queries",
    "negatives?": "hard negatives of train and dev queries (" + RANKED + "); without it negatives are drawn at random",
}

STAGES: dict[str, Stage] = {
    "packages": Stage(
        "Install pinned packages into a folder of their own, whose docstrings are a collection.",
        "lead.data.packages:packages",
        "PackagesSettings",
        inputs={"requirements": "packages with versions and hashes, in pip's format"},
        outputs={"out": "folder for their sources, which are read and never imported"},
    ),
    "prepare": Stage(
        "Convert a collection to Parquet: corpus, queries and judgements of train, dev and test.",
        "lead.data.prepare:prepare",
        "PrepareSettings",
        inputs={"corpus?": "for a source of kind evaluation: the prepared " + CORPUS + " that its queries search"},
        outputs={"out": "folder for corpus.parquet, queries.SPLIT.parquet, qrels.SPLIT.parquet, report.json"},
    ),
    "bm25": Stage(
        "Rank with BM25: the test queries as a run, the train and dev queries for hard negatives.",
        "lead.retrieval.bm25:bm25",
        "Bm25Settings",
        inputs={
            "corpus": CORPUS,
            "queries+?": QUERIES + ": train and dev, for negatives",
            "qrels+?": QRELS + " of these queries",
            "test-queries": QUERIES + ": those to rank as a run",
        },
        outputs={
            "negatives?": "hard negatives of train and dev queries, no known positive among them",
            "ranked": RANKED + " of the test queries",
        },
    ),
    "external": Stage(
        "Convert ranked lists of another system (MS MARCO's top1000, a TREC run) to Parquet.",
        "lead.data.external_run:external",
        "ExternalSettings",
        inputs={"corpus": CORPUS, "queries": QUERIES + ": those whose lists are kept"},
        outputs={"out": RANKED},
    ),
    "pretrained": Stage(
        "Take a ready dual encoder, ColBERT or cross encoder as it is: sentence-transformers, PyLate, transformers.",
        "lead.models.ready:pretrained",
        "PretrainedSettings",
        outputs={"out": "model folder"},
    ),
    "train": Stage(
        "Train a dual encoder, ColBERT or cross encoder with cross-entropy over its candidates (eqs. 10, 11).",
        "lead.train.stages:train",
        "TrainSettings",
        inputs=TRAINING_INPUTS
        | {
            "start?": "model folder that training continues from (instead of settings.model)",
            "passages+?": "vectors of the corpus, all shards: they do not change, only queries are learnt (ADORE)",
        },
        outputs={
            "out": "model folder",
            "state": "folder for checkpoints while training",
            "metrics": "JSON lines of training",
        },
        gpu=True,
        ranks=True,
    ),
    "align": Stage(
        "Align a student's vectors with a dual encoder teacher's, on texts without labels (LEAF).",
        "lead.train.align:align",
        "AlignSettings",
        inputs={
            "corpus": CORPUS,
            "queries": QUERIES + ": those of train, read as texts",
            "dev-queries": TRAINING_INPUTS["dev-queries"],
            "dev-qrels": TRAINING_INPUTS["dev-qrels"],
            "texts+?": "more texts, read as passages: .txt, a text a line, or files as of a corpus",
            "more-queries+?": "more queries, in such files",
            "start?": "model folder of the student (instead of settings.model)",
            "teacher": "the dual encoder teacher's model folder",
            "passages+?": "its vectors of the corpus, all shards (lead encode); else it encodes each passage once",
        },
        outputs={
            "out": "student's model folder",
            "state": "folder for checkpoints while training",
            "metrics": "JSON lines of training",
        },
        gpu=True,
        ranks=True,
    ),
    "distil": Stage(
        "Distil a teacher into a student: LEAD (eqs. 4 to 12), RD, FD or Margin-MSE (frozen teacher).",
        "lead.train.stages:distil",
        "DistilSettings",
        inputs=TRAINING_INPUTS
        | {
            "start": "student's model folder",
            "teacher?": "teacher's model folder",
            "scores+?": "instead of --teacher: files of scores (Parquet or TSV: qid, pid, score)",
        },
        outputs={
            "out": "student's model folder",
            "teacher-out?": "model folder of the jointly trained teacher",
            "state": "folder for checkpoints while training",
            "metrics": "JSON lines of training",
        },
        gpu=True,
        ranks=True,
    ),
    "tokenize": Stage(
        "Tokenize passages once, for every dual encoder with the same tokenizer and length.",
        "lead.data.tokens:tokenize",
        "TokenizeSettings",
        inputs={"texts": CORPUS},
        outputs={"out": "folder of the store of token ids (safetensors)"},
    ),
    "encode": Stage(
        "Encode passages or queries with a dual encoder.",
        "lead.retrieval.encode:encode",
        "EncodeSettings",
        inputs={
            "model": "dual encoder's model folder",
            "texts": "pid, text or qid, text: Parquet, or TSV, CSV or JSONL of your own",
            "tokens?": "store of the texts' token ids, made by tokenize with the same shard",
        },
        outputs={"out": "vectors (Parquet: id, vector)"},
        gpu=True,
    ),
    "index": Stage(
        "Build an approximate index over a shard's vectors, for mine and retrieve.",
        "lead.retrieval.index:index",
        "IndexSettings",
        inputs={"passages": "vectors of the corpus, or of a shard of it"},
        outputs={"out": "folder of the index (faiss's own format)"},
    ),
    "mine": Stage(
        "Mine hard negatives: the top of each train and dev query's list, without any known positive.",
        "lead.retrieval.mine:mine",
        "MineSettings",
        inputs={
            "passages+?": SEARCHED,
            "queries+": "vectors of train and dev queries",
            "qrels+": QRELS + " of these queries",
            "index+?": INDEX,
            "parts+?": PARTS,
            "corpus?": CORPUS + ": passages with the text of a positive are then no negatives either",
        },
        outputs={"out": RANKED},
        gpu=True,
    ),
    "denoise": Stage(
        "Remove the hard negatives that a cross encoder or ColBERT scores as relevant (RocketQA).",
        "lead.retrieval.denoise:denoise",
        "DenoiseSettings",
        inputs={
            "model": "model folder of the cross encoder or ColBERT",
            "corpus": CORPUS,
            "queries+": QUERIES + ": train and dev",
            "qrels+": QRELS + " of these queries",
            "negatives": RANKED,
        },
        outputs={"out": RANKED},
        gpu=True,
    ),
    "score": Stage(
        "Score the passages of train queries, for `lead distil --scores`; of a run's model: lead score DATASET/RUN.",
        "lead.retrieval.score:score",
        "ScoreSettings",
        inputs={
            "model": "model folder of any kind",
            "corpus": CORPUS,
            "queries+": QUERIES + " of train",
            "qrels+": QRELS + " of these queries",
            "negatives": RANKED + ": hard negatives",
        },
        outputs={"out": "scores (Parquet: qid, pid, score)"},
        gpu=True,
    ),
    "retrieve": Stage(
        "Search by inner product (eq. 1): exactly, with the kernel of faiss's IndexFlatIP, or through indexes.",
        "lead.retrieval.retrieve:retrieve",
        "RetrieveSettings",
        inputs={
            "passages+?": SEARCHED,
            "queries": "vectors of the queries",
            "index+?": INDEX,
            "parts+?": PARTS,
        },
        outputs={"out": RANKED},
        gpu=True,
    ),
    "rerank": Stage(
        "Rerank the top of a ranked list with ColBERT (eq. 2) or a cross encoder (eq. 3).",
        "lead.retrieval.rerank:rerank",
        "RerankSettings",
        inputs={
            "model": "model folder of the ColBERT or cross encoder",
            "corpus": CORPUS,
            "queries": QUERIES,
            "ranked": RANKED + " to rerank",
        },
        outputs={"out": RANKED},
        gpu=True,
    ),
    "evaluate": Stage(
        "Measure a ranked list against judgements, with values for each query and bootstrap intervals.",
        "lead.evaluation.evaluate:evaluate",
        "EvaluateSettings",
        inputs={"ranked": RANKED, "qrels": QRELS},
        outputs={
            "out": "result (JSON)",
            "per-query": "Parquet: qid, measure, value",
            "trec?": "also write the list as a TREC run file",
        },
    ),
}


def settings_class(stage: str) -> Any:
    """The class of a stage's settings."""
    return getattr(importlib.import_module("lead.config.stages"), STAGES[stage].settings)
