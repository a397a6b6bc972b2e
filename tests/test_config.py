"""Every mistake in a configuration file is one line that names the file, the key, and the way out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from dag.project import ROOT, copy_config, refusal, replace
from pydantic import BaseModel

from lead.config import schema, sources, stages, types
from lead.config.load import Loaded, load, merge, source_paths, validate
from lead.config.parse import parse_yaml
from lead.plan.plan import Plan

CONFIG, PRESET, EXPERIMENTS = "config.yaml", "presets/tiny.yaml", "experiments.yaml"
TINY, DOCS = "datasets/tiny.yaml", "datasets/docs.yaml"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A configuration folder of its own."""
    return copy_config(tmp_path)


def line_of(path: Path, text: str) -> int:
    return next(n for n, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1) if text in line)


def load_folder(folder: Path, overrides: dict[str, Any] | None = None) -> Loaded:
    return load(folder / CONFIG, overrides)


# --- mistakes, each in one file --------------------------------------------------------------------------------------
MISTAKES = [
    # unknown keys, at every level
    (CONFIG, "results:", "resluts:", "unknown key 'resluts'; did you mean 'results'?"),
    (CONFIG, "seed:", "sead:", "unknown key 'settings.sead'; did you mean 'seed'?"),
    (CONFIG, "seed: 1", "train: {step: 3}", "unknown key 'settings.train.step'; did you mean 'steps'?"),
    (PRESET, "lengths:", "length:", "unknown key 'length'; did you mean 'lengths'?"),
    (PRESET, "k: 2", "kk: 2", "unknown key 'distil.layers.kk'; did you mean 'k'?"),
    (PRESET, "layers: [2, 4]", "layer: [2, 4]", "unknown key 'models.student.layer'; did you mean 'layers'?"),
    (PRESET, "distil: {steps: 4}", "distill: {steps: 4}", "unknown key 'phases.distill'; did you mean 'distil'?"),
    (PRESET, "distil: {steps: 4}", "distil: {stepz: 4}", "unknown key 'phases.distil.stepz'; did you mean 'steps'?"),
    (PRESET, "pooling: mean", "poling: mean", "unknown key 'scoring.de.poling'; did you mean 'pooling'?"),
    (TINY, "preset:", "presets:", "unknown key 'presets'; did you mean 'preset'?"),
    (TINY, "corpus:", "korpus:", "unknown key 'source.korpus'; did you mean 'corpus'?"),
    (TINY, "train: {queries:", "train: {query: a, queries:", "unknown key 'source.train.query'; did you mean 'quer"),
    (DOCS, "packages:", "package: [a], packages:", "unknown key 'source.package'; did you mean 'packages'?"),
    (DOCS, "passage: 16", "pasage: 16", "unknown key 'settings.lengths.pasage'; did you mean 'passage'?"),
    (EXPERIMENTS, "runs:", "run:", "unknown key 'run'; did you mean 'runs'?"),
    (EXPERIMENTS, "datasets: [docs]", "dataset: [docs]", "unknown key 'runs.lead_cb_docs.dataset'; did you mean 'data"),
    (EXPERIMENTS, "{k: 3}", "{kk: 3}", "unknown key 'runs.lead_cb_k3.settings.distil.layers.kk'; did you mean 'k'?"),
    # wrong types
    (CONFIG, "seed: 1", "seed: one", "key 'settings.seed': should be a valid integer, not 'one'"),
    (CONFIG, "{seed: 1}", "[seed]", "key 'settings': should be a valid dictionary, not a list"),
    (CONFIG, "{seed: 1}", "{seed: true}", "key 'settings.seed': should be a valid integer, not True"),
    (PRESET, "lr: 1e-3", 'lr: "1e-3"', "key 'train.lr': should be a valid number, not '1e-3'"),
    (PRESET, "steps: 3", "steps: 3.5", "key 'train.steps': should be a valid integer, not 3.5"),
    (TINY, "preset: tiny", "preset: 5", "key 'preset': should be a valid string, not 5"),
    (DOCS, "[numpy]", "numpy", "key 'source.packages': should be a valid list, not 'numpy'"),
    (EXPERIMENTS, "bm25: {method: bm25}", "bm25: bm25", "key 'runs.bm25': "),
    # out of range
    (CONFIG, "seed: 1", "seed: -1", "key 'settings.seed': should be greater than or equal to 0, not -1"),
    (PRESET, "steps: 3", "steps: 0", "key 'train.steps': should be greater than or equal to 1, not 0"),
    (PRESET, "lr: 1e-3", "lr: 0", "key 'train.lr': should be greater than 0, not 0"),
    (PRESET, "steps: 3", "warmup: 1.5", "key 'train.warmup': should be less than or equal to 1, not 1.5"),
    (PRESET, "distil: {steps: 4}", "distil: {steps: 0}", "key 'phases.distil.steps': should be greater than or equal"),
    (PRESET, "strategy: random", "strategy: randm", "no layer strategy 'randm'; did you mean 'random'"),
    (PRESET, '"path:model", layers', '"model", layers', "key 'models.student.reference': String should match pattern"),
    (PRESET, "[2, 4]", "[0, 4]", "key 'models.student.layers.0': should be greater than or equal to 1, not 0"),
    (DOCS, "[numpy]", "[]", "key 'source.packages': List should have at least 1 item"),
    # missing and mismatched keys
    (TINY, "corpus: ../../data/corpus.jsonl", "fields: [text]", "key 'source.corpus' is missing; add it"),
    (TINY, ", qrels: ../../data/dev.tsv}", "}", "key 'source.dev.qrels' is missing; add it"),
    (TINY, "kind: files", "kind: file", "key 'source.kind': no kind 'file'; did you mean 'files'"),
    (DOCS, "kind: pydocs, ", "", "key 'source.kind' is missing; add it"),
    (EXPERIMENTS, "{method: bm25}", "{}", "key 'runs.bm25.method' is missing; add it"),
    (EXPERIMENTS, "{method: bm25}", "{method: bm52}", "key 'runs.bm25.method': no method 'bm52'; did you mean 'bm25'?"),
    (EXPERIMENTS, "method: rd, start", "method: led, start", "key 'runs.rd_cb.method': no method 'led'; did you mean"),
    (EXPERIMENTS, "kind: cb", "kind: bc", "key 'runs.teacher_cb.kind': no kind 'bc'; valid: cb, ce, de"),
    # names of the past
    (EXPERIMENTS, "{method: bm25}", "{method: given}", "the method 'given' is called 'external' now; rename it"),
    (TINY, "preset: tiny", "preset: tiny\ngiven: x", "key 'given' is called 'external_run' now; rename it"),
    (EXPERIMENTS, "method: rd, start: student", "method: rd", "key 'runs.rd_cb': method rd needs `start`"),
    (EXPERIMENTS, "{method: bm25}", "{method: bm25, of: x}", "key 'runs.bm25': method bm25 does not read `of`"),
    (EXPERIMENTS, "contrastive, start: student", "contrastive, kind: cb, start: student", "`kind` is read with `init`"),
    (EXPERIMENTS, "contrastive, start: student", "contrastive", "method contrastive needs one of `init` and `start`"),
]  # fmt: skip


