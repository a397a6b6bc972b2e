"""The vectors of a frozen teacher, each computed once: in a file that all ranks share, beside the checkpoints."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from lead.errors import LeadError
from lead.store.vectors import read_vectors
from lead.train.data import RowNumbers
from lead.train.exchange import Exchange


class Taught:
    """A teacher's vectors [n, d] of n texts, as far as they are known. They stay on disk: 4 d bytes a text, mapped.

    A row is written once. So a training that goes on from a checkpoint finds what was computed before it, to the bit.
    All ranks are on one machine; a row that a rank writes in one step is known to all in the next.
    """

    def __init__(self, folder: Path, n: int, width: int, ranks: Exchange) -> None:
        """`folder`: where the files are, or are made. Raises LeadError when they cannot be written."""
        files = (folder / "taught.f32", 4 * width), (folder / "taught.known", 1)
        try:
            if ranks.rank == 0:
                for path, size in files:
                    with path.open("ab") as file:
                        file.truncate(n * size)
            ranks.wait()
            self.vectors: NDArray[np.float32] = np.memmap(files[0][0], np.float32, "r+", shape=(n, width))
            self._known: NDArray[np.bool_] = np.memmap(files[1][0], np.bool_, "r+", shape=(n,))
        except OSError as e:
            raise LeadError(f"cannot write {folder}: {os.strerror(e.errno or 0)}") from e

    def known(self, rows: RowNumbers) -> NDArray[np.bool_]:
        """Which of these rows are known."""
        return np.asarray(self._known[rows])

    def put(self, rows: RowNumbers | slice, vectors: NDArray[Any]) -> None:
        """Write rows."""
        self.vectors[rows] = vectors
        self._known[rows] = True

    def take(self, rows: RowNumbers) -> Tensor:
        """The vectors [len(rows), d] of rows that are known, in float32."""
        return torch.from_numpy(np.asarray(self.vectors[rows]))

    def fill(self, files: Sequence[Path], ids: pa.ChunkedArray, ranks: Exchange) -> None:
        """Write the first rows from files of vectors (`lead encode`), all shards of the texts with these `ids`.

        Raises LeadError where they are of other texts or of another width. Memory: one file.
        """
        start = 0
        for file in files if ranks.rank == 0 and not self._known[: len(ids)].all() else ():
            found, vectors = read_vectors(file)
            if vectors.shape[1] != self.vectors.shape[1] or found != ids.slice(start, len(found)).to_pylist():
                raise LeadError(f"--passages: {file} is not the teacher's vectors of the corpus; encode again")
            self.put(slice(start, start + len(found)), vectors)
            start += len(found)
        ranks.wait()
