"""What `gpu_check.py` works with: random models and texts of any size, operations, and the checks against the CPU."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from lead.config.kinds import KINDS
from lead.config.schema import Distil, Layers, Lengths, Scoring, Train
from lead.device import allow_tf32
from lead.lists import Floats
from lead.models.base import LayeredModel
from lead.models.encoder import load_encoder
from lead.models.microbatch import MicroBatchEncoder
from lead.retrieval.encode import encode_ids
from lead.retrieval.search import search
from lead.retrieval.torch_index import torch_engine
from lead.store.tables import write_table
from lead.tokenizer import load_tokenizer
from lead.train.data import Queries, TrainingData
from lead.train.loop import Loop
from lead.train.step import DistilStep

CPU = torch.device("cpu")
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SCORING = {
    "de": {"pooling": "cls", "normalise": "unit", "scale": 20.0, "layer_normalise": "unit", "layer_scale": 20.0},
    "cb": {"normalise": "unit", "layer_normalise": "unit"},
    "ce": {},
}


@dataclass(frozen=True)
class Size:
    """Sizes of a LEAD step and of its models. K layer pairs; lengths in tokens."""

    width: int
    teacher: int
    student: int
    k: int
    batch: int
    negatives: int
    query: int
    passage: int
    words: int  # of the vocabulary
    encoded: int  # texts
    asked: int  # queries that are reranked
    depth: int  # passages of each
    vectors: int  # that are searched


PAPER = Size(768, 12, 6, 5, 80, 16, 32, 144, 30_517, 20_000, 20, 200, 1_000_000)
SMALL = Size(128, 4, 2, 2, 8, 3, 8, 40, 500, 300, 3, 20, 5_000)  # of the checks against the CPU
TINY = Size(64, 4, 2, 2, 4, 2, 8, 24, 300, 60, 2, 10, 2_000)


class Parts:
    """Random models and texts in a temporary folder."""

    def __init__(self, folder: Path, size: Size, seed: int = 0) -> None:
        self.folder, self.size, self.rng = folder, size, np.random.default_rng(seed)
        self.words = np.array([f"w{n}" for n in range(size.words)])

    def model(self, kind: str, layers: int, on: torch.device, seed: int = 0) -> LayeredModel:
        """A model of this kind around a random BERT, read from disk as users' models are."""
        from transformers import BertConfig, BertModel

        size, folder = self.size, self.folder / f"bert{layers}-{seed}"
        if not folder.exists():
            self._tokenizer(folder)
            config = BertConfig(vocab_size=len(SPECIAL) + size.words, hidden_size=size.width, num_hidden_layers=layers,
                                num_attention_heads=max(1, size.width // 64), intermediate_size=4 * size.width,
                                initializer_range=0.05 if size.width < 768 else 0.02)  # fmt: skip
            torch.manual_seed(seed)
            BertModel(config, add_pooling_layer=False).save_pretrained(folder)
        encoder, tokenizer = load_encoder(str(folder), "random"), load_tokenizer(str(folder), "random")
        torch.manual_seed(seed)
        made = KINDS[kind].load()
        model: LayeredModel = made(
            encoder, tokenizer, Scoring(**SCORING[kind]), Lengths(query=size.query, passage=size.passage)
        )
        return model.to(on)

    def _tokenizer(self, folder: Path) -> None:
        """A WordPiece tokenizer in which every word is one token."""
        from tokenizers import Tokenizer, models, pre_tokenizers, processors

        ids = {word: i for i, word in enumerate([*SPECIAL, *self.words.tolist()])}
        tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[(t, ids[t]) for t in ("[CLS]", "[SEP]")],
        )
        folder.mkdir(parents=True)
        tokenizer.save(str(folder / "tokenizer.json"))
        names = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "cls", "sep", "pad", "mask")}
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512, **names}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))

    def texts(self, n: int, tokens: int, full: bool) -> list[str]:
        """`n` texts: `full`, all of `tokens` tokens; else of 5/9 of that on average, as MS MARCO's passages of 144."""
        mean = np.log(tokens * 0.5)
        drawn = self.rng.lognormal(mean, 0.45, n).clip(3, tokens).astype(int)
        lengths = np.full(n, tokens) if full else drawn
        return [" ".join(self.rng.choice(self.words, length - 2)) for length in lengths]

    def data(self, steps: int, full: bool) -> TrainingData:
        """Batches of this size for some steps: each query has one relevant passage and mined negatives."""
        size, folder = self.size, Path(tempfile.mkdtemp(dir=self.folder))
        n = size.batch * steps
        passages = self.texts(n * (1 + size.negatives), size.passage, full)
        corpus = pa.table({"pid": [f"p{i}" for i in range(len(passages))], "text": passages})
        qids, own = [f"q{i}" for i in range(n)], 1 + size.negatives
        queries = pa.table({"qid": qids, "text": self.texts(n, size.query, full)})
        qrels = pa.table({"qid": qids, "pid": [f"p{i * own}" for i in range(n)], "rel": [1] * n})
        rows = [(q, f"p{i * own + r}", r, -float(r)) for i, q in enumerate(qids) for r in range(1, own)]
        columns = dict(zip(("qid", "pid", "rank", "score"), map(list, zip(*rows, strict=True)), strict=True))
        tables = {"queries": queries, "qrels": qrels, "ranked": pa.table(columns)}
        for name, table in tables.items():
            write_table(table, folder / f"{name}.parquet", name)
        files = [folder / f"{name}.parquet" for name in tables]
        judged = Queries(corpus["pid"].combine_chunks(), *files, 1, size.negatives)  # type: ignore[arg-type]
        return TrainingData(corpus, judged, size.batch, size.negatives, seed=1)

    def step(self, on: torch.device, **train: Any) -> DistilStep:
        """A LEAD step: a ColBERT teacher and a dual encoder, trained jointly, K random layer pairs."""
        size = self.size
        teacher, student = self.model("cb", size.teacher, on, 1), self.model("de", size.student, on, 2)
        options = Train(**{"batch_size": size.batch, "negatives": size.negatives, "dev_queries": 0, **train})
        return DistilStep(student, teacher, options, Distil(layers=Layers(k=size.k)), 1, "lead")

    def loop(self, step: DistilStep, data: TrainingData, steps: int, name: str, **train: Any) -> list[dict[str, Any]]:
        """Train for some steps, as `lead distil` does; return the lines of metrics. `waited`: seconds, for batches."""
        options = step.train.model_copy(update={"steps": steps, **train})
        run = Loop(step, data, None, options, self.folder / name)
        run.run()
        self.waited = run.waited
        return [json.loads(line) for line in run.metrics.path.read_text().splitlines()]


