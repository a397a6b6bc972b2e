"""Files of scores of pairs (qid, pid, score): what `lead score` writes, or a model from elsewhere."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from lead.errors import LeadError
from lead.store.tables import SCHEMAS, read_table


def read_scores(path: Path) -> pa.Table:
    """A table of schema `scores`, from Parquet or from TSV: qid, pid, score, with or without a header.

    Memory: the table. Raises LeadError for another format, a score that is no finite number, and a pair scored twice.
    """
    if path.suffix == ".parquet":
        table = read_table(path)
    else:
        table = _read_tsv(path)
    try:
        table = table.select(SCHEMAS["scores"].names).cast(SCHEMAS["scores"])
    except (KeyError, pa.ArrowException) as e:
        raise LeadError(f"{path} does not hold qid, pid and score ({' '.join(str(e).split())[:200]}); fix it") from e
    missing = table.num_rows == 0 or any(column.null_count for column in table.columns)  # CSV's nan is one
    if missing or not pc.all(pc.is_finite(table["score"])).as_py():
        raise LeadError(f"{path}: a score is missing, NaN or infinite, or there is none; leave such pairs out")
    if table.group_by(["qid", "pid"]).aggregate([]).num_rows < table.num_rows:
        raise LeadError(f"{path}: a pair of qid and pid is scored twice; keep one")
    return table


def _read_tsv(path: Path) -> pa.Table:
    names = SCHEMAS["scores"].names
    try:
        with path.open(encoding="utf-8") as file:
            header = file.readline().rstrip("\n").split("\t") == names
        return pa.csv.read_csv(
            path,
            read_options=pa.csv.ReadOptions(column_names=names, skip_rows=int(header)),
            parse_options=pa.csv.ParseOptions(delimiter="\t", quote_char=False),
            convert_options=pa.csv.ConvertOptions(column_types=SCHEMAS["scores"]),
        )
    except (OSError, UnicodeDecodeError, pa.ArrowException) as e:
        reason = " ".join(str(e).split())[:200]
        raise LeadError(f"{path} cannot be read as qid, pid and score between tabs ({reason}); fix it") from e
