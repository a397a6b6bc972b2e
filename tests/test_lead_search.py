"""Search from Python and from the terminal: what the stages find, whole and escaped; one line for mistakes."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from conftest import make_bert, make_retriever, vocabulary
from searchable import HOSTILE, HOSTILE_ID, HOSTILE_QUERY, Searchable, environment

import lead
from lead import cli
from lead.errors import LeadError
from lead.retrieval import engine
from lead.search.light import light_encoder
from lead.search.model import Model
from lead.search.passages import Vectors
from lead.store.vectors import read_vectors

ANSI = re.compile(r"\x1b\[[0-9;]*m")


# --- Python ----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def model(searchable: Searchable) -> Model:
    return lead.load("tiny/lead_cb", searchable.config, searchable.overrides)


def test_a_run_finds_for_a_typed_query_what_it_found_when_it_was_evaluated(
    searchable: Searchable, model: Model
) -> None:
    lists = searchable.ranked("lead_cb")
    assert len(lists) == 13
    for qid, query in searchable.queries().items():
        hits = model.search(query, k=20)
        assert [hit.id for hit in hits] == [pid for pid, _ in lists[qid][:20]]
        np.testing.assert_allclose([h.score for h in hits], [s for _, s in lists[qid][:20]], rtol=1e-5)
        assert [hit.rank for hit in hits] == list(range(1, 21))
    texts = {hit.id: hit.text for hit in model.search(HOSTILE_QUERY, k=10_000)}
    assert len(texts) == 161 and texts[HOSTILE_ID] == HOSTILE


def test_vectors_are_those_of_lead_encode(searchable: Searchable, model: Model) -> None:
    vectors = searchable.folder / "embeddings" / "lead_cb"
    _, queries = read_vectors(vectors / "queries.test.parquet")
    found = model.encode_queries(list(searchable.queries().values()))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, queries, atol=1e-6)
    _, passages = read_vectors(vectors / "passages.parquet")
    np.testing.assert_allclose(model.encode_passages([HOSTILE, ""])[0], passages[-1], atol=1e-6)
    assert model.encode_queries([]).shape == (0, 32)
    with pytest.raises(LeadError, match="a list of texts"):
        model.encode_queries("one text")


def test_shards_and_an_index_find_the_same(searchable: Searchable, model: Model, tmp_path: Path) -> None:
    from lead.config.stages import IndexSettings
    from lead.retrieval.index import index
    from lead.store.vectors import write_vectors

    assert model.passages is not None
    ids, vectors = read_vectors(searchable.folder / "embeddings" / "lead_cb" / "passages.parquet")
    files, indexes = [], []
    for n, rows in enumerate((slice(0, 70), slice(70, None))):
        files.append(tmp_path / f"{n}.parquet")
        indexes.append(tmp_path / f"index{n}")
        write_vectors(ids[rows], vectors[rows], files[n])
        index(settings=IndexSettings(index="HNSW16"), passages=files[n], out=indexes[n])
    shards = Vectors.of_files(files, [], None, model.passages)
    through_indexes = Vectors.of_files(files, indexes, "efSearch=200", model.passages)
    for query in model.encode_queries(list(searchable.queries().values())):
        expected = Vectors([(vectors, None)], model.passages.order).search(query, 20)
        for found in (shards.search(query, 20), through_indexes.search(query, 20)):
            for a, b in zip(found, expected, strict=True):
                np.testing.assert_array_equal(a, b)
    with pytest.raises(LeadError, match="does not hold the vectors of these passages"):
        Vectors.of_files(files[::-1], [], None, model.passages)


def test_passages_of_ones_own(searchable: Searchable, tmp_path: Path) -> None:
    folder = searchable.folder / "models" / "lead_cb"
    mine = lead.load(folder)
    with pytest.raises(LeadError, match="no passages to search"):
        mine.search("array")
    hits = mine.index(["an array has a shape", "a graph has an edge", ""]).search("array shape", k=5)
    vectors = mine.encode_passages(["an array has a shape"]) @ mine.encode_queries(["array shape"]).T
    (array,) = (hit for hit in hits if hit.id == "0")
    assert array == lead.Hit(array.rank, "0", array.score, "", "an array has a shape") and len(hits) == 3
    assert array.score == pytest.approx(float(vectors[0, 0]), abs=1e-6)
    rows = [{"_id": "a", "title": "Graphs", "text": "an edge"}, {"_id": "b", "text": "a tree"}]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = {hit.id: hit for hit in mine.index(tmp_path / "mine.jsonl").search("graphs edge")}
    assert (found["a"].title, found["a"].text, found["b"].title) == ("Graphs", "an edge", "")
    whole = mine.encode_passages(["Graphs an edge"]) @ mine.encode_queries(["graphs edge"]).T
    assert found["a"].score == pytest.approx(float(whole[0, 0]), abs=1e-6)
    with pytest.raises(LeadError, match="no file of passages"):
        mine.index(tmp_path / "other.jsonl")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(LeadError, match="holds no passage"):
        mine.index(tmp_path / "empty.jsonl")
    for column in (np.array(["array"]), pa.chunked_array([["array"]])):
        np.testing.assert_array_equal(mine.encode_queries(column), mine.encode_queries(["array"]))  # type: ignore[arg-type]
    for wrong in ("one text", ["a", None], [1]):
        with pytest.raises(LeadError, match="give a list of texts"):
            mine.encode_passages(wrong)  # type: ignore[arg-type]
        if not isinstance(wrong, str):
            with pytest.raises(LeadError, match="not a text"):
                mine.index(wrong)  # type: ignore[arg-type]


def test_faiss_is_needed_for_a_large_corpus_only_and_the_remedy_is_one_line(
    searchable: Searchable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.jsonl").write_text('{"_id": "a", "text": "a tree"}\n')
    folder = searchable.folder / "models" / "lead_cb"
    monkeypatch.setitem(sys.modules, "faiss", None)  # as where neither extra is installed
    command = ["search", str(folder), "tree", "--corpus", str(tmp_path / "mine.jsonl")]
    assert cli.main(command) == 0 and "a tree" in capsys.readouterr().out
    monkeypatch.setattr(engine, "SMALL", 0)  # so that one passage is many
    assert cli.main(command) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "pip install 'lead-distil[cpu]'" in said


def test_encoding_leaves_the_number_formats_of_the_callers_program(searchable: Searchable) -> None:
    import torch

    model, before = lead.load(searchable.folder / "models" / "lead_cb"), torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = True
        model.encode_queries(["an array"])
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def test_nothing_heavy_is_imported_for_a_search(searchable: Searchable) -> None:
    program = f"""
