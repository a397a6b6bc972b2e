"""Collections of ir_datasets, registered from local files, and evaluation sets that share a collection."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lead.config.stages import PrepareSettings
from lead.data.prepare import prepare
from lead.errors import LeadError
from lead.store.tables import read_json, read_table

DOCS = [(f"d{i}", f"http://x/{i}", f"title {i}" if i % 3 else "", f'"body of {i}') for i in range(30)]


class _Local:
    """A file on this machine, as ir_datasets reads what it has downloaded."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def stream(self) -> Any:
        return self._path.open("rb")

    def path(self, force: bool = True) -> str:
        return str(self._path)


@pytest.fixture(scope="module")
def ids(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Ids of a registered collection: docs, train and test."""
    import ir_datasets
    from ir_datasets.datasets.base import Dataset
    from ir_datasets.datasets.msmarco_document import MsMarcoDocument
    from ir_datasets.formats import TrecQrels, TsvDocs, TsvQueries

    folder = tmp_path_factory.mktemp("ir")
    (folder / "docs.tsv").write_text("".join("\t".join(row) + "\n" for row in DOCS))
    docs = TsvDocs(_Local(folder / "docs.tsv"), doc_cls=MsMarcoDocument, namespace="leadtest")
    made = {"docs": "leadtest"}
    ir_datasets.registry.register("leadtest", Dataset(docs))
    for split, n, grade in (("train", 20, 1), ("test", 8, 2)):
        (folder / f"{split}.tsv").write_text("".join(f"{split}{i}\tquery {i} of {split}\n" for i in range(n)))
        rows = [f"{split}{i} 0 d{i} {grade if i % 2 else 1}\n" for i in range(n - 2)]  # two queries are not judged
        (folder / f"{split}.qrels").write_text("".join(rows))
        queries = TsvQueries(_Local(folder / f"{split}.tsv"), namespace="leadtest")
        qrels = TrecQrels(_Local(folder / f"{split}.qrels"), {0: "no", 1: "some", 2: "much"})
        ir_datasets.registry.register(f"leadtest/{split}", Dataset(docs, queries, qrels))
        made[split] = f"leadtest/{split}"
    return made


def settings(ids: dict[str, str], **more: Any) -> PrepareSettings:
    source = {"kind": "ir_datasets", "corpus": ids["docs"], "train": ids["train"], "test": ids["test"]}
    source["fields"] = ["title", "body"]  # type: ignore[assignment]
    return PrepareSettings.model_validate({"source": source | more.pop("source", {}), "dev_share": 0.2} | more)


def test_a_collection_is_streamed_and_split(ids: dict[str, str], tmp_path: Path) -> None:
    prepare(settings=settings(ids, expect={"passages": 30, "train": 18, "test": 6}), out=tmp_path)
    corpus = read_table(tmp_path / "corpus.parquet", "corpus").to_pydict()
    assert corpus["pid"] == [row[0] for row in DOCS]
    assert corpus["text"] == [f"{title} {body}".strip() for _, _, title, body in DOCS]
    counts = {s: read_table(tmp_path / f"queries.{s}.parquet").num_rows for s in ("train", "dev", "test")}
    assert counts["train"] + counts["dev"] == 18 and counts["dev"] == 4 and counts["test"] == 8
    assert read_table(tmp_path / "qrels.test.parquet")["rel"].to_pylist() == [1, 2, 1, 2, 1, 2]


def test_an_evaluation_set_is_asked_of_the_prepared_corpus(ids: dict[str, str], tmp_path: Path) -> None:
    prepare(settings=settings(ids), out=tmp_path / "whole")
    given = PrepareSettings.model_validate(
        {"source": {"kind": "evaluation", "of": "x", "test": ids["test"]}, "expect": {"test": 6}, "relevance": 2}
    )
    prepare(settings=given, out=tmp_path / "more", corpus=tmp_path / "whole" / "corpus.parquet")
    assert sorted(p.name for p in (tmp_path / "more").iterdir()) == [
        "qrels.test.parquet", "queries.test.parquet", "report.json",
    ]  # fmt: skip
    report = read_json(tmp_path / "more" / "report.json")
    assert report["splits"]["test"]["unjudged_queries"] == 5  # two without judgements, three without a 2
    with pytest.raises(LeadError, match="--corpus is missing"):
        prepare(settings=given, out=tmp_path / "more")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ({"corpus": "no-such-thing"}, "source.corpus: ir_datasets has no 'no-such-thing'"),
        ({"test": "leadtest"}, "source.test: 'leadtest' of ir_datasets has no queries"),
        ({"fields": ["text"]}, "source.fields: passages have no 'text'; they have url, title, body"),
    ],
)
def test_a_mistake_is_one_line(ids: dict[str, str], tmp_path: Path, source: dict[str, Any], says: str) -> None:
    with pytest.raises(LeadError) as error:
        prepare(settings=settings(ids, source=source), out=tmp_path)
    assert says in str(error.value) and "\n" not in str(error.value)
    assert not list(tmp_path.glob("*"))


@pytest.mark.parametrize(("name", "count"), [("passages", 31), ("train", 19), ("test", 8)])
def test_a_count_that_is_known_to_be_another_stops_the_stage(
    ids: dict[str, str], tmp_path: Path, name: str, count: int
) -> None:
    with pytest.raises(LeadError, match=rf"expect.{name}: .*, not {count}: a file is incomplete"):
        prepare(settings=settings(ids, expect={name: count}), out=tmp_path)
    assert not list(tmp_path.glob("*"))


def test_the_papers_datasets_name_ids_that_exist() -> None:
    """Fields, queries and judgements of MS MARCO and TREC-DL as the library declares them; nothing is downloaded."""
    import ir_datasets

    from lead.config.load import load
    from lead.config.sources import EvaluationSource, IrDatasetsSource

    found = 0
    for dataset, _ in load("config/config.yaml").datasets.values():
        source = dataset.source
        if isinstance(source, IrDatasetsSource):
            docs = ir_datasets.load(source.corpus)
            assert docs.has_docs() and set(source.fields) < set(docs.docs_cls()._fields)
            assert dataset.expect.passages == docs.docs_count()
            splits = [source.train, source.test]
        elif isinstance(source, EvaluationSource):
            splits = [str(source.test)]
        else:
            continue
        for split in splits:
            assert ir_datasets.load(split).has_queries() and ir_datasets.load(split).has_qrels()
            found += 1
    assert found == 8
