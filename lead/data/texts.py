"""The texts of a corpus, mapped into memory: random access for all ranks, at any size."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lead.errors import LeadError
from lead.store.atomic import scratch_file
from lead.store.tables import SCHEMAS, open_table, without_nulls


class SharedFile(Protocol):
    """What ranks need to share a file. lead.train.exchange.Exchange implements it."""

    rank: int

    def told(self, text: str) -> str:
        """Return the first rank's `text`."""

    def wait(self) -> None:
        """Wait for every rank."""


def mapped(corpus: Path, beside: Path, ranks: SharedFile | None = None) -> pa.Table:
    """A corpus whose ids and texts stay on disk (`mapped_batches`). Raises LeadError for a damaged corpus too."""
    return mapped_batches(lambda: _row_groups(corpus), beside, ranks)


def mapped_batches(
    batches: Callable[[], Iterable[pa.Table | pa.RecordBatch]], beside: Path, ranks: SharedFile | None = None
) -> pa.Table:
    """Texts (pid, text) that stay on disk, in an uncompressed temporary file beside the path `beside`.

    The first of the `ranks` writes what `batches` returns, and all map it. Its name is removed at once; the system
    frees the file when no process maps it any more. Memory: one batch while it is written; the system's cache of the
    file. Raises LeadError if the file cannot be written or mapped.
    """
    with contextlib.ExitStack() as stack:
        name = ""
        if ranks is None or ranks.rank == 0:
            file = stack.enter_context(scratch_file(beside))  # mapped pages stay when the name is gone
            with pa.ipc.new_file(file, SCHEMAS["corpus"]) as writer:
                for batch in batches():
                    writer.write(batch)
            name = str(file)
        name = name if ranks is None else ranks.told(name)
        try:
            found = pa.ipc.open_file(pa.memory_map(name)).read_all()
        except (OSError, pa.ArrowException) as e:
            raise LeadError(f"cannot map {name}: {str(e).splitlines()[0]}") from e
        if ranks is not None:
            ranks.wait()
    return found


def _row_groups(corpus: Path) -> Iterator[pa.Table]:
    table = open_table(corpus, "corpus")
    for group in range(table.num_row_groups):
        yield without_nulls(table.group(group), corpus).replace_schema_metadata()


def take_texts(column: pa.ChunkedArray, rows: Sequence[int] | NDArray[np.int64]) -> list[str]:
    """Strings of these rows. Arrow's `take` joins all chunks first, which copies them and fails above 2 GB of text."""
    starts, wanted = np.cumsum([0, *map(len, column.chunks)]), np.asarray(rows, dtype=np.int64)
    chunks = np.searchsorted(starts, wanted, side="right") - 1
    places = zip(chunks.tolist(), (wanted - starts[chunks]).tolist(), strict=True)
    return [column.chunk(chunk)[row].as_py() for chunk, row in places]
