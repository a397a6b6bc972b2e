"""One contestant in a process of its own: `worker.py NAME ARGUMENTS INPUTS`. A line in asks, a line out is the cost.

NAME `inputs` makes the folder of inputs instead; NAME `vectors` adds the vectors, ARGUMENTS `true`: random ones.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import contestants
import rerankers

SHORT = 16  # tokens of a passage whose vector is searched


def serve(name: str, arguments: dict[str, int], inputs: Path) -> None:
    """Prepare the contestant, warm it up, then answer until there is no more line."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    try:
        request = getattr(contestants if hasattr(contestants, name) else rerankers, name)(inputs, **arguments)
        request()
    except Exception as e:  # a peer that is not installed, or does not run here
        print(json.dumps({"skipped": f"{type(e).__name__}: {' '.join(str(e).split())[:200]}"}), file=answers)
        return
    print(json.dumps({"ready": True}), file=answers)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        request()
        cost = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
        print(json.dumps(cost), file=answers)


def make_texts(inputs: Path) -> None:
    """The built-in collection: docstrings of the installed packages."""
    from lead.config.stages import PrepareSettings
    from lead.data.prepare import prepare

    packages = ["numpy", "scipy", "pandas", "sklearn"]
    source = {"kind": "pydocs", "packages": packages, "evaluation": 1000}
    prepare(settings=PrepareSettings.model_validate({"source": source}), out=inputs / "data")


def make_vectors(inputs: Path, drawn: bool) -> None:
    """passages.npy and queries.npy: MiniLM's vectors of the first 16 tokens of texts, or random ones."""
    import numpy as np

    rng = np.random.default_rng(0)
    for name, n, table in (("passages", 1 << 62, "corpus"), ("queries", 1024, "queries.train")):
        if drawn:
            x = rng.standard_normal((min(n, 2000), 384), dtype=np.float32)
            x /= np.linalg.norm(x, axis=1, keepdims=True)
        else:
            from lead.retrieval.encode import encode_ids

            model, texts = contestants._minilm("de", SHORT), contestants._texts(inputs, table)[:n]
            x = np.zeros((len(texts), model.size), np.float32)
            for rows, part in encode_ids(model, model.tokenize("passage", texts), 16384, "fp32", name):
                x[rows] = part.numpy()
        np.save(inputs / f"{name}.npy", x)


if __name__ == "__main__":
    name, arguments, inputs = sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3])
    if name == "inputs":
        make_texts(inputs)
    elif name == "vectors":
        make_vectors(inputs, arguments)
    else:
        serve(name, arguments, inputs)
