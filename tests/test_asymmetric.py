"""A run of two models in one space: queries by the student, passages by its teacher."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import make_retriever
from searchable import HOSTILE, Searchable

import lead
from lead import cli
from lead.search.systems import Collection
from lead.store.vectors import read_vectors


def test_queries_of_a_student_search_the_vectors_of_its_teacher(
    searchable: Searchable, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a run whose models are two: `lead search`, its `--compare`, and `lead.load`."""
    config = Path(shutil.copytree(searchable.config.parent, tmp_path / "config")) / "config.yaml"
    with (config.parent / "experiments.yaml").open("a", encoding="utf-8") as file:
        file.write("  aligned: {method: align, init: student, teacher: lead_cb_de}\n"
                   "  lead_cb_de: {method: pretrained, init: teacher}\n"
                   "  both: {method: asymmetric, start: aligned, passages: lead_cb_de}\n"
                   "  adore: {method: contrastive, start: lead_cb_de, passages: lead_cb_de}\n")  # fmt: skip
    folder = Path(shutil.copytree(searchable.folder, tmp_path / "made" / "tiny"))
    for kind in ("models", "embeddings"):
        shutil.move(folder / kind / "lead_cb", folder / kind / "lead_cb_de")
    make_retriever(tiny_model, normalise="unit").save(folder / "models" / "aligned")  # another pooling
    options = ["--config", str(config), "--overrides", f"{{results: {folder.parent}}}"]
    assert cli.main(["search", "tiny/both", "array shape", "--compare", "--json", *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["about"].startswith("queries by aligned, passages by lead_cb_de: dual encoder")
    assert [other["run"] for other in found["compare"]] == ["bm25", "lead_cb_de"]
    ids, passages = read_vectors(folder / "embeddings" / "lead_cb_de" / "passages.parquet")
    model = lead.load("tiny/both", config, {"results": str(folder.parent)})
    scores = passages @ model.encode_queries(["array shape"])[0]
    assert found["results"][0]["id"] == ids[int(scores.argmax())]
    assert found["results"][0]["score"] == pytest.approx(float(scores.max()), abs=1e-5)
    assert found["results"] != found["compare"][1]["results"]
    np.testing.assert_allclose(model.encode_passages([HOSTILE])[0], passages[-1], atol=1e-6)  # by the teacher
    # so are those of ADORE, which learns queries alone
    shutil.move(folder / "models" / "aligned", folder / "models" / "adore")
    model = lead.load("tiny/adore", config, {"results": str(folder.parent)})
    np.testing.assert_allclose(model.encode_passages([HOSTILE])[0], passages[-1], atol=1e-6)
    assert (
        Collection.find("tiny/adore", config, {"results": str(folder.parent)})
        .system()
        .about.startswith("queries by adore, passages by lead_cb_de: dual encoder")
    )
