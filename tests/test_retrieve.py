"""Ranked lists of a corpus in one part, and of one in shards that are searched one by one and gathered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dag.project import refusal

from lead.cli import main
from lead.config.stages import MineSettings, RetrieveSettings
from lead.retrieval import search
from lead.retrieval.mine import mine
from lead.retrieval.retrieve import lists, merged, retrieve
from lead.store.provenance import made_by, record_of
from lead.store.tables import SCHEMAS, open_table, read_table, write_lists, write_table
from lead.store.vectors import write_vectors

COMMON: dict[str, Any] = {"gpu": 0, "index": None}


def rows(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read_table(path, "ranked").to_pylist()
    return found


def test_retrieve(tmp_path: Path) -> None:
    write_vectors(["10", "9", "7"], np.array([[1, 0], [1, 0], [0, 2]], np.float32), tmp_path / "p.parquet")
    write_vectors(["q2", "q1"], np.array([[1, 0], [0, 1]], np.float32), tmp_path / "q.parquet")
    retrieve(settings=RetrieveSettings(depth=2), passages=[tmp_path / "p.parquet"], queries=tmp_path / "q.parquet",
             parts=None, out=tmp_path / "r.parquet", **COMMON)  # fmt: skip
    assert read_table(tmp_path / "r.parquet", "ranked").to_pydict() == {
        "qid": ["q2", "q2", "q1", "q1"],  # the order of the queries file
        "pid": ["10", "9", "7", "10"],
        "rank": [1, 2, 1, 2],
        "score": [1.0, 1.0, 2.0, 0.0],
    }


def test_widths_must_agree(tmp_path: Path) -> None:
    write_vectors(["p"], np.ones((1, 3), np.float32), tmp_path / "p.parquet")
    write_vectors(["q"], np.ones((1, 2), np.float32), tmp_path / "q.parquet")
    said = refusal(lambda: search.search_file(tmp_path / "p.parquet", [tmp_path / "q.parquet"], 1))
    assert "q.parquet holds vectors of width 2" in said and "p.parquet of width 3" in said


# --- shards ----------------------------------------------------------------------------------------------------------
class Sharded:
    """60 passages, each twice under two ids, cut into shards; 7 queries in two files; a batch is of 3 queries."""

    def __init__(self, folder: Path, cuts: list[int]) -> None:
        rng = np.random.default_rng(3)
        vectors = np.repeat(rng.normal(size=(30, 8)), 2, axis=0).astype(np.float32)
        self.ids = [f"p{i}" for i in rng.permutation(60)]
        self.folder, self.shards, self.whole = folder, [], folder / "whole.parquet"
        for n, (start, stop) in enumerate(zip([0, *cuts], [*cuts, 60], strict=True)):
            self.shards.append(folder / f"{n}.parquet")
            write_vectors(self.ids[start:stop], vectors[start:stop], self.shards[-1])
        write_vectors(self.ids, vectors, self.whole)
        self.queries = [folder / "a.parquet", folder / "b.parquet"]
        write_vectors([f"q{9 - i}" for i in range(5)], rng.normal(size=(5, 8)), self.queries[0])
        write_vectors(["other", "another"], rng.normal(size=(2, 8)), self.queries[1])
        self.qrels = folder / "qrels.parquet"
        known = [("q9", f"p{i}", 1) for i in range(0, 60, 2)] + [("other", "p3", 1), ("q8", "p5", 0)]
        table = pa.table(dict(zip(("qid", "pid", "rel"), zip(*known, strict=True), strict=True)))
        write_table(table, self.qrels, "qrels")

    def retrieve(
        self, out: str, depth: int, passages: list[Path] | None = None, parts: list[Path] | None = None
    ) -> Path:
        retrieve(settings=RetrieveSettings(depth=depth), passages=passages, parts=parts, queries=self.queries[0],
                 out=self.folder / out, **COMMON)  # fmt: skip
        return self.folder / out

    def mine(self, out: str, depth: int, passages: list[Path] | None = None, parts: list[Path] | None = None) -> Path:
        mine(settings=MineSettings(mine_depth=depth), passages=passages, parts=parts, queries=self.queries,
             qrels=[self.qrels], out=self.folder / out, **COMMON)  # fmt: skip
        return self.folder / out


@pytest.mark.parametrize("cuts", [[], [1], [13, 14, 40], [0, 30, 60]])
@pytest.mark.parametrize("depth", [1, 7, 100])
@pytest.mark.parametrize("stage", ["retrieve", "mine"])
def test_lists_over_shards_are_gathered_into_those_over_the_whole_corpus(
    tmp_path: Path, cuts: list[int], depth: int, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every passage is there twice, so that scores tie within shards and across them; some shards are empty."""
    monkeypatch.setattr(search, "BATCH", 3)
    made = Sharded(tmp_path, cuts)
    run = made.retrieve if stage == "retrieve" else made.mine
    want = run("want.parquet", depth, [made.whole])
    parts = [run(f"part.{n}.parquet", depth, [shard]) for n, shard in enumerate(made.shards)]
    assert {pq.read_metadata(part).num_row_groups for part in [want, *parts]} == {2 if stage == "retrieve" else 3}
    for reverse in (False, True):
        files, of_parts = (sorted(paths, reverse=reverse) for paths in (made.shards, parts))
        assert rows(run("got.parquet", depth, files)) == rows(run("got.parquet", depth, parts=of_parts)) == rows(want)
    full = [r["qid"] for r in rows(want)].count("q7")
    assert full == min(depth, 60)
    if stage == "mine":
        assert not {(r["qid"], r["pid"]) for r in rows(want)} & {("q9", "p2"), ("other", "p3")}
        assert [r["qid"] for r in rows(want)].count("q9") == min(depth, 30)


