"""Files of scores of pairs (qid, pid, score): what `lead score` writes, or a model from elsewhere."""

from __future__ import annotations

import io
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from lead.errors import LeadError
from lead.store.tables import SCHEMAS, open_table, read_table

HEAD = 1000  # rows that are looked at before any work


def read_scores(path: Path) -> pa.Table:
    """A table of schema `scores`, from Parquet or from TSV: qid, pid, score, with or without a header.

    Memory: the table. Raises LeadError for another format, a score that is no finite number, and a pair scored twice.
    """
    table = _checked(read_table(path) if path.suffix == ".parquet" else _read_tsv(path), path)
    if table.group_by(["qid", "pid"]).aggregate([]).num_rows < table.num_rows:
        raise LeadError(f"{path}: a pair of qid and pid is scored twice; keep one")
    return table


def check_file(path: Path, queries: Iterable[str] | None) -> None:
    """Refuse a file without the columns, or that scores none of these `queries` (ids; None: unknown). LeadError.

    The first rows are read; the others only if they are of other queries.
    """
    scored = set(_checked(_head(path), path)["qid"].to_pylist())
    if queries is None:
        return
    ids = set(queries)
    if scored.isdisjoint(ids) and set(read_scores(path)["qid"].to_pylist()).isdisjoint(ids):
        raise LeadError(f"{path}: no query id such as {min(scored)} is one of the train queries; fix the ids")


def _head(path: Path) -> pa.Table:
    if path.suffix == ".parquet":
        file = open_table(path)
        batch = next(file.iter_batches(HEAD), None)
        return file.schema_arrow.empty_table() if batch is None else pa.Table.from_batches([batch])
    return _read_tsv(path, HEAD)


def _checked(table: pa.Table, path: Path) -> pa.Table:
    try:
        table = table.select(SCHEMAS["scores"].names).cast(SCHEMAS["scores"])
    except (KeyError, pa.ArrowException) as e:
        raise LeadError(f"{path} does not hold qid, pid and score ({' '.join(str(e).split())[:200]}); fix it") from e
    missing = table.num_rows == 0 or any(column.null_count for column in table.columns)  # CSV's nan is one
    if missing or not pc.all(pc.is_finite(table["score"])).as_py():
        raise LeadError(f"{path}: a score is missing, NaN or infinite, or there is none; leave such pairs out")
    return table


def _read_tsv(path: Path, rows: int | None = None) -> pa.Table:
    """All rows, or at most the first `rows`."""
    names = SCHEMAS["scores"].names
    try:
        with path.open(encoding="utf-8") as file:
            first = file.readline()
            header = first.rstrip("\n").split("\t") == names
            text = None if rows is None else first + "".join(islice(file, rows))
        return pa.csv.read_csv(
            path if text is None else io.BytesIO(text.encode()),
            read_options=pa.csv.ReadOptions(column_names=names, skip_rows=int(header)),
            parse_options=pa.csv.ParseOptions(delimiter="\t", quote_char=False),
            convert_options=pa.csv.ConvertOptions(column_types=SCHEMAS["scores"]),
        )
    except (OSError, UnicodeDecodeError, pa.ArrowException) as e:
        reason = " ".join(str(e).split())[:200]
        raise LeadError(f"{path} cannot be read as qid, pid and score between tabs ({reason}); fix it") from e
