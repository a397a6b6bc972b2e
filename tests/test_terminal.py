"""What people see on the terminal: words for Snakemake, settings and their origins, costs, the state of a dataset."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from dag.project import ROOT, empty_project, refusal, replace

from lead import cli
from lead.commands import STAGES
from lead.config.describe import describe
from lead.config.load import load
from lead.errors import LeadError
from lead.plan.plan import Plan
from lead.plan.targets import wanted
from lead.store.tables import write_json
from lead.terminal.commands import snakemake_command
from lead.terminal.cost import aligned_texts, job_work, shape, step_work, steps_of
from lead.terminal.disk import disk
from lead.terminal.rates import Rates, measured_tokens, step_seconds
from lead.terminal.show import show
from lead.terminal.status import status
from lead.terminal.workflow import planned, score_words, snakemake_words


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """The plan of a project that we are in; the model's width is 32."""
    config = empty_project(tmp_path)
    replace(tmp_path / "model/config.json", "{", '{"hidden_size": 32, ')
    (tmp_path / "model/model.safetensors").write_bytes(bytes(200_000))
    monkeypatch.chdir(tmp_path)
    return Plan(load(config / "config.yaml"))


# --- words -----------------------------------------------------------------------------------------------------------
def targets(plan: Plan, *words: str) -> list[str]:
    given = snakemake_words(plan, words)
    return given[given.index("--") + 1 :]


def test_short_names_become_results_wherever_they_stand(plan: Plan) -> None:
    one, two = "all results/tiny/lead_cb.json", "all results/tiny/rd_cb-s2.json"
    assert targets(plan, "tiny/lead_cb", "tiny/rd_cb-s2") == [one, two]
    assert targets(plan, "-n", "--cores", "2", "tiny/lead_cb", "--resources", "gpu=8", "tiny/rd_cb-s2") == [one, two]
    assert targets(plan, "--forcerun", "mine", "--", "tiny/lead_cb") == [one]
    assert targets(plan, "tiny/lead_cb.json", "all results/tiny/tables/all.md")[0] == one
    everything = targets(plan, "tiny")
    assert one in everything and len(everything) > 8


def test_all_cores_are_used_unless_something_says_how_many(plan: Plan) -> None:
    assert snakemake_words(plan, ["tiny/bm25", "-n"])[2:5] == ["-n", "--cores", "all"]
    for given in (
        ["--cores", "2"],
        ["-c2"],
        ["-j", "4"],
        ["--profile", "slurm"],
        ["--workflow-profile=s"],
        ["-e", "slurm"],
        ["--executor=slurm"],
    ):
        assert "all" not in snakemake_words(plan, ["tiny/bm25", *given])


def test_a_mistyped_short_name_is_one_line(plan: Plan) -> None:
    assert "no run 'led_cb'" in refusal(lambda: snakemake_words(plan, ["tiny/led_cb"]))
    assert "no dataset 'tinny'" in refusal(lambda: snakemake_words(plan, ["tinny/lead_cb"]))
    assert refusal(lambda: planned(["--configfile", "nope.yaml", "tiny/bm25"])).startswith(
        "--configfile nope.yaml: no s"
    )


def test_scores_of_a_run_are_what_lead_score_makes(plan: Plan) -> None:
    files = [f"all results/tiny/scores/{run}.parquet" for run in ("teacher_ce", "rd_cb-s2")]
    given = score_words(["tiny/teacher_ce", "--cores", "2", "tiny/rd_cb-s2"])
    assert given == [*files, "--cores", "2"] and targets(plan, *given) == files
    assert "tiny/bm25: a list without a model" in refusal(lambda: score_words(["tiny/bm25"]))
    assert snakemake_command(["score", "--model", "a/b"]) is None  # the stage


def test_results_elsewhere_are_what_short_names_mean(plan: Plan) -> None:
    words = ["tiny/bm25", "--configfile", "config/config.yaml", "--config", "results=else/where"]
    assert targets(planned(words), *words) == ["else/where/tiny/bm25.json"]
    more = planned([*words, "settings={train: {steps: 3}}"])
    assert more["tiny", "lead_cb"].settings.train.batch_size == plan["tiny", "lead_cb"].settings.train.batch_size
    assert more["tiny", "student"].settings.train.steps == 3


