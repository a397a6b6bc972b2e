"""The real topics and judgements of MS MARCO and TREC-DL through the datasets' own checks; passages are only ids.

The archive holds no document topics and, of TREC-DL 2019's 200 topics, the 43 that are judged.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from lead.config.load import load
from lead.config.stages import PrepareSettings
from lead.data.files import read_qrels
from lead.data.prepare import prepare
from lead.errors import LeadError
from lead.plan.plan import Plan
from lead.plan.stage_settings import settings_of
from lead.store.tables import SCHEMAS, read_json, read_table, write_table

ROOT = Path(__file__).resolve().parents[1]
ARCHIVE = ROOT.parent / "shared" / "collections" / "msmarco-topics.tar.xz"
pytestmark = [
    pytest.mark.needs_shared,
    pytest.mark.skipif(not ARCHIVE.is_file(), reason="the real topics are not part of the repository"),
]
REAL = {  # topics, judgements, queries, rows of judgements, judged queries
    "mspas": ("topics.msmarco-passage.dev-subset.txt", "qrels.msmarco-passage.dev-subset.txt", 6980, 7437, 6980),
    "trec_pas_19": ("topics.dl19-passage.txt", "qrels.dl19-passage.txt", 43, 9260, 43),
    "trec_pas_20": ("topics.dl20.txt", "qrels.dl20-passage.txt", 200, 11386, 54),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked files, and a corpus of every passage that they judge."""
    folder = tmp_path_factory.mktemp("real")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    folder /= "msmarco-topics"
    judged = pa.concat_tables([read_qrels([folder / qrels])[0] for _, qrels, *_ in REAL.values()])["pid"].unique()
    corpus = pa.table({"pid": judged, "text": [f"passage {i}" for i in range(len(judged))]}, schema=SCHEMAS["corpus"])
    write_table(corpus, folder / "corpus.parquet", "corpus")
    return folder


def settings(dataset: str, topics: Path, qrels: Path) -> PrepareSettings:
    """What `lead prepare` gets for a dataset of the paper, its evaluation queries read from files."""
    found = settings_of(Plan(load(ROOT / "config" / "config.yaml")).jobs, "prepare", dataset)
    expect = {"test": found["expect"]["test"]}
    source = {"kind": "evaluation", "of": "mspas", "test": {"queries": str(topics), "qrels": str(qrels)}}
    keys = {key: found[key] for key in ("relevance", "checks")}
    return PrepareSettings.model_validate({"source": source, "expect": expect, **keys})


@pytest.mark.parametrize("dataset", REAL)
def test_counts_are_the_published_ones(folder: Path, tmp_path: Path, dataset: str) -> None:
    topics, qrels, n_queries, n_rows, n_judged = REAL[dataset]
    prepare(settings=settings(dataset, folder / topics, folder / qrels), out=tmp_path, corpus=folder / "corpus.parquet")
    judgements = read_table(tmp_path / "qrels.test.parquet", "qrels")
    queries = read_table(tmp_path / "queries.test.parquet", "queries")
    report = read_json(tmp_path / "report.json")["splits"]["test"]
    assert (queries.num_rows, judgements.num_rows + report["repeated_judgements"]) == (n_queries, n_rows)
    assert pc.count_distinct(judgements["qid"]).as_py() == n_judged
    assert report["unresolved_judgements"] == report["empty_queries"] == 0
    assert report["unjudged_queries"] == n_queries - n_judged  # whoever is judged has a passage of the grade needed
    assert pc.all(pc.is_in(judgements["qid"], value_set=queries["qid"])).as_py()


@pytest.mark.parametrize("dataset", REAL)
def test_a_truncated_file_is_noticed(folder: Path, tmp_path: Path, dataset: str) -> None:
    topics, qrels, *_, n_judged = REAL[dataset]
    lines = (folder / qrels).read_text().splitlines(keepends=True)
    last = lines[-1].split()[0]
    (tmp_path / "qrels.txt").write_text("".join(line for line in lines if line.split()[0] != last))
    given = settings(dataset, folder / topics, tmp_path / "qrels.txt")
    with pytest.raises(LeadError, match=rf"expect.test: {n_judged - 1:,} judged test queries, not {n_judged:,}"):
        prepare(settings=given, out=tmp_path / "out", corpus=folder / "corpus.parquet")
