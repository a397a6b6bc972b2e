"""docs/extending.md, followed word for word: its blocks are applied to a copy of the package, which is then used."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(?:python|yaml)\n(.*?)^```$", PAGE, re.S | re.M)

USE = """
import json, sys
from pathlib import Path

import torch
import lead
from lead.config.load import load
from lead.config.schema import Distil, Layers, Lengths, ModelRef, Scoring, Train
from lead.config.stages import PrepareSettings
from lead.data.prepare import prepare
from lead.models.base import LayeredModel
from lead.models.features import Candidates
from lead.models.microbatch import MicroBatchEncoder
from lead.plan.checks import check
from lead.plan.plan import Plan
from lead.plan.stage_settings import stage_settings
from lead.store.tables import read_table
from lead.train.data import Queries, TrainingData
from lead.train.step import DistilStep

small, large, collection, out = map(Path, sys.argv[1:])
found = {"package": lead.__file__}

# one training step with the loss, and one with the strategy
def model(folder, kind):
    scoring, lengths = Scoring(normalise="unit", scale=5.0), Lengths(query=8, passage=24)
    return LayeredModel.pretrained(ModelRef(reference=f"path:{folder}"), kind, scoring, lengths)

corpus = read_table(collection / "corpus.parquet", "corpus")
files = [collection / f"{name}.parquet" for name in ("queries.train", "qrels.train", "negatives")]
data = TrainingData(corpus, Queries(corpus["pid"], *files, 1, 10), 4, 2, seed=5)
for method, distil in (("rkl", Distil(tau=2.0)), ("lead", Distil(layers=Layers(k=2, strategy="first")))):
    train = Train(batch_size=4, negatives=2, precision="fp32", dropout=0.0, dev_queries=0)
    student = model(small, "de").train()
    step = DistilStep(student, model(large, "cb"), train, distil, 3, method)
    weight = student.encoder.get_input_embeddings().weight
    before, optimizer = weight.detach().clone(), torch.optim.SGD(student.parameters(), 1e-2)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        losses.append(step(step.prepare(data.batch(0)), 0))
        optimizer.step()
    assert not torch.equal(before, weight)
    found[method] = [[loss.parts["rep"].item(), loss.total.item()] for loss in losses]
    found["by"] = found.get("by", []) + [step.loss_of.__module__]
found["pairs"] = losses[0].watch["pairs"].tolist()

# a saved, loaded and scored model of the new kind
model(small, "mx").save(out / "model")
mx = LayeredModel.load(out / "model").eval()
texts = ["the array shape", "a tree node leaf", "token"]
with torch.no_grad():
    q, p = (MicroBatchEncoder(99, "fp32")(mx, mx.tokenize(s, texts), (mx.n_layers,), s) for s in ("query", "passage"))
    everything = torch.ones(3, 3, dtype=torch.bool)
    scores = mx.score(q, p, Candidates(torch.arange(3).expand(3, -1), everything, ~everything)).final
    alone = [mx.encoder(torch.tensor([i])).last_hidden_state[0].amax(0) for i in mx.tokenize("passage", texts)]
want = torch.nn.functional.normalize(torch.stack(alone), dim=-1)
found["mx"] = [type(mx).__name__, bool(torch.allclose(scores, 5.0 * want @ want.T, atol=1e-4))]

# a prepared collection from the new source, as the plan hands it to the stage
plan = Plan(load("config/config.yaml", {"settings": {"dev_share": 0.3}}))
found["files"] = plan.datasets["faq"].source_files
settings = stage_settings(plan["faq", "rkl_cb"], "prepare")
prepare(settings=PrepareSettings.model_validate(settings), out=out / "faq")
found["corpus"] = read_table(out / "faq" / "corpus.parquet", "corpus").to_pylist()
found["test"] = [read_table(out / "faq" / f"{t}.test.parquet", t).to_pylist() for t in ("queries", "qrels")]

# the runs of the page are planned
for run in ("rkl_cb", "lead_cb_first", "teacher_mx"):
    check(plan["demo", run])
found["stages"] = plan["demo", "teacher_mx"].stages
found["distil"] = stage_settings(plan["demo", "rkl_cb"], "distil")["distil"]
print(json.dumps(found))
"""


CHECK = """
import sys
from lead.config.load import load
from lead.errors import LeadError
from lead.plan.checks import check
from lead.plan.plan import Plan
try:
    check(Plan(load("config/config.yaml"))["demo", "lead_cb_first"])