@pytest.mark.parametrize(("file", "old", "new", "says"), MISTAKES, ids=[f"{m[0]} {m[2]}" for m in MISTAKES])
def test_a_mistake_is_one_line_with_file_line_and_key(folder: Path, file: str, old: str, new: str, says: str) -> None:
    replace(folder / file, old, new)
    message = refusal(lambda: load_folder(folder))
    assert says in message
    assert re.match(rf"{re.escape(str(folder / file))}(:\d+)?: ", message)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        (PRESET, "k: 2", "kk: 2"),
        (PRESET, "steps: 3", "steps: 0"),
        (PRESET, "distil: {steps: 4}", "distil: {steps: 0}"),
        (DOCS, "passage: 16", "passage: 1"),
        (TINY, "corpus:", "korpus:"),
        (TINY, ", qrels: ../../data/dev.tsv}", "}"),
        (EXPERIMENTS, "{k: 3}", "{kk: 3}"),
        (CONFIG, "seed: 1", "seed: one"),
    ],
)
def test_the_line_is_that_of_the_key(folder: Path, file: str, old: str, new: str) -> None:
    number = line_of(folder / file, old)
    replace(folder / file, old, new)
    message = refusal(lambda: load_folder(folder))
    line = re.match(rf"{re.escape(str(folder / file))}:(\d+): ", message)
    assert line is not None and int(line[1]) == number  # a missing key's is that of the mapping it is missing from


