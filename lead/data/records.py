r"""Reading raw files record by record, in constant memory, with an error that names file and line.

Text files are split only at b"\n", TSV cells only at tabs. A passage may hold any other line break of Unicode, and may
start with a quote. Quotes are removed from a TSV file only if a CSV writer made all of them (`quotes`). One carriage
return before the newline belongs to the newline.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import io
import json
import math
import re
import tempfile
import zlib
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from lead.errors import LeadError
from lead.store.checksums import read_checksum

Format = Literal["tsv", "csv", "jsonl", "parquet"]
FORMATS: dict[str, Format] = {
    ".tsv": "tsv", ".txt": "tsv", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl",
    ".parquet": "parquet",
}  # fmt: skip
PACKED = (".gz", ".zst")
PARQUET_ROWS = 4096  # rows decoded at a time
LINE = 64 << 20  # bytes of a line, at most
UNPACKED = 100  # size of the content over that of the compressed file, at most; texts have 3 to 10
SMALL = 16 << 20  # bytes that any compressed file may hold
QUOTING = 200  # lines with a quote that decide whether a TSV file quotes its cells
CELL = re.compile(r'"((?:[^"]|"")*)"|([^"\t]*)')
DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile)
csv.field_size_limit(LINE)


def bad(path: Path, line: int, what: str, remedy: str) -> LeadError:
    """The error for one line (or Parquet row), counted from 1: `file:line: what; remedy`."""
    return LeadError(f"{path}:{line}: {what}; {remedy}")


def format_of(path: Path) -> Format | None:
    """The format by a file's name, with or without `.gz` or `.zst`; None if the name has no known ending."""
    return FORMATS.get(Path(path.name.removesuffix(path.suffix) if path.suffix in PACKED else path.name).suffix.lower())


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers. Raises LeadError for bad UTF-8, damaged or endless files."""
    for number, line in _lines(path):
        if line := line.removesuffix("\n").removesuffix("\r"):
            yield number, line


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """All lines with their ends; a byte order mark at the start of the file is left out."""
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
                if number == 1:
                    raw = raw.removeprefix(codecs.BOM_UTF8)
                yield number, raw.decode()
        except UnicodeDecodeError as e:
            what = f"byte 0x{e.object[e.start]:02x} at column {e.start + 1} is not UTF-8"
            raise bad(path, number, what, "convert the file to UTF-8, or name it .gz if it is compressed") from None
        except DAMAGE as e:
            raise _damaged(path, number + 1, e) from None
        except OSError as e:
            if path.suffix == ".zst" and e.errno is None:  # Arrow's own
                raise _damaged(path, number + 1, e) from None
            raise bad(path, number + 1, f"cannot be read ({e.strerror or e})", "check the disk") from e


def cells(path: Path, quoted: bool) -> Iterator[tuple[int, list[str]]]:
    """Rows of a TSV or CSV file, with the number of their last line; blank lines are left out.

    Tabs separate cells; in a CSV file, the first of comma, semicolon and tab that its first line has. quoted: cells may
    be quoted, as CSV writers do. Raises LeadError, also for a quote that is never closed.
    """
    comma, delimiter = format_of(path) == "csv", "\t"
    if not quoted:
        for number, line in lines(path):
            yield number, line.split("\t")
        return
    if comma:
        first = next((line for _, line in lines(path)), "")
        delimiter = next((mark for mark in ",;\t" if mark in first), ",")
    number = 0

    def following() -> Iterator[str]:
        nonlocal number
        for number, line in _lines(path):  # noqa: B007
            yield line

    try:
        for row in csv.reader(following(), delimiter=delimiter, strict=True):
            if row:
                yield number, row
    except csv.Error as e:
        remedy = "double each quote inside quoted cells, or quote no cell"
        raise bad(path, number, f"not valid {'CSV' if comma else 'TSV with quotes'} ({e})", remedy) from None


def quotes(path: Path) -> bool:
    """Whether a TSV file quotes its cells as CSV writers do. Its first lines with a quote decide (at most `QUOTING`).

    It does if both hold: each quote belongs to a quoted cell, with quotes inside it doubled; and some cell needs its
    quotes (it holds a doubled quote, a tab or a newline), or a column is quoted in every line. MS MARCO's file is not
    quoted, although some passages start or end with a quote.
    """
    seen = total = 0
    needed = False
    always: set[int] | None = None  # columns that are quoted in every line so far
    record, found = "", 0  # the record so far, and its quotes
    for _, line in _lines(path):
        record, found = record + line, found + line.count('"')
        if found % 2:  # a newline inside a quoted cell, if it is one
            if len(record) > 1 << 20:
                return False
            continue
        row, record, found = record.removesuffix("\n").removesuffix("\r"), "", 0
        if not row:
            continue
        total += 1
        quoted: set[int] = set()
        if '"' in row:
            at = column = 0
            while at <= len(row):
                match = CELL.match(row, at)
                if match is None or (match.end() < len(row) and row[match.end()] != "\t"):
                    return False
                if match[1] is not None:
                    quoted.add(column)
                    needed = needed or any(c in match[1] for c in '"\t\n')
                at, column = match.end() + 1, column + 1
            seen += 1
        if total > 1 or quoted:  # a header may have no quotes
            always = quoted if always is None else always & quoted
        if seen >= QUOTING:
            break
    return not record and seen > 0 and (needed or bool(always and total > 1))


def records(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a JSONL or Parquet file as dictionaries; of a Parquet file only the `wanted` columns are read."""
    if format_of(path) == "parquet":
        yield from _parquet(path, wanted)
        return
    for number, line in lines(path):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as e:
            raise bad(path, number, f"not valid JSON ({e})", "expected one JSON object a line") from None
        if not isinstance(record, dict):
            raise bad(path, number, f"a JSON {type(record).__name__}", "expected one JSON object a line")
        yield number, record


