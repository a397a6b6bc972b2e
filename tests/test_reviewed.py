"""What a fresh reader broke once: outputs that would destroy, settings that nothing would read, odd values."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from lead.cli import main
from lead.config.load import load
from lead.config.parse import parse_yaml
from lead.config.schema import Layers, Train
from lead.errors import LeadError
from lead.methods.layers import check_layers
from lead.plan.plan import Plan
from lead.store.atomic import atomic_folder
from lead.store.checksums import MANIFEST
from lead.store.tables import write_table
from lead.train.state import remove_states

ROOT = Path(__file__).parents[1]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A copy of the repository's own configuration."""
    return Path(shutil.copytree(ROOT / "config", tmp_path / "config"))


def add(config: Path, row: str) -> Plan:
    with (config / "experiments.yaml").open("a") as file:
        file.write(f"  {row}\n")
    return Plan(load(config / "config.yaml"))


# --- nothing is destroyed --------------------------------------------------------------------------------------------
def test_an_output_folder_that_lead_did_not_write_is_kept(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    with pytest.raises(LeadError, match="was not written by lead"), atomic_folder(tmp_path):
        pass
    assert (tmp_path / "precious").read_text() == "x"
    (tmp_path / "empty").mkdir()
    for text in ("old", "new"):  # an empty folder, and then one of our own, are replaced
        with atomic_folder(tmp_path / "empty") as folder:
            (folder / "file").write_text(text)
    assert (tmp_path / "empty/file").read_text() == "new"
    assert (tmp_path / "empty" / MANIFEST).is_file()


def test_only_training_states_are_removed_from_the_state_folder(tmp_path: Path) -> None:
    (tmp_path / "0123456789abcdef").mkdir()
    (tmp_path / "mine").mkdir()
    remove_states(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]
    (tmp_path / "mine").rmdir()
    remove_states(tmp_path)
    assert not tmp_path.exists()
    remove_states(tmp_path)  # nothing there is no error


# --- nothing is ignored in silence -----------------------------------------------------------------------------------
def test_a_later_files_train_wins_over_an_earlier_files_phases(config: Path) -> None:
    def steps(**overrides: object) -> int:
        return Plan(load(config / "config.yaml", {"settings": overrides}))["demo", "student"].settings.train.steps

    demo = yaml.safe_load((config / "datasets/demo.yaml").read_text())
    assert steps() == demo["settings"]["phases"]["student"]["steps"]
    assert steps(train={"steps": 7}) == 7
    assert steps(train={"steps": 7}, phases={"student": {"steps": 8}}) == 8  # in one file the phase wins


@pytest.mark.parametrize(
    "row",
    [
        "x: {method: lead, start: student, teacher: teacher_cb, settings: {scoring: {cb: {layer_normalise: none}}}}",
        "x: {method: lead, start: student, teacher: teacher_cb, settings: {lengths: {query: 8}}}",
        "x: {method: rd, start: student, teacher: teacher_cb, settings: {bm25: {k1: 1.0}}}",
        "x: {method: contrastive, start: student, settings: {distil: {tau: 2.0}}}",
    ],
)
def test_row_settings_that_the_run_would_not_read_are_refused(config: Path, row: str) -> None:
    with pytest.raises(LeadError, match="run 'x': key 'settings.*' is not read by this run"):
        add(config, row)


def test_a_run_cannot_take_the_name_of_another_runs_teacher(config: Path) -> None:
    with pytest.raises(LeadError, match="'a' leaves its teacher under this name"):
        joint = "a: {method: lead, start: student, teacher: teacher_cb}"
        add(config, f"{joint}\n  a_teacher: {{method: contrastive, init: student}}")


def test_pairs_need_their_strategy_and_ascend() -> None:
    with pytest.raises(LeadError, match="strategy: pairs only"):
        check_layers(Layers(k=1, pairs=[[1, 1]]), 6, 3)
    with pytest.raises(LeadError, match="do not ascend"):
        check_layers(Layers(strategy="pairs", pairs=[[4, 2], [3, 3]]), 6, 3)
    check_layers(Layers(strategy="pairs", pairs=[[3, 2], [4, 3]]), 6, 3)


def test_the_best_checkpoint_needs_dev_queries() -> None:
    with pytest.raises(ValueError, match="needs dev_queries"):
        Train(select="best", dev_queries=0)


# --- no traceback ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("text", ["about: 2020-13-45", "a: 0x_", "a: " + "[" * 3000])
def test_strange_yaml_is_one_line(text: str) -> None:
    with pytest.raises(LeadError, match="^here.*: not valid YAML") as error:
        parse_yaml(text, "here")
    assert "\n" not in str(error.value)


def test_texts_that_are_neither_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    qrels = pa.table({"qid": ["1"], "pid": ["a"], "rel": pa.array([1], pa.int32())})
    write_table(qrels, tmp_path / "qrels.parquet", "qrels")
    (tmp_path / "model").mkdir()
    words = ["encode", "--model", f"{tmp_path}/model", "--texts", f"{tmp_path}/qrels.parquet", "--out", f"{tmp_path}/o"]
    assert main(words) == 1
    assert "holds neither passages" in capsys.readouterr().err


@pytest.mark.parametrize("threads", ["0", "-1"])
def test_a_number_of_threads_that_makes_no_sense_is_refused(
    tmp_path: Path, threads: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = '{"source": {"kind": "pydocs", "packages": ["numpy"]}}'
    assert main(["prepare", "--out", str(tmp_path), "--settings", settings, "--threads", threads]) == 1
    assert f"--threads {threads}: give at least 1" in capsys.readouterr().err