@pytest.mark.parametrize("file", [CONFIG, PRESET, TINY, EXPERIMENTS])
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [1", "not valid YAML"),
        ("a: 1\n b: 2\n", ":2: not valid YAML"),
        ("a: 1\nb: 2\na: 3\n", ":3: not valid YAML: key 'a' is given twice"),
        ("a: {b: 1, b: 2}\n", ":1: not valid YAML: key 'b' is given twice"),
        ("a: !!python/name:os.system\n", ":1: not valid YAML: tags (tag:yaml.org,2002:python/name:os.system) are not"),
        ("a: \x07\n", "not valid YAML"),
        ("- a\n- b\n", ""),
        ("words\n", ""),
        ("5: a\n", ""),
        ("? [a, b]\n: c\n", ""),
    ],
)
def test_a_file_that_is_no_mapping_is_one_line(folder: Path, file: str, text: str, says: str) -> None:
    (folder / file).write_text(text, encoding="utf-8")
    message = refusal(lambda: load_folder(folder))
    assert message.startswith(str(folder / file)) and says in message


@pytest.mark.parametrize("file", [TINY, EXPERIMENTS])
def test_an_empty_file_that_needs_keys_is_one_line(folder: Path, file: str) -> None:
    (folder / file).write_text("", encoding="utf-8")
    assert refusal(lambda: load_folder(folder)).startswith(str(folder / file))


def test_a_file_that_is_no_text_is_named(folder: Path) -> None:
    (folder / PRESET).write_bytes(b"\xff\xfe\x00")
    assert refusal(lambda: load_folder(folder)).startswith(f"cannot read {folder / PRESET}")


def test_a_missing_configuration_file_is_named(folder: Path) -> None:
    (folder / EXPERIMENTS).unlink()
    assert str(folder / EXPERIMENTS) in refusal(lambda: load_folder(folder))
    assert "nowhere.yaml: No such file" in refusal(lambda: load(folder / "nowhere.yaml"))


@pytest.mark.parametrize("key", ["datasets", "presets"])
def test_a_missing_folder_is_named_with_its_key(folder: Path, key: str) -> None:
    message = refusal(lambda: load_folder(folder, {key: "nowhere"}))
    assert f"key '{key}': {folder / 'nowhere'} is not a folder" in message


def test_an_unknown_preset_is_named_with_the_nearest(folder: Path) -> None:
    replace(folder / TINY, "preset: tiny", "preset: tinny")
    message = refusal(lambda: load_folder(folder))
    assert message == f"{folder / TINY}: key 'preset': no preset 'tinny'; did you mean 'tiny'?"


def test_an_unknown_dataset_of_a_row_is_named_with_the_nearest(folder: Path) -> None:
    replace(folder / EXPERIMENTS, "datasets: [docs]", "datasets: [dosc]")
    message = refusal(lambda: load_folder(folder))
    assert "run 'lead_cb_docs': no dataset 'dosc'; did you mean 'docs'?" in message


def test_an_override_with_a_mistake_is_one_line(folder: Path) -> None:
    assert "did you mean 'results'?" in refusal(lambda: load_folder(folder, {"resluts": "x"}))
    assert "'settings.train.lr'" in refusal(lambda: load_folder(folder, {"settings": {"train": {"lr": "5e"}}}))


