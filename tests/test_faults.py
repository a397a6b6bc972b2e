"""Every stage on a full disk, on a read-only one, and with damaged inputs: one line, and nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import make_retriever

from lead.cli import main
from lead.commands import STAGES

Options = dict[str, Any]
TRAIN = {"steps": 3, "batch_size": 4, "negatives": 2, "lr": 1e-3, "precision": "fp32", "dev_queries": 4}
LENGTHS = {"query": 8, "passage": 24}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_collection: Path) -> Path:
    """A folder with all that stages read: raw files, prepared data, models, vectors, lists and results."""
    folder = tmp_path_factory.mktemp("given")
    for path in tiny_collection.iterdir():
        shutil.copy(path, folder)
    lines = [f"{row['pid']}\t{row['text']}\n" for row in pq.read_table(folder / "corpus.parquet").to_pylist()]
    (folder / "corpus.tsv").write_text("".join(lines))
    (folder / "lists.tsv").write_text("".join(f"test{i}\tp{i + 1}\t1\n" for i in range(8)))
    make_retriever(tiny_model, "cb").save(folder / "cb")
    make_retriever(tiny_model, "de").save(folder / "de")
    for stage in ("encode", "encode queries", "tokenize", "index", "retrieve", "evaluate"):
        call(stage, folder, tiny_model, folder)
    return folder


def commands(folder: Path, model: Path) -> dict[str, tuple[Options, dict[str, str], dict[str, Any]]]:
    """Inputs, outputs (names) and settings of each stage."""
    data = {
        "corpus": "corpus.parquet", "queries": "queries.train.parquet", "qrels": "qrels.train.parquet",
        "dev-queries": "queries.dev.parquet", "dev-qrels": "qrels.dev.parquet", "negatives": "negatives.parquet",
    }  # fmt: skip
    trained = {"out": "model", "state": "state", "metrics": "metrics.jsonl"}
    queries, qrels = (["queries.train.parquet", "queries.dev.parquet"], ["qrels.train.parquet", "qrels.dev.parquet"])
    files = {
        split: {k: str(folder / f"{k}.{split}.parquet") for k in ("queries", "qrels")} for split in ("train", "test")
    }
    source = {"kind": "files", "corpus": str(folder / "corpus.tsv"), **files}
    train = {"model": {"reference": f"path:{model}"}, "lengths": LENGTHS}
    return {
        "prepare": ({}, {"out": "."}, {"source": source}),
        "bm25": (
            {"corpus": "corpus.parquet", "queries": queries, "qrels": qrels, "test-queries": "queries.test.parquet"},
            {"negatives": "bm25.parquet", "ranked": "ranked.parquet"},
            {},
        ),
        "external": (
            {"corpus": "corpus.parquet", "queries": "queries.test.parquet"},
            {"out": "lists.parquet"},
            {"external_run": str(folder / "lists.tsv")},
        ),
        "pretrained": ({}, {"out": "ready"}, {"model": train["model"], "lengths": LENGTHS}),
        "train": (data, trained, {**train, "train": {**TRAIN, "checkpoint_every": 1}}),
        "train without checkpoints": (data, trained, {**train, "train": TRAIN}),
        "encode": ({"model": "de", "texts": "corpus.parquet"}, {"out": "passages.parquet"}, {}),
        "encode queries": ({"model": "de", "texts": "queries.test.parquet"}, {"out": "asked.parquet"}, {}),
        "tokenize": ({"texts": "corpus.parquet"}, {"out": "tokens"}, {"reference": f"path:{model}", "length": 24}),
        "encode tokens": (
            {"model": "de", "texts": "corpus.parquet", "tokens": "tokens"}, {"out": "again.parquet"}, {}
        ),
        "index": ({"passages": "passages.parquet"}, {"out": "index"}, {"index": "IVF4,Flat"}),
        "retrieve approximately": (
            {"passages": ["passages.parquet"], "queries": "asked.parquet", "index": ["index"]},
            {"out": "approximate.parquet"},
            {"index_parameters": "nprobe=2"},
        ),
        "mine": (
            {"passages": ["passages.parquet"], "queries": ["asked.parquet"], "qrels": ["qrels.test.parquet"]},
            {"out": "mined.parquet"},
            {},
        ),
        "denoise": (
            {"model": "cb", **{k: data[k] for k in ("corpus", "negatives")}, "queries": queries, "qrels": qrels},
            {"out": "denoised.parquet"},
            {"keep_below": 0.5},
        ),
        "align": (
            {k: data[k] for k in ("corpus", "queries", "dev-queries", "dev-qrels")} | {"teacher": "de"},
            trained,
            {**train, "train": {**TRAIN, "checkpoint_every": 1}},
        ),
        "score": (
            {"model": "cb", **{k: data[k] for k in ("corpus", "negatives")}, "queries": queries, "qrels": qrels},
            {"out": "scores.parquet"},
            {},
        ),
        "distil": (
            {**data, "start": "de", "teacher": "cb"},
            {**trained, "teacher-out": "teacher"},
            {"train": {**TRAIN, "checkpoint_every": 1}, "distil": {"layers": {"k": 2}}},
        ),
        "retrieve": ({"passages": ["passages.parquet"], "queries": "asked.parquet"}, {"out": "ranked.parquet"}, {}),
        "rerank": (
            {"model": "cb", "corpus": "corpus.parquet", "queries": "queries.test.parquet", "ranked": "ranked.parquet"},
            {"out": "reranked.parquet"},
            {},
        ),
        "evaluate": (
            {"ranked": "ranked.parquet", "qrels": "qrels.test.parquet"},
            {"out": "run.json", "per-query": "per_query.parquet", "trec": "run.trec"},
            {"evaluation": {"resamples": 20}},
        ),
    }  # fmt: skip


EVERY = list(commands(Path(), Path()))


def words(name: str, folder: Path, model: Path, out: Path) -> list[str]:
    """The command line of a stage that reads from `folder` and writes into `out`."""
    inputs, outputs, settings = commands(folder, model)[name]
    said = [name.split()[0], "--threads", "1", "--settings", json.dumps(settings)]
    for option, names in inputs.items():
        said += [f"--{option}", *(str(folder / n) for n in (names if isinstance(names, list) else [names]))]
    for option, file in outputs.items():
        said += [f"--{option}", str(out / file)]
    return said


def call(name: str, folder: Path, model: Path, out: Path) -> None:
    """Run a stage that must succeed."""
    assert main(words(name, folder, model, out)) == 0


def test_every_stage_is_tried() -> None:
    assert {name.split()[0] for name in EVERY} == set(STAGES) - {"packages"}  # pip writes that: test_packages


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str]) -> Callable[[list[str]], str]:
    """Runs a command that must fail with one line, which is returned."""

    def run(arguments: list[str]) -> str:
        capfd.readouterr()
        status, said = main(arguments), capfd.readouterr().err
        lines = [line for line in said.splitlines() if "lead: error: " in line]
        assert status == 1 and len(lines) == 1 and "Traceback" not in said and "Logging error" not in said, said
        return lines[0]

    return run


def contents(folder: Path) -> dict[str, bytes]:
    """All files in a folder but logs and what differs from run to run."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.suffix not in (".jsonl", ".log") and p.name != "filler"]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


