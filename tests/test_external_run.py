"""Ranked lists that come with a collection: every layout, ties, and what is wrong with them."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from lead.config.load import load
from lead.config.stages import ExternalSettings
from lead.data.external_run import external
from lead.errors import LeadError
from lead.plan.checks import check
from lead.plan.plan import Plan
from lead.plan.stage_settings import settings_of, stage_settings
from lead.plan.targets import sensible
from lead.store.tables import SCHEMAS, read_table, write_table

PIDS = ["10", "9", "a b", "d", "07"]
QIDS = ["q2", "q1", "q3"]
TOP1000 = "q1\td\ta question\ta passage\nq2\t9\tanother\tb\nother\tgone\tno query of ours\tc\nq1\t10\ta question\td\n"
LAYOUTS = {  # q1: d before 10; q2: 9
    "run.tsv": "q1\t10\t2\nq1\td\t1\nq2\t9\t1\n",
    "run.txt": "q1 Q0 10 1 3.5 x\nq2 Q0 9 1 1e-3 x\nq1 Q0 d 2 4.25 x\n",  # scores decide, not ranks
    "run.jsonl": '{"qid": "q1", "pid": 10, "score": 1}\n{"qid": "q1", "pid": "d", "score": 2}\n'
    '{"qid": "q2", "pid": "9", "score": 0}\n',
    "ranks.jsonl": '{"qid": "q1", "pid": "10", "rank": 2}\n{"qid": "q1", "pid": "d", "rank": 1}\n'
    '{"qid": "q2", "pid": "9", "rank": 1}\n',
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    texts = {"text": ["some text"] * len(PIDS)}
    write_table(pa.table({"pid": PIDS} | texts, schema=SCHEMAS["corpus"]), tmp_path / "corpus.parquet", "corpus")
    table = pa.table({"qid": QIDS, "text": ["a question"] * len(QIDS)}, schema=SCHEMAS["queries"])
    write_table(table, tmp_path / "queries.parquet", "queries")
    return tmp_path


def lists(folder: Path, name: str, content: str, depth: int = 1000) -> dict[str, list[str]]:
    """What the stage makes of a file: passages of each query, in order."""
    (folder / name).write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    out = folder / "external.parquet"
    settings = ExternalSettings(external_run=str(folder / name), depth=depth)
    external(settings=settings, corpus=folder / "corpus.parquet", queries=folder / "queries.parquet", out=out)
    table = read_table(out, "ranked")
    found: dict[str, list[str]] = {}
    for row in table.to_pylist():
        found.setdefault(row["qid"], []).append(row["pid"])
        assert row["rank"] == len(found[row["qid"]])
    return found


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(folder: Path, name: str) -> None:
    found = lists(folder, name, LAYOUTS[name])
    assert found == {"q2": ["9"], "q1": ["d", "10"]} and list(found) == ["q2", "q1"]  # in the order of the queries
    assert lists(folder, name, LAYOUTS[name], depth=1) == {"q2": ["9"], "q1": ["d"]}


@pytest.mark.parametrize("name", ["top1000.tsv", "top1000.tsv.gz"])
def test_lists_without_an_order_say_so(folder: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    assert lists(folder, name, TOP1000) == {"q2": ["9"], "q1": ["10", "d"]}
    assert read_table(folder / "external.parquet").schema.metadata[b"about"] == b'{"unordered": true}'
    assert lists(folder, name, TOP1000, depth=1) == {"q2": ["9"], "q1": ["10"]}
    assert "retrieval.depth 1 cuts them by id, raise it to 2" in caplog.text
    lists(folder, "run.txt", LAYOUTS["run.txt"])
    assert b"about" not in read_table(folder / "external.parquet").schema.metadata


def test_gzip_and_parquet(folder: Path) -> None:
    assert lists(folder, "run.tsv.gz", LAYOUTS["run.tsv"])["q1"] == ["d", "10"]
    run = pa.table({"qid": ["q1", "q1"], "pid": ["10", "d"], "score": [1.0, 2.0]})
    pa.parquet.write_table(run, folder / "run.parquet")
    settings = ExternalSettings(external_run=str(folder / "run.parquet"))
    out = folder / "external.parquet"
    external(settings=settings, corpus=folder / "corpus.parquet", queries=folder / "queries.parquet", out=out)
    assert read_table(out, "ranked")["pid"].to_pylist() == ["d", "10"]


def test_ties_go_to_the_smaller_id(folder: Path) -> None:
    content = "".join(f"q1 Q0 {pid} 1 0.5 x\n" for pid in ("d", "10", "9", "07"))
    assert lists(folder, "ties.txt", content) == {"q1": ["07", "10", "9", "d"]}
    # equal in single precision, in which scores are kept
    assert lists(folder, "ties.txt", "q1 Q0 d 1 1.00000000002 x\nq1 Q0 9 2 1.00000000001 x\n") == {"q1": ["9", "d"]}


def test_ids_with_spaces_between_tabs(folder: Path) -> None:
    assert lists(folder, "run.tsv", "q1\ta b\t1\n") == {"q1": ["a b"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("q1\td\t1\nq1\tmissing\t2\nq2\tgone\t1\n", "passage missing and 1 others are not in the corpus"),
        ("q1\td\t1\nq1\td\t2\n", "the list of query q1 has passage d twice"),
        ("nobody\td\t1\n", "no list for any of the 3 queries"),
        ("", "no list for any of the 3 queries"),
        ("q1\td\tfirst\n", "run.tsv:1: 'first' is not a rank, counted from 1"),
        ("q1\td\t12.5\nq1\t9\t3.0\n", "run.tsv:1: '12.5' is not a rank"),
        ("q1\td\t0\n", "run.tsv:1: '0' is not a rank"),
        ("q1\td\t12\nq1\t9\t3\n", "the ranks of query q1 start at 3, not 1; if they are scores, write a TREC run"),
        ("q1\td\t1\t12.5\nq1\t9\t2\t3.0\n", "run.tsv:1: 2 ids and 2 numbers; expected"),
        ("q1 Q0 d 1 1e39 x\n", "a score is not finite in single precision"),
        ("q1 Q0 d 1 nan x\n", "run.tsv:1: score 'nan' is not a number"),
        ("q1\td\t1\nq1\td\n", "run.tsv:2: 2 columns, but 3 in the lines before"),
        ("q1\td\n", "run.tsv:1: 2 columns; expected qid, pid, query, passage or"),
    ],
)
def test_one_line_for_what_is_wrong(folder: Path, content: str, message: str) -> None:
    with pytest.raises(LeadError) as e:
        lists(folder, "run.tsv", content)
    assert message in str(e.value) and "\n" not in str(e.value)
    assert not (folder / "external.parquet").exists()


def test_archives_and_missing_files(folder: Path) -> None:
    with pytest.raises(LeadError, match="is an archive; unpack it"):
        lists(folder, "top1000.dev.tar.gz", TOP1000)
    settings = ExternalSettings(external_run=str(folder / "nothing.parquet"))
    with pytest.raises(LeadError, match=r"external_run: no file .*nothing.parquet; fix the path"):
        external(
            settings=settings, corpus=folder / "corpus.parquet", queries=folder / "queries.parquet", out=folder / "x"
        )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"qid": "q1", "pid": "d"}', "run.jsonl:1: neither score nor rank"),
        ('{"qid": "q1", "pid": "d", "score": 1' + "0" * 400 + "}", "is not a number"),
        ('{"qid": "q1", "pid": "d", "rank": -1}', "'-1' is not a rank"),
    ],
)
def test_one_line_for_what_is_wrong_in_json(folder: Path, content: str, message: str) -> None:
    with pytest.raises(LeadError, match=message):
        lists(folder, "run.jsonl", content)


def test_a_sealed_source_that_is_damaged_is_not_used(folder: Path) -> None:
    """Its footer says what the pages are; nothing else would notice."""
    lists(folder, "run.tsv", LAYOUTS["run.tsv"])
    damaged = folder / "damaged.parquet"
    content = bytearray((folder / "external.parquet").read_bytes())
    content[content.rindex(b"score") + 1] ^= 1
    damaged.write_bytes(content)
    paths = {"corpus": folder / "corpus.parquet", "queries": folder / "queries.parquet", "out": folder / "x.parquet"}
    with pytest.raises(LeadError, match="damaged"):
        external(settings=ExternalSettings(external_run=str(damaged)), **paths)


def test_lists_of_ir_datasets(folder: Path) -> None:
    import ir_datasets
    from ir_datasets.datasets.base import Dataset
    from ir_datasets.formats import TrecScoredDocs

    class Local:
        def stream(self) -> object:
            return (folder / "run.txt").open("rb")

    (folder / "run.txt").write_text(LAYOUTS["run.txt"])
    ir_datasets.registry.register("leadtest-lists", Dataset(TrecScoredDocs(Local())))
    out = folder / "external.parquet"
    for id_, message in (("leadtest-lists", None), ("leadtest-no", "ir_datasets has no 'leadtest-no'")):
        settings = ExternalSettings(external_run=f"ir_datasets:{id_}")
        paths = {"corpus": folder / "corpus.parquet", "queries": folder / "queries.parquet", "out": out}
        if message is None:
            external(settings=settings, **paths)
            assert read_table(out, "ranked")["pid"].to_pylist() == ["9", "d", "10"]
        else:
            with pytest.raises(LeadError, match=message):
                external(settings=settings, **paths)


# --- in the plan -----------------------------------------------------------------------------------------------------
@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The configuration of the DAG tests, with a run `external`."""
    shutil.copytree(Path(__file__).parent / "dag" / "config", tmp_path / "config")
    with (tmp_path / "config" / "experiments.yaml").open("a") as f:
        f.write("  external: {method: external}\n")
    return tmp_path / "config"


