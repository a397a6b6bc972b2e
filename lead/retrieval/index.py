"""An approximate index over the vectors of a shard (`retrieval.index`), if exact search takes too long."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import numpy as np

from lead.config.stages import IndexSettings
from lead.errors import LeadError
from lead.retrieval.engine import load_faiss, make_index, reason, write_index
from lead.store.atomic import atomic_folder
from lead.store.checksums import identity
from lead.store.vectors import read_vectors

log = logging.getLogger("lead")

SAMPLE = 1 << 17  # training vectors of an index, at most


def index(*, settings: IndexSettings, passages: Path, out: Path) -> None:
    """Train an index on a sample of a shard's vectors, drawn with the seed, then add all vectors.

    One thread adds the vectors, because a graph's edges depend on their order. So the result is deterministic. Memory:
    the vectors and the index (Flat and HNSW hold the vectors again). Raises LeadError if there are too few vectors.
    """
    _, vectors = read_vectors(passages)
    made = make_index(settings.index, vectors.shape[1])
    rows = np.arange(len(vectors))
    if len(rows) > SAMPLE:
        rows = np.sort(np.random.default_rng(settings.seed).choice(rows, SAMPLE, replace=False))
    started = time.monotonic()
    try:
        made.train(vectors[rows])
        log.info("%s trained on %s of %s vectors in %.1f s", settings.index, f"{len(rows):,}", f"{len(vectors):,}",
                 time.monotonic() - started)  # fmt: skip
        load_faiss().omp_set_num_threads(1)
        made.add(vectors)
    except RuntimeError as e:
        raise LeadError(f"key 'retrieval.index': '{settings.index}' for {passages}: {reason(e)}") from e
    description = {"index": settings.index, "passages": identity(passages), "trained_on": len(rows)}
    with atomic_folder(out) as folder:
        write_index(made, folder, description)
