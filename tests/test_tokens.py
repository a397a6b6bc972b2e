"""The store of token ids: what is encoded from it is, to the last byte, what is encoded from texts."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from conftest import make_retriever
from dag.project import empty_project, refusal, replace
from test_liberal import make_encoder

from lead.config.load import load
from lead.config.stages import EncodeSettings, TokenizeSettings
from lead.data import tokens as module
from lead.data.tokens import Tokens, tokenize, tokenizer_sum
from lead.models.base import LayeredModel
from lead.plan.plan import Plan
from lead.plan.stage_settings import settings_of
from lead.retrieval import encode
from lead.store.tables import open_table, read_table, shard_rows, write_table
from lead.tokenizer import load_tokenizer


def store(model: Path, texts: Path, out: Path, length: int = 24, shard: str | None = None) -> Path:
    tokenize(settings=TokenizeSettings(reference=f"path:{model}", length=length, shard=shard), texts=texts, out=out)
    return out


@pytest.fixture(scope="module", params=["wordpiece", "byte-level"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A pretrained encoder's folder; two tokenizers."""
    if request.param == "wordpiece":
        return tiny_model
    return make_encoder(tmp_path_factory.mktemp("roberta") / "m", "roberta")


@pytest.mark.parametrize("shard", [None, "1of3", "3of3"])
def test_vectors_from_the_store_are_those_from_texts(
    tmp_path: Path, model: Path, tiny_collection: Path, shard: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 20)
    monkeypatch.setattr(encode, "CHUNK", 30)
    make_retriever(model).save(tmp_path / "model")
    corpus = tiny_collection / "corpus.parquet"
    tokens = store(model, corpus, tmp_path / "tokens", shard=shard)
    for name, given in (("texts", None), ("store", tokens)):
        encode.encode(settings=EncodeSettings(shard=shard, batch_tokens=200), gpu=0, model=tmp_path / "model",
                      texts=corpus, tokens=given, out=tmp_path / f"{name}.parquet")  # fmt: skip
    assert (tmp_path / "store.parquet").read_bytes() == (tmp_path / "texts.parquet").read_bytes()
    start, stop = shard_rows(160, shard)
    assert len(read_table(tmp_path / "store.parquet")) == stop - start


def test_rows_are_what_the_model_would_read_and_the_file_is_small(
    tmp_path: Path, model: Path, tiny_collection: Path
) -> None:
    retriever = make_retriever(model)
    opened = Tokens(store(model, tiny_collection / "corpus.parquet", tmp_path / "t"), retriever.tokenizer, 24, 160)
    want = retriever.tokenize("passage", read_table(tiny_collection / "corpus.parquet")["text"].to_pylist())
    for start, stop in ((0, 160), (0, 1), (159, 160), (40, 90), (7, 7)):
        assert [row.tolist() for row in opened.rows(start, stop)] == want[start:stop]
    bytes_ = (tmp_path / "t" / "tokens.safetensors").stat().st_size
    assert bytes_ < 2 * sum(map(len, want)) + 8 * 160 + 300


def test_a_corpus_that_is_smaller_than_its_shards(tmp_path: Path, tiny_model: Path) -> None:
    write_table(pa.table({"pid": ["a"], "text": ["the array"]}), tmp_path / "c.parquet", "corpus")
    empty = store(tiny_model, tmp_path / "c.parquet", tmp_path / "t", shard="1of2")
    assert Tokens(empty, load_tokenizer(str(tiny_model), ""), 24, 0).rows(0, 0) == []


def test_training_does_not_change_the_fingerprint(tmp_path: Path, model: Path) -> None:
    retriever = make_retriever(model)
    before = tokenizer_sum(load_tokenizer(str(model), ""))
    retriever.tokenize("passage", ["cutting leaves a state in the tokenizer " * 9])
    retriever.save(tmp_path / "saved")
    assert (
        tokenizer_sum(LayeredModel.load(tmp_path / "saved").tokenizer) == tokenizer_sum(retriever.tokenizer) == before
    )


def test_a_store_of_something_else_is_refused(tmp_path: Path, tiny_model: Path, tiny_collection: Path) -> None:
    corpus = tiny_collection / "corpus.parquet"
    tokens = store(tiny_model, corpus, tmp_path / "t")
    ours = load_tokenizer(str(tiny_model), "")
    other = load_tokenizer(str(make_encoder(tmp_path / "m", "roberta")), "")
    for what, arguments in (("tokenizer", (other, 24, 160)), ("length", (ours, 25, 160)), ("number", (ours, 24, 161))):
        said = refusal(lambda arguments=arguments: Tokens(tokens, *arguments))
        assert f"its {what}" in said and "lead tokenize" in said
    file = tokens / "tokens.safetensors"
    file.write_bytes(file.read_bytes()[:-2] + b"xx")
    assert "damaged (checksum)" in refusal(lambda: Tokens(tokens, ours, 24, 160))
    said = refusal(lambda: store(tiny_model, tiny_collection / "queries.train.parquet", tmp_path / "q"))
    assert "is not a corpus table" in said


def test_only_the_row_groups_and_columns_asked_for_are_read(tiny_collection: Path) -> None:
    from lead.store.tables import read_rows

    (table,) = read_rows(open_table(tiny_collection / "corpus.parquet"), 3, 5, 10, ["pid"])
    assert table.column_names == ["pid"] and table["pid"].to_pylist() == ["p3", "p4"]


def test_the_plan_gives_models_with_one_tokenizer_one_store(tmp_path: Path) -> None:
    config = empty_project(tmp_path)
    assert Plan(load(config / "config.yaml"))["tiny", "student"].tokens("") == []  # in one part: tokenized anew
    replace(config / "datasets/tiny.yaml", "preset: tiny", "preset: tiny\nshards: 3")
    made = Plan(load(config / "config.yaml"))
    (path,) = made["tiny", "student"].tokens(".2of3")
    assert path.startswith("all results/tiny/tokens/path_") and path.endswith("/passages.2of3")
    for run in ("miner", "teacher_de", "student_more", "lead_cb", "rd_cb-s2"):
        assert made["tiny", run].tokens(".2of3") == [path]
    name = Path(path).parent.name
    settings = settings_of(made.jobs, "tokenize", "tiny", name)
    assert (name, settings) == made["tiny", "student"].tokenizer
    assert settings["length"] == made["tiny", "student"].settings.lengths.passage
    assert "no tokenizer 'x' in" in refusal(lambda: settings_of(made.jobs, "tokenize", "tiny", "x"))
