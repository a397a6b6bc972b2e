"""A corpus's texts are mapped from a file: the same table, hardly any memory, and nothing left on the disk."""

from __future__ import annotations

import multiprocessing
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pytest
from dag.project import refusal

from lead.data.texts import mapped, take_texts
from lead.errors import LeadError
from lead.store.tables import read_table, write_table


def corpus(path: Path, n: int = 3000) -> Path:
    pids = [f"p{i}" for i in range(n)]
    write_table(
        pa.table({"pid": pids, "text": [f"{i} é " * 1000 for i in range(n)]}), path, "corpus", row_group_size=700
    )
    return path


def test_the_table_is_the_same_takes_no_memory_and_leaves_no_file(tmp_path: Path) -> None:
    path = corpus(tmp_path / "corpus.parquet")
    before = pa.total_allocated_bytes()
    table = mapped(path, tmp_path / "deep" / "texts.arrow")
    assert table.nbytes > 20e6
    deadline = time.monotonic() + 10  # a thread of Arrow's may still hold the last batch for a moment
    while pa.total_allocated_bytes() - before > 1e6 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert pa.total_allocated_bytes() - before < 1e6
    assert list((tmp_path / "deep").iterdir()) == []
    assert table.equals(read_table(path, "corpus"))
    assert take_texts(table["text"], [2999, 0]) == ["2999 é " * 1000, "0 é " * 1000]


class Thread:
    """A rank that is a thread: the second comes first, and waits for what the first says."""

    said: ClassVar[dict[int, str]] = {}

    def __init__(self, rank: int, barrier: threading.Barrier) -> None:
        self.rank, self.barrier = rank, barrier

    def told(self, text: str) -> str:
        self.said[self.rank] = text
        self.wait()
        return self.said[0]

    def wait(self) -> None:
        self.barrier.wait(60)


def test_ranks_share_one_copy_and_wait_for_it(tmp_path: Path) -> None:
    path, barrier, tables = corpus(tmp_path / "corpus.parquet"), threading.Barrier(2), {}

    def rank(number: int) -> None:
        tables[number] = mapped(path, tmp_path / "texts.arrow", Thread(number, barrier))

    threads = [threading.Thread(target=rank, args=(number,)) for number in (1, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert tables[0].equals(tables[1]) and tables[0].equals(read_table(path, "corpus"))
    assert Thread.said[1] == "" and [p.name for p in tmp_path.iterdir()] == ["corpus.parquet"]


def test_what_is_mapped_beside_the_same_path_at_once_never_mixes(tmp_path: Path) -> None:
    """One that comes too late may be refused; a table that is there is the right one."""
    files = [corpus(tmp_path / f"{n}.parquet", 300 + n) for n in range(4)]
    want, mapped_tables = [read_table(path, "corpus") for path in files], 0

    def attempt(path: Path) -> pa.Table | None:
        try:
            return mapped(path, tmp_path / "texts.arrow")
        except LeadError as e:
            assert "No such file" in str(e)
            return None

    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for table, expected in zip(pool.map(attempt, files), want, strict=True):
                assert table is None or table.equals(expected)
                mapped_tables += table is not None
    assert mapped_tables and len(list(tmp_path.iterdir())) == 4


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".texts.arrow.killed.tmp").write_bytes(b"half")
    assert len(mapped(corpus(tmp_path / "corpus.parquet", 10), tmp_path / "texts.arrow")) == 10
    assert [p.name for p in tmp_path.iterdir()] == ["corpus.parquet"]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    path = corpus(tmp_path / "corpus.parquet", 10)
    assert refusal(lambda: mapped(path, tmp_path / "state" / "texts.arrow")).startswith("cannot write ")


def test_damage_and_a_full_disk_are_one_line_and_leave_nothing(tmp_path: Path) -> None:
    path = corpus(tmp_path / "corpus.parquet")
    process = multiprocessing.get_context("spawn").Process(
        target=_with_little_room, args=(path, tmp_path / "texts.arrow")
    )
    process.start()
    process.join(60)
    assert process.exitcode == 0
    whole = path.read_bytes()
    path.write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    assert "corpus.parquet is damaged" in refusal(lambda: mapped(path, tmp_path / "texts.arrow"))
    assert [p.name for p in tmp_path.iterdir()] == ["corpus.parquet"]


def _with_little_room(path: Path, file: Path) -> None:
    """In a process that may write a megabyte a file, which is like a disk with no more room."""
    import resource
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    said = refusal(lambda: mapped(path, file))
    assert said.startswith(f"cannot write {file}: "), said


@pytest.mark.parametrize("column", ["pid", "text"])
def test_a_place_without_a_value_is_refused(tmp_path: Path, column: str) -> None:
    table = pa.table({"pid": pa.array(["a", "b"]), "text": pa.array(["x", "y"])})
    table = table.set_column(table.column_names.index(column), column, pa.array(["z", None]))
    write_table(table, tmp_path / "corpus.parquet", "corpus")
    assert f"column '{column}' is empty" in refusal(lambda: mapped(tmp_path / "corpus.parquet", tmp_path / "t"))


def test_texts_of_rows_are_taken_chunk_by_chunk() -> None:
    from lead.data.texts import take_texts

    column = pa.chunked_array([["a", "b"], [], ["c"], ["d", "e", "f"]], pa.string())
    assert take_texts(column, [5, 0, 2, 2, 3, 1]) == ["f", "a", "c", "c", "d", "b"]
    assert take_texts(column, np.array([], np.int64)) == []