import sys, lead
assert not {{"numpy", "pydantic", "yaml"}} & sys.modules.keys()
model = lead.load("tiny/lead_cb", {str(searchable.config)!r}, {searchable.overrides!r})
assert len(model.search("array shape")) == 10
assert not {{"torch", "transformers", "snakemake"}} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", program], env=environment(), check=True)


@pytest.mark.parametrize(
    "scoring", [{"pooling": "mean", "normalise": "unit"}, {"pooling": "cls"}, {"pooling": "last"}], ids=str
)
def test_queries_without_torch_have_the_same_vectors(tiny_model: Path, tmp_path: Path, scoring: dict[str, Any]) -> None:
    made = make_retriever(tiny_model, "de", **scoring)
    made.save(tmp_path / "m")
    _same(tmp_path / "m")


def test_so_it_is_with_a_linear_layer_and_for_distilbert_and_prompts(tmp_path: Path) -> None:
    from transformers import DistilBertConfig, DistilBertModel

    from lead.config.schema import Lengths, Linear, ModelRef, Scoring
    from lead.models.base import LayeredModel

    make_bert(tmp_path / "distil")  # for its tokenizer
    config = DistilBertConfig(vocab_size=len(vocabulary()), max_position_embeddings=64, dim=32, n_layers=2, n_heads=4,
                              hidden_dim=48, pad_token_id=3, initializer_range=0.3)  # fmt: skip
    DistilBertModel(config).save_pretrained(tmp_path / "distil")
    reference = ModelRef(reference=f"path:{tmp_path / 'distil'}", linear=Linear(size=8, identity=False))
    made = LayeredModel.pretrained(reference, "de", Scoring(pooling="mean"), Lengths(query=8, passage=24))
    made.save(tmp_path / "m")
    _same(tmp_path / "m")
    description = json.loads((tmp_path / "m" / "lead.json").read_text())
    for key, value, works in (("prompts", {"query": "the ", "passage": ""}, True), ("new", 1, False)):
        (tmp_path / "m" / "lead.json").write_text(json.dumps(description | {key: value}))
        from lead.store.checksums import write_manifest

        write_manifest(tmp_path / "m")
        light = light_encoder(tmp_path / "m")
        assert (light is not None) == works
        if light:
            expected = Model(tmp_path / "m").encode_queries(["the array"])[0]
            assert light.ids("array") == made.tokenize("query", ["the array"])[0]
            assert expected.shape == light("array").shape


