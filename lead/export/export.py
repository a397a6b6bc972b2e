"""`lead export`: a run's dual encoder as a folder of its own, with a card and what else is asked for."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from lead.errors import LeadError
from lead.evaluation.evaluate import check_trec_ids, drop_own_ids, write_trec
from lead.export import hub
from lead.export.card import Extras, card
from lead.export.onnx import FP32, INT8, OnnxEncoder, check_agreement, check_installed, write_int8, write_onnx
from lead.export.quality import Quality, compare, read_dev
from lead.models.base import LayeredModel
from lead.models.dual_encoder import DualEncoder
from lead.plan.job import Job
from lead.store.atomic import atomic_folder, check_replaceable
from lead.store.checksums import CARD
from lead.store.tables import open_table, read_table

log = logging.getLogger("lead")

SAMPLE = 64  # passages whose vectors are compared between ONNX and the model


@dataclass(frozen=True)
class Wanted:
    """What goes into the folder beside the model. push: the name of a repository of the hub."""

    onnx: bool = False
    int8: bool = False
    vectors: bool = False
    trec: bool = False
    push: str | None = None
    private: bool = False


def export(job: Job, to: Path, wanted: Wanted) -> None:
    """Write the model of a run to the folder `to`, with a card, checksums and all that is `wanted`.

    Raises LeadError before any work if the run has no dual encoder, or something that is wanted cannot be had.
    """
    if job.kind is None or job.kind.ranks_by != "search":
        what = "has no model" if job.kind is None else f"is {job.kind.a}"
        raise LeadError(f"run '{job.run}' {what}; lead export takes dual encoders only")
    needed = [job.model, *(job.vectors() if wanted.vectors else []), *(_lists(job) if wanted.trec else [])]
    for path in needed:
        if not Path(path).exists():
            raise LeadError(f"{path} does not exist; make it with: lead run {job.dataset.name}/{job.run}")
    check_replaceable(to)
    if wanted.onnx or wanted.int8:
        check_installed()
    if wanted.push:
        hub.check_login(wanted.push)
    model = cast(DualEncoder, LayeredModel.load(job.model)).eval()
    if (about := model.interchange()) is None:
        raise LeadError(f"run '{job.run}' is {job.kind.a}, which other libraries cannot encode with")
    with atomic_folder(to) as folder:
        model.write(folder)
        extras = _add(job, model, folder, wanted)
        text = card(job, model, about, extras, wanted.push or to.name, on_hub=wanted.push is not None)
        (folder / CARD).write_text(text, encoding="utf-8")
    log.info("%s: %s", to, ", ".join(sorted(path.name for path in to.iterdir())))
    if wanted.push:
        log.info("%s", hub.push(to, wanted.push, wanted.private))


def _lists(job: Job) -> list[str]:
    return [f"{job.dataset.folder}/runs/{job.run}.parquet", f"{job.dataset.folder}/data/qrels.test.parquet"]


def _add(job: Job, model: DualEncoder, folder: Path, wanted: Wanted) -> Extras:
    """Write what is wanted beside the model."""
    difference = quality = None
    if wanted.onnx or wanted.int8:
        difference, quality = _add_onnx(job, model, folder, wanted.int8)
    if wanted.vectors:
        (folder / "vectors").mkdir()
        for file in map(Path, job.vectors()):
            shutil.copyfile(file, folder / "vectors" / file.name)
    if wanted.trec:
        (folder / "trec").mkdir()
        ranked, qrels = (read_table(path) for path in _lists(job))
        ranked = drop_own_ids(ranked) if job.settings.retrieval.ignore_identical_ids else ranked
        write_trec(ranked, folder / "trec" / "run.txt")
        check_trec_ids(qrels, folder / "trec" / "qrels.txt")
        lines = (f"{row['qid']} 0 {row['pid']} {row['rel']}\n" for row in qrels.to_pylist())
        (folder / "trec" / "qrels.txt").write_text("".join(lines), encoding="utf-8")
    return Extras(difference, quality, wanted.vectors, wanted.trec)


def _add_onnx(job: Job, model: DualEncoder, folder: Path, int8: bool) -> tuple[float, Quality | None]:
    log.info("exporting to ONNX")
    write_onnx(model, folder / FP32)
    pad = model.tokenizer.pad_token_id or 0
    encoder = OnnxEncoder(folder / FP32, pad)
    data = Path(job.dataset.collection.folder) / "data"
    texts = open_table(data / "corpus.parquet", "corpus").group(0)["text"].slice(0, SAMPLE).to_pylist()
    difference = check_agreement(model, encoder, model.tokenize("passage", [*texts, ""]))
    if not int8:
        return difference, None
    write_int8(folder / FP32, folder / INT8)
    trained = job.jobs[job.dataset.collection.name, job.run]  # an evaluation set has no dev queries of its own
    dev = read_dev(data, Path(trained.negatives), trained.settings.evaluation.relevance)
    same = trained.settings.retrieval.ignore_identical_ids
    return difference, compare(model, (encoder, OnnxEncoder(folder / INT8, pad)), dev, same)