# --- where nothing can be written -----------------------------------------------------------------------------------
@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, in memory."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("needs root, to mount a small file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)  # faiss keeps a file open that it could not write


@pytest.mark.parametrize("share", [0.0, 0.6])
@pytest.mark.parametrize("name", EVERY)
def test_a_full_disk_is_one_line_and_nothing_is_left_that_a_second_attempt_trips_over(
    name: str, share: float, given: Path, tiny_model: Path, small: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    call(name, given, tiny_model, tmp_path / "good" / "out")
    good = contents(tmp_path / "good")
    (small / "out").mkdir()
    room = int(share * sum(map(len, good.values())))
    with (small / "filler").open("wb") as f:
        f.write(b"\0" * (os.statvfs(small).f_bavail * os.statvfs(small).f_bsize - room))
    arguments = words(name, given, tiny_model, small / "out")
    said = refused([*arguments, "--log", str(small / "out" / "stage.log")])
    assert f"cannot write {small / 'out'}" in said and "No space left on device" in said
    there = contents(small)
    states = [n for n in there if n.startswith("out/state/")]
    assert {n: b for n, b in there.items() if n not in states}.items() <= good.items()  # whole, or not there
    assert not list(small.rglob(".*.tmp"))
    (small / "filler").unlink()
    assert main(arguments) == 0
    assert contents(small) == good


@pytest.mark.parametrize("name", EVERY)
def test_a_read_only_folder_is_one_line_before_any_work(
    name: str, given: Path, tiny_model: Path, small: Path, refused: Callable[..., str]
) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small], check=True)
    started = time.process_time()
    assert f"cannot write {small / 'out'}" in refused(words(name, given, tiny_model, small / "out"))
    assert time.process_time() - started < 2
    assert "cannot write --log" in refused([*words(name, given, tiny_model, small), "--log", str(small / "a/b.log")])