@pytest.mark.parametrize("text", ["a name", ".hidden", "a/b", "-x", ""])
def test_a_run_needs_a_name_that_can_be_a_file(folder: Path, text: str) -> None:
    replace(folder / EXPERIMENTS, "bm25: {method: bm25}", f'"{text}": {{method: bm25}}')
    assert refusal(lambda: load_folder(folder)).startswith(str(folder / EXPERIMENTS))


# --- values ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "value"),
    [("5e-5", 5e-5), ("1E6", 1e6), ("-.5e+3", -500.0), ("1.e2", 100.0), ("5e", "5e"), ("0x10", 16), ("'5e-5'", "5e-5")],
)
def test_numbers_are_read_as_people_write_them(text: str, value: object) -> None:
    read = parse_yaml(f"a: {text}", "here")["a"]
    assert read == value and type(read) is type(value)


def test_json_is_yaml() -> None:
    assert parse_yaml('{"a": [1, 5e-05, null, true, "x"]}', "here") == {"a": [1, 5e-5, None, True, "x"]}


def test_mappings_are_merged_and_lists_replaced() -> None:
    base = {"a": {"b": 1, "c": [1, 2]}, "d": 4}
    assert merge(base, {"a": {"c": [3]}, "d": {"e": 5}}) == {"a": {"b": 1, "c": [3]}, "d": {"e": 5}}
    assert base == {"a": {"b": 1, "c": [1, 2]}, "d": 4}


def test_source_paths_count_from_the_dataset_file(folder: Path) -> None:
    data, path = load_folder(folder).datasets["tiny"]
    assert isinstance(data.source, sources.FilesSource)
    source = source_paths(data.source, path)
    assert Path(source.corpus).resolve() == (folder / ".." / "data" / "corpus.jsonl").resolve()
    assert source.dev is not None and Path(source.dev.qrels).is_absolute()


# --- precedence ------------------------------------------------------------------------------------------------------
def lr(folder: Path, run: str = "lead_cb", overrides: dict[str, Any] | None = None) -> float:
    return Plan(load_folder(folder, overrides))["docs", run].settings.train.lr


def test_later_layers_win_over_earlier_ones(folder: Path) -> None:
    replace(folder / PRESET, "lr: 1e-3, ", "")
    assert lr(folder) == schema.Train().lr == 5e-5
    replace(folder / PRESET, "steps: 3", "steps: 3, lr: 1e-3")
    assert lr(folder) == 1e-3
    replace(folder / DOCS, "settings:", "settings:\n  train: {lr: 2e-3}")
    assert lr(folder) == 2e-3
    replace(folder / CONFIG, "seed: 1", "seed: 1, train: {lr: 3e-3}")
    assert lr(folder) == 3e-3
    assert lr(folder, overrides={"settings": {"train": {"lr": 4e-3}}}) == 4e-3
    row = "lead_cb: {method: lead, start: student, teacher: teacher_cb"
    replace(folder / EXPERIMENTS, row + "}", row + ", settings: {train: {lr: 6e-3}}}")
    assert lr(folder) == 6e-3
    assert lr(folder, "lead_de") == 3e-3
    assert lr(folder, overrides={"settings": {"train": {"lr": 4e-3}}}) == 6e-3


def test_a_phase_wins_over_train_but_not_over_the_row(folder: Path) -> None:
    replace(folder / CONFIG, "seed: 1", "seed: 1, train: {lr: 3e-3}, phases: {distil: {lr: 7e-3}}")
    assert lr(folder) == 7e-3
    assert lr(folder, "student") == 3e-3
    assert lr(folder, "student_more") == 7e-3
    row = "student_more: {method: contrastive, start: student"
    replace(folder / EXPERIMENTS, row + "}", row + ", settings: {train: {lr: 8e-3}}}")
    assert lr(folder, "student_more") == 8e-3


def test_a_layer_replaces_only_the_keys_it_names(folder: Path) -> None:
    settings = Plan(load_folder(folder))["docs", "lead_cb_k3"].settings
    assert (settings.lengths.query, settings.lengths.passage) == (12, 16)
    assert (settings.distil.layers.k, settings.distil.layers.strategy) == (3, "random")


