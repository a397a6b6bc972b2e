"""The command line: helpful without importing torch, and one line for every mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest
from forked import done

from lead import __version__, cli
from lead.config import experiments, schema, stages
from lead.errors import LeadError
from lead.store.tables import write_table

ROOT = Path(__file__).resolve().parents[1]
CONFIG = str(ROOT / "tests" / "dag" / "config" / "config.yaml")
COMMANDS = [*cli.STAGES, "show", "schema", "table", "init", "run", "plan", "status", "completion"]
HEAVY = ("torch", "transformers", "faiss", "pandas", "scipy", "ir_measures", "pyarrow")


@dataclass
class Said:
    code: int
    out: str
    err: str


Lead = Callable[..., Said]


@pytest.fixture
def lead(capsys: pytest.CaptureFixture[str]) -> Lead:
    """Runs `lead` in this process."""

    def call(*arguments: str | Path) -> Said:
        try:
            code = cli.main([str(a) for a in arguments])
        except SystemExit as e:  # argparse
            code = int(e.code or 0)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Said(code, captured.out, captured.err)

    return call


@pytest.fixture
def refused(lead: Lead) -> Callable[..., str]:
    """Runs `lead` with a user's mistake: exit status 1 and one line on stderr, which is returned."""

    def call(*arguments: str | Path) -> str:
        said = lead(*arguments)
        assert said.code == 1 and said.out == ""
        (line,) = said.err.splitlines()
        assert "lead: error: " in line
        return line.partition("lead: error: ")[2]

    return call


def process(*arguments: str | Path, code: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *(["-c", code] if code else ["-m", "lead"]), *map(str, arguments)]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)


# --- help ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("arguments", [[], *([name] for name in COMMANDS)], ids=lambda a: " ".join(["lead", *a]))
def test_help_is_quick_and_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys, lead.cli\n"
        "try: lead.cli.main()\n"
        f"except SystemExit: sys.stderr.write(','.join(m for m in {HEAVY} if m in sys.modules))"
    )
    begun, cpu = time.monotonic(), os.times()
    said = process(*arguments, "--help", code=code)
    used = os.times()
    assert said.returncode == 0 and said.stderr == ""
    # processor time: the machine may be busy with other things
    assert min(time.monotonic() - begun, used.children_user - cpu.children_user) < 2
    assert "usage: " in said.stdout
    if not arguments:
        assert all(name in said.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", cli.STAGES)
def test_help_of_a_stage_names_its_options_and_every_key_of_its_settings(
    lead: Lead, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["lead", name, "--help"])
    said = lead(name, "--help")
    stage = cli.STAGES[name]
    assert said.code == 0 and stage.about[:40] in said.out
    for option in [*stage.inputs, *stage.outputs, "settings", "threads", "log"]:
        assert f"--{option.rstrip('?+')}" in said.out
    assert ("--gpu" in said.out) == stage.gpu
    keys = said.out.partition("settings (keys of")[2]
    for key in getattr(stages, stage.settings).model_fields:
        assert f"\n  {key}" in keys


def test_every_stage_s_function_takes_what_its_options_give() -> None:
    import importlib
    import inspect

    for name, stage in cli.STAGES.items():
        module, _, function = stage.function.partition(":")
        takes = inspect.signature(getattr(importlib.import_module(module), function)).parameters
        gives = {option.rstrip("?+").replace("-", "_") for option in [*stage.inputs, *stage.outputs]} | {"settings"}
        assert set(takes) == gives | ({"gpu"} if stage.gpu else set()), name


def test_the_version_is_printed(lead: Lead) -> None:
    assert lead("--version").out == f"lead {__version__}\n"


# --- mistakes --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "required"),
        (["no-such-command"], "invalid choice: 'no-such-command'"),
        (["prepare"], "required: --out"),
        (["prepare", "--out", "x", "--sttings", "{}"], "unrecognized arguments: --sttings"),
        (["prepare", "--out", "x", "--gpu", "1"], "unrecognized arguments: --gpu"),
        (["prepare", "--out", "x", "--threads", "many"], "argument --threads: invalid int value: 'many'"),
        (["encode", "--gpu", "some"], "argument --gpu: invalid int value: 'some'"),
        (["schema", "Setings"], "invalid choice: 'Setings'"),
        (["show", "demo/student", "--stage", "distill"], "invalid choice: 'distill'"),
    ],
)
def test_a_wrong_option_prints_usage_and_the_mistake(lead: Lead, arguments: list[str], says: str) -> None:
    said = lead(*arguments)
    assert said.code == 2 and says in said.err.splitlines()[-1]


def test_a_missing_input_is_named_with_its_option(refused: Callable[..., str], tmp_path: Path) -> None:
    ranked, out = tmp_path / "ranked.parquet", tmp_path / "out.json"
    said = refused("evaluate", "--ranked", ranked, "--qrels", ranked, "--out", out, "--per-query", out)
    assert said == f"--ranked {ranked} does not exist; run the stage that makes it"
    said = refused("mine", "--passages", tmp_path, "--queries", tmp_path, ranked, "--qrels", tmp_path, "--out", out)
    assert said.startswith(f"--queries {ranked} does not exist")


