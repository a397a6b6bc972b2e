"""Kinds `beir` and `hf`: files are found in a folder, and read as those that a source names; and the docs' recipes."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from lead.config.folders import locate
from lead.config.load import source_files, validate
from lead.config.schema import Dataset
from lead.config.sources import BeirSource, HfSource
from lead.config.stages import PrepareSettings
from lead.data.prepare import prepare
from lead.errors import LeadError
from lead.store.provenance import make_record
from lead.store.tables import read_json, read_table

ROOT = Path(__file__).resolve().parents[1]
PASSAGES = [(f"{i:03}", f"title {i}" if i % 3 else None, f'text of "passage" {i}') for i in range(30)]
PARTS = {"train": range(12), "dev": range(12, 16), "test": range(16, 20)}
QUERIES = [(str(i), f"query {i}") for i in range(25)]  # of five, no split says anything


def judged(split: str) -> list[tuple[str, str, int]]:
    return [(str(i), f"{i:03}", 1) for i in PARTS[split]]


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content.encode()) if path.suffix == ".gz" else content.encode())
    if path.suffix == ".zst":
        with pa.CompressedOutputStream(str(path), "zstd") as file:
            file.write(content.encode())


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


CORPUS = [{"_id": pid, "title": title, "text": text, "metadata": {}} for pid, title, text in PASSAGES]
ASKED = [{"_id": qid, "text": text} for qid, text in QUERIES]


def beir(folder: Path, splits: tuple[str, ...] = ("train", "dev", "test"), packed: str = "") -> None:
    """A folder as BEIR's archives hold it. Ids look like numbers."""
    write(folder / f"corpus.jsonl{packed}", lines(CORPUS))
    write(folder / f"queries.jsonl{packed}", lines(ASKED))
    for split in splits:
        rows = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, row)) for row in judged(split))]
        write(folder / "qrels" / f"{split}.tsv{packed}", "\n".join(rows) + "\n")


def parquet(path: Path, columns: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def shards(folder: Path, qrels: str = "data") -> None:
    """A folder as `push_to_hub` makes it: Parquet in shards, scores as floats. A README would say the same."""
    for i, part in enumerate((PASSAGES[:20], PASSAGES[20:])):
        pid, title, text = (list(column) for column in zip(*part, strict=True))
        parquet(folder / "corpus" / f"corpus-0000{i}-of-00002.parquet", {"_id": pid, "title": title, "text": text})
    qid, text = zip(*QUERIES, strict=True)
    parquet(folder / "queries" / "queries-00000-of-00001.parquet", {"_id": list(qid), "text": list(text)})
    for split in PARTS:
        q, p, rel = (list(column) for column in zip(*judged(split), strict=True))
        columns = {"query-id": q, "corpus-id": p, "score": list(map(float, rel))}
        name = "validation" if split == "dev" else split
        parquet(folder / qrels / f"{name}-00000-of-00001.parquet", columns)


CARD = """---
configs:
- config_name: default
  data_files:
  - {split: train, path: relevance/one.jsonl}
  - {split: validation, path: [relevance/two.jsonl]}
  - {split: test, path: "relevance/th*.jsonl"}
- config_name: corpus
  data_files:
  - {split: corpus, path: "all/passages-*"}
- config_name: queries
  data_files: all/asked.jsonl
---
# A dataset
"""


def card(folder: Path) -> None:
    """Files of any name, which the README's header explains."""
    write(folder / "README.md", CARD)
    write(folder / "all" / "passages-1.jsonl.gz", lines(CORPUS[:7]))
    write(folder / "all" / "passages-2.jsonl", lines(CORPUS[7:]))
    write(folder / "all" / "asked.jsonl", lines(ASKED))
    for split, name in zip(PARTS, ("one", "two", "three"), strict=True):
        rows = [{"query-id": q, "corpus-id": p, "score": float(rel)} for q, p, rel in judged(split)]
        write(folder / "relevance" / f"{name}.jsonl", lines(rows))


def converted(folder: Path) -> None:
    """As the hub converts datasets: configuration/split/0000.parquet."""
    shards(folder / "from")
    for config, split, file in (
        ("corpus", "corpus", "corpus-00000-of-00002"), ("corpus", "corpus", "corpus-00001-of-00002"),
        ("queries", "queries", "queries-00000-of-00001"), ("data", "train", "train-00000-of-00001"),
        ("data", "validation", "validation-00000-of-00001"), ("data", "test", "test-00000-of-00001"),
    ):  # fmt: skip
        target = (
            folder / ("default" if config == "data" else config) / split / f"{file[-14:-9]}.parquet".replace("-", "0")
        )
        target.parent.mkdir(parents=True, exist_ok=True)
        (folder / "from" / config / f"{file}.parquet").rename(target)
    for path in sorted((folder / "from").rglob("*"), reverse=True):
        path.rmdir()
    (folder / "from").rmdir()


def apart(folder: Path) -> None:
    """As BeIR's repositories: judgements in another one, as TSV."""
    beir(folder, splits=(), packed=".gz")
    for split in PARTS:
        rows = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, row)) for row in judged(split))]
        write(folder.parent / f"{folder.name}-qrels" / f"{split}.tsv", "\n".join(rows) + "\n")


