"""`lead init`: from files as people have them to a dataset file that the workflow takes."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dag.project import refusal

from lead import cli
from lead.config.folders import locate
from lead.config.load import load
from lead.config.sources import FilesSource
from lead.config.stages import PrepareSettings
from lead.data.layout import CORPUS
from lead.data.prepare import prepare
from lead.data.pseudo import fitting
from lead.data.unlabelled import read_texts
from lead.plan.checks import check
from lead.plan.plan import Plan
from lead.plan.targets import targets
from lead.store.tables import read_table
from lead.terminal import look
from lead.terminal.cost import shape
from lead.terminal.init import init
from lead.terminal.workflow import snakemake_words

WORDS = "array matrix shape axis reshape transpose stride broadcast".split()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> Path:
    """A folder that we are in: a CSV corpus of 90 passages, 40 queries and their judgements. No configuration."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "my data"
    folder.mkdir()
    passages = [f'{i},"{" ".join(WORDS[: 2 + i % 7])}, number {i}"\n' for i in range(90)]
    (folder / "corpus.csv").write_text("docno,contents\n" + "".join(passages), encoding="utf-8")
    with gzip.open(folder / "queries.tsv.gz", "wt", encoding="utf-8") as file:
        file.writelines(f"q{i}\twhat is number {i}\n" for i in range(40))
    (folder / "qrels.tsv").write_text("".join(f"q{i}\t0\t{i}\t{1 + i % 2}\n" for i in range(40)), encoding="utf-8")
    return tmp_path


def call(**changed: str | None | bool) -> str:
    given = {
        "corpus": "my data/corpus.csv",
        "queries": "my data/queries.tsv.gz",
        "qrels": "my data/qrels.tsv",
    } | changed
    return init("mine", test=(None, None), **{"force": False, **given})  # type: ignore[arg-type]


def test_a_new_user_s_files_become_a_dataset_that_is_prepared_and_planned(here: Path) -> None:
    said = call()
    assert "90 passages (pid from docno, text from contents, a header)" in said
    assert "40 queries (qid from column 1, text from column 2, no header)" in said
    assert "40 for 40 queries, 1.0 each, grades 1, 2" in said
    assert "8 of the judged queries are held out to evaluate on, 32 are trained on" in said
    assert "lead plan mine " in said and targets(Plan(load("config/config.yaml")), "mine")[-1].endswith("/best.json")
    plan = Plan(load("config/config.yaml"))
    check(plan["mine", "lead_cb"])
    settings = plan["mine", "lead_cb"].settings
    assert settings.train.batch_size == 4 and settings.train.steps == 24  # three epochs of 32 queries
    start = plan["mine", "best_unlabelled"].settings  # 90 passages and 32 queries
    assert (start.train.batch_size, start.align.between) == (15, [400, 3000])
    assert settings.lengths.passage == settings.lengths.query == 16  # 10 words are some 15.5 tokens
    assert settings.evaluation.measures[0] == "nDCG@10"  # grades
    prepare(settings=PrepareSettings(source=plan.datasets["mine"].source), out=here / "out")
    counts = {split: read_table(here / f"out/queries.{split}.parquet").num_rows for split in ("train", "dev", "test")}
    assert counts == {"train": 30, "dev": 2, "test": 8}