def _same(folder: Path) -> None:
    light = light_encoder(folder)
    assert light is not None
    for query in ["array shape", "", "the array of a shape " * 9, "[MASK] Zürich \u65e5\u672c \u202e?!"]:
        np.testing.assert_allclose(light(query), Model(folder).encode_queries([query])[0], atol=2e-6)


def test_other_architectures_are_searched_with_torch(tmp_path: Path, tiny_model: Path) -> None:
    made = make_retriever(tiny_model, "de")
    made.encoder.config.hidden_act = "relu"  # type: ignore[union-attr]
    made.save(tmp_path / "m")
    assert light_encoder(tmp_path / "m") is None
    assert lead.load(tmp_path / "m").index(["an array", "a tree"]).search("array")[0].rank == 1
    made = make_retriever(tiny_model, "de")
    made.tokenizer.init_kwargs["split_special_tokens"] = made.tokenizer.split_special_tokens = True
    made.save(tmp_path / "split")
    query = Model(tmp_path / "split")._query("[MASK] array")
    np.testing.assert_allclose(query, Model(tmp_path / "split").encode_queries(["[MASK] array"])[0], atol=2e-6)


# --- the terminal ----------------------------------------------------------------------------------------------------
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], searchable: Searchable) -> Run:
    """Runs `lead search` in this process: status, standard output and error."""

    def call(*arguments: str) -> tuple[int, str, str]:
        status = cli.main(["search", *arguments, *searchable.options])
        return status, *capsys.readouterr()

    return call


def test_one_query(run: Run, searchable: Searchable) -> None:
    status, out, _ = run("tiny/lead_cb", HOSTILE_QUERY, "-k", "161")
    assert status == 0 and out.startswith("lead_cb: dual encoder, searches all 161 passages (")
    assert HOSTILE_ID in out and "\x1b" not in out and "\x07" not in out and "\u202e" not in out
    best, score = searchable.ranked("lead_cb")["hostile"][0]
    assert re.search(rf"^  1 +{score:.3f} {re.escape(best)}$", out, re.M)
    assert re.search(r"^161 ", out, re.M)


def test_beside_bm25_and_the_teacher(run: Run, searchable: Searchable) -> None:
    qid, query = next(iter(searchable.queries().items()))
    status, out, _ = run("tiny/lead_cb", query, "-k", "7", "--compare", "--json")
    found = json.loads(out)
    assert status == 0 and out.count("\n") == 1
    assert [other["run"] for other in found["compare"]] == ["bm25", "teacher_cb"]
    assert found["compare"][1]["about"] == "ColBERT, reranks the first 50 of lead_cb"
    for answer in (found, *found["compare"]):
        expected = searchable.ranked(answer["run"])[qid][:7]
        assert [hit["id"] for hit in answer["results"]] == [pid for pid, _ in expected]
        np.testing.assert_allclose([h["score"] for h in answer["results"]], [s for _, s in expected], rtol=1e-4)
    status, out, _ = run("tiny/lead_cb", query, "-k", "2", "--compare")
    assert re.findall(r"^(\w+): (?:dual|BM25|ColBERT)", out, re.M) == ["lead_cb", "bm25", "teacher_cb"]


