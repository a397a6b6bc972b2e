"""What the paper costs: floating-point operations and GPU-hours of every training run and encoding, from sizes alone.

    python benchmarks/flops.py

An estimate, not a measurement: no GPU was at hand. A token in a layer costs 24 d^2 + 4 L d operations forward (matrix
products and attention over L tokens), training three times that. Utilisation is the assumption to doubt first.
"""

from __future__ import annotations

from dataclasses import dataclass

WIDTH = 768
TEACHER, STUDENT = 12, 6
GPUS = {"V100 (125 TFLOP/s, 30 % used)": 125e12 * 0.3, "H100 (990 TFLOP/s, 35 % used)": 990e12 * 0.35}


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


# mean lengths of MS MARCO as BERT's tokenizer cuts it: passages about 80, documents nearly all above 480
COLLECTIONS = [
    Collection("MS-PAS", 8_841_823, 80, 80, 16),
    Collection("MS-DOC", 3_213_835, 440, 48, 8, depth=100, queries=5193),
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


def main() -> None:
    """Print a table for each collection."""
    for c in COLLECTIONS:
        de, student, ce = encode_step(TEACHER, c), encode_step(STUDENT, c), cross_step(c)
        small = student * c.cross_batch / c.batch
        rows = {
            "miner, teacher_de, teacher_cb (each)": 3 * de * c.steps,
            "teacher_ce": 3 * ce * c.steps,
            "student, student_more (each)": 3 * student * c.steps,
            "rd_de, rd_cb (each)": (3 * student + de) * c.steps,
            "lead_de, lead_cb (each)": 3 * (student + de) * c.steps,
            "rd_ce": (3 * small + ce) * c.steps,
            "lead_ce": 3 * (small + ce) * c.steps,
            "encoding, 12 layers": forward(TEACHER, c.passages * c.length, c.length),
            "encoding, 6 layers": forward(STUDENT, c.passages * c.length, c.length),
            "reranking with the cross encoder": forward(
                TEACHER, c.queries * c.depth * (c.length + c.query), c.length + c.query
            ),
        }
        times = {"miner, teacher_de, teacher_cb (each)": 3, "student, student_more (each)": 2}
        # Table 3 to 9: three kinds of RD, FD and LEAD, 5 more K, 2 strategies, 2 ablations, 3 + 2 linear, 4 of PROD
        study = 3 * rows["rd_de, rd_cb (each)"] + 15 * rows["lead_de, lead_cb (each)"] + 2 * rows["lead_ce"]
        everything = sum(v * times.get(k, 1) for k, v in rows.items()) + study + 25 * rows["encoding, 6 layers"]
        print(f"\n{c.name}: a LEAD step from a 12-layer teacher {3 * (student + de) / 1e12:.0f} TFLOP")
        for name, flops in {**rows, "all runs of the paper's tables": everything}.items():
            hours = "  ".join(f"{flops / speed / 3600:9.1f} h on a {gpu}" for gpu, speed in GPUS.items())
            print(f"  {name:<38} {flops / 1e18:9.2f} EFLOP {hours}")


if __name__ == "__main__":
    main()
