"""Several ranks (gloo, CPU) against one process on the same global batch; what travels; a rank that dies."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import make_retriever
from forked import Lead, done, run_ranks
from steps import SCORING, TRAIN, gradients, take

from lead.config.schema import Distil, Layers, Train
from lead.store.tables import read_table
from lead.store.vectors import write_vectors
from lead.train.adore import AdoreStep, FixedPassages
from lead.train.data import Queries, TrainingData
from lead.train.exchange import Exchange
from lead.train.fd import FdStep
from lead.train.step import DistilStep, Step

CASES = [
    ("contrastive", "de", {}), ("contrastive", "cb", {}), ("contrastive", "ce", {}), ("adore", "de", {}),
    ("lead", "de", {"layers": Layers(k=2, strategy="last")}),
    ("rd", "de", {}), ("rd", "cb", {}), ("rd", "ce", {}), ("fd", "de", {}), ("fd", "cb", {}), ("fd", "ce", {}),
    ("lead", "de", {}), ("lead", "cb", {}), ("lead", "ce", {}),
    ("lead", "de", {"joint": False}), ("lead", "cb", {"joint": False}), ("lead", "ce", {"joint": False}),
    ("lead", "cb", {"candidates": "own"}), ("lead", "de", {"layer_weights": "batch", "layer_weights_tau": 2.0}),
    ("lead", "cb", {"layers": Layers(k=2, strategy="informative"), "layer_weights": "progress"}),
    ("lead", "ce", {"contrastive_candidates": "own"}),
]  # fmt: skip


def make_step(tiny_model: Path, teacher_folder: Path, method: str, kind: str, options: Any, cache_above: int) -> Step:
    torch.manual_seed(9)
    train = Train(**{**TRAIN, "dropout": 0.0, "cache_above": cache_above, "batch_size": 8, "micro_tokens": 200})
    scoring = SCORING | ({"normalise": "none", "layer_normalise": "standard"} if kind == "ce" else {})
    if method == "contrastive":
        return Step(make_retriever(tiny_model, kind, **scoring).train(), train, 3)
    student, teacher = make_retriever(tiny_model, **SCORING).train(), make_retriever(teacher_folder, kind, **scoring)
    distil = Distil(**{"layers": Layers(k=3), **options})
    if method == "fd":
        teacher = make_retriever(tiny_model, kind, **scoring)
        return FdStep(student, teacher, train, distil, 3)
    return DistilStep(student, teacher, train, distil, 3, method)


def make_adore(tiny_model: Path, collection: Path, cache_above: int) -> Step:
    """Against 160 arbitrary vectors, in two shards of odd length."""
    train = Train(**{**TRAIN, "dropout": 0.0, "cache_above": cache_above, "batch_size": 8, "negatives_depth": 7})
    model = make_retriever(tiny_model, **SCORING).train()
    vectors = np.random.default_rng(4).normal(size=(160, model.size))
    pids = read_table(collection / "corpus.parquet", "corpus")["pid"].to_pylist()
    with tempfile.TemporaryDirectory() as folder:
        shards = [Path(folder, f"{i}.parquet") for i in (1, 2)]
        for path, rows in zip(shards, (slice(0, 77), slice(77, 160)), strict=True):
            write_vectors(pids[rows], vectors[rows], path)
        return AdoreStep(model, train, 3, FixedPassages(shards, collection / "corpus.parquet", model))


def run_case(files: Any, collection: Path, case: Any, cache_above: int) -> tuple[dict[str, float], Any, int]:
    """Loss parts averaged over ranks, gradients, and bytes sent, of one step."""
    corpus = read_table(collection / "corpus.parquet", "corpus")
    paths = [collection / f"{name}.parquet" for name in ("queries.train", "qrels.train", "negatives")]
    adore = case[0] == "adore"
    data = TrainingData(corpus, Queries(corpus["pid"], *paths, 1, 10), 8, 0 if adore else 2, seed=5)
    step = make_adore(files[0], collection, cache_above) if adore else make_step(*files, *case, cache_above)
    loss = take(step, data.batch(0), 0)
    parts = {k: float(step.exchange.mean(v.detach())) for k, v in {**loss.parts, "total": loss.total}.items()}
    return parts, gradients(step), step.exchange.sent


def worker(
    rank: int, world: int, port: int, files: Any, collection: Path, cases: list[Any], cache_above: int, out: str
) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=world)
    try:
        results = [run_case(files, collection, case, cache_above) for case in cases]
        torch.save(results, f"{out}/{rank}.pt")
    except Exception:
        Path(out, f"{rank}.error").write_text(traceback.format_exc())
        raise
    finally:
        dist.destroy_process_group()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture(scope="module")
def alone(tiny_model: Path, teacher_folder: Path, tiny_collection: Path) -> list[Any]:
    """What one process has for each case, without cached gradients."""
    return [run_case((tiny_model, teacher_folder), tiny_collection, case, 10**9) for case in CASES]


@pytest.mark.parametrize(("world", "cache_above"), [(2, 10**9), (4, 1)])
def test_ranks_give_the_losses_and_gradients_of_one_process(
    tiny_model: Path,
    teacher_folder: Path,
    tiny_collection: Path,
    tmp_path: Path,
    alone: list[Any],
    world: int,
    cache_above: int,
) -> None:
    files = (tiny_model, teacher_folder)
    arguments = (world, free_port(), files, tiny_collection, CASES, cache_above, str(tmp_path))
    run_ranks(worker, arguments, world)
    for i, (case, (want_parts, want, sent)) in enumerate(zip(CASES, alone, strict=True)):
        assert sent == 0
        for rank in range(world):
            parts, got, _ = torch.load(tmp_path / f"{rank}.pt", weights_only=True)[i]
            assert parts == pytest.approx(want_parts, rel=1e-5, abs=1e-6), case
            for model in ("student", "teacher"):
                keys = [k for k in want if k.startswith(model)]
                size = max((float(want[k].abs().max()) for k in keys), default=0.0)
                for k in keys:
                    assert float((got[k] - want[k]).abs().max()) <= 1e-5 * max(size, 1e-3), (case, k)


def test_what_travels_is_counted_and_never_the_passages_tokens(
    tiny_model: Path, teacher_folder: Path, tiny_collection: Path, tmp_path: Path
) -> None:
    """Contrastive, one layer, 4 queries and 12 passages a rank, width 32, fp32: exactly what the design says."""
    run_ranks(worker, (2, free_port(), (tiny_model, teacher_folder), tiny_collection, CASES[:5], 1, str(tmp_path)), 2)
    sent = {case[:2]: torch.load(tmp_path / "0.pt", weights_only=True)[i][2] for i, case in enumerate(CASES[:5])}
    weights = sum(p.numel() for p in make_retriever(tiny_model).parameters()) * 4
    assert sent["contrastive", "de"] == weights + 12 * 32 * 4 + 24 * 32 * 4  # vectors there, their gradients back
    assert sent["contrastive", "ce"] == weights + 32 * 4  # nothing but the gradients, w's too
    # ColBERT, X tokens of the longest query: vectors and mask of 4 there, the gradient of all 8 back; columns of 8
    # queries x 12 passages there, the gradient of 8 x 24 back
    per_token, columns = 4 * 32 * 4 + 4 + 8 * 32 * 4, 8 * 12 * 4 + 8 * 24 * 4
    x, rest = divmod(sent["contrastive", "cb"] - weights - columns, per_token)
    assert rest == 0 and 2 < x <= 8  # a query's tokens, not the 24 of a passage
    # LEAD from a dual encoder of width 16, K = 2: the last two layers' vectors of both models, and no others'
    taught = sum(p.numel() for p in make_retriever(teacher_folder).parameters()) * 4
    assert sent["lead", "de"] == weights + taught + 2 * (12 + 24) * (32 + 16) * 4


def test_one_process_exchanges_nothing() -> None:
    x = torch.ones(2, 3, requires_grad=True)
    alone = Exchange.here()
    assert alone.gather(x, 0) is x and alone.world == 1 and alone.sent == 0


# --- the command -----------------------------------------------------------------------------------------------------
def train_command(tiny_model: Path, collection: Path, out: Path, settings: dict[str, Any], *more: str) -> list[str]:
    files = {
        "corpus": "corpus", "queries": "queries.train", "qrels": "qrels.train", "dev-queries": "queries.dev",
        "dev-qrels": "qrels.dev", "negatives": "negatives",
    }  # fmt: skip
    train = {
        "steps": 4,
        "batch_size": 4,
        "negatives": 2,
        "lr": 1e-3,
        "precision": "fp32",
        "dropout": 0.0,
        "dev_queries": 4,
    }
    model = {"reference": f"path:{tiny_model}"}
    all_settings = {"model": model, "lengths": {"query": 8, "passage": 24}, "train": train} | settings
    return [
        "train",
        *(a for k, v in files.items() for a in (f"--{k}", f"{collection / v}.parquet")),
        "--out", str(out / "m"), "--state", str(out / "s"), "--metrics", str(out / "metrics.jsonl"),
        "--settings", json.dumps(all_settings), "--threads", "2", *more,
    ]  # fmt: skip


def test_two_ranks_train_what_one_does(tiny_model: Path, tiny_collection: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    for name, more in (("one", ()), ("forks", ("--ranks", "2"))):
        status, said = done(train_command(tiny_model, tiny_collection, tmp_path / name, {}, *more))
        assert status == 0, said
    # where there are GPUs, ranks are programs of their own
    call = "import sys; from lead.train.exchange import launch; launch(2, sys.argv[1:], None)"
    words = train_command(tiny_model, tiny_collection, tmp_path / "programs", {}, "--ranks", "2")
    subprocess.run([sys.executable, "-c", call, *words], check=True)
    names = ("one", "forks", "programs")
    one, *others = (load_file(tmp_path / name / "m" / "model.safetensors") for name in names)
    for two in others:
        # the gradient of an attention key's bias is zero but for rounding, which Adam turns into steps of its rate
        apart = {k: float((one[k] - two[k]).abs().mean()) for k in one if not k.endswith("key.bias")}
        assert max(apart.values()) < 1e-6, apart
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in names]
    losses = [[json.loads(x)["loss"]["total"] for x in part if "loss" in json.loads(x)] for part in lines]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3) and losses[1] == pytest.approx(losses[2], rel=1e-6)
    watched = [[e for x in part for e in json.loads(x).get("student_entropy", [])] for part in lines]
    assert watched[0] and watched[0] == pytest.approx(watched[1], rel=1e-3)  # of all queries, not of the first rank's


def test_a_mistake_under_ranks_is_one_line(tiny_model: Path, tiny_collection: Path, tmp_path: Path) -> None:
    for more, message in (
        (("--ranks", "1000"), "4 queries cannot be shared equally by 1000 ranks"),  # said before any is started
        (("--ranks", "2", "--start", str(tmp_path)), "lead train needs one of settings.model"),  # by each of them
    ):
        status, said = done(train_command(tiny_model, tiny_collection, tmp_path, {}, *more))
        errors = [line for line in said.splitlines() if "error" in line]
        assert status == 1 and len(errors) == 1 and message in errors[0], said
        assert "Traceback" not in said


def test_a_rank_that_is_killed_takes_the_job_down(tiny_model: Path, tiny_collection: Path, tmp_path: Path) -> None:
    import signal
    import time

    train = {"steps": 100000, "batch_size": 4, "negatives": 2, "precision": "fp32", "dev_queries": 0}
    settings = {"train": train | {"checkpoint_every": 5}}
    command = train_command(tiny_model, tiny_collection, tmp_path, settings, "--ranks", "2")
    with Lead(command) as lead:
        deadline = time.monotonic() + 600
        victims: list[int] = []
        while time.monotonic() < deadline and not victims:
            time.sleep(0.5)
            parent = str(lead.process.pid)
            found = subprocess.run(["pgrep", "-P", parent], capture_output=True, text=True).stdout.split()
            victims = [int(p) for p in found] if len(found) == 2 else []
        assert victims
        while not list((tmp_path / "s").glob("*/step-*")):  # both train
            assert time.monotonic() < deadline and lead.status is None, lead.said
            time.sleep(0.05)
        os.kill(victims[1], signal.SIGKILL)
        said = lead.finished(600)
    assert lead.status == 1
    errors = [line for line in said.splitlines() if "lead: error" in line]
    assert len(errors) == 1 and "of 2: died with signal 9" in errors[0], said


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGINT"])  # tests/test_resume.py has the others
def test_ranks_told_to_stop_save_their_state_and_go_on_later(
    tiny_model: Path, tiny_collection: Path, tmp_path: Path, name: str
) -> None:
    import signal
    import time

    train = {
        "steps": 60,
        "batch_size": 4,
        "negatives": 2,
        "precision": "fp32",
        "dev_queries": 0,
        "checkpoint_every": 5,
    }
    command = train_command(tiny_model, tiny_collection, tmp_path, {"train": train}, "--ranks", "2")
    with Lead(command) as lead:
        deadline = time.monotonic() + 600
        while not list((tmp_path / "s").glob("*/step-*")):
            assert time.monotonic() < deadline and lead.status is None, lead.said
            time.sleep(0.05)
        lead.signal(getattr(signal, name))
        said = lead.finished(600)
    assert lead.status == (130 if name == "SIGINT" else 75), said
    assert "Traceback" not in said and f"stopped by {name}" in said
    saved = max(int(p.name[5:]) for p in (tmp_path / "s").glob("*/step-*"))
    if name == "SIGUSR1":  # either way the same state is there
        status, again = done(command)
        assert status == 0 and f"going on from the checkpoint of step {saved} of 60" in again, again
