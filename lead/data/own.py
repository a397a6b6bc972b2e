"""A user's own file of texts where a stage reads a table that lead wrote."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lead.data.files import read_corpus, read_queries
from lead.data.layout import QUERIES, Layout, rows
from lead.data.records import format_of
from lead.store.atomic import scratch_file
from lead.store.tables import SCHEMAS, open_table, table_writer, write_table

log = logging.getLogger("lead")


@contextlib.contextmanager
def texts_table(path: Path, beside: Path) -> Iterator[Path]:
    """A table of passages or queries: `path` itself, or a temporary one beside `beside`, made from a user's own file.

    TSV, CSV, JSONL and Parquet are read as a corpus's are; a file whose id or text is called that of a query holds
    queries. Memory: one batch of passages, or all queries. Raises LeadError with file and line.
    """
    form = format_of(path)
    if form is None or (form == "parquet" and _of_lead(open_table(path).schema_arrow)):
        yield path
        return
    layout = Layout()
    next(rows(path, QUERIES, layout), None)
    asked = {"qid", "query_id", "query", "question"} & {
        name.lower().replace("-", "_") for name in layout.columns.values()
    }
    with scratch_file(beside) as table:
        if asked:
            write_table(read_queries([path]), table, "queries")
        else:
            with table_writer(table, SCHEMAS["corpus"]) as writer:
                for batch in read_corpus([path], ["title", "text"]):
                    writer.write_batch(batch)
        n = pq.read_metadata(table).num_rows
        kind, other = ("queries", "pid, text") if asked else ("passages", "qid, text")
        log.info("%s: %s texts, taken for %s; a header `%s` would say otherwise", path, f"{n:,}", kind, other)
        yield table


def _of_lead(found: pa.Schema) -> bool:
    """Whether a table is one of lead's. A user's may have its columns in other types, such as pandas' large strings."""
    named = bool({"pid", "qid"} & set(found.names))
    return named and ("text" not in found.names or any(found.equals(SCHEMAS[name]) for name in ("corpus", "queries")))
