"""Reading and writing tables and JSON. They appear whole or not at all, and reading finds damage.

Tables are Parquet files with checksums (lead.store.checksums), results are JSON with a checksum. Both have a record of
how they were made (lead.store.provenance). `SCHEMAS` has the schema of each table; docs/artifacts.md explains them.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lead.errors import LeadError
from lead.store.atomic import atomic_file
from lead.store.checksums import read_checksum, write_checksum
from lead.store.provenance import KEY, current, dumps

ABOUT = "about"  # key of a table's metadata: further facts as JSON

SCHEMAS: dict[str, pa.Schema] = {
    # pid is unique; text is what encoders and BM25 see (fields already joined)
    "corpus": pa.schema([("pid", pa.string()), ("text", pa.string())]),
    # qid is unique within a split
    "queries": pa.schema([("qid", pa.string()), ("text", pa.string())]),
    # graded relevance; the dataset's `relevance` is the lowest grade that counts
    "qrels": pa.schema([("qid", pa.string()), ("pid", pa.string()), ("rel", pa.int32())]),
    # rank counts from 1; sorted by query (in the order of the queries file), then rank
    "ranked": pa.schema([("qid", pa.string()), ("pid", pa.string()), ("rank", pa.int32()), ("score", pa.float32())]),
    # one score a pair; sorted by query
    "scores": pa.schema([("qid", pa.string()), ("pid", pa.string()), ("score", pa.float32())]),
    "per_query": pa.schema([("qid", pa.string()), ("measure", pa.string()), ("value", pa.float64())]),
}


def write_table(
    table: pa.Table,
    path: str | Path,
    schema: str | None = None,
    row_group_size: int | None = None,
    about: dict[str, Any] | None = None,
    **options: Any,
) -> None:
    """Write a Parquet table atomically, cast to `SCHEMAS[schema]`.

    about: further facts, stored in the file's metadata under `ABOUT`, as JSON.
    """
    if schema is not None:
        table = table.select(SCHEMAS[schema].names).cast(SCHEMAS[schema])
    if about is not None:
        table = table.replace_schema_metadata({ABOUT: json.dumps(about, sort_keys=True)})
    with atomic_file(path) as temporary, table_writer(temporary, table.schema, **options) as writer:
        writer.write_table(table, row_group_size)


@contextlib.contextmanager
def table_writer(path: Path, schema: pa.Schema, **options: Any) -> Iterator[pq.ParquetWriter]:
    """A writer of a Parquet file. It adds the record of the running command and, at the end, the checksums."""
    with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True, **options) as writer:
        if record := current():
            writer.add_key_value_metadata({KEY: dumps(record)})
        yield writer
    write_checksum(path)


def write_lists(tables: Iterable[pa.Table], path: str | Path, about: dict[str, Any] | None = None) -> None:
    """Write each `ranked` table as a row group. Memory: one table."""
    schema = SCHEMAS["ranked"]
    if about is not None:
        schema = schema.with_metadata({ABOUT: json.dumps(about, sort_keys=True)})
    with atomic_file(path) as temporary, table_writer(temporary, schema) as writer:
        for table in tables:
            writer.write_table(table.cast(schema), row_group_size=max(1, len(table)))


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn errors of Parquet (a missing or damaged file) into a LeadError that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise LeadError(f"{path} does not exist; run the stage that makes it") from None
    except (OSError, ValueError, pa.ArrowException) as e:
        if getattr(e, "errno", None) in (errno.EMFILE, errno.ENFILE):
            raise LeadError(f"{path} cannot be opened: too many files are open; allow more (ulimit -n)") from e
        reason = str(e).splitlines()[0]
        remedy = "make it again, or give the file that a stage of lead wrote"
        raise LeadError(f"{path} is damaged or not Parquet ({reason}); {remedy}") from e


def read_table(path: str | Path, schema: str | None = None, columns: list[str] | None = None) -> pa.Table:
    """Read a Parquet table. Check its checksums and, if given, its schema. Raises LeadError."""
    path = Path(path)
    with _reading(path):
        read_checksum(path)
        with pq.ParquetFile(path, page_checksum_verification=True) as file:  # pq.read_table imports much more
            table = file.read(columns)
        names = table.column_names  # raises where the footer's names are not UTF-8
        if columns is not None and names != columns:
            if missing := sorted(set(columns) - set(names)):
                raise ValueError(f"no column {missing[0]}")
            table = table.select(columns)
    if schema is not None and columns is None:
        _check_schema(table.schema, schema, path)
    metadata = {k: v for k, v in (table.schema.metadata or {}).items() if k != KEY.encode()}
    table = table.replace_schema_metadata(metadata)  # without the record: a table made from this one has another
    return table if schema is None else without_nulls(table, path)


def _check_schema(found: pa.Schema, name: str, path: str | Path) -> None:
    if not found.equals(SCHEMAS[name]):
        want, have = (", ".join(f"{f.name}: {f.type}" for f in schema) for schema in (SCHEMAS[name], found))
        raise LeadError(f"{path} is not a {name} table: it has ({have}), expected ({want})")


def without_nulls(table: pa.Table, path: str | Path) -> pa.Table:
    """The table, if no value is missing. Raises LeadError."""
    for name in table.column_names:
        if table[name].null_count:
            raise LeadError(f"{path}: column '{name}' is empty in {table[name].null_count:,} rows; fill or drop them")
    return table


class TableFile(pq.ParquetFile):
    """A Parquet file with its path, read row group by row group."""

    path: Path

    def group(self, number: int, columns: list[str] | None = None) -> pa.Table:
        """One row group. Raises LeadError for damage."""
        with _reading(self.path):
            return self.read_row_group(number, columns)


def open_table(path: str | Path, schema: str | None = None) -> TableFile:
    """Open a Parquet file, to read row groups. Raises LeadError like `read_table`."""
    path = Path(path)
    with _reading(path):
        read_checksum(path)
        file = TableFile(path, page_checksum_verification=True)
        file.path = path
        _ = file.schema_arrow.names  # as in read_table
    if schema is not None:
        _check_schema(file.schema_arrow, schema, path)
    return file


def read_rows(
    file: TableFile, start: int, stop: int, size: int, columns: list[str] | None = None
) -> Iterator[pa.Table]:
    """Rows [start, stop) as tables of `size` rows; reads only their row groups. Raises LeadError for damage."""
    first, groups = 0, []
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if first < stop and first + rows > start:
            groups.append((group, max(0, start - first), min(rows, stop - first)))
        first += rows
    waiting: list[pa.Table] = []
    for group, low, high in groups:
        waiting.append(file.group(group, columns).slice(low, high - low))
        while sum(map(len, waiting)) >= size:
            table = pa.concat_tables(waiting)
            yield table.slice(0, size)
            waiting = [table.slice(size)]
    rest = pa.concat_tables(waiting) if waiting else None
    if rest is not None and len(rest):
        yield rest


def shard_rows(n: int, shard: str | None) -> tuple[int, int]:
    """First row of a shard of n rows, and the row after its last.

    >>> shard_rows(10, "1of3"), shard_rows(10, "3of3"), shard_rows(10, None)
    ((0, 3), (6, 10), (0, 10))
    """
    i, of = map(int, (shard or "1of1").split("of"))
    if i > of:
        raise LeadError(f"settings.shard: '{shard}' is not one of {of} shards")
    return (i - 1) * n // of, i * n // of


def _sum(value: Any) -> str:
    return hashlib.sha256(dumps(value).encode(errors="surrogatepass")).hexdigest()


def write_json(value: dict[str, Any], path: str | Path, first: Sequence[str] = ()) -> None:
    """Write JSON atomically, with the record of the running command and, under `sha256`, the checksum.

    first: keys that come first, as they are, because people look for them; the others are sorted. The checksum does
    not depend on the order.
    """
    record = current()
    value = value if record is None else {**value, "provenance": record}
    whole = {**value, "sha256": _sum(value)}
    rest = json.loads(dumps({key: each for key, each in whole.items() if key not in first}))
    text = json.dumps({key: whole[key] for key in first} | rest, indent=2, ensure_ascii=False)
    with atomic_file(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: str | Path) -> dict[str, Any]:
    """Read JSON that `write_json` wrote. Returns it without the checksum. LeadError if it is missing or damaged."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LeadError(f"{path} does not exist; run the stage that makes it") from None
    except (OSError, ValueError, RecursionError) as e:
        raise LeadError(
            f"{path} cannot be read as JSON ({e}); give a result that lead wrote, or rerun the stage that makes it"
        ) from e
    if not isinstance(value, dict) or value.pop("sha256", None) != _sum(value):
        raise LeadError(
            f"{path} is not what lead wrote (checksum); give a result of lead, or rerun the stage that makes it"
        )
    return value
