"""Artifacts appear whole or not at all, and damage is noticed on reading, with the file's name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from lead.errors import LeadError
from lead.store.atomic import atomic_file, atomic_folder
from lead.store.checksums import MANIFEST, check_folder, sha256
from lead.store.tables import SCHEMAS, read_json, read_table, write_json, write_table


def corpus(n: int = 2000) -> pa.Table:
    rng = np.random.default_rng(0)
    return pa.table({"pid": [f"p{i}" for i in range(n)], "text": [rng.bytes(20).hex() for _ in range(n)]})


# --- all or nothing --------------------------------------------------------------------------------------------------
def test_a_failing_block_leaves_no_file_and_no_temporary(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), atomic_file(tmp_path / "deep" / "x.txt") as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert list((tmp_path / "deep").iterdir()) == []


def test_a_failing_block_leaves_the_old_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_file(path) as temporary:
        temporary.write_text("new")
        raise ZeroDivisionError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_the_file_is_not_there_before_the_block_ends_and_has_ordinary_permissions(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    with atomic_file(path) as temporary:
        temporary.write_text("new")
        assert not path.exists() and temporary.parent == tmp_path
    (tmp_path / "plain").write_text("")
    assert path.read_text() == "new" and path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_files_and_folders_have_the_modes_that_the_umask_gives(tmp_path: Path) -> None:
    """safetensors makes files of mode 0600."""
    before = os.umask(0o027)
    try:
        with atomic_file(tmp_path / "f") as temporary:
            save_file({"x": np.zeros(3)}, temporary)
        with atomic_folder(tmp_path / "m") as temporary:
            (temporary / "sub").mkdir()
            save_file({"x": np.zeros(3)}, temporary / "sub" / "x.safetensors")
    finally:
        os.umask(before)
    modes = {p.relative_to(tmp_path).as_posix(): p.stat().st_mode & 0o777 for p in tmp_path.rglob("*")}
    folders = ("m", "m/sub")
    assert modes == {name: 0o750 if name in folders else 0o640 for name in modes} and len(modes) == 5


@pytest.mark.parametrize("old", [False, True])
def test_a_failing_block_leaves_no_folder_and_an_old_one_as_it_was(tmp_path: Path, old: bool) -> None:
    path = tmp_path / "m"
    if old:
        with atomic_folder(path) as temporary:
            (temporary / "a").write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_folder(path) as temporary:
        (temporary / "a").write_text("new")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == ([path] if old else [])
    assert not old or (check_folder(path) / "a").read_text() == "old"


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with atomic_folder(tmp_path / "m") as temporary:
            (temporary / name).write_text(name)
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == [MANIFEST, "b"]
    assert list(tmp_path.iterdir()) == [tmp_path / "m"]


def test_what_cannot_be_written_is_one_line_with_the_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for write in (atomic_file, atomic_folder):
        with pytest.raises(LeadError, match="cannot write .*file/x"), write(tmp_path / "file" / "x"):
            raise AssertionError("the block must not run")


def test_a_table_that_does_not_fit_its_schema_leaves_nothing(tmp_path: Path) -> None:
    bad = pa.table({"qid": ["q"], "pid": ["p"], "rel": ["many"]})
    with pytest.raises(pa.ArrowException):
        write_table(bad, tmp_path / "qrels.parquet", "qrels")
    assert list(tmp_path.iterdir()) == []


# --- what kills leave ------------------------------------------------------------------------------------------------
def test_the_next_writer_removes_what_a_killed_process_left(tmp_path: Path) -> None:
    (tmp_path / ".x.killed.tmp").write_text("half")
    (tmp_path / ".x.dir.tmp" / "sub").mkdir(parents=True)
    (tmp_path / ".y.other.tmp").write_text("another path's")
    with atomic_file(tmp_path / "x") as temporary:
        assert {p.name for p in tmp_path.iterdir()} == {".y.other.tmp", temporary.name}
    assert {p.name for p in tmp_path.iterdir()} == {".y.other.tmp", "x"}


def test_of_two_that_write_one_path_at_once_the_first_is_refused(tmp_path: Path) -> None:
    for atomic in (atomic_file, atomic_folder):
        path = tmp_path / atomic.__name__

        def write(temporary: Path, text: str) -> None:
            (temporary / "a" if temporary.is_dir() else temporary).write_text(text)

        with pytest.raises(LeadError, match="cannot write .*No such file"), atomic(path) as first:
            write(first, "first")
            with atomic(path) as second:
                write(second, "second")
        assert ((check_folder(path) / "a") if path.is_dir() else path).read_text() == "second"
    assert {p.name for p in tmp_path.iterdir()} == {"atomic_file", "atomic_folder"}


WRITER = """
import os, sys
from pathlib import Path
from lead.errors import LeadError
from lead.store.atomic import atomic_file, atomic_folder
from lead.store.checksums import check_folder
folder, letter, written = Path(sys.argv[1]), sys.argv[2], 0
for i in range(200):
    try:
        with atomic_file(folder / "file") as f:
            f.write_text(letter * 1000)
        with atomic_folder(folder / "folder") as f:
            (f / "a").write_text(letter)
            (f / "b").write_text(letter)
        written += 1
    except LeadError:
        pass
    if (folder / "file").exists():
        assert len(set((folder / "file").read_text())) == 1
    try:
        fd = os.open(folder / "folder", os.O_RDONLY)  # the folder of this moment, though another takes its place
        texts = {(check_folder(f"/proc/self/fd/{fd}") / name).read_text() for name in "ab"}
        assert len(texts) == 1, texts
        os.close(fd)
    except (LeadError, FileNotFoundError):  # it is being replaced
        pass
