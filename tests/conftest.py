"""Shared fixtures: a tiny random BERT on disk and a tiny collection as Parquet. Nothing is downloaded."""

from __future__ import annotations

import os

# before NumPy or torch start their threads; tests are tiny, and may share the machine with an experiment
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import copy  # noqa: E402
import fcntl  # noqa: E402
import functools  # noqa: E402
import gc  # noqa: E402
import json  # noqa: E402
import shutil  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

from lead.store.tables import read_table, write_table  # noqa: E402
from lead.train.data import Queries, TrainingData  # noqa: E402

# a busy machine is no failure
settings.register_profile("lead", deadline=None)
settings.load_profile("lead")

TOPICS = {
    "array": "array matrix shape axis reshape transpose stride broadcast",
    "table": "table column row index merge group pivot join",
    "signal": "signal filter frequency fourier window spectrum sample phase",
    "model": "model layer gradient loss weight bias epoch batch",
    "tree": "tree node leaf split depth prune forest branch",
    "graph": "graph edge vertex path cycle degree clique walk",
    "text": "text token vocabulary stem word sentence query passage",
    "image": "image pixel kernel blur edge contour crop rotate",
}
COMMON = "the of a to compute return given with for each over and is from by".split()
# [PAD] is not 0, so that a pad id taken for granted shows
SPECIAL = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "[unused0]", "[unused1]"]
LAYERS = 4


def vocabulary() -> list[str]:
    words = sorted({w for topic in TOPICS.values() for w in topic.split()} | set(COMMON))
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)] + list("0123456789.,?!'\"-")
    return SPECIAL + words + [c for c in letters if c not in words] + ["##" + c for c in letters]


def make_tokenizer(folder: Path) -> Any:
    """Writes a WordPiece tokenizer for BERT into `folder`."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    ids = {word: i for i, word in enumerate(vocabulary())}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(t, ids[t]) for t in ("[CLS]", "[SEP]")],
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 64,
        **{f"{name}_token": f"[{name.upper()}]" for name in ("unk", "cls", "sep", "pad", "mask")},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return tokenizer


def make_bert(folder: Path, layers: int = LAYERS, hidden: int = 32, seed: int = 0, dropout: float = 0.1) -> Path:
    """Writes a random BERT, its layers clearly different from each other, with a tokenizer; returns the folder."""
    import torch
    from transformers import BertConfig, BertModel

    make_tokenizer(folder)
    config = BertConfig(
        vocab_size=len(vocabulary()),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=2 * hidden,
        max_position_embeddings=64,
        initializer_range=0.3,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        pad_token_id=vocabulary().index("[PAD]"),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


# `make test-fast`: what a change of a loss, a score, a setting or the plan breaks first
FAST = """
    losses layers scores house config plan stage_settings rows workflow table stats words copies mine folders dag_dry
""".split()

# Files that take more than about ten seconds, from the longest down. `make test` deals files out in this order, the
# others after them, so that all processes end together.
LONGEST = """
    site kills dag dag_kinds dag_marco ranks dag_run resume faults docs export tables dag_ready registry dag_free report
    cross cli step malformed fd dag_dry dag_liberal extending fd_released examples align loop workflows data_pydocs
    dag_report
""".split()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of the daily loop, by their files; put the longest files first."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem.removeprefix("test_"), len(places)))
    for item in items:
        if item.path.stem.removeprefix("test_") in FAST:
            item.add_marker("fast")


def pytest_collection_finish() -> None:
    """What was imported is there to stay: no search for garbage looks at it again."""
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a 4-layer BERT with hidden size 32 and dropout 0.1: load it as `path:<folder>`."""
    return make_bert(tmp_path_factory.mktemp("model") / "tiny-bert")


