"""The texts of a corpus, mapped into memory: any of them at once, whatever its size and the number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lead.artifacts import SCHEMAS, open_table, whole
from lead.errors import LeadError


def mapped(corpus: Path, file: Path, first: bool = True, wait: Callable[[], None] = lambda: None) -> pa.Table:
    """A corpus whose ids and texts stay on disk: uncompressed in `file`, which is gone when nobody reads it any more.

    Several ranks share one copy: the `first` writes it, `wait` returns when all of them are there. Memory: what the
    system keeps of the file, which it can drop at any time; one row group while it is written. Raises LeadError for a
    damaged corpus and a full disk.
    """
    if first:
        table = open_table(corpus, "corpus")
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with pa.ipc.new_file(file, SCHEMAS["corpus"]) as writer:
                for group in range(table.num_row_groups):
                    writer.write_table(whole(table.group(group), corpus).replace_schema_metadata())
        except (OSError, LeadError) as e:
            file.unlink(missing_ok=True)
            raise e if isinstance(e, LeadError) else LeadError(f"cannot write {file}: {e.strerror or e}") from e
    wait()
    found = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
    wait()
    if first:
        file.unlink()  # what is mapped stays until the last process has ended
    return found


def take_texts(column: pa.ChunkedArray, rows: Sequence[int] | NDArray[np.int64]) -> list[str]:
    """Strings of these rows. Arrow's own `take` joins all chunks first, which copies, and fails above 2 GB of text."""
    starts, wanted = np.cumsum([0, *map(len, column.chunks)]), np.asarray(rows, dtype=np.int64)
    chunks = np.searchsorted(starts, wanted, side="right") - 1
    places = zip(chunks.tolist(), (wanted - starts[chunks]).tolist(), strict=True)
    return [column.chunk(chunk)[row].as_py() for chunk, row in places]