assert written
"""


def test_processes_that_write_the_same_outputs_never_mix_them(tmp_path: Path) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), letter]) for letter in "xyz"]
    assert [w.wait() for w in writers] == [0, 0, 0]
    assert (tmp_path / "file").read_text() in ("x" * 1000, "y" * 1000, "z" * 1000)
    for atomic, name in ((atomic_file, "file"), (atomic_folder, "folder")):
        with atomic(tmp_path / name) as f:  # whatever the last one left is in nobody's way
            (f / "a" if f.is_dir() else f).write_text("w")
    assert {p.name for p in check_folder(tmp_path / "folder").iterdir()} == {"a", MANIFEST}
    assert {p.name for p in tmp_path.iterdir()} == {"file", "folder"}


@pytest.mark.parametrize("moment", range(1, 9))
def test_a_kill_while_a_folder_is_replaced_leaves_the_old_the_new_or_none(tmp_path: Path, moment: int) -> None:
    """Killed at the n-th rename, removal or flush: what is there is whole, and the next attempt succeeds."""
    code = f"""
import os, shutil, sys
from pathlib import Path
from lead.store.atomic import atomic_folder
def write(text):
    with atomic_folder(Path({str(tmp_path / "m")!r})) as f:
        for name in "abc":
            (f / name).write_text(text)
write("old")
left = {moment}
def hook(event, _):
    global left
    if event in ("os.rename", "os.remove", "os.rmdir", "os.chmod"):
        left -= 1
        if left == 0:
            os._exit(9)
sys.addaudithook(hook)
write("new")
"""
    status = subprocess.run([sys.executable, "-c", code]).returncode
    assert status in (0, 9)
    if (tmp_path / "m").exists():
        assert len({(check_folder(tmp_path / "m") / name).read_text() for name in "abc"}) == 1
    with atomic_folder(tmp_path / "m") as f:
        (f / "a").write_text("newer")
    assert (check_folder(tmp_path / "m") / "a").read_text() == "newer"
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


# --- tables ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("schema", sorted(SCHEMAS))
def test_every_schema_round_trips(tmp_path: Path, schema: str) -> None:
    table = pa.Table.from_batches([pa.RecordBatch.from_pylist([], schema=SCHEMAS[schema])])
    write_table(table, tmp_path / "t.parquet", schema)
    assert read_table(tmp_path / "t.parquet", schema).equals(table)


def test_writing_selects_orders_and_casts_the_schemas_columns(tmp_path: Path) -> None:
    write_table(pa.table({"extra": [1], "rel": [2], "pid": ["p"], "qid": ["q"]}), tmp_path / "t.parquet", "qrels")
    assert read_table(tmp_path / "t.parquet", "qrels").to_pylist() == [{"qid": "q", "pid": "p", "rel": 2}]


def test_the_same_table_is_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_table(corpus(), tmp_path / name, "corpus")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def data_pages(path: Path) -> list[tuple[int, int]]:
    """(start, end) of every column chunk's bytes."""
    group = pq.read_metadata(path).row_group(0)
    chunks = []
    for i in range(group.num_columns):
        c = group.column(i)
        start = (
            c.data_page_offset
            if c.dictionary_page_offset is None
            else min(c.dictionary_page_offset, c.data_page_offset)
        )
        chunks.append((start, start + c.total_compressed_size))
    return chunks


def test_any_flipped_byte_in_a_data_page_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "corpus.parquet"
    write_table(corpus(), path, "corpus")
    whole, good = path.read_bytes(), read_table(path, "corpus")
    assert good.num_rows == 2000
    rng = np.random.default_rng(1)
    for start, end in data_pages(path):
        for position in rng.integers(start + 64, end, 20).tolist():  # past the page's header
            path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
            with pytest.raises(LeadError, match="corpus.parquet is damaged"):
                read_table(path, "corpus")