def check(out: Path, carved: bool = False) -> None:
    """What was prepared is the collection, whatever layout it came in."""
    corpus = read_table(out / "corpus.parquet", "corpus").to_pylist()
    texts = {pid: f"{title} {text}" if title else text for pid, title, text in PASSAGES}
    assert {row["pid"]: row["text"] for row in corpus} == texts
    for split in PARTS:
        qrels = read_table(out / f"qrels.{split}.parquet", "qrels").to_pylist()
        if not (carved and split != "test"):
            assert [(row["qid"], row["pid"], row["rel"]) for row in qrels] == judged(split)
        queries = read_table(out / f"queries.{split}.parquet", "queries").to_pylist()
        assert [row["qid"] for row in queries] == [row["qid"] for row in qrels]
        assert all(row["text"] == f"query {row['qid']}" for row in queries)
    assert read_json(out / "report.json")["splits"]["train"]["leaked_queries"] == 0


LAYOUTS: dict[str, tuple[Callable[[Path], None], dict[str, Any]]] = {
    "beir": (beir, {"kind": "beir"}),
    "beir, packed": (lambda folder: beir(folder, packed=".zst"), {"kind": "beir"}),
    "beir as hf": (beir, {"kind": "hf"}),
    "shards": (shards, {"kind": "hf"}),
    "shards in qrels": (lambda folder: shards(folder, "qrels"), {"kind": "hf"}),
    "shards in qrels/default": (lambda folder: shards(folder, "qrels/default"), {"kind": "hf"}),
    "card": (card, {"kind": "hf"}),
    "converted": (converted, {"kind": "hf"}),
    "apart": (apart, {"kind": "hf", "qrels": "x-qrels"}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_is_a_collection(tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, source = LAYOUTS[layout]
    make(tmp_path / "x")
    monkeypatch.chdir(tmp_path)
    settings = PrepareSettings.model_validate({"source": source | {"folder": "x"}})
    files = source_files(settings.source)
    assert len(files) == len(set(files)) and all(Path(file).is_file() for file in files)
    assert set(make_record("prepare", settings, [])["inputs"]) == set(files)
    prepare(settings=settings, out=tmp_path / "out")
    check(tmp_path / "out")


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beir(tmp_path / "x")
    monkeypatch.setenv("HOME", str(tmp_path))
    qrels = {s: {"queries": "~/x/queries.jsonl", "qrels": f"~/x/qrels/{s}.tsv"} for s in PARTS}
    for i, source in enumerate(
        ({"kind": "beir", "folder": "~/x"}, {"kind": "files", "corpus": "~/x/corpus.jsonl"} | qrels)
    ):
        settings = PrepareSettings.model_validate({"source": source})
        assert all(Path(file).is_file() for file in source_files(settings.source))
        prepare(settings=settings, out=tmp_path / str(i))
        check(tmp_path / str(i))


def test_without_train_judgements_another_split_can_be_trained_on(tmp_path: Path) -> None:
    beir(tmp_path, splits=("dev", "test"))
    with pytest.raises(LeadError, match=r"source.train: .*qrels has no judgements 'train', only: dev, test; name one"):
        locate(BeirSource(kind="beir", folder=str(tmp_path)))
    located = locate(BeirSource(kind="beir", folder=str(tmp_path), train="dev"))
    assert sorted(located.splits) == ["test", "train"] and located.splits["train"].qrels[0].name == "dev.tsv"
    with pytest.raises(LeadError, match="source.train: 'test' is the test split too"):
        locate(BeirSource(kind="beir", folder=str(tmp_path), train="test"))


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ({"kind": "beir", "folder": "nowhere"}, "source.folder: no folder nowhere; download and unpack it"),
        ({"kind": "beir", "folder": "empty"}, "source.folder: empty has no corpus.jsonl; give an unpacked folder"),
        (
            {"kind": "beir", "folder": "x", "dev": "devel"},
            "source.dev: .* no judgements 'devel', only: dev, test, train",
        ),
        (
            {"kind": "hf", "folder": "empty"},
            "source: empty has no configuration corpus, only nothing; give a dataset in",
        ),
        ({"kind": "hf", "folder": "x", "test": "gone"}, "source.test: x has no judgements 'gone'"),
        (
            {"kind": "hf", "folder": "x", "qrels": "empty"},
            "has no configuration qrels or default or data, only nothing",
        ),
    ],
)
def test_a_mistake_is_one_line(
    tmp_path: Path, source: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    beir(tmp_path / "x")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    settings = PrepareSettings.model_validate({"source": source})
    with pytest.raises(LeadError, match=says) as error:
        prepare(settings=settings, out=tmp_path / "out")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({}, "either `folder` or `repository`"),
        ({"folder": "x", "repository": "a/b"}, "either `folder` or `repository`"),
        ({"folder": "x", "revision": "v1"}, "`revision` is that of a `repository`"),
        ({"repository": "no name"}, "String should match pattern"),
    ],
)
def test_a_source_is_in_one_place(keys: dict[str, Any], says: str) -> None:
    with pytest.raises(LeadError, match=says):
        validate(Dataset, {"source": {"kind": "hf"} | keys}, "x.yaml")


