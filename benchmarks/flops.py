"""What the paper costs: floating-point operations and GPU-hours of every training run and encoding.

    python benchmarks/flops.py

An estimate from the speeds of a LEAD step, encoding and reranking on one H200 (docs/gpu.md). A token in a layer costs
24 d^2 + 4 L d operations forward (matrix products and attention over L tokens), training three times that.
"""

from __future__ import annotations

from dataclasses import dataclass

from lead.config.load import load
from lead.plan.plan import Plan
from lead.plan.targets import sensible

WIDTH = 768
TEACHER, STUDENT = 12, 6
# Operations a second. The H200's are measured: 13.5, 24 and 8 % of its 989 TFLOP/s (reranking by a cross encoder, bf16)
# The A100's are an assumption: 2.4 times slower, as its memory is
GPUS = {
    "A100": {"training": 56e12, "encoding": 100e12, "reranking": 33e12},
    "H200": {"training": 134e12, "encoding": 239e12, "reranking": 79e12},
}
WORK = {"encoding": "encoding", "reranking": "reranking", "denoising": "reranking"}  # of rows that are no training


@dataclass(frozen=True)
class Collection:
    """Sizes of one of the paper's collections; lengths in tokens after sorting into micro-batches."""

    name: str
    passages: int
    length: float  # mean of a passage, cut at the paper's maximum
    batch: int
    cross_batch: int
    negatives: int = 16
    query: float = 9.0
    steps: int = 50_000
    depth: int = 1000  # reranked for each evaluation query
    queries: int = 6980
    train: int = 502_939
    dataset: str = "mspas"


# mean lengths of MS MARCO as BERT's tokenizer cuts it: passages about 80, documents nearly all above 480
COLLECTIONS = [
    Collection("MS-PAS", 8_841_823, 80, 80, 16),
    Collection("MS-DOC", 3_213_835, 440, 48, 8, depth=100, queries=5193, train=367_013, dataset="msdoc"),
]


def forward(layers: int, tokens: float, length: float) -> float:
    """Operations of a forward pass over `tokens` tokens in texts of `length`."""
    return layers * tokens * (24 * WIDTH**2 + 4 * length * WIDTH)


def encode_step(layers: int, c: Collection) -> float:
    """Forward operations of encoding a step's queries and passages apart."""
    passages = c.batch * (1 + c.negatives)
    return forward(layers, passages * c.length, c.length) + forward(layers, c.batch * c.query, c.query)


def cross_step(c: Collection) -> float:
    """Forward operations of a cross encoder's step."""
    length = c.length + c.query
    return forward(TEACHER, c.cross_batch * c.negatives * length, length)


def training(plan: Plan, run: str, c: Collection) -> float:
    """Operations of one training run: three times the forward pass of what is trained, once that of what is frozen."""
    row = plan.rows[run]
    cross = plan.rows.kind(str(row.teacher or run)).candidates == "own"
    own = encode_step(TEACHER if plan.rows.root(run) == "teacher" else STUDENT, c)
    if not plan.rows.method(run).distils:
        if row.passages is not None:
            return 3 * forward(STUDENT, c.batch * c.query, c.query) * c.steps
        return 3 * (cross_step(c) if cross else own) * c.steps
    teacher = cross_step(c) if cross else encode_step(TEACHER, c)
    own *= c.cross_batch / c.batch if cross else 1
    return (3 * own + (3 if run in plan.rows.joint() else 1) * teacher) * c.steps


def main() -> None:
    """Print a table for each collection."""
    plan = Plan(load("config/config.yaml"))
    for c in COLLECTIONS:
        pair = c.length + c.query
        wanted = {str(row.run) for table in plan.paper.tables.values() for row in table.rows if row.run}
        wanted &= set(sensible(plan, c.dataset))
        trained = {a for run in wanted for a in plan.rows.ancestors(run) if plan.rows.method(a).trains}
        encoded = [a for a in trained if a in plan.rows.ranked_by("search") and plan.rows[a].passages is None]
        depth = plan.datasets[c.dataset].settings.denoise.depth
        reranked = [run for run in wanted if "rerank" in plan[c.dataset, run].stages]
        shown = ["teacher_cb", "teacher_ce", "student", "rd_cb", "rd_ce", "lead_cb", "lead_ce"]
        rows = {run: training(plan, run, c) for run in shown} | {
            f"all {len(trained)} trainings of the paper's tables": sum(training(plan, run, c) for run in trained),
            f"encoding the corpus {len(encoded)} times": sum(
                forward(TEACHER if plan.rows.root(run) == "teacher" else STUDENT, c.passages * c.length, c.length)
                for run in encoded
            ),
            f"reranking {len(reranked)} times": len(reranked) * forward(TEACHER, c.queries * c.depth * pair, pair),
            "denoising": forward(TEACHER, c.train * (1 + depth) * pair, pair),
        }
        chain = [a for a in plan.rows.ancestors("lead_cb") if plan.rows.method(a).trains]
        rows["lead_cb and all it is made from"] = sum(training(plan, run, c) for run in chain)
        print(f"\n{c.name}: a LEAD step from ColBERT {rows['lead_cb'] / c.steps / 1e12:.0f} TFLOP")
        for name, flops in rows.items():
            work = WORK.get(name.split()[0], "training")
            hours = "  ".join(f"{flops / speed[work] / 3600:9.1f} h on a {gpu}" for gpu, speed in GPUS.items())
            print(f"  {name:<42} {flops / 1e18:9.2f} EFLOP {hours}")


if __name__ == "__main__":
    main()
