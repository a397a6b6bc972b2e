"""Prompts: what a model reads before each query and passage, in training, encoding, reranking and stores of tokens."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from dag.project import empty_project, refusal, replace

from lead.config.load import load
from lead.config.recipe import recipe
from lead.config.schema import Distil, Lengths, ModelRef, Prompts, Scoring, Train
from lead.config.stages import TokenizeSettings
from lead.data.tokens import Tokens, tokenize
from lead.models.base import LayeredModel
from lead.models.microbatch import MicroBatchEncoder
from lead.plan.checks import check
from lead.plan.plan import Plan
from lead.plan.stage_settings import settings_of
from lead.plan.targets import sensible
from lead.store.tables import read_table
from lead.train.data import Batch
from lead.train.step import DistilStep

PROMPTS = Prompts(query="query ", passage="the passage ")
LENGTHS = Lengths(query=8, passage=24)


def model(folder: Path, kind: str = "de", prompts: Prompts | None = PROMPTS, **scoring: object) -> LayeredModel:
    reference = ModelRef(reference=f"path:{folder}", prompts=prompts)
    return LayeredModel.pretrained(reference, kind, Scoring(**scoring), LENGTHS)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["de", "cb", "ce"])
def test_texts_are_read_after_the_prompt_within_the_length(tiny_model: Path, kind: str) -> None:
    queries, passages = ["array shape", "a long query about the degree of a graph"], ["matrix axis", ""]
    with_prompts, without = model(tiny_model, kind), model(tiny_model, kind, None)
    got = with_prompts.tokenize_batch(queries, passages)
    want = without.tokenize_batch([f"query {q}" for q in queries], [f"the passage {p}" for p in passages])
    assert got == want != without.tokenize_batch(queries, passages)
    assert with_prompts.tokenization != without.tokenization


def test_a_colbert_marks_and_expands_around_the_prompt(tiny_model: Path) -> None:
    colbert = model(tiny_model, "cb", markers=True, expand=True)
    read = colbert.tokenizer.convert_ids_to_tokens(colbert.tokenize("query", ["tree"])[0])
    assert read == ["[CLS]", "[unused0]", "query", "tree", "[SEP]", "[MASK]", "[MASK]", "[MASK]"]


def test_a_folder_keeps_its_prompts_and_says_nothing_of_none(tiny_model: Path, tmp_path: Path) -> None:
    model(tiny_model).save(tmp_path / "with")
    model(tiny_model, prompts=Prompts()).save(tmp_path / "without")
    assert LayeredModel.load(tmp_path / "with").prompts == PROMPTS
    assert "prompts" not in json.loads((tmp_path / "without/lead.json").read_text())
    assert LayeredModel.load(tmp_path / "without").prompts == Prompts()


def test_a_store_of_tokens_holds_the_prompt_and_refuses_a_model_with_another(
    tiny_model: Path, tiny_collection: Path, tmp_path: Path
) -> None:
    corpus = tiny_collection / "corpus.parquet"
    settings = TokenizeSettings(reference=f"path:{tiny_model}", length=24, prompt=PROMPTS.passage)
    tokenize(settings=settings, texts=corpus, out=tmp_path / "t")
    ours, texts = model(tiny_model), read_table(corpus, "corpus")["text"].to_pylist()
    rows = Tokens(tmp_path / "t", ours.tokenizer, 24, 160, PROMPTS.passage).rows(0, 160)
    assert [row.tolist() for row in rows] == ours.tokenize_batch([], texts)["passages"]
    assert "its prompt differs from the model's" in refusal(lambda: Tokens(tmp_path / "t", ours.tokenizer, 24, 160))


@torch.no_grad()
def test_teacher_and_student_read_their_own_prompts(tiny_model: Path, teacher_folder: Path) -> None:
    student, teacher = model(tiny_model), model(teacher_folder, "cb", Prompts(query="graph "))
    step = DistilStep(student, teacher, Train(dev_queries=0), Distil(), 1, "rd")
    batch = Batch(["tree"], ["tree node", "array"], torch.tensor([[True, False]]), torch.tensor([[0]]))
    inputs = step.inputs(batch)
    assert inputs["student"] == student.tokenize_batch(batch.queries, batch.passages)
    assert inputs["teacher"] == teacher.tokenize_batch(batch.queries, batch.passages) != inputs["student"]
    scored = teacher.scorer(batch.queries, batch.passages, MicroBatchEncoder(100, "fp32"))
    plain = model(teacher_folder, "cb", None).scorer(["graph tree"], batch.passages, MicroBatchEncoder(100, "fp32"))
    assert (scored(0, np.arange(2)) == plain(0, np.arange(2))).all()


def test_recipes_and_stores_change_only_where_there_are_prompts(tmp_path: Path) -> None:
    config = empty_project(tmp_path)
    replace(config / "datasets/tiny.yaml", "preset: tiny", "preset: tiny\nshards: 2")
    plan = Plan(load(config / "config.yaml"))
    assert "prompts" not in recipe(plan["tiny", "student"].encoder)
    replace(config / "presets/tiny.yaml", "layers: [2, 4]", 'layers: [2, 4], prompts: {passage: "p: "}')
    prompted = Plan(load(config / "config.yaml"))
    assert recipe(prompted["tiny", "student"].encoder)["prompts"] == {"query": "", "passage": "p: "}
    name, settings = prompted["tiny", "student"].tokenizer
    assert settings["prompt"] == "p: " and name.startswith(plan["tiny", "student"].tokenizer[0] + "-")
    assert settings_of(prompted.jobs, "tokenize", "tiny", name) == settings
    assert prompted["tiny", "miner"].tokenizer == plan["tiny", "miner"].tokenizer


def test_a_row_names_any_model_of_models_and_datasets_without_it_lack_the_run(tmp_path: Path) -> None:
    config = empty_project(tmp_path)
    given = f'preset: tiny\nshards: 2\nsettings: {{models: {{bge: {{reference: "path:{tmp_path / "model"}"}}}}}}'
    replace(config / "datasets/tiny.yaml", "preset: tiny", given)
    with (config / "experiments.yaml").open("a") as f:
        f.write("  bge: {method: contrastive, init: bge, phase: teacher}\n  ready: {method: pretrained, init: bge}\n")
        f.write(
            "  rd_bge: {method: rd, start: student, teacher: ready}\n  bge_more: {method: contrastive, start: bge}\n"
        )
    plan = Plan(load(config / "config.yaml"))
    assert {"bge", "ready", "rd_bge"} <= set(sensible(plan, "tiny"))
    assert not {"bge", "ready", "rd_bge"} & set(sensible(plan, "docs"))
    assert "no model of `models` 'bge' in" in refusal(lambda: check(plan["docs", "rd_bge"]))
    assert plan["tiny", "ready"].tokens(".1of2") == []  # its length and prompt are in its folder
    assert plan["tiny", "bge"].tokens(".1of2") == plan["tiny", "miner"].tokens(".1of2")
    assert "ready-s2" not in plan.rows and plan.rows["rd_bge-s2"].teacher == "ready"
    assert settings_of(plan.jobs, "tokenize", "tiny", plan["tiny", "bge"].tokenizer[0])["length"] == 24
    assert settings_of(plan.jobs, "tokenize", "docs", plan["docs", "miner"].tokenizer[0])


def test_a_name_alone_is_of_the_hub() -> None:
    assert ModelRef(reference="BAAI/bge-base-en-v1.5").reference == "hub:BAAI/bge-base-en-v1.5"
    assert ModelRef(reference="hub:bert-base-uncased").reference == "hub:bert-base-uncased"
