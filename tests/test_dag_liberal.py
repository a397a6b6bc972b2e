"""Liberal for real, through Snakemake: LEAD from a WordPiece BERT as ColBERT into a DistilBERT on byte-level BPE."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
from dag.project import RESULTS, make_project, replace, succeed
from test_liberal import make_encoder

pytestmark = pytest.mark.dag


def test_lead_between_tokenizers_widths_and_architectures_ends_in_a_result(
    tmp_path: Path, tiny_model: Path, tiny_collection: Path
) -> None:
    folder = make_project(tmp_path / "project", tiny_model, tiny_collection)
    make_encoder(folder / "other", "distilbert")
    replace(
        folder / "config/presets/tiny.yaml", '{reference: "path:model", layers: [2, 4]}', '{reference: "path:other"}'
    )
    with (folder / "config/experiments.yaml").open("a") as f:  # without a miner, which has nothing to do with it
        f.write("  small: {method: contrastive, init: student, phase: student, negatives: bm25}\n")
        f.write("  large: {method: contrastive, init: teacher, kind: cb, phase: teacher, negatives: bm25}\n")
        f.write("  liberal: {method: lead, start: small, teacher: large, negatives: bm25}\n")
    succeed(folder, "--", f"{RESULTS}/liberal.json")

    result = json.loads((folder / RESULTS / "liberal.json").read_text())
    assert set(result["metrics"]) == {"RR@10", "R@20", "R@60"} and result["queries"] == 12
    made = {name: folder / RESULTS / "models" / name for name in ("liberal", "liberal_teacher", "small", "large")}
    kinds = {name: json.loads((path / "config.json").read_text())["model_type"] for name, path in made.items()}
    assert kinds == {"liberal": "distilbert", "small": "distilbert", "liberal_teacher": "bert", "large": "bert"}
    tokenizers = {name: json.loads((path / "tokenizer.json").read_text())["model"] for name, path in made.items()}
    assert {name: t["type"] for name, t in tokenizers.items()} == {
        "liberal": "BPE", "small": "BPE", "liberal_teacher": "WordPiece", "large": "WordPiece",
    }  # fmt: skip
    assert len(tokenizers["liberal"]["vocab"]) != len(tokenizers["large"]["vocab"])
    vectors = pq.read_schema(folder / RESULTS / "embeddings/liberal/passages.parquet").field("vector").type
    assert vectors.list_size == 24  # the teacher's have 32
    for trained, before in (("liberal", "small"), ("liberal_teacher", "large")):  # each learns from the other
        weights = [(made[name] / "model.safetensors").read_bytes() for name in (trained, before)]
        assert weights[0] != weights[1]
    log = [json.loads(line) for line in (folder / RESULTS / "metrics/liberal.jsonl").read_text().splitlines()]
    assert {len(line["layer_weights"]) for line in log if "loss" in line} == {2}
    assert {pair[1] for line in log if "loss" in line for pair in line["pairs"]} <= {1, 2, 3}


def test_folders_in_the_layouts_of_beir_and_mteb_end_in_the_results_of_files(
    tmp_path: Path, tiny_model: Path, tiny_collection: Path
) -> None:
    """One collection as files, as a folder of BEIR, and as one of the library datasets, with the shares of a split."""
    folder = make_project(tmp_path / "project", tiny_model, tiny_collection)
    data, parts = folder / "data", ("train", "dev", "test")
    queries = [json.loads(x) for split in parts for x in (data / f"queries.{split}.jsonl").read_text().splitlines()]
    beir, hf = (folder / name for name in ("beir", "hf"))
    for made in (beir / "qrels", *(hf / name for name in ("corpus", "queries", "data"))):
        made.mkdir(parents=True)
    shutil.copy(data / "corpus.jsonl", beir)
    (beir / "queries.jsonl").write_text("".join(json.dumps(q) + "\n" for q in queries))
    corpus = [json.loads(line) for line in (data / "corpus.jsonl").read_text().splitlines()]
    for name, rows in (("corpus", corpus), ("queries", queries)):
        pq.write_table(pa.Table.from_pylist(rows), hf / name / f"{name}-00000-of-00001.parquet")
    for split in parts:
        shutil.copy(data / f"{split}.tsv", beir / "qrels")
        judged = csv.read_csv(data / f"{split}.tsv", parse_options=csv.ParseOptions(delimiter="\t"))
        pq.write_table(judged, hf / "data" / f"{split}-00000-of-00001.parquet")
    whole = (folder / "config/datasets/tiny.yaml").read_text()
    head, tail = whole[: whole.index("source:")], whole[whole.index("preset:") :]
    for name in ("beir", "hf"):
        source = f"source: {{kind: {name}, folder: ../../{name}}}\n"
        (folder / f"config/datasets/{name}.yaml").write_text(head + source + tail)
    names = ("tiny", "beir", "hf")
    succeed(folder, "--", *(f"{RESULTS.removesuffix('tiny')}{name}/bm25.json" for name in names))
    results = [folder / RESULTS.removesuffix("tiny") / name for name in names]
    found = [json.loads((result / "bm25.json").read_text()) for result in results]
    assert found[0]["metrics"] == found[1]["metrics"] == found[2]["metrics"] and found[1]["queries"] == 12