@pytest.mark.parametrize("stage", STAGES)
def test_help_says_something_of_every_key_and_marks_those_of_the_execution(stage: str) -> None:
    lines = [line for line in describe(STAGES[stage].settings).splitlines()[1:]]
    assert not [line for line in lines if len(line.split()) < 3]
    marked = {line.split()[0].split(".")[-1] for line in lines if line.endswith("(--execution too)")}
    assert marked <= {"micro_tokens", "cache_above", "checkpoint_every", "checkpoint_keep", "batch_tokens", "dev_every"}
    assert ("train.micro_tokens" in describe(STAGES[stage].settings)) == ("micro_tokens" in marked)


# --- what is mistyped ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["statu"], "did you mean 'status'?"),
        (["prepare", "--out", "x", "--sttings", "{}"], "did you mean '--settings'?"),
        (["show", "demo/student", "--stage", "distill"], "did you mean 'distil'?"),
    ],
)
def test_the_nearest_command_or_option_is_suggested(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(words)
    assert capsys.readouterr().err.endswith(f"{says}\n")


@pytest.mark.skipif(find_spec("shtab") is None, reason="the environment is older than this test")
def test_bash_completes_commands_and_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["completion", "bash"])
    lead = tmp_path / "lead"
    lead.write_text("#!/bin/sh\necho demo/lead_cb demo/student\n", encoding="utf-8")
    lead.chmod(0o755)
    code = capsys.readouterr().out + (
        "COMP_WORDS=(lead stat); COMP_CWORD=1; _shtab_lead; echo ${COMPREPLY[@]}\n"
        "COMP_WORDS=(lead run demo/st); COMP_CWORD=2; _shtab_lead; echo ${COMPREPLY[@]}\n"
        "COMP_WORDS=(lead report d); COMP_CWORD=2; _shtab_lead; echo ${COMPREPLY[@]}\n"
    )
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    said = subprocess.run(["bash", "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["status", "demo/student", "demo"]


# --- costs -----------------------------------------------------------------------------------------------------------
def test_work_grows_with_steps_models_and_training(plan: Plan) -> None:
    rd, lead, student = (step_work(plan["tiny", run]) for run in ("rd_cb", "lead_cb", "student_more"))
    assert rd is not None and lead is not None and student is not None
    # the teacher has 4 layers, the student 2; a frozen model costs a third of one that is trained
    assert rd / student == pytest.approx(1 + 2 / 3) and lead / student == pytest.approx(1 + 2)
    wildcards = {"dataset": "tiny", "run": "lead_cb"}
    assert job_work(plan, "distil_joint", wildcards) == 4 * lead
    assert job_work(plan, "evaluate", wildcards) == 0
    kept, needed = disk(plan, "distil_joint", wildcards)
    assert kept == 400_000 - 2 * 48 * 32**2 and needed == 6 * kept


def test_a_ready_model_reads_as_much_as_its_folder_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = empty_project(tmp_path)
    replace(tmp_path / "model/config.json", "{", '{"hidden_size": 32, ')
    with (config / "experiments.yaml").open("a") as file:
        file.write("  ready: {method: pretrained, init: teacher}\n")
        file.write("  short: {method: pretrained, init: teacher, settings: {lengths: {passage: 24}}}\n")
    monkeypatch.chdir(tmp_path)
    plan = Plan(load(config / "config.yaml"))
    before = shape(plan["tiny", "ready"]).passage  # the dataset's
    (tmp_path / "model/sentence_bert_config.json").write_text('{"max_seq_length": 512}', encoding="utf-8")
    plan = Plan(load(config / "config.yaml"))
    assert before == shape(plan["tiny", "student"]).passage < 512
    assert (shape(plan["tiny", "ready"]).passage, shape(plan["tiny", "short"]).passage) == (512, 24)


def test_the_rate_is_that_of_trainings_that_were_done_here(plan: Plan, tmp_path: Path) -> None:
    assert Rates(plan).measured is None
    assert Rates(plan).cost("train", {"dataset": "tiny", "run": "student"}) is None
    metrics = Path("all results/tiny/metrics/student.jsonl")
    metrics.parent.mkdir(parents=True)
    lines = [{"step": 0, "dev_mrr10": {}}, *({"step": n, "seconds": 2.0} for n in (1, 2, 3))]
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4, "sec', encoding="utf-8")
    assert step_seconds(metrics) == (3, 2.0)
    rates = Rates(plan)
    cost = rates.cost("train", {"dataset": "tiny", "run": "student"})
    assert cost is not None and cost.seconds == pytest.approx(rates.start + 3 * 2.0)
    timing = tmp_path / "timing.tsv"
    timing.write_text("s\th:m:s\n77.5\t0:01:17\n", encoding="utf-8")
    before = rates.cost("train", {"dataset": "tiny", "run": "student"}, str(timing))
    assert before is not None and before.seconds == 77.5
    metrics.write_text('{"step": 2, "seconds": 2.0}\n', encoding="utf-8")  # there are more steps today
    assert rates.cost("train", {"dataset": "tiny", "run": "student"}, str(timing)) == cost


def test_what_else_runs_on_the_machine_does_not_make_it_slower(plan: Plan, tiny_model: Path) -> None:
    core, all_cores = {min(os.sched_getaffinity(0))}, os.sched_getaffinity(0)
    train, reference = plan["tiny", "student"].settings.train, f"path:{tiny_model}"
    os.sched_setaffinity(0, core)  # of this process and those that it starts
    alone = measured_tokens(reference, 32, train.model_copy(update={"batch_size": 128}), 0)
    busy = [subprocess.Popen([sys.executable, "-SEc", "while True: pass"]) for _ in range(4)]
    try:
        beside = measured_tokens(reference, 32, train.model_copy(update={"batch_size": 128}), 0)
    finally:
        for process in busy:
            process.kill()
            process.wait()
        os.sched_setaffinity(0, all_cores)
    assert 0.5 < beside / alone < 2


ALIGNED = """\
  pretrained_teacher: {method: pretrained, init: teacher}
  aligned: {method: align, init: student, teacher: pretrained_teacher}
"""


def test_alignment_counts_texts_and_is_done_without_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = empty_project(tmp_path)
    replace(tmp_path / "model/config.json", "{", '{"hidden_size": 32, ')
    with (config / "experiments.yaml").open("a") as file:
        file.write(ALIGNED)
    (tmp_path / "corpus.tsv").write_text("".join(f"p{n}\tsome words here\n" for n in range(300)), encoding="utf-8")
    (tmp_path / "more.txt").write_text("a text\n" * 40, encoding="utf-8")
    (config / "datasets/mine.yaml").write_text(
        "source: {kind: files, corpus: ../../corpus.tsv}\nqueries: {from: crops, number: 100}\npreset: tiny\n"
        "runs: [aligned]\nsettings: {align: {epochs: 2, texts: [more.txt]}}\n",
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    plan = Plan(load(config / "config.yaml"))
    job, wildcards = plan["mine", "aligned"], {"dataset": "mine", "run": "aligned"}
    assert aligned_texts(job) == 300 + 100 + 40 and steps_of(job) == 2 * (440 // 32)
    assert "embeddings/aligned/passages.parquet" in show(plan, "mine/aligned", None, False, False)
    everything = show(plan, "mine/aligned", None, True, False)
    assert "train.lr" in everything and "train.negatives" not in everything  # alignment reads none
    step, work = step_work(job), job_work(plan, "align", wildcards)
    assert step is not None and work == step * 26
    assert disk(plan, "align", wildcards)[0] == disk(plan, "train", wildcards)[0] > 0
    assert (
        disk(plan, "align", wildcards)[1] - disk(plan, "train", wildcards)[1] == 4 * 32 * 440
    )  # the teacher's vectors
    vectors = {n: 4 * 32 * n for n in (300, 100)}
    assert disk(plan, "index", wildcards) == disk(plan, "encode_passages", wildcards) == (vectors[300], 0)
    assert disk(plan, "encode_queries", wildcards | {"split": "train"}) == (vectors[100], 0)
    smaller = Plan(load(config / "config.yaml", {"settings": {"models": {"student": {"linear": {"size": 8}}}}}))
    assert disk(plan, "encode_passages", wildcards)[0] == 4 * disk(smaller, "encode_passages", wildcards)[0] > 0
    ready = wildcards | {"run": "pretrained_teacher"}
    assert job_work(plan, "pretrained", ready) == 0 and disk(plan, "pretrained", ready)[0] > 0
    cost = Rates(plan).cost("pretrained", ready)
    assert cost is not None and cost.seconds == Rates(plan).start
    one, each = (job_work(plan, "score", wildcards | {"run": run}) for run in ("teacher_ce", "teacher_cb"))
    assert one and each and one > each  # a cross encoder reads every pair, a ColBERT each passage once
    denoised = job_work(plan, "denoise", wildcards | {"run": "miner", "by": "teacher_ce"})
    assert denoised and denoised > one  # as many pairs, and those of dev
    report = Path("all results/mine/data/report.json")
    report.parent.mkdir(parents=True)
    report.touch()  # beside it is nothing: prepare runs again
    assert aligned_texts(job) == 440
    state = Path("all results/mine/state/aligned/0123")
    state.mkdir(parents=True)
    (state / "metrics.jsonl").write_text('{"step": 6, "seconds": 3.0}\n', encoding="utf-8")
    log = Path("all results/mine/logs/align.aligned.log")
    log.parent.mkdir()
    log.write_text("10:00:00 going on\n", encoding="utf-8")
    os.utime(log, (time.time() - 600,) * 2)  # the last sign is that of the metrics
    said = status(plan, ["mine"])
    assert "running  align aligned: step 6 of 26, about 1 min left" in said and "missing  aligned" in said
    for made in wanted(job):
        Path(made).parent.mkdir(parents=True, exist_ok=True)
        Path(made).touch()
    assert "mine: 1 of 1 runs are done\n  done     aligned              made" in status(plan, ["mine"])


# --- status ----------------------------------------------------------------------------------------------------------
def test_status_tells_done_running_stopped_failed_and_missing(plan: Plan) -> None:
    assert status(plan, []).startswith("nothing in all results yet")
    folder = Path("all results/tiny")
    state = folder / "state/student/0123"
    (folder / "logs").mkdir(parents=True)
    state.mkdir(parents=True)
    write_json({"metrics": {"AP@5": {"mean": 0.1}, "RR@10": {"mean": 0.4567}}}, folder / "bm25.json")
    logs = {
        "bm25": "10:00:00 bm25 done in 2.0 s",
        "train.student": "10:00:00 going on",
        "train.teacher_cb": "10:00:00 lead: error: step 3: loss part `stu` is nan; lower train.lr",
        "mine.miner": "10:00:00 reading",
    }
    for name, line in logs.items():
        (folder / f"logs/{name}.log").write_text(f"09:00:00 begun\n{line}\n", encoding="utf-8")
    os.utime(folder / "logs/mine.miner.log", (time.time() - 7200,) * 2)
    (state / "metrics.jsonl").write_text('{"step": 2, "seconds": 30.0}\n', encoding="utf-8")
    lines = status(plan, ["tiny"]).splitlines()
    assert lines[0].startswith("tiny: 1 of ")
    text = "\n".join(lines)
    assert "done     bm25                 RR@10 0.457" in text
    assert "running  train student: step 2 of 3, about 30 s left" in text
    assert "failed   train.teacher_cb: step 3: loss part `stu` is nan; lower train.lr" in text
    assert "stopped  mine miner: 10:00:00 reading (last sign 2 h 0 min ago)" in text
    assert "missing  miner, teacher_de" in text
    assert "no dataset 'tinny'" in refusal(lambda: status(plan, ["tinny"]))


# --- configuration of one's own --------------------------------------------------------------------------------------
def test_what_config_lacks_is_the_shipped_one_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = Plan(load("config/config.yaml"))
    assert "demo" in shipped.datasets and str(shipped.paper_path).startswith(str(ROOT))
    (tmp_path / "config/datasets").mkdir(parents=True)
    (tmp_path / "config/presets").mkdir()
    own = "about: mine\nsource: {kind: pydocs, packages: [json]}\npreset: tuned\n"
    (tmp_path / "config/datasets/mine.yaml").write_text(own, encoding="utf-8")
    (tmp_path / "config/datasets/demo.yaml").write_text(own, encoding="utf-8")
    tuned = (ROOT / "config/presets/tuned.yaml").read_text(encoding="utf-8")
    (tmp_path / "config/presets/tuned.yaml").write_text(tuned.replace("passage: 80", "passage: 81"), encoding="utf-8")
    (tmp_path / "config/experiments.yaml").write_text(
        "runs: {mine: {method: contrastive, init: student}, rd_cb: {method: rd, start: mine, teacher: teacher_cb}}\n",
        encoding="utf-8",
    )
    plan = Plan(load("config/config.yaml"))
    assert set(plan.datasets) == {*shipped.datasets, "mine"} and plan.datasets["demo"].data.about == "mine"
    assert plan["mine", "lead_cb"].settings.lengths.passage == 81
    assert set(plan.rows) == {*shipped.rows, "mine"} and plan.rows["rd_cb"].start == "mine"
    monkeypatch.chdir("/")  # from another folder, by its path
    assert set(load(tmp_path / "config/config.yaml").datasets) == set(plan.datasets)
    with pytest.raises(LeadError, match="config.yaml"):
        load(tmp_path / "config.yaml")  # a slip: it is in config/
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config/config.yaml").write_text("results: r\n", encoding="utf-8")  # it stands alone
    assert "no preset" not in refusal(lambda: load("config/nothing.yaml"))
    assert set(load("config/config.yaml").datasets) == {"demo", "mine"}