SOURCE = '{"source": {"kind": "pydocs", "packages": ["numpy"]}'


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ("{", "--settings:1: not valid YAML"),
        (
            SOURCE + ', "dev_share": 0.1, "dev_share": 0.2}',
            "--settings:1: not valid YAML: key 'dev_share' is given twi",
        ),
        (SOURCE + ', "dev_shar": 0.1}', "--settings: unknown key 'dev_shar'; did you mean 'dev_share'?"),
        (
            SOURCE + ', "checks": {"empty_passage": 0}}',
            "--settings: unknown key 'checks.empty_passage'; did you mean 'empty_passages",
        ),
        (SOURCE + ', "dev_share": "0.1"}', "--settings: key 'dev_share': should be a valid number, not '0.1'"),
        (SOURCE + ', "dev_share": 1.0}', "--settings: key 'dev_share': should be less than 1, not 1.0"),
        (SOURCE.replace("packages", "pakages") + "}", "'source.pakages'"),
        ("{}", "--settings: key 'source' is missing; add it"),
        ("", "--settings "),
        ("[1]", "--settings [1]: No such file or directory; give JSON text or the path of a file"),
        ("nowhere.json", "--settings nowhere.json: No such file"),
    ],
)
def test_bad_settings_are_one_line(refused: Callable[..., str], tmp_path: Path, settings: str, says: str) -> None:
    assert says in refused("prepare", "--out", tmp_path / "out", "--settings", settings)
    assert not (tmp_path / "out").exists()


def test_a_file_of_settings_is_named_with_the_line(refused: Callable[..., str], tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("dev_share: 0.1\nsource: {kind: pydocs\n", encoding="utf-8")
    assert refused("prepare", "--out", tmp_path, "--settings", file).startswith(f"{file}:")
    file.write_text("- a\n", encoding="utf-8")
    assert refused("prepare", "--out", tmp_path, "--settings", file).startswith(f"{file}: should be a valid dictionary")
    file.write_bytes(b"\xff\xfe")
    assert str(file) in refused("prepare", "--out", tmp_path, "--settings", file)


def test_settings_are_checked_before_files_and_heavy_imports() -> None:
    code = "import sys, lead.cli; lead.cli.main(); sys.stdout.write(str('torch' in sys.modules))"
    said = process("encode", "--model", "x", "--texts", "x", "--out", "x", "--settings", "{x: 1}", code=code)
    assert "unknown key 'x'" in said.stderr and said.stdout == "False"


def test_a_log_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    log = tmp_path / "file" / "log.txt"
    said = process("prepare", "--out", tmp_path, "--log", log)
    assert said.returncode == 1
    assert said.stderr.startswith(f"lead: error: cannot write --log {log}: ") and said.stderr.count("\n") == 1


def test_the_error_is_in_the_log_too(refused: Callable[..., str], tmp_path: Path) -> None:
    log = tmp_path / "logs" / "prepare.log"
    said = refused("prepare", "--out", tmp_path, "--log", log)
    assert log.read_text(encoding="utf-8").endswith(f"lead: error: {said}\n")


def test_a_gpu_that_is_not_there_is_one_line(tiny_model: Path, tmp_path: Path) -> None:
    import torch

    from lead.config.schema import Lengths, ModelRef, Scoring
    from lead.models.bi_encoder import BiEncoder

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    reference = ModelRef(reference=f"path:{tiny_model}")
    BiEncoder.pretrained(reference, "de", Scoring(), Lengths(query=8, passage=8)).save(tmp_path / "model")
    texts = tmp_path / "texts.parquet"
    write_table(pa.table({"pid": ["a"], "text": ["array"]}), texts, "corpus")
    for gpu, says in (("1", "--gpu 1: PyTorch sees no GPU here; use --gpu 0"), ("-1", "--gpu -1")):
        paths = {"model": tmp_path / "model", "texts": texts, "out": tmp_path / "out"}
        status, said = done(["encode", "--gpu", gpu, *(w for k, v in paths.items() for w in (f"--{k}", str(v)))])
        (line,) = said.splitlines()
        assert status == 1 and f"lead: error: {says}" in line


def test_a_mistake_in_a_process_is_one_line_and_status_1(tmp_path: Path) -> None:
    said = process("show", "--config", tmp_path / "nowhere.yaml")
    assert said.returncode == 1 and said.stdout == ""
    assert len(said.stderr.splitlines()) == 1 and "lead: error: cannot read" in said.stderr


def test_an_error_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A bug must not be passed off as a user's mistake."""

    def broken(**_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("lead.data.prepare.prepare", broken)
    with pytest.raises(ZeroDivisionError):
        cli.main(["prepare", "--out", str(tmp_path), "--settings", SOURCE + "}"])


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, 130), (BrokenPipeError, 0), (LeadError("x"), 1)])
def test_the_exit_status_tells_what_happened(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: BaseException, status: int
) -> None:
    def stop(**_: object) -> None:
        raise error

    monkeypatch.setattr("lead.data.prepare.prepare", stop)
    assert cli.main(["prepare", "--out", str(tmp_path), "--settings", SOURCE + "}"]) == status