def test_equal_texts_are_on_one_side_only(here: Path) -> None:
    with gzip.open("my data/queries.tsv.gz", "wt", encoding="utf-8") as file:
        file.writelines(f"q{i}\tthe text {i // 2}\n" for i in range(40))
    call()
    source = load("config/config.yaml").datasets["mine"][0].source
    assert isinstance(source, FilesSource)
    sides = [Path("config/datasets") / split.qrels for split in (source.train, source.test)]
    texts = [{int(line.split("\t")[0][1:]) // 2 for line in side.read_text().splitlines()[1:]} for side in sides]
    assert texts[0] and texts[1] and not texts[0] & texts[1]


def test_what_is_there_is_kept_unless_forced(here: Path) -> None:
    call()
    file = here / "config/datasets/mine.yaml"
    file.write_text("mine: own\n", encoding="utf-8")
    assert "config/datasets/mine.yaml is there already" in refusal(call)
    assert file.read_text(encoding="utf-8") == "mine: own\n"
    call(force=True)
    assert "mine: own" not in file.read_text(encoding="utf-8")
    preset = here / "config/presets/best.yaml"  # of one's own, without the steps of each phase
    preset.parent.mkdir()
    models = "{teacher: {reference: path:model}, student: {reference: path:model}}"
    preset.write_text(f"models: {models}\ntrain: {{batch_size: 8, steps: 7}}\nphases: {{miner: {{steps: 2}}}}\n")
    call(force=True)
    steps = Plan(load("config/config.yaml"))["mine", "student"].settings.phases
    assert steps.miner == {"steps": 2} and steps.distil == {"steps": 7}


def test_an_aligned_student_sees_a_large_train_set_once(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lead.terminal.dataset_file.glob.glob", lambda devices: [])  # as without a GPU
    settings = {run: steps_of(run, 3_000) for run in ("best", "lead_cb")}
    assert settings == {"best": 450, "lead_cb": 450}  # three epochs of 2,400 queries
    settings = {run: steps_of(run, 20_000) for run in ("best", "lead_best", "lead_cb")}
    assert settings == {"best": 1188, "lead_best": 1188, "lead_cb": 500}  # an epoch of 19,000 queries
    assert steps_of("best", 60_000) == 2000
    preset = here / "config/presets/best.yaml"  # of one's own
    preset.parent.mkdir()
    models = "{teacher: {reference: path:model}, student: {reference: path:model}}"
    preset.write_text(f"models: {models}\nphases: {{aligned: {{steps: 5000}}}}\n")
    assert steps_of("best", 3_000) == 5000


def steps_of(run: str, queries: int) -> int:
    """The steps of a run, where so many queries are judged."""
    Path("many.tsv").write_text("".join(f"q{i}\twhat is number {i}\n" for i in range(queries)), encoding="utf-8")
    Path("many.qrels").write_text("".join(f"q{i}\t0\t{i % 90}\t1\n" for i in range(queries)), encoding="utf-8")
    call(queries="many.tsv", qrels="many.qrels", force=True)
    return Plan(load("config/config.yaml"))["mine", run].settings.train.steps


def test_a_corpus_alone_is_aligned_on_queries_drawn_from_it(here: Path) -> None:
    said = call(queries=None, qrels=None)
    assert "90 passages" in said and "training queries are drawn from the corpus (crops: few passages" in said
    commands = [line.split("#")[0].strip() for line in said.splitlines()[-4:]]
    run = "mine/best_unlabelled"
    assert commands == [f"lead plan {run}", f"lead run {run}", f'lead search {run} "a question"',
                        f"lead export {run} --to mine-model"]  # fmt: skip
    plan = Plan(load("config/config.yaml"))
    job = plan["mine", "best_unlabelled"]
    check(job)
    assert plan.rows.method(str(job.row.teacher)).stage == "pretrained"  # no label is needed for the teacher either
    assert job.settings.align.between == [400, 3000] and job.settings.train.batch_size == 22  # 180 texts, 50 times
    data = plan.datasets["mine"].data
    assert data.queries is not None and data.queries.model_dump() == {"from": "crops", "number": 90, "seed": 1}
    made = ["results/mine/models/best_unlabelled", "results/mine/embeddings/best_unlabelled/passages.parquet"]
    for words in (["mine"], [run]):
        assert snakemake_words(plan, words)[-2:] == made


def test_queries_without_judgements_are_aligned_on_as_queries(here: Path) -> None:
    with gzip.open("with header.tsv.gz", "wt", encoding="utf-8") as file:
        file.writelines(["qid\tquery\n", "q1\twhat is a shape\n", "q2\twhat is an axis\n"])
    assert "queries: with header.tsv.gz: 2 without judgements" in call(queries="with header.tsv.gz", qrels=None)
    job = Plan(load("config/config.yaml"))["mine", "best_unlabelled"]
    check(job)
    (batch,) = read_texts([Path(path) for path in job.more_queries])
    assert not job.texts
    assert batch["text"].to_pylist() == ["what is a shape", "what is an axis"]
    # judged queries to evaluate on only: results, and no query of the test is aligned on
    tested = {"queries": "my data/queries.tsv.gz", "qrels": None, "corpus": "my data/corpus.csv"}
    said = init("tested", test=(None, "my data/qrels.tsv"), force=False, **tested)  # type: ignore[arg-type]
    plan = Plan(load("config/config.yaml"))
    assert "lead run tested " in said and not plan["tested", "best_unlabelled"].more_queries
    runs = ("bm25", "pretrained_teacher", "best_unlabelled")
    assert targets(plan, "tested") == [f"results/tested/{run}.json" for run in runs]


def test_what_fits_a_corpus() -> None:
    prose = [("Heart", "A sentence of some words. Another one of some words.")] * 3
    assert fitting(prose)[0] == "sentences"
    assert fitting([(f"How to read a file {n}", text) for n, (_, text) in enumerate(prose)])[0] == "titles"
    assert fitting([("x", "for i in range(3): print(i)")])[0] == "crops"


def test_half_of_what_is_needed_is_one_line(here: Path) -> None:
    assert "--qrels without queries; give --queries too" in refusal(lambda: call(queries=None))
    assert "--corpus nowhere.csv does not exist" in refusal(lambda: call(corpus="nowhere.csv"))
    without = {"corpus": "my data/corpus.csv", "queries": None, "qrels": None, "force": False}
    for test, says in (((None, "my data/qrels.tsv"), "--test-qrels without queries"),
                       (("my data/queries.tsv.gz", None), "--test-queries without judgements")):  # fmt: skip
        assert says in refusal(lambda test=test: init("mine", test=test, **without))  # type: ignore[misc,arg-type]
    assert not (here / "config").exists()


@pytest.mark.parametrize("asked", [True, False])
def test_a_folder_in_beir_s_layout_without_judgements(here: Path, asked: bool) -> None:
    (here / "beir").mkdir()
    passages = [json.dumps({"_id": f"d{i}", "title": f"t{i}", "text": "a text"}) for i in range(30)]
    (here / "beir/corpus.jsonl").write_text("\n".join(passages), encoding="utf-8")
    if asked:
        (here / "beir/queries.jsonl").write_text('{"_id": "q1", "text": "what is it"}\n', encoding="utf-8")
    assert "lead run mine/best_unlabelled" in init("mine", "beir", None, None, (None, None), False)
    job = Plan(load("config/config.yaml"))["mine", "best_unlabelled"]
    check(job)
    assert job.more_queries == (["beir/queries.jsonl"] if asked else [])


@pytest.mark.parametrize("judged", [True, False])
def test_a_folder_in_mteb_s_layout_without_train_judgements(here: Path, judged: bool) -> None:
    texts = {"corpus/corpus": "".join(f'{{"_id": "d{i}", "title": "", "text": "a text of {i}"}}\n' for i in range(30))}
    if judged:
        texts |= {"queries/queries": '{"_id": "q1", "text": "what"}\n',
                  "qrels/test": '{"query-id": "q1", "corpus-id": "d3", "score": 1}\n'}  # fmt: skip
    for name, text in texts.items():
        (here / "hub" / name).parent.mkdir(parents=True)
        (here / "hub" / f"{name}.jsonl").write_text(text, encoding="utf-8")
    assert "lead run mine/best_unlabelled" in init("mine", "hub", None, None, (None, None), False)
    plan = Plan(load("config/config.yaml"))
    check(plan["mine", "best_unlabelled"])
    assert plan.datasets["mine"].has_test == judged and plan.datasets["mine"].data.source.kind == "hf"


def judged_folder(folder: Path, splits: tuple[str, ...], words: int = 1) -> None:
    """A folder in BEIR's layout, its 30 queries shared out among the splits; grades are 1, in the first split 2."""
    (folder / "qrels").mkdir(parents=True)
    passages = [json.dumps({"_id": f"d{i}", "title": f"t{i}", "text": "a text"}) for i in range(30)]
    (folder / "corpus.jsonl").write_text("\n".join(passages), encoding="utf-8")
    queries = [json.dumps({"_id": f"q{i}", "text": f"query {i} " + "w " * (words - 2)}) for i in range(30)]
    (folder / "queries.jsonl").write_text("\n".join(queries), encoding="utf-8")
    for n, split in enumerate(splits):
        rows = [f"q{i}\td{i}\t{2 - bool(n)}\n" for i in range(30) if i % len(splits) == n]
        (folder / f"qrels/{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(rows), encoding="utf-8")


@pytest.mark.parametrize("splits", [("dev", "test"), ("train", "dev")])
def test_dev_judgements_of_a_folder_are_kept(here: Path, splits: tuple[str, ...]) -> None:
    judged_folder(here / "beir", splits)
    init("mine", "beir", None, None, (None, None), False)
    plan = Plan(load("config/config.yaml"))
    found = locate(plan.datasets["mine"].source)  # type: ignore[arg-type]
    assert [path.name for path in found.splits["dev"].qrels] == ["dev.tsv"] and "test" in found.splits


def test_what_a_split_has_is_its_own(here: Path) -> None:
    """Grades and queries of one file that serves two splits; the length of test queries where none are trained on."""
    judged_folder(here / "beir", ("train", "test"))
    said = init("mine", "beir", None, None, (None, None), False)
    assert re.search(r"^train judgements: .* 15 for 15 queries, 1.0 each, grades 2 ", said, re.M)
    assert re.search(r"^test judgements: .* 15 for 15 queries, 1.0 each, grades 1 ", said, re.M)
    assert shape(Plan(load("config/config.yaml"))["mine", "best"]).queries["train"] == 15
    judged_folder(here / "measured", ("test",), words=37)
    init("other", "measured", None, None, (None, None), False)
    assert Plan(load("config/config.yaml"))["other", "bm25"].settings.lengths.query == 56  # 52 tokens, a multiple of 8
    (here / "measured/queries.jsonl").unlink()
    assert "has no queries.jsonl" in refusal(lambda: init("again", "measured", None, None, (None, None), False))


@pytest.mark.parametrize("splits", [("validation", "test"), ("test",)])
def test_a_folder_in_mteb_s_layout_with_other_splits_than_train(here: Path, splits: tuple[str, ...]) -> None:
    for name in ("corpus", "queries", "qrels"):
        (here / "hub" / name).mkdir(parents=True)
    for name in ("corpus", "queries"):
        texts = "".join(f'{{"_id": "{name[0]}{i}", "title": "", "text": "a text of {i}"}}\n' for i in range(30))
        (here / "hub" / name / f"{name}.jsonl").write_text(texts, encoding="utf-8")
    for n, split in enumerate(splits):
        judged = "".join(f'{{"query-id": "q{i}", "corpus-id": "c{i}", "score": 1}}\n' for i in range(n, 30, 2))
        (here / "hub" / "qrels" / f"{split}.jsonl").write_text(judged, encoding="utf-8")
    assert "drawn from the corpus" in init("mine", "hub", None, None, (None, None), False)
    check(Plan(load("config/config.yaml"))["mine", "best_unlabelled"])


@pytest.mark.parametrize("splits", [("train", "test"), ("train",), ("test",)])
def test_a_folder_in_beir_s_layout(here: Path, splits: tuple[str, ...]) -> None:
    folder = here / "beir"
    (folder / "qrels").mkdir(parents=True)
    passages = [json.dumps({"_id": f"d{i}", "title": f"t{i}", "text": "a text"}) for i in range(30)]
    (folder / "corpus.jsonl").write_text("\n".join(passages), encoding="utf-8")
    queries = [json.dumps({"_id": f"q{i}", "text": f"query {i}"}) for i in range(30)]
    (folder / "queries.jsonl").write_text("\n".join(queries), encoding="utf-8")
    for n, split in enumerate(splits):
        rows = [f"q{i}\td{i}\t1\n" for i in range(30) if i % len(splits) == n]
        (folder / f"qrels/{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(rows), encoding="utf-8")
    ours = "the folder has queries and judgements of its own"
    assert ours in refusal(lambda: init("mine", "beir", None, None, (None, f"beir/qrels/{splits[-1]}.tsv"), False))
    said = init("mine", "beir", None, None, (None, None), False)
    source = Plan(load("config/config.yaml")).datasets["mine"].source
    assert source.kind == ("beir" if len(splits) == 2 else "files")
    assert ("no test split" in said) == (splits == ("train",))
    assert ("drawn from the corpus" in said) == (splits == ("test",))  # what is measured on is never trained on
    located = locate(source)  # type: ignore[arg-type]
    assert set(located.splits) == {"train", "test"} - (set() if "train" in splits else {"train"})


def test_a_large_file_is_sampled_and_its_rows_are_estimated(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = here / "large.tsv"
    path.write_text("".join(f"p{i:05}\tsome words of passage {i:05}\n" for i in range(20_000)), encoding="utf-8")
    whole = look.look([path], CORPUS)
    assert (whole.count, whole.exact) == (20_000, True)
    monkeypatch.setattr(look, "SMALL", 1000)
    part = look.look([path], CORPUS)
    assert not part.exact and abs(part.count - 20_000) < 2_000 and len(part.words) == look.SAMPLE
    rows = [
        json.dumps({"_id": f"{i:05}", "text": f"passage {i:05}", "metadata": {"url": "u" * 40}}) for i in range(20_000)
    ]
    path.with_suffix(".jsonl").write_text("\n".join(rows), encoding="utf-8")
    assert abs(look.look([path.with_suffix(".jsonl")], CORPUS).count - 20_000) < 200


def test_words_of_scripts_without_spaces_are_counted() -> None:
    assert len(look.UNSPACED.findall("深度检索 and 検索")) == 6


def test_the_command_prints_what_was_found(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy("my data/corpus.csv", "c.csv")
    words = ["init", "mine", "--corpus", "c.csv", "--queries", "my data/queries.tsv.gz", "--qrels", "my data/qrels.tsv"]
    assert cli.main(words) == 0
    assert "wrote config/datasets/mine.yaml" in capsys.readouterr().out
    assert cli.main(["show", "mine/lead_cb"]) == 0
    assert "config/datasets/mine.yaml: phases.distil" in capsys.readouterr().out


def test_lead_encode_takes_a_user_s_own_texts(here: Path, tiny_model: Path) -> None:
    from conftest import make_retriever

    make_retriever(tiny_model, "de", pooling="mean").save(here / "model")
    files = {
        "queries.tsv": "qid\ttext\na\tarray shape\n",
        "passages.tsv": "a\tarray shape\n",
        "x.csv": "id,query\na,axis\n",
    }
    for name, text in files.items():
        Path(name).write_text(text, encoding="utf-8")
        assert cli.main(["encode", "--model", "model", "--texts", name, "--out", f"{name}.parquet"]) == 0
        assert pq.read_table(f"{name}.parquet").num_rows == 1
        assert Path(name).read_text(encoding="utf-8") == text
    # as pandas and polars write it: other types than lead's, and a column more
    own = {"pid": pa.array(["a", "b"], pa.large_string()), "text": pa.array(["axis", "shape"], pa.large_string())}
    pq.write_table(pa.table(own | {"__index_level_0__": [3, 7]}), "own.parquet")
    assert cli.main(["encode", "--model", "model", "--texts", "own.parquet", "--out", "vectors.parquet"]) == 0
    assert pq.read_table("vectors.parquet")["id"].to_pylist() == ["a", "b"]
    assert not [path.name for path in here.iterdir() if path.name.endswith(".tmp")]
