"""How the cost of exact search grows with the corpus: processor time of a query, and memory, up to 8.8 million vectors.

    python benchmarks/growth.py --out docs/figures            # about 5 minutes on one core, 2.3 GB

Random vectors of 32 dimensions, 256 queries, one thread. Writes growth.json and growth.svg. Each size runs in a process
of its own, since the most memory of a process never falls again.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

WIDTH, QUERIES = 32, 256
SIZES = [1_000, 4_000, 16_000, 64_000, 66_000, 256_000, 1_000_000, 3_000_000, 8_841_823]
DEPTHS = 100, 1000


def measure(n: int) -> dict[str, Any]:
    """Milliseconds of a query by depth, for our search and IndexFlatIP; the most memory in GB, without the peer's."""
    import numpy as np

    from lead.retrieval.engine import exact_engine, load_faiss
    from lead.retrieval.search import search

    rng = np.random.default_rng(0)
    passages, queries = (rng.standard_normal((m, WIDTH), dtype=np.float32) for m in (n, QUERIES))
    order, engine = np.arange(n), exact_engine(passages)
    load_faiss().omp_set_num_threads(1)

    def cost(request: Any) -> float:
        times = []
        for _ in range(5 if n < 10**6 else 2 if n < 5 * 10**6 else 1):
            started = time.process_time()
            request()
            times.append(time.process_time() - started)
        return round(1000 * median(times) / QUERIES, 4)

    ours = {str(k): cost(lambda k=k: list(search(queries, passages, k, order, engine))) for k in DEPTHS}
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    index = load_faiss().IndexFlatIP(WIDTH)
    index.add(passages)
    peer = {str(k): cost(lambda k=k: index.search(queries, k)) for k in DEPTHS}
    return {"passages": n, "lead_ms": ours, "faiss_ms": peer, "memory_gb": round(memory, 3)}


def draw(rows: list[dict[str, Any]], out: Path) -> None:
    """Time and memory against passages."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "growth", "svg.fonttype": "none"})
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    x = [row["passages"] for row in rows]
    for k, colour in zip(DEPTHS, ("tab:blue", "tab:orange"), strict=True):
        left.loglog(x, [row["lead_ms"][str(k)] for row in rows], "o-", c=colour, ms=3, label=f"LEAD, top {k}")
        left.loglog(x, [row["faiss_ms"][str(k)] for row in rows], "--", c=colour, label=f"IndexFlatIP, top {k}")
    right.loglog(x, [row["memory_gb"] for row in rows], "o-", c="tab:blue", ms=3, label="most memory")
    right.loglog(x, [n * WIDTH * 4 / 2**30 for n in x], ":", c="grey", label="vectors")
    left.set(xlabel="passages", ylabel="ms a query (CPU, one thread)")
    right.set(xlabel="passages", ylabel="GB")
    for axis in (left, right):
        axis.minorticks_off()
        axis.legend(fontsize=7, frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, metadata={"Date": None})


def main() -> None:
    """Measure every size, then draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.size:
        print(json.dumps(measure(args.size)))
        return
    rows = []
    for n in SIZES:
        command = [sys.executable, __file__, "--out", str(args.out), "--size", str(n)]
        one = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        rows.append(json.loads(subprocess.run(command, check=True, text=True, capture_output=True, env=one).stdout))
        print(rows[-1], flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    data = {"width": WIDTH, "queries": QUERIES, "rows": rows}
    (args.out / "growth.json").write_text(json.dumps(data, indent=1) + "\n")
    draw(rows, args.out / "growth.svg")


if __name__ == "__main__":
    main()
