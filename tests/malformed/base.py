"""What a row of the corpus of malformed inputs is, and the good inputs that a row spoils."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Content = bytes | dict[str, Any] | pa.Table
Command = list[str | Path]


@dataclass(frozen=True)
class Site:
    """Where a row may write (`folder`), and good inputs that it must leave as they are."""

    folder: Path
    model: Path  # a transformers folder, 4 layers
    dual: Path  # a dual encoder as lead saves it
    cross: Path  # a cross encoder as lead saves it
    collection: Path  # what `lead prepare` makes, and negatives.parquet

    def write(self, name: str, content: Content) -> Path:
        """Bytes, or columns as Parquet; compressed if the name ends in .gz and the content is not."""
        if not isinstance(content, bytes):
            buffer = io.BytesIO()
            pq.write_table(content if isinstance(content, pa.Table) else pa.table(content), buffer)
            content = buffer.getvalue()
        path = self.folder / name
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" and content[:2] != b"\x1f\x8b" else content)
        return path


@dataclass(frozen=True)
class Bad:
    """A malformed input: the command that is given it, and what the one line must say (a regular expression)."""

    name: str
    command: Callable[[Site], Command]
    says: str
    code: int = 1  # exit status; 2 is argparse's, which prints the usage first


def settings(**keys: Any) -> str:
    return json.dumps(keys)


def jsonl(*records: Any) -> bytes:
    """One JSON record a line."""
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)
