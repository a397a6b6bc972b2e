"""How much each layer of a trained model knows, and whether its distribution can teach.

    python benchmarks/layers.py results/pydocs teacher_cb student

Prints, for each way of scaling layer features, MRR@10 of every layer on dev queries and the mean entropy in nats of its
distribution over a training batch: near 0 it is one-hot, near the log of the candidates it is flat; neither teaches.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from lead.methods.losses import entropy, log_distribution
from lead.models.bi_encoder import BiEncoder
from lead.models.features import mask_columns
from lead.models.microbatch import MicroBatchEncoder
from lead.store.tables import read_table
from lead.train.data import Queries, TrainingData
from lead.train.dev import DevPool

SCALINGS = [("none", 1.0), ("unit", 1.0), ("standard", 1.0), ("standard", 2.0)]


@torch.no_grad()
def main() -> None:
    """Print a line for each model and scaling."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="results/{dataset}, with negatives/miner.parquet")
    parser.add_argument("runs", nargs="+", help="runs whose models are read")
    parser.add_argument("--queries", type=int, default=60, help="dev queries (default 60)")
    args = parser.parse_args()
    data, negatives = args.results / "data", args.results / "negatives/miner.parquet"
    corpus = read_table(data / "corpus.parquet", "corpus")
    splits = {
        s: Queries(corpus["pid"], data / f"queries.{s}.parquet", data / f"qrels.{s}.parquet", negatives, 1, 100)
        for s in ("train", "dev")
    }
    pool, stream = (
        DevPool(corpus, splits["dev"], args.queries, 5),
        TrainingData(corpus, splits["train"], 16, 3, seed=99),
    )
    encode, batch = MicroBatchEncoder(16384), stream.batch(0)
    everything = torch.arange(len(pool.passages)).expand(len(pool.queries), -1)
    candidates = mask_columns(everything, torch.zeros_like(pool.relevant), torch.zeros(len(pool.queries)).long())
    for run in args.runs:
        model = BiEncoder.load(args.results / "models" / run).eval()
        layers = tuple(range(1, model.n_layers + 1))
        dev, train = (
            [
                encode(model, model.tokenize("query", q), layers, "q"),
                encode(model, model.tokenize("passage", p), layers, "p"),
            ]
            for q, p in ((pool.queries, pool.passages), (batch.queries, batch.passages))
        )
        for normalise, scale in SCALINGS:
            model.scoring = model.scoring.model_copy(update={"layer_normalise": normalise, "layer_scale": scale})
            s = model.score(dev[0], dev[1], candidates).s
            best = s.masked_fill(~pool.relevant, -torch.inf).max(-1, keepdim=True).values
            rank = 1 + ((s >= best) & ~pool.relevant).sum(-1)
            mrr = torch.where(rank <= 10, 1 / rank, torch.zeros(())).mean(-1)
            own = batch.candidates("batch")
            log_p = log_distribution(model.score(train[0], train[1], own).s, own.keep)
            entropies = entropy(log_p, own.keep).mean(-1)
            print(
                f"{run:<14} {normalise:>8} x {scale:g}  MRR@10 {' '.join(f'{v:.3f}' for v in mrr)}"
                f"  entropy {' '.join(f'{v:.2f}' for v in entropies)}",
                flush=True,
            )


if __name__ == "__main__":
    main()
