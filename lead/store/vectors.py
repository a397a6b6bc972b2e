"""Vectors of texts on disk: Parquet files (id, vector), written by `lead encode`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lead.errors import LeadError
from lead.lists import Floats
from lead.store.tables import open_table, read_table, without_nulls, write_table

ROW_GROUP = 2**24  # numbers in a row group of a vectors file: 64 MB in float32


def write_vectors(ids: Sequence[str], vectors: NDArray[Any], path: str | Path, fp16: bool = False) -> None:
    """Write `vectors` [n, d] and the ids of their n texts to Parquet, in single or half precision.

    Raises LeadError if a number is not finite, or too large for half precision.
    """
    with np.errstate(over="ignore"):  # reported below
        flat = np.ascontiguousarray(vectors, dtype=np.float16 if fp16 else np.float32).reshape(-1)
    if not np.isfinite(flat).all():
        remedy = "; set retrieval.fp16 to false" if fp16 and np.isfinite(vectors).all() else ""
        raise LeadError(f"cannot write {path}: vectors hold NaN or infinite numbers{remedy}")
    width = vectors.shape[1]
    column = pa.FixedSizeListArray.from_arrays(pa.array(flat), width)
    table = pa.table({"id": pa.array(ids, pa.string()), "vector": column})
    write_table(table, path, row_group_size=max(1, ROW_GROUP // width), use_dictionary=False)


def read_vectors(path: str | Path) -> tuple[list[str], Floats]:
    """Ids and vectors (float32 [n, d], C-contiguous) of a file written by `write_vectors`.

    Raises LeadError for a missing or damaged file, for a file of another kind, and for NaN or infinite numbers.
    """
    width = _width(path)
    table = without_nulls(read_table(path), path)
    ids: list[str] = table["id"].to_pylist()
    vectors = np.empty((table.num_rows, width), dtype=np.float32)
    chunks = table["vector"].chunks[::-1]
    del table  # so that popping a chunk frees it; the corpus is never held twice
    start = 0
    while chunks:
        chunk = chunks.pop()
        block = vectors[start : start + len(chunk)]
        block[:] = chunk.flatten().to_numpy(zero_copy_only=False).reshape(block.shape)
        start += len(chunk)
        if not np.isfinite(block).all():
            raise LeadError(f"{path} holds NaN or infinite numbers: its model has diverged; train it with a lower lr")
    return ids, vectors


def _width(path: str | Path) -> int:
    """Width of the vectors in a file. Raises LeadError for a file of another kind."""
    schema = open_table(path).schema_arrow
    kind: Any = schema.field("vector").type if schema.names == ["id", "vector"] else pa.null()
    is_list = pa.types.is_fixed_size_list(kind) and kind.value_type in (pa.float16(), pa.float32())
    if not is_list or not pa.types.is_string(schema.field("id").type):
        raise LeadError(f"{path} is not a table of vectors (id: string, vector: d floats); make it with lead encode")
    return int(kind.list_size)


def read_ids(path: Path) -> pa.Array:
    """Ids of the vectors in a file. Raises LeadError for a file of another kind."""
    _width(path)
    return read_table(path, columns=["id"])["id"].combine_chunks()