# --- commands for people ---------------------------------------------------------------------------------------------
def test_show_lists_datasets_and_runs(lead: Lead) -> None:
    said = lead("show", "--config", CONFIG)
    assert said.code == 0 and said.err == ""
    assert all(name in said.out for name in ("tiny", "docs", "lead_cb_teacher", "snakemake"))


def test_show_prints_a_stage_s_settings_ready_for_the_stage(lead: Lead, refused: Callable[..., str]) -> None:
    said = lead("show", "tiny/lead_cb", "--stage", "distil", "--config", CONFIG)
    assert said.code == 0
    settings = stages.DistilSettings.model_validate(json.loads(said.out))
    assert (settings.method, settings.train.steps, settings.distil.layers.k) == ("lead", 4, 2)
    files = [x for option in ("corpus", "queries", "qrels", "dev-queries", "dev-qrels") for x in (f"--{option}", "nil")]
    more = [x for option in ("start", "teacher", "out", "state", "metrics") for x in (f"--{option}", "nil")]
    # it gets as far as the files
    assert refused("distil", *files, *more, "--settings", said.out).startswith("--corpus nil does not exist")


def test_show_of_a_run_prints_all_its_stages(lead: Lead) -> None:
    said = lead("show", "tiny/teacher_cb", "--json", "--config", CONFIG)
    found = json.loads(said.out)
    assert list(found) == ["train", "rerank", "evaluate"]
    recipe, execution = found["train"]["recipe"], found["train"]["execution"]
    assert recipe["kind"] == "cb" and "micro_tokens" not in recipe["train"]
    assert {"micro_tokens", "cache_above", "checkpoint_every", "checkpoint_keep"} <= set(execution["train"])
    assert found["rerank"]["execution"].keys() == {"batch_tokens"} and found["evaluate"]["execution"] == {}


def test_a_command_by_its_old_name_is_one_line(refused: Callable[..., str]) -> None:
    assert refused("given", "--help") == "the command 'given' is called 'external' now"


def test_the_execution_is_laid_over_the_settings_and_checked_with_them() -> None:
    one = cli._settings("train", '{"seed": 3, "train": {"steps": 7}}', '{"train": {"micro_tokens": 99}}')
    assert (one.seed, one.train.steps, one.train.micro_tokens) == (3, 7, 99)
    with pytest.raises(LeadError, match="unknown key 'train.micro_token'; did you mean 'micro_tokens'"):
        cli._settings("train", "{}", '{"train": {"micro_token": 99}}')
    for key, text in (("seed", '{"seed": 3}'), ("train.lr", '{"train": {"lr": 3, "micro_tokens": 9}}')):
        with pytest.raises(LeadError, match=f"--execution: key '{key}' decides numbers; give it in --settings"):
            cli._settings("train", "{}", text)


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("tiny/stduent", "no run 'stduent'"),
        ("tinny/student", "no dataset 'tinny'"),
        ("tiny", "'tiny' is not DATASET/RUN"),
        ("tiny/", "'tiny/' is not DATASET/RUN"),
        ("", "'' is not DATASET/RUN"),
    ],
)
@pytest.mark.parametrize("stage", [[], ["--stage", "train"]])
def test_show_of_an_unknown_name_is_one_line(
    refused: Callable[..., str], target: str, says: str, stage: list[str]
) -> None:
    assert says in refused("show", target, *stage, "--config", CONFIG)


def test_show_of_a_stage_that_a_run_does_not_have_is_one_line(refused: Callable[..., str]) -> None:
    said = refused("show", "tiny/bm25", "--stage", "distil", "--config", CONFIG)
    assert "distil" in said and "bm25, evaluate" in said


@pytest.mark.parametrize("model", ["Config", "Dataset", "Experiments", "Settings"])
def test_schema_prints_a_json_schema(lead: Lead, model: str) -> None:
    made = json.loads(lead("schema", model).out)
    module = schema if hasattr(schema, model) else experiments
    assert made["title"] == model and set(made["properties"]) == set(getattr(module, model).model_fields)


def test_table_of_a_file_that_is_not_there_is_one_line(refused: Callable[..., str], tmp_path: Path) -> None:
    assert str(tmp_path / "x.json") in refused("table", tmp_path / "x.json")
    (tmp_path / "x.json").write_text("{}", encoding="utf-8")
    assert str(tmp_path / "x.json") in refused("table", tmp_path / "x.json")


def test_a_path_that_is_not_utf8_is_refused_before_any_work(lead: Lead) -> None:
    said = lead("prepare", "--out", os.fsdecode(b"caf\xe9"))
    assert said.code == 2 and "is not UTF-8; rename the file or folder" in said.err and "Traceback" not in said.err