def test_a_repository_is_downloaded_when_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the cache of the hub's own library, laid out as it does it; without network it says what to do."""
    from huggingface_hub import constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "datasets--someone--things"
    shards(repository / "snapshots" / commit)
    write(repository / "refs" / "main", commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    source = HfSource(kind="hf", repository="someone/things")
    assert source_files(source) == []  # the workflow does not download while it plans
    settings = PrepareSettings.model_validate({"source": source.model_dump()})
    prepare(settings=settings, out=tmp_path / "out")
    check(tmp_path / "out")
    with pytest.raises(LeadError, match=r"cannot get the dataset 'no/such' from the hub: .*; check the name") as error:
        locate(HfSource(kind="hf", repository="no/such"))
    assert "\n" not in str(error.value)


# --- docs/datasets.md ------------------------------------------------------------------------------------------------
def marco(folder: Path) -> None:
    """The official files: TSV without headers, four columns of judgements."""
    write(folder / "collection.tsv", "".join(f"{p}\t{f'{t} ' if t else ''}{text}\n" for p, t, text in PASSAGES))
    for split, name in (("train", "train"), ("test", "dev.small")):
        rows = [f"{qid}\t{text}\n" for qid, text in QUERIES if int(qid) in PARTS[split]]
        write(folder / f"queries.{name}.tsv", "".join(rows))
        write(folder / f"qrels.{name}.tsv", "".join(f"{q}\t0\t{p}\t{rel}\n" for q, p, rel in judged(split)))


def dpr(folder: Path) -> None:
    """psgs_w100.tsv with header and quotes; questions as CSV."""
    rows = ["id\ttext\ttitle", *('{}\t"{}"\t{}'.format(p, text.replace('"', '""'), t or "") for p, t, text in PASSAGES)]
    write(folder / "psgs_w100.tsv.gz", "\n".join(rows) + "\n")
    for split in ("train", "test"):
        rows = ["id,question", *(f'{qid},"{text}"' for qid, text in QUERIES if int(qid) in PARTS[split])]
        write(folder / f"nq-{split}.queries.csv", "\n".join(rows) + "\n")
        write(folder / f"nq-{split}.qrels.tsv", "".join(f"{q}\t{p}\t{rel}\n" for q, p, rel in judged(split)))


def mine(folder: Path) -> None:
    """Each table in another format."""
    pid, title, text = (list(column) for column in zip(*PASSAGES, strict=True))
    parquet(folder / "passages.parquet", {"docid": pid, "Title": title, "contents": text})
    for split, name in (("train", "train.jsonl"), ("dev", "dev.jsonl.zst")):
        write(folder / name, lines([row for row in ASKED if int(row["_id"]) in PARTS[split]]))
        rows = ["qid,pid,relevance", *(f"{q},{p},{rel}.0" for q, p, rel in judged(split))]
        write(folder / f"{split}.qrels.csv", "\n".join(rows) + "\n")
    write(folder / "test.tsv", "".join(f"{qid}\t{text}\n" for qid, text in QUERIES if int(qid) in PARTS["test"]))
    write(folder / "test.trec", "".join(f"{q} 0 {p} {rel}\n" for q, p, rel in judged("test")))


RECIPES: dict[str, tuple[Callable[[Path], None], bool]] = {  # what a block names -> its data; whether dev is carved
    "/data/msmarco": (marco, True),
    "/data/beir/scifact": (beir, False),
    "/data/beir/quora": (lambda folder: beir(folder, splits=("dev", "test")), True),
    "/data/hf/scifact": (shards, False),
    "/data/hf/BeIR-scifact": (apart, False),
    "/data/dpr": (dpr, True),
    "/data/mine": (mine, False),
}
BLOCKS = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "datasets.md").read_text(encoding="utf-8"), re.DOTALL)
WHOLE = [block for block in BLOCKS if re.search(r"kind: (files|beir|hf)", block)]


