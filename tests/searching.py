"""Search a whole set of vectors at once, for the tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from lead.lists import alphabetical
from lead.retrieval.search import search


def top_k(queries: Any, passages: Any, k: int, ids: Any = None) -> tuple[Any, Any]:
    """Positions and scores [m, min(k, n)] of the best passages; ties go to the first id, or to the first passage."""
    order = np.arange(len(passages)) if ids is None else alphabetical(pa.array(ids, pa.string()))
    k = min(k, len(passages))
    batches = list(search(queries, passages, k, order))
    found = [np.empty((0, k), dtype=np.int64), *(found for _, found, _ in batches)]
    scores = [np.empty((0, k), dtype=np.float32), *(scores for _, _, scores in batches)]
    return np.concatenate(found), np.concatenate(scores)