@pytest.fixture(scope="session")
def tiny_collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with what `lead prepare` makes: 160 passages; 48 train, 10 dev and 12 test queries; and negatives.parquet.

    Queries share words with their passages. Some have two relevant passages, one train query has no mined negative,
    and one passage starts with a quote.
    """
    folder = tmp_path_factory.mktemp("collection")
    rng = np.random.default_rng(7)
    names = list(TOPICS)

    def text(topic: str, n: int) -> str:
        words = [*TOPICS[topic].split()] * 2 + COMMON
        return " ".join(rng.choice(words, n))

    topics = [names[i % len(names)] for i in range(160)]
    texts = [text(t, int(rng.integers(4, 24))) for t in topics]
    texts[3] = '"' + texts[3]
    pids = [f"p{i}" for i in range(160)]
    write_table(pa.table({"pid": pids, "text": texts}), folder / "corpus.parquet", "corpus")
    mined: list[tuple[str, str, int, float]] = []
    used = 0
    for split, n in (("train", 48), ("dev", 10), ("test", 12)):
        qids, queries, qrels = [], [], []
        for i in range(n):
            row, qid = used % 160, f"{split}{i}"
            used += 1
            words = texts[row].split()
            qids.append(qid)
            queries.append(" ".join(rng.permutation(words)[: int(rng.integers(2, 6))]))
            relevant = [row, (row + 8) % 160] if i % 4 == 1 else [row]
            qrels += [(qid, pids[r], 1) for r in relevant]
            same = [r for r in range(160) if topics[r] == topics[row] and r not in relevant]
            if split != "test" and (split, i) != ("train", 5):
                mined += [
                    (qid, pids[r], k, -float(k)) for k, r in enumerate(rng.permutation(same)[:10].tolist(), start=1)
                ]
        write_table(pa.table({"qid": qids, "text": queries}), folder / f"queries.{split}.parquet", "queries")
        columns = dict(zip(("qid", "pid", "rel"), map(list, zip(*qrels, strict=True)), strict=True))
        write_table(pa.table(columns), folder / f"qrels.{split}.parquet", "qrels")
    columns = dict(zip(("qid", "pid", "rank", "score"), map(list, zip(*mined, strict=True)), strict=True))
    write_table(pa.table(columns), folder / "negatives.parquet", "ranked")
    return folder


def make_retriever(folder: Path, kind: Any = "de", **scoring: Any) -> Any:
    """An untrained retriever over the model in `folder`, queries of 8 and passages of 24 tokens.

    A folder is read once, and again when its weights have changed: reading it takes longer than a test's step.
    """
    from lead.config.kinds import KINDS
    from lead.config.schema import Lengths, Scoring

    weights = [folder / name for name in ("model.safetensors", "pytorch_model.bin")]
    read = _read_model(folder, next(file for file in weights if file.is_file()).stat().st_mtime_ns)
    encoder, tokenizer = copy.deepcopy((read.encoder, read.tokenizer))
    return KINDS[kind].load()(encoder, tokenizer, Scoring(**scoring), Lengths(query=8, passage=24))


@functools.cache
def _read_model(folder: Path, written: int) -> Any:
    import torch

    from lead.config.schema import Lengths, ModelRef, Scoring
    from lead.models.base import LayeredModel

    with torch.random.fork_rng():  # a seed of the test gives the same model, whether or not the folder is read now
        reference = ModelRef(reference=f"path:{folder}")
        return LayeredModel.pretrained(reference, "de", Scoring(pooling="mean"), Lengths(query=8, passage=24))


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of 6 layers and another width than the tiny model's."""
    return make_bert(tmp_path_factory.mktemp("teacher"), layers=6, hidden=16, seed=1)


@pytest.fixture(scope="session")
def data(tiny_collection: Path) -> TrainingData:
    corpus = read_table(tiny_collection / "corpus.parquet", "corpus")
    files = [tiny_collection / f"{name}.parquet" for name in ("queries.train", "qrels.train", "negatives")]
    return TrainingData(corpus, Queries(corpus["pid"], files[0], files[1], files[2], 1, 10), 4, 2, seed=5)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_collection: Path) -> Path:
    """A project in which Snakemake has made every run, in a folder with a blank. Tests must leave it as it is.

    Each process of the tests has a copy of its own, with its times; whichever comes first has it made.
    """
    from dag.project import ONE_THREAD, TARGETS, make_project, succeed

    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "made once"
    with (shared.parent / "made.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not shared.exists():
            folder = make_project(tmp_path_factory.mktemp("making") / "a project", tiny_model, tiny_collection)
            succeed(folder, *ONE_THREAD, "--", *TARGETS)
            folder.rename(shared)
    return Path(shutil.copytree(shared, tmp_path_factory.mktemp("made") / "a project"))


@pytest.fixture(scope="session")
def searchable(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_collection: Path) -> Any:
    """A project whose runs lead_cb, teacher_cb and bm25 on `tiny` can be searched (tests/searchable.py)."""
    from searchable import make_searchable

    return make_searchable(tmp_path_factory.mktemp("searchable"), tiny_model, tiny_collection)
