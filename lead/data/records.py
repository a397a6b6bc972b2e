r"""Reading raw files record by record, in constant memory, with an error that names file and line.

Text files are split at b"\n" and tabs, and nowhere else: no quoting (a passage may start with a quote), and no other
Unicode line break (a passage may hold one). One carriage return before the newline belongs to the newline.
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import json
import math
import tempfile
import zlib
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from lead.errors import LeadError
from lead.store.checksums import read_checksum

FORMATS: dict[str, Literal["tsv", "jsonl", "parquet"]] = {
    ".tsv": "tsv", ".txt": "tsv", ".jsonl": "jsonl", ".json": "jsonl", ".parquet": "parquet",
}  # fmt: skip
PARQUET_ROWS = 4096  # rows decoded at a time
LINE = 64 << 20  # bytes of a line, at most
UNPACKED = 100  # times the size of a gzip file that its content may have; texts have 3 to 10 times
SMALL = 16 << 20  # bytes that any gzip file may hold


def bad(path: Path, line: int, what: str, remedy: str) -> LeadError:
    """The error for one line (or Parquet row), counted from 1: `file:line: what; remedy`."""
    return LeadError(f"{path}:{line}: {what}; {remedy}")


def format_of(path: Path) -> Literal["tsv", "jsonl", "parquet"] | None:
    """The format that a file's name promises, with or without `.gz`; None if it promises none."""
    return FORMATS.get(Path(path.name.removesuffix(".gz")).suffix)


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers. Raises LeadError for bad UTF-8, damaged or endless files."""
    number = read = 0
    with _reading(path) as file:
        most = _most(path)
        try:
            for number, raw in enumerate(iter(partial(file.readline, LINE + 1), b""), 1):
                read += len(raw)
                if len(raw) > LINE:
                    raise bad(path, number, f"line of more than {LINE >> 20} MiB", "is this a text file?")
                if read > most:
                    raise _bomb(path, number)
                raw = raw.removesuffix(b"\n").removesuffix(b"\r")
                if number == 1:
                    raw = raw.removeprefix(codecs.BOM_UTF8)
                if raw:
                    yield number, raw.decode()
        except UnicodeDecodeError as e:
            what = f"byte 0x{e.object[e.start]:02x} at column {e.start + 1} is not UTF-8"
            raise bad(path, number, what, "convert the file to UTF-8, or name it .gz if it is compressed") from None
        except (EOFError, zlib.error, gzip.BadGzipFile) as e:
            raise bad(path, number + 1, f"damaged or truncated gzip ({e})", "download the file again") from None
        except OSError as e:
            raise bad(path, number + 1, f"cannot be read ({e.strerror or e})", "check the disk") from e


def tsv(path: Path, widths: Collection[int], layout: str) -> Iterator[tuple[int, list[str]]]:
    """Tab-separated cells; the first line says which of the allowed widths the file has. `layout` explains them."""
    width = None
    for number, line in lines(path):
        cells = line.split("\t")
        if len(cells) not in widths or len(cells) != (width or len(cells)):
            raise bad(path, number, wrong_width(len(cells), width), f"expected {layout}, between tabs")
        width = len(cells)
        yield number, cells


def records(path: Path, names: Collection[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a JSONL or Parquet file as dictionaries; of a Parquet file only the columns in `names` are read."""
    if format_of(path) == "parquet":
        yield from _parquet(path, names)
        return
    for number, line in lines(path):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as e:
            raise bad(path, number, f"not valid JSON ({e})", "expected one JSON object a line") from None
        if not isinstance(record, dict):
            raise bad(path, number, f"a JSON {type(record).__name__}", "expected one JSON object a line")
        yield number, record


def identifier(path: Path, number: int, record: dict[str, Any], names: Collection[str]) -> str:
    """The id under the first of `names` that the record has, as a string; whole numbers are welcome."""
    value = next((record[name] for name in names if name in record), None)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value:
        raise bad(path, number, f"no id: {_short(value)}", f"expected a string or whole number as {' or '.join(names)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise bad(path, number, "the id holds half a surrogate pair", "mend the \\u escapes of this record") from None
    return value


def string(path: Path, number: int, record: dict[str, Any], name: str, default: str | None = None) -> str:
    """A text of the record. A missing or null one is `default`, or an error if there is no default."""
    value = record.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise bad(path, number, f"no {name}: {_short(value)}", f"expected a string as {name}")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can spell half of a surrogate pair
        raise bad(path, number, f"{name} holds half a surrogate pair", "mend the \\u escapes of this record") from None
    return value


def wrong_width(found: int, before: int | None) -> str:
    """What is wrong with the number of columns of a line; `before`: that of the lines before, if there were any."""
    columns = f"{found} column{'' if found == 1 else 's'}"
    return columns if before is None else f"{columns}, but {before} in the lines before"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "..."


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[IO[bytes]]:
    """Open for reading bytes, through gzip if the name ends in .gz."""
    try:
        file: IO[bytes] = gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[assignment]
    except OSError as e:
        raise LeadError(f"cannot read {path}: {e.strerror or e}") from e
    with file:
        yield file


def _most(path: Path) -> float:
    """Bytes that may be read from a file: a small gzip file can hold more than there are disks for."""
    return max(SMALL, UNPACKED * path.stat().st_size) if path.suffix == ".gz" else math.inf


def _bomb(path: Path, number: int) -> LeadError:
    return bad(path, number, f"holds more than {UNPACKED} times its size", "unpack it yourself if that is right")


def _parquet(path: Path, names: Collection[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    try:
        with contextlib.ExitStack() as stack:
            source: Path | IO[bytes] = path
            if path.suffix == ".gz":  # Parquet is read from its end, gzip only from its start
                source = stack.enter_context(tempfile.TemporaryFile())
                packed = stack.enter_context(_reading(path))
                while chunk := packed.read(1 << 20):
                    source.write(chunk)
                    if source.tell() > _most(path):
                        raise _bomb(path, 1)
            else:
                read_checksum(path)  # one of lead's own; foreign files have none
            file = stack.enter_context(pq.ParquetFile(source, page_checksum_verification=True))
            columns = [name for name in file.schema_arrow.names if name in names]
            if len(set(columns)) < len(columns):
                raise ValueError(f"a column twice: {', '.join(columns)}")
            for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=columns):
                for record in batch.to_pylist():
                    number += 1
                    yield number, record
    except (pa.ArrowException, EOFError, zlib.error, OSError, ValueError, OverflowError) as e:
        reason = str(e).partition("\n")[0]
        raise bad(path, number + 1, f"damaged or not Parquet ({reason})", "make the file again") from None