def test_json_is_whole_on_a_terminal_that_shows_few_letters(
    searchable: Searchable, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "latin-1"))
    assert cli.main(["search", "tiny/bm25", HOSTILE_QUERY, "--json", *searchable.options]) == 0
    found = json.loads(written.getvalue())
    assert found["query"] == HOSTILE_QUERY and found["results"][0]["text"] == HOSTILE


def test_every_kind_of_run_answers(run: Run) -> None:
    status, out, _ = run("tiny/bm25", "xyzzy")
    assert status == 0 and "nothing found" in out
    status, _, err = run("tiny/teacher_cb", "array")  # its pipeline reranks a list of teacher_de, which is not made
    assert (
        status == 1 and "models/teacher_de does not exist; make it with: lead run tiny/teacher_de --configfile" in err
    )


def test_what_is_not_made_is_one_line_and_hides_nothing_else(run: Run) -> None:
    status, out, err = run("tiny/lead_de", "array")
    assert status == 1 and not out and err.count("\n") == 1
    assert "make it with: lead run tiny/lead_de" in err and "--configfile" in err
    for target, said in (
        ("tiny/leadcb", "did you mean 'lead_cb'"),
        ("tiny", "neither DATASET/RUN nor"),
        ("a/b", "no dataset 'a'"),
    ):
        status, out, err = run(target, "array")
        assert status == 1 and not out and err.count("\n") == 1 and said in err
    assert run("tiny/lead_cb", "array", "-k", "0")[0] == 1
    assert "is not UTF-8" in run("tiny/lead_cb", "\udcff")[2]


def test_passages_of_ones_own_on_the_terminal(run: Run, searchable: Searchable, tmp_path: Path) -> None:
    (tmp_path / "mine.tsv").write_text("a\tan array has a shape\nb\ta graph has an edge\n")
    folder = str(searchable.folder / "models" / "lead_cb")
    status, out, _ = run(folder, "array shape", "--corpus", str(tmp_path / "mine.tsv"))
    assert status == 0 and re.search(r"^  [12] +\S+ a$", out, re.M)
    assert run(folder, "array shape", "-k", "1")[1].count("\n") >= 3  # among the results: the run's own passages
    elsewhere = str(shutil.copytree(folder, tmp_path / "model"))
    assert f"is a model without passages; give them: lead search {elsewhere} --corpus" in run(elsewhere, "array")[2]


def test_many_queries_from_elsewhere(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "queries").write_text("array shape\n\ntree node\n")
    with (tmp_path / "queries").open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        started = time.monotonic()
        status, out, _ = run("tiny/lead_cb", "--json")
    assert status == 0 and time.monotonic() - started < 30
    answers = [json.loads(line) for line in out.splitlines()]
    assert [answer["query"] for answer in answers] == ["array shape", "tree node"]
    assert {len(answer["results"]) for answer in answers} == {10}


@pytest.mark.parametrize("colours", [True, False])
def test_a_prompt_on_a_terminal(searchable: Searchable, colours: bool) -> None:
    here, there = pty.openpty()
    plain = {} if colours else {"NO_COLOR": "1"}
    command = [sys.executable, "-m", "lead", "search", "tiny/lead_cb", "-k", "161", *searchable.options]
    variables = environment() | {"TERM": "xterm"} | plain
    process = subprocess.Popen(command, stdin=there, stdout=there, stderr=there, env=variables)
    os.close(there)
    seen = b""
    for prompts, typed in ((1, b"stride of an array\n"), (2, b"\x04"), (10**9, b"")):
        while seen.count(b"query> ") < prompts and select.select([here], [], [], 120)[0]:
            try:
                read = os.read(here, 65536)
            except OSError:  # the other end is closed
                break
            seen += read
            if not read:
                break
        os.write(here, typed)
    assert process.wait(120) == 0
    shown = seen.decode()
    assert "query> " in shown and "lead_cb: dual encoder" in ANSI.sub("", shown)
    assert ("\x1b[1;33mstride\x1b[0m" in shown) == colours
    assert "\x07" not in shown and "\x1b[31m" not in shown