# --- operations ------------------------------------------------------------------------------------------------------
def forward(lengths: list[int], layers: int, width: int) -> float:
    """Operations of a forward pass over texts of these lengths: 24 d^2 + 4 L d a token and layer."""
    return layers * sum(n * (24 * width**2 + 4 * n * width) for n in lengths)


def step_operations(step: DistilStep, data: TrainingData, size: Size) -> tuple[float, float]:
    """Operations of a LEAD step in the encoders, and in MaxSim. Forward and backward: three times the forward pass.

    What is computed again for cached gradients, and padding, do not count.
    """
    inputs = step.prepare(data.batch(0)).inputs
    lengths = {name: [len(i) for ids in of.values() for i in ids] for name, of in inputs.items()}
    encoders = forward(lengths["student"], size.student, size.width)
    encoders += forward(lengths["teacher"], size.teacher, size.width)
    q, p = (sum(map(len, inputs["teacher"][side])) for side in ("queries", "passages"))
    return 3 * encoders, 3 * (size.k + 1) * 2.0 * q * p * size.width


# --- checks against the CPU ------------------------------------------------------------------------------------------
def difference(a: Any, b: Any) -> float:
    """|a - b| / |b| of two vectors."""
    a, b = (torch.as_tensor(x).double().cpu().flatten() for x in (a, b))
    return float((a - b).norm() / b.norm())


def check_gradients(parts: Parts, on: torch.device) -> dict[str, Any]:
    """Loss and gradients of one LEAD step, with the graph and with cached gradients, in every precision."""
    data, found = parts.data(1, full=False), {}
    cases = {"cpu": (CPU, "fp32", 10**9)}
    for precision in ("fp32", "bf16", "fp16"):
        cases |= {precision: (on, precision, 10**9), f"{precision} cached": (on, precision, 400)}
    for name, (where, precision, above) in cases.items():
        step = parts.step(where, precision=precision, cache_above=above, dropout=0.0, micro_tokens=400)
        loss = step(step.prepare(data.batch(0)), 0)
        scale = step.scaler.get_scale()
        parameters = [p for model in step.trained().values() for p in model.parameters()]
        gradients = [p.grad.cpu().flatten() / scale for p in parameters if p.grad is not None]
        found[name] = float(loss.total.detach()), torch.cat(gradients)
    loss_of, gradient = found.pop("cpu")
    result = {k: {"loss": abs(v[0] / loss_of - 1), "gradient": difference(v[1], gradient)} for k, v in found.items()}
    limits = {"fp32": (1e-4, 1e-3), "bf16": (0.02, 0.1), "fp16": (0.01, 0.05)}
    for name, one in result.items():
        most = limits[name.split()[0]]
        one["passed"] = one["loss"] <= most[0] and one["gradient"] <= most[1]
    return {"passed": all(one["passed"] for one in result.values()), "relative difference from the CPU": result}