def test_every_recipe_is_one_that_a_dataset_can_have() -> None:
    assert len(WHOLE) == len(RECIPES) + 1  # the repository is not downloaded here
    for block in WHOLE:
        validate(Dataset, yaml.safe_load(block), "docs/datasets.md", block)


@pytest.mark.parametrize("place", RECIPES)
def test_recipes_of_the_docs(tmp_path: Path, place: str) -> None:
    make, carved = RECIPES[place]
    (block,) = [block for block in WHOLE if re.search(rf"{place}(/[^/]*)?\s", block)]
    make(tmp_path / place[1:])
    settings = PrepareSettings.model_validate(yaml.safe_load(block.replace("/data/", f"{tmp_path}/data/")))
    prepare(settings=settings, out=tmp_path / "out")
    check(tmp_path / "out", carved)


def test_a_corpus_in_several_files_without_a_card_is_read_as_a_whole(tmp_path: Path) -> None:
    for name in ("corpus/corpus.jsonl", "corpus/corpus-2.jsonl", "queries/queries.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"_id": "a", "text": "b"}\n')
    (tmp_path / "qrels").mkdir()
    for split in ("train", "test"):
        (tmp_path / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\na\ta\t1\n")
    found = locate(HfSource(kind="hf", folder=str(tmp_path)))
    assert sorted(path.name for path in found.corpus) == ["corpus-2.jsonl", "corpus.jsonl"]