def plan(config: Path, **changes: object) -> Plan:
    file = config / "datasets" / "docs.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | changes))
    return Plan(load(config / "config.yaml"))


def test_a_dataset_without_lists_has_no_such_run(config: Path) -> None:
    made = plan(config)
    assert "external" not in sensible(made, "docs")
    with pytest.raises(LeadError, match=r"docs.yaml: key 'external_run' is missing; name the ranked lists"):
        check(made["docs", "external"])


def test_a_missing_file_is_refused_before_any_work(config: Path) -> None:
    with pytest.raises(LeadError, match=r"docs.yaml: key 'external_run': .*top1000.tsv does not exist"):
        check(plan(config, external_run="top1000.tsv")["docs", "external"])


def test_lists_are_a_run_and_can_be_reranked(config: Path) -> None:
    (config / "datasets" / "top1000.tsv").write_text(TOP1000)
    made = plan(config, external_run="top1000.tsv", settings={"retrieval": {"rerank_from": "external"}})
    check(made["docs", "external"])
    check(plan(config, external_run="nowhere.tsv", settings=made.loaded.datasets["docs"][0].settings)["docs", "bm25"])
    reranks = {"retrieval": {"rerank_from": "external"}}
    assert "teacher_cb" not in sensible(plan(config, external_run=None, settings=reranks), "docs")
    made = plan(config, external_run="top1000.tsv", settings=reranks)
    assert made["docs", "external"].stages == ["external", "evaluate"]
    assert made["docs", "teacher_cb"].rerank_from.endswith("docs/runs/external.parquet")
    assert settings_of(made.jobs, "external", "docs")["external_run"].endswith("config/datasets/top1000.tsv")
    facts = stage_settings(made["docs", "teacher_cb"], "evaluate")["made_by"]
    assert facts["rerank_from"] == "external" and "external.external" in facts["settings"]
    assert "external" not in str(
        settings_of(made.jobs, "prepare", "docs")
    )  # lists are nothing that the collection is made from
    with pytest.raises(LeadError, match="the run 'given' is called 'external' now; rename it"):
        check(made["docs", "given"])
    old = plan(config, external_run="top1000.tsv", settings={"retrieval": {"rerank_from": "given"}})
    with pytest.raises(LeadError, match="rerank_from': the run 'given' is called 'external' now; rename it"):
        check(old["docs", "external"])
    with pytest.raises(LeadError, match="no run 'external-s2'"):
        check(made["docs", "external-s2"])