def check_training(parts: Parts, on: torch.device) -> dict[str, Any]:
    """Eight steps in bf16 and fp16 with dropout, whole and resumed from the checkpoint of step 5."""
    data, result = parts.data(8, full=False), {}
    for precision in ("bf16", "fp16"):
        ended = []
        for name, every in (("whole", 100), ("resumed", 5)):
            for go_on in range(1 if name == "whole" else 2):
                step = parts.step(on, precision=precision, lr=1e-3, dropout=0.1, checkpoint_every=every, warmup=0.0)
                lines = parts.loop(step, data, 8, f"{precision} {name}")
                assert len(lines) == 8, f"run {go_on}: {len(lines)} lines"
            ended.append(torch.cat([p.detach().cpu().flatten() for p in step.student.parameters()]))
        far = difference(ended[1], ended[0])
        bits = bool(torch.equal(*ended))
        result[precision] = {"same bits": bits, "difference": far, "losses": [line["loss"]["total"] for line in lines]}
    passed = all(one["difference"] <= (0.0 if on.type == "cpu" else 1e-4) for one in result.values())
    return {"passed": passed, **result}


def check_encoding(parts: Parts, on: torch.device) -> dict[str, Any]:
    """Vectors of texts, against the CPU's in float32."""
    texts = parts.texts(200, parts.size.passage, full=False)

    def vectors(where: torch.device, precision: str) -> Floats:
        model = parts.model("de", parts.size.student, where, 2)
        allow_tf32(precision)
        ids, out = model.tokenize("passage", texts), np.zeros((len(texts), model.size), np.float32)  # type: ignore[operator]
        for rows, x in encode_ids(model, ids, 2000, precision, "check"):  # type: ignore[arg-type]
            out[rows] = x.numpy()
        return out

    exact = vectors(CPU, "fp32")
    far = {precision: difference(vectors(on, precision), exact) for precision in ("fp32", "bf16", "fp16")}
    return {"passed": far["fp32"] <= 1e-4 and max(far.values()) <= 0.05, "relative difference from the CPU": far}


def check_reranking(parts: Parts, on: torch.device) -> dict[str, Any]:
    """Scores of a ColBERT and of a cross encoder, against the CPU's in float32."""
    size, far = parts.size, {}
    queries, passages = parts.texts(2, size.query, False), parts.texts(30, size.passage, False)
    for kind in ("cb", "ce"):
        for precision in ("fp32", "bf16", "fp16"):
            scores = []
            for where, how in ((on, precision), (CPU, "fp32")):
                model = parts.model(kind, size.teacher, where, 1).eval()
                allow_tf32(how)
                with torch.inference_mode():
                    score = model.scorer(queries, passages, MicroBatchEncoder(2000, how))
                    scores.append(np.concatenate([score(q, np.arange(30)) for q in range(2)]))
            far[f"{kind} {precision}"] = difference(*scores)
    return {"passed": max(far.values()) <= 0.05, "relative difference from the CPU": far}


def check_search(parts: Parts, on: torch.device) -> dict[str, Any]:
    """Lists by PyTorch on the device, in one block and in many, against those on the CPU: equal, ties by id."""
    rng = np.random.default_rng(3)
    passages, queries = (rng.integers(-3, 4, (n, 16)).astype(np.float32) for n in (3000, 40))
    order = rng.permutation(3000)
    lists = [
        next(search(queries, passages, 50, order, torch_engine(passages, where, block)))
        for where, block in ((CPU, 1 << 28), (on, 1 << 28), (on, 10_000))
    ]
    same = all(np.array_equal(a, b) for other in lists[1:] for a, b in zip(other, lists[0], strict=True))
    return {"passed": same}


CHECKS = {
    "losses and gradients": check_gradients,
    "training and resuming": check_training,
    "encoding": check_encoding,
    "reranking": check_reranking,
    "search": check_search,
}