def test_a_query_whose_list_is_empty_in_some_parts_keeps_its_place() -> None:
    """q1 has nothing in the first part, q0 nothing in the second: the order is that of the queries."""
    part = [("q2", "a", 1, 1.0), ("q0", "a", 1, 1.0), ("q2", "b", 1, 3.0), ("q1", "b", 1, 1.0)]
    table = pa.table(dict(zip(SCHEMAS["ranked"].names, zip(*part, strict=True), strict=True)), schema=SCHEMAS["ranked"])
    best = merged(table, pa.array(["q0", "q1", "q2"]), 2)
    found = list(zip(*(best[name].to_pylist() for name in ("qid", "pid", "rank")), strict=True))
    assert found == [("q0", "a", 1), ("q1", "b", 1), ("q2", "b", 1), ("q2", "a", 2)]


def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "BATCH", 3)
    made = Sharded(tmp_path, [30])
    first, second = (made.retrieve(f"part.{n}.parquet", 5, [shard]) for n, shard in enumerate(made.shards))
    assert "hold a passage twice" in refusal(lambda: made.retrieve("x.parquet", 5, parts=[first, second, first]))
    assert "hold a passage twice" in refusal(lambda: made.retrieve("x.parquet", 5, [made.whole, made.shards[1]]))
    mined = made.mine("mined.parquet", 5, [made.shards[1]])
    assert "mined.parquet holds lists of other queries" in refusal(
        lambda: made.retrieve("x.parquet", 5, parts=[first, mined])
    )
    write_lists([open_table(mined).group(2), open_table(first).group(1)], tmp_path / "mixed.parquet")
    said = refusal(lambda: made.retrieve("x.parquet", 5, parts=[first, tmp_path / "mixed.parquet"]))
    assert "parts hold lists of other queries" in said
    second.write_bytes(second.read_bytes()[:-40])
    assert "part.1.parquet is damaged" in refusal(lambda: made.retrieve("x.parquet", 5, parts=[first, second]))
    for passages, parts in ((None, None), ([made.whole], [first])):
        said = refusal(lambda p=passages, q=parts: made.retrieve("x.parquet", 5, p, q))
        assert "give --passages" in said and "or --parts" in said
    assert not (tmp_path / "x.parquet").exists()


def test_no_queries(tmp_path: Path) -> None:
    made = Sharded(tmp_path, [30])
    write_vectors([], np.empty((0, 8)), made.queries[0])
    parts = [made.retrieve(f"part.{n}.parquet", 5, [shard]) for n, shard in enumerate(made.shards)]
    assert rows(made.retrieve("got.parquet", 5, parts=parts)) == []
    assert lists(None, None, parts, [made.queries[0]], 5, None, 0)[1] is None


def test_the_record_is_of_what_the_parts_were_made_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Parts are deleted once they have been gathered: `lead verify` must not miss them, nor what they came from."""
    made = Sharded(tmp_path, [30])
    common = ["retrieve", "--queries", str(made.queries[0]), "--settings"]
    for n, shard in enumerate(made.shards):
        out = ["--out", str(tmp_path / f"part.{n}.parquet")]
        assert main([*common, "{depth: 5}", "--passages", str(shard), *out]) == 0
    parts = ["--parts", *(str(tmp_path / f"part.{n}.parquet") for n in (0, 1))]
    assert main([*common, "{depth: 5}", *parts, "--out", str(tmp_path / "got.parquet")]) == 0
    record = record_of(tmp_path / "got.parquet")
    assert record is not None and (record["stage"], record["settings"]["depth"]) == ("retrieve", 5)
    assert set(record["inputs"]) == {str(path) for path in (*made.shards, made.queries[0])}

    def refused(says: str, *arguments: str, depth: int = 5) -> None:
        out = str(tmp_path / "refused.parquet")
        assert main([*common, f"{{depth: {depth}}}", *arguments, "--out", out]) == 1 and not Path(out).exists()
        assert says in capsys.readouterr().err

    refused("part.0.parquet was made with other settings", *parts, depth=6)
    refused("--index goes with --passages", *parts, "--index", str(made.whole))
    # one part of two, by the names of the shards; the other one, of other queries
    named = [tmp_path / f"passages.{n}of2.parquet" for n in (1, 2)]
    for n, (shard, name) in enumerate(zip(made.shards, named, strict=True)):
        shard.rename(name)
        out = ["--out", str(tmp_path / f"part.{n}.pq")]  # whatever its name
        assert main([*common, "{depth: 5}", "--passages", str(name), *out]) == 0
        if n == 0:
            refused("the part of shard 2 of 2 is missing", "--parts", str(tmp_path / "part.0.pq"))
            ids, vectors = search.read_vectors(made.queries[0])
            write_vectors(ids, -vectors, made.queries[0])
    both = ["--parts", str(tmp_path / "part.0.pq"), str(tmp_path / "part.1.pq")]
    refused(f"part.0.pq was made from another {made.queries[0]} than the rest", *both)


def test_the_record_tells_of_a_part_that_other_code_made(tmp_path: Path) -> None:
    made = Sharded(tmp_path, [30])
    record = {"stage": "retrieve", "settings": {}, "inputs": {}, "code": "old"}
    for n, code in enumerate(("old", "new")):
        with made_by({**record, "code": code}):
            made.retrieve(f"part.{n}.parquet", 5, [made.shards[n]])
    with made_by({**record, "code": "new"}):
        got = record_of(made.retrieve("got.parquet", 5, parts=[tmp_path / f"part.{n}.parquet" for n in (0, 1)]))
    assert got is not None and got["code"] == "old"