except LeadError as e:
    print("torch" in sys.modules, e)
"""


def apply(block: str, folder: Path) -> str:
    """Do to the copy in `folder` what a block of the page says; return the file's name."""
    head, body = block.split("\n", 1)
    match = re.fullmatch(r"# (\S+): (new file|(before|after) `(.*)`)", head)
    assert match is not None, head
    name, where, line = match[1], match[3], match[4]
    path = folder / name
    if where is None:
        assert not path.exists() and path.parent.is_dir(), f"{name} is no new file"
        path.write_text(body, encoding="utf-8")
        return name
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    (at,) = [n for n, other in enumerate(lines) if other.strip() == line]  # quoted exactly, and there once
    indentation = lines[at][: len(lines[at]) - len(lines[at].lstrip())]
    new = [indentation + row if row.strip() else row for row in body.splitlines(keepends=True)]
    at += where == "after"
    path.write_text("".join(lines[:at] + new + lines[at:]), encoding="utf-8")
    return name


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package and the configuration, with every block of the page."""
    folder = tmp_path_factory.mktemp("extended")
    for part in ("lead", "config"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    for block in BLOCKS:
        apply(block, folder)
    content = {
        "passages": {f"p{i}": f"answer number {i} of our page" for i in range(20)},
        "train": {f"what is {i}?": [f"p{i}"] for i in range(12)},
        "test": {"which one is 13?": ["p13", "p14"], "and 15?": ["p15"]},
    }
    (folder / "config" / "datasets" / "faq.json").write_text(json.dumps(content))
    return folder


def python(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_the_page_works_word_for_word(
    extended: Path, tiny_model: Path, teacher_folder: Path, tiny_collection: Path, tmp_path: Path
) -> None:
    done = python(extended, "-c", USE, tiny_model, teacher_folder, tiny_collection, tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert Path(found["package"]).is_relative_to(extended)
    assert found["by"] == ["lead.methods.rkl", "lead.methods.lead"]
    for method in ("rkl", "lead"):  # a step against the gradient: the loss of the same batch falls
        (_, first), (_, second) = found[method]
        assert second < first
    assert found["rkl"][0][0] > 0 and found["pairs"] == [[1, 1], [2, 2]]
    assert found["mx"] == ["MaxPooled", True]
    assert found["files"] == ["config/datasets/faq.json"]
    assert found["corpus"][3] == {"pid": "p3", "text": "answer number 3 of our page"} and len(found["corpus"]) == 20
    queries, qrels = found["test"]
    assert [row["text"] for row in queries] == ["which one is 13?", "and 15?"]
    assert [(row["qid"], row["pid"]) for row in qrels] == [("test0", "p13"), ("test0", "p14"), ("test1", "p15")]
    assert "encode" in found["stages"] and set(found["distil"]) >= {"tau", "weights"}


@pytest.mark.parametrize(
    ("forgotten", "says"),
    [
        ("lead/methods/rkl.py", "method 'rkl' (lead.config.methods): there is no 'lead.methods.rkl:rkl'"),
        ("lead/methods/first.py", "strategy 'first' (lead.config.methods): there is no 'lead.methods.first:first'"),
        ("lead/models/max_pooled.py", "kind of model 'mx' (lead.config.kinds): there is no 'lead.models.max_pooled:"),
    ],
)
def test_a_forgotten_file_is_one_line_before_any_work(extended: Path, forgotten: str, says: str) -> None:
    file = extended / forgotten
    content = file.read_text()
    file.unlink()
    try:
        done = python(extended, "-c", CHECK)
    finally:
        file.write_text(content)
    (line,) = done.stdout.splitlines()
    assert line.startswith("False ") and says in line


def test_a_method_whose_row_is_forgotten_is_one_line(extended: Path, tmp_path: Path) -> None:
    experiments = tmp_path / "config"
    shutil.copytree(extended / "config", experiments)
    (experiments / "experiments.yaml").open("a").write("  x: {method: rlk, start: student, teacher: teacher_cb}\n")
    done = python(extended, "-m", "lead", "show", "--config", experiments / "config.yaml")
    assert done.returncode != 0 and "no method 'rlk'; did you mean 'rkl'?" in done.stderr