def identifier(path: Path, number: int, value: object, names: Collection[str]) -> str:
    """An id as a string; a whole number becomes one. names: the fields that may hold it, for the message."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value:
        what = "empty id" if value == "" else f"no id: {_short(value)}"
        raise bad(path, number, what, f"expected a string or whole number as {' or '.join(names)}")
    return _text(path, number, value, "the id")


def string(path: Path, number: int, value: object, name: str, default: str | None = None) -> str:
    """A text. `default` replaces a missing or null text; without a default it is an error."""
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise bad(path, number, f"no {name}: {_short(value)}", f"expected a string as {name}")
    return _text(path, number, value, name)


def _text(path: Path, number: int, value: str, what: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can hold half a surrogate pair
        raise bad(path, number, f"{what} holds half a surrogate pair", "fix the \\u escapes of this record") from None
    return value


def wrong_width(found: int, before: int | None) -> str:
    """The message for a wrong number of columns. before: the number in earlier lines; None for the first line."""
    columns = f"{found} column{'' if found == 1 else 's'}"
    return columns if before is None else f"{columns}, but {before} in the lines before"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "..."


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[IO[bytes]]:
    """Open a file to read bytes, decompressed if the name ends in .gz or .zst."""
    file: IO[bytes]
    try:
        if path.suffix == ".zst":
            stream = pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")
            file = io.BufferedReader(stream)
        else:
            file = gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[assignment]
    except OSError as e:
        raise LeadError(f"cannot read {path}: {e.strerror or e}") from e
    with file:
        yield file


def _most(path: Path) -> float:
    """Bytes that may be read from a file, at most: a small compressed file can hold more than a disk."""
    return max(SMALL, UNPACKED * path.stat().st_size) if path.suffix in PACKED else math.inf


def _damaged(path: Path, number: int, error: Exception) -> LeadError:
    kind = "zstd" if path.suffix == ".zst" else "gzip"
    return bad(path, number, f"damaged or truncated {kind} ({error})", "download the file again")


def _bomb(path: Path, number: int) -> LeadError:
    return bad(path, number, f"holds more than {UNPACKED} times its size", "unpack it yourself if that is right")


def _parquet(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    try:
        with contextlib.ExitStack() as stack:
            source: Path | IO[bytes] = path
            if path.suffix in PACKED:  # Parquet is read from its end, a compressed file from its start
                source = stack.enter_context(tempfile.TemporaryFile())
                packed = stack.enter_context(_reading(path))
                while chunk := packed.read(1 << 20):
                    source.write(chunk)
                    if source.tell() > _most(path):
                        raise _bomb(path, 1)
            else:
                read_checksum(path)  # only files of lead have one
            file = stack.enter_context(pq.ParquetFile(source, page_checksum_verification=True))
            columns = [name for name in file.schema_arrow.names if wanted(name)]
            if len(set(columns)) < len(columns):
                raise ValueError(f"a column twice: {', '.join(columns)}")
            for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=columns):
                for record in batch.to_pylist():
                    number += 1
                    yield number, record
    except (pa.ArrowException, EOFError, zlib.error, OSError, ValueError, OverflowError) as e:
        reason = str(e).partition("\n")[0]
        raise bad(path, number + 1, f"damaged or not Parquet ({reason})", "make the file again") from None
