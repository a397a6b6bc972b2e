"""A Parquet file with any bit flipped is refused with its name, or holds what it held; never anything else."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lead.errors import LeadError
from lead.store.checksums import MAGIC, SIZE, check_pages, identity, read_checksum
from lead.store.provenance import made_by, record_of
from lead.store.tables import open_table, read_table, write_table
from lead.store.vectors import write_vectors

KINDS = ["corpus", "ranked", "vectors"]


def make(path: Path, kind: str, n: int = 40) -> Path:
    rng = np.random.default_rng(0)
    pids = [f"p{i}" for i in range(n)]
    if kind == "corpus":
        write_table(pa.table({"pid": pids, "text": [rng.bytes(20).hex() for _ in pids]}), path, "corpus")
    elif kind == "ranked":
        columns = {"qid": [f"q{i // 10}" for i in range(n)], "pid": pids, "rank": [i % 10 + 1 for i in range(n)]}
        write_table(pa.table(columns | {"score": rng.random(n)}), path, "ranked")
    else:
        write_vectors(pids, rng.random((n, 8)), path)
    return path


def footer(data: bytes) -> int:
    return len(data) - 8 - int.from_bytes(data[-8:-4], "little")


@pytest.mark.parametrize("kind", KINDS)
def test_no_flipped_bit_is_read_as_something_else(tmp_path: Path, kind: str) -> None:
    path = make(tmp_path / "a.parquet", kind)
    whole, good = path.read_bytes(), read_table(path)
    start, rng = footer(whole), np.random.default_rng(3)
    tried, noticed = Counter[str](), Counter[str]()
    for position in range(0, len(whole), 3):
        bit = int(rng.integers(8))
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << bit]) + whole[position + 1 :])
        where = "pages" if position < start - SIZE else "sums" if position < start else "footer"
        where = "mark" if start - SIZE <= position < start - SIZE + len(MAGIC) else where
        tried[where] += 1
        try:
            assert read_table(path).equals(good), (position, bit)
        except LeadError as e:
            assert str(path) in str(e) and "\n" not in str(e)
            noticed[where] += 1
        with pytest.raises(LeadError, match="a.parquet"):  # what `lead verify` asks
            check_pages(path)
    # without the mark there are no sums, and the file is read as one of others; page headers have bits without meaning
    assert [noticed[w] for w in ("footer", "sums", "mark")] == [tried["footer"], tried["sums"], 0]
    assert noticed["pages"] > 0.8 * tried["pages"]


@pytest.mark.parametrize("kind", KINDS)
def test_no_truncated_file_is_read(tmp_path: Path, kind: str) -> None:
    path = make(tmp_path / "a.parquet", kind)
    whole = path.read_bytes()
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        for read in (read_table, open_table, check_pages):
            with pytest.raises(LeadError, match="a.parquet"):
                read(path)


def test_other_readers_see_an_ordinary_file_and_files_of_others_are_read(tmp_path: Path) -> None:
    path = make(tmp_path / "a.parquet", "corpus")
    table = pq.read_table(path)
    assert pq.ParquetFile(path).metadata.num_rows == table.num_rows == 40
    pq.write_table(table, tmp_path / "theirs.parquet")
    assert read_checksum(tmp_path / "theirs.parquet") is None
    assert read_table(tmp_path / "theirs.parquet", "corpus").equals(table)
    with pytest.raises(LeadError, match="theirs.parquet has no checksum"):
        check_pages(tmp_path / "theirs.parquet")


def test_the_checksum_identifies_the_content(tmp_path: Path) -> None:
    a, b, c = (make(tmp_path / name, "corpus", n) for name, n in (("a", 40), ("b", 40), ("c", 41)))
    assert identity(a) == identity(b) != identity(c)
    assert read_checksum(a) == identity(a) and len(identity(a)) == 64


def test_a_table_carries_how_it_was_made_and_hands_it_to_nobody(tmp_path: Path) -> None:
    record = {"stage": "encode", "settings": {"fp16": False}, "inputs": {"é.parquet": "0" * 64}, "code": "1"}
    with made_by(record):
        path = make(tmp_path / "a.parquet", "ranked")
    assert record_of(path) == record
    assert pq.read_metadata(path).metadata.keys() == {b"ARROW:schema", b"lead"}
    write_table(read_table(path), tmp_path / "b.parquet", "ranked")
    assert record_of(tmp_path / "b.parquet") is None