def test_a_row_may_change_the_phase_it_is_in(folder: Path) -> None:
    replace(folder / EXPERIMENTS, "{distil: {layers: {k: 3}}}", "{phases: {distil: {steps: 9}}}")
    assert Plan(load_folder(folder))["docs", "lead_cb_k3"].settings.train.steps == 9


@pytest.mark.parametrize("models", ["", "models: {teacher: {layers: [1]}, student: {layers: [1]}}"])
def test_a_model_that_no_layer_gives_is_asked_for(folder: Path, models: str) -> None:
    (folder / "presets" / "none.yaml").write_text(models, encoding="utf-8")
    replace(folder / DOCS, "preset: tiny", "preset: none")
    message = refusal(lambda: Plan(load_folder(folder))["docs", "student"].settings)
    assert "docs.yaml" in message and "models.teacher" in message and "missing" in message


# --- the schema ------------------------------------------------------------------------------------------------------
def models() -> list[type[BaseModel]]:
    found = [m for module in (schema, sources, stages) for m in vars(module).values() if isinstance(m, type)]
    return list(dict.fromkeys(m for m in found if issubclass(m, types.Strict) and m is not types.Strict))


# what needs no words: the paper's symbols, BM25's parameters, groups of keys with a docstring of their own
EVIDENT = {"seed", "kind", "relevance", "b", "k1", "confidence", "stemmer", "stop_words", "method", "precision"}
EVIDENT |= {"fp16", "batch_tokens", "depth", "mine_depth", "rerank_depth", "dev_share", "source", "runs", "model"}
EVIDENT |= {"lyr", "rep", "tch", "stu"}


@pytest.mark.parametrize("model", models(), ids=lambda m: m.__name__)
def test_every_key_says_what_it_is(model: type[BaseModel]) -> None:
    assert model.__doc__ and model.__doc__ != types.Strict.__doc__
    for name, field in model.model_fields.items():
        annotation = field.annotation
        group = isinstance(annotation, type) and issubclass(annotation, BaseModel)
        split = annotation in (sources.SplitFiles, sources.SplitFiles | None)
        assert field.description or group or split or name in EVIDENT, f"{model.__name__}.{name}"


@pytest.mark.parametrize("model", models(), ids=lambda m: m.__name__)
def test_every_model_has_a_json_schema_and_refuses_unknown_keys(model: type[BaseModel]) -> None:
    made = model.model_json_schema()
    assert made["type"] == "object" and made["additionalProperties"] is False
    message = refusal(lambda: validate(model, {"no_such_key": 1}, "here"))
    assert message.startswith("here: ")


@pytest.mark.parametrize(
    "model",
    [m for m in models() if not any(field.is_required() for field in m.model_fields.values())],
    ids=lambda m: m.__name__,
)
def test_defaults_are_valid_and_survive_json(model: type[BaseModel]) -> None:
    made = model()
    assert model.model_validate_json(made.model_dump_json()) == made
    assert model.model_validate(made.model_dump(mode="json")) == made


def test_checked_values_cannot_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        schema.Train().steps = 1  # type: ignore[misc]


def test_the_defaults_are_those_of_the_paper() -> None:
    train, distil, retrieval = schema.Train(), schema.Distil(), schema.Retrieval()
    assert (train.steps, train.batch_size, train.negatives, train.lr, train.warmup) == (50000, 80, 16, 5e-5, 0.1)
    assert (distil.tau, distil.layers.k, distil.layers.strategy, distil.layer_weights) == (
        1.0,
        5,
        "random",
        "per_query",
    )
    assert distil.joint and not distil.detach_target
    assert (retrieval.depth, retrieval.mine_depth, retrieval.rerank_depth) == (1000, 100, 1000)
    assert (schema.Lengths().query, schema.Lengths().passage) == (32, 144)


def test_the_repository_s_own_configuration_is_valid() -> None:
    loaded = load(ROOT / "config" / "config.yaml")
    plan = Plan(loaded)
    for dataset in loaded.datasets:
        for run in plan.rows:
            assert plan[dataset, run].settings