@pytest.mark.parametrize("keep", [0, 3, 100, -1, -10])
def test_a_truncated_table_is_an_error_that_names_the_file(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "corpus.parquet"
    write_table(corpus(), path, "corpus")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(LeadError, match="corpus.parquet is damaged or not Parquet") as caught:
        read_table(path, "corpus")
    assert "\n" not in str(caught.value)


def test_a_table_of_another_schema_or_a_missing_one_is_refused(tmp_path: Path) -> None:
    write_table(corpus(3), tmp_path / "t.parquet", "corpus")
    with pytest.raises(LeadError, match="t.parquet is not a queries table.*pid: string.*expected.*qid: string"):
        read_table(tmp_path / "t.parquet", "queries")
    with pytest.raises(LeadError, match="nothing.parquet does not exist"):
        read_table(tmp_path / "nothing.parquet", "corpus")


# --- folders and JSON ------------------------------------------------------------------------------------------------
def model_folder(tmp_path: Path) -> Path:
    with atomic_folder(tmp_path / "m") as temporary:
        (temporary / "weights").write_bytes(bytes(range(256)))
        (temporary / "sub").mkdir()
        (temporary / "sub" / "more").write_text("x")
    return tmp_path / "m"


def test_sha256sum_itself_can_check_a_folder(tmp_path: Path) -> None:
    folder = model_folder(tmp_path)
    assert check_folder(folder) == folder
    checked = subprocess.run(["sha256sum", "--strict", "-c", MANIFEST], cwd=folder, capture_output=True, text=True)
    assert checked.stdout.splitlines() == ["sub/more: OK", "weights: OK"] and checked.returncode == 0


def test_files_that_a_user_adds_to_a_folder_do_no_harm(tmp_path: Path) -> None:
    folder = model_folder(tmp_path)
    before = sha256(folder)
    (folder / "README.md").write_text("mine")
    assert check_folder(folder) == folder and sha256(folder) == before


def flip(folder: Path) -> None:
    data = bytearray((folder / "weights").read_bytes())
    data[77] ^= 1
    (folder / "weights").write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip, "weights is missing or damaged"),
        (lambda f: (f / "weights").write_bytes(b"\0" * 255), "weights is missing or damaged"),
        (lambda f: (f / "sub" / "more").unlink(), "more is missing or damaged"),
        (lambda f: (f / MANIFEST).unlink(), "not a folder written by lead"),
        (lambda f: (f / MANIFEST).write_text((f / MANIFEST).read_text()[:60]), "SHA256SUMS cannot be read"),
        (lambda f: (f / MANIFEST).write_text(""), "SHA256SUMS cannot be read"),
        (lambda f: (f / MANIFEST).write_bytes(b"\xff" * 80), "SHA256SUMS cannot be read"),
    ],
    ids=["flipped", "truncated", "missing", "no-list", "half-a-list", "empty-list", "strange-list"],
)
def test_a_damaged_folder_is_refused_in_one_line_that_names_the_file(tmp_path: Path, damage: Any, message: str) -> None:
    folder = model_folder(tmp_path)
    damage(folder)
    with pytest.raises(LeadError, match=message) as caught:
        check_folder(folder)
    assert "\n" not in str(caught.value)


def test_the_sum_of_a_folder_changes_with_any_file_in_it(tmp_path: Path) -> None:
    first = sha256(model_folder(tmp_path))
    assert sha256(model_folder(tmp_path)) == first
    with atomic_folder(tmp_path / "m") as temporary:
        (temporary / "weights").write_bytes(bytes(range(255)) + b"\0")
        (temporary / "sub").mkdir()
        (temporary / "sub" / "more").write_text("x")
    assert sha256(tmp_path / "m") != first


def test_json_is_the_same_bytes_for_the_same_value_and_damage_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json({"b": 1, "a": "é"}, path)
    first = path.read_bytes()
    write_json({"a": "é", "b": 1}, path)
    assert path.read_bytes() == first and read_json(path) == {"a": "é", "b": 1}
    for damaged in (first[:-4], b"\xff" + first):
        path.write_bytes(damaged)
        with pytest.raises(LeadError, match="x.json cannot be read as JSON"):
            read_json(path)
    path.write_bytes(first.replace(b"1", b"3", 1))
    with pytest.raises(LeadError, match="x.json is not what lead wrote"):
        read_json(path)
    os.unlink(path)
    with pytest.raises(LeadError, match="x.json does not exist"):
        read_json(path)