# --- damaged inputs --------------------------------------------------------------------------------------------------
def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


def in_a_page(path: Path) -> int:
    """Offset of a byte in the body of a table's first page; of any other file, near its beginning."""
    if path.suffix != ".parquet":
        return path.stat().st_size // 10
    column = pq.read_metadata(path).row_group(0).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    return int(start + column.total_compressed_size - 2)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "flipped": lambda path: flip(path, in_a_page(path)),
    "flipped at the end": lambda path: flip(path, -20),  # in a table's footer
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3]),
}


def tables(name: str) -> list[str]:
    """Names of the tables that a stage reads."""
    inputs = commands(Path(), Path())[name][0].values()
    names = [n for value in inputs for n in (value if isinstance(value, list) else [value])]
    return [n for n in names if n.endswith(".parquet")]


CASES = [(stage, table) for stage in EVERY if stage in STAGES for table in tables(stage)]
FILES = ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "lead.json", "SHA256SUMS"]
FOLDERS = [
    *(("encode", "de", file) for file in FILES),
    *(("encode tokens", "tokens", file) for file in ("tokens.safetensors", "tokens.json", "SHA256SUMS")),
    *(("retrieve approximately", "index", file) for file in ("index.faiss", "index.json", "SHA256SUMS")),
]


@pytest.mark.parametrize(("name", "table"), CASES)
def test_a_damaged_table_is_named_and_never_used(
    name: str, table: str, given: Path, tiny_model: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    whole = (given / table).read_bytes()
    try:
        for damage in DAMAGE.values():
            damage(given / table)
            assert str(given / table) in refused(words(name, given, tiny_model, tmp_path))
            assert not [p for p in tmp_path.rglob("*") if p.is_file()]
            (given / table).write_bytes(whole)
    finally:
        (given / table).write_bytes(whole)


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(("name", "folder", "file"), FOLDERS)
def test_a_damaged_model_index_or_store_of_tokens_is_named_and_never_used(
    name: str, folder: str, file: str, damage: str, given: Path, tiny_model: Path, tmp_path: Path,
    refused: Callable[..., str],
) -> None:  # fmt: skip
    path = given / folder / file
    whole = path.read_bytes()
    try:
        DAMAGE[damage](path)
        assert str(given / folder) in refused(words(name, given, tiny_model, tmp_path))
    finally:
        path.write_bytes(whole)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("file", ["run.json", "per_query.parquet"])
def test_a_damaged_result_is_named_and_in_no_table(
    file: str, damage: str, given: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    (tmp_path / "per_query").mkdir()
    paths = {"run.json": tmp_path / "run.json", "per_query.parquet": tmp_path / "per_query" / "run.parquet"}
    for name, path in paths.items():
        shutil.copy(given / name, path)
    shutil.copy(paths["run.json"], tmp_path / "rd_cb.json")  # a baseline: each query's values are read
    shutil.copy(paths["per_query.parquet"], tmp_path / "per_query" / "rd_cb.parquet")
    assert main(["table", str(paths["run.json"]), str(tmp_path / "rd_cb.json")]) == 0
    DAMAGE[damage](paths[file])
    assert str(paths[file]) in refused(["table", str(paths["run.json"]), str(tmp_path / "rd_cb.json")])
