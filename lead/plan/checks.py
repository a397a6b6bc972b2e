"""Checks of a run before any work: its layers, its index, its measures, and its input files."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from lead.config.checks import check_linear, check_maps
from lead.config.methods import METHODS, RENAMED
from lead.config.schema import Prompts
from lead.config.sources import PydocsSource
from lead.errors import LeadError
from lead.methods.layers import check_layers
from lead.plan.datasets import PlannedDataset
from lead.plan.job import Job
from lead.plan.rows import split_seed
from lead.pretrained import check_hub, encoder_width, pretrained_layers, vector_width, vocabulary_sum


def check(job: Job) -> None:
    """Refuse a run that its dataset, models, files or settings do not allow. Raises LeadError.

    The runs that it depends on are checked too.
    """
    check_meant(job)
    packages = isinstance(job.dataset.source, PydocsSource) and not job.dataset.requirements
    for file in job.dataset.requirements or job.dataset.source_files:
        if not (os.path.isdir if packages else os.path.isfile)(file):
            raise LeadError(f"{job.dataset.file}: key 'source': {file} does not exist; fix the path")
    rows = job.jobs.rows
    for name in rows.ancestors(job.run):
        ancestor = job.other(name)
        s, row = ancestor.settings, ancestor.row
        check_scores(ancestor)
        _check_score_files(ancestor)
        check_models(ancestor)
        try:
            if row.init is not None and not os.path.exists(ancestor.model):
                check_hub(ancestor.encoder.reference)
        except LeadError as e:
            raise LeadError(f"{_where(ancestor)}: {e}") from None
        if ancestor.method.joint and s.distil.joint != (split_seed(name)[0] in rows.joint()):
            raise LeadError(f"{_where(ancestor)}: distil.joint can be false only in a row's settings; move it there")
        _check_index(ancestor)
        for key, files in (("texts", ancestor.texts), ("queries", ancestor.more_queries)):
            for file in files if ancestor.method.stage == "align" else ():
                if not os.path.isfile(file):
                    where = f"{_where(ancestor)}: key 'settings.align.{key}'"
                    raise LeadError(f"{where}: {file} does not exist; fix the path")
    _check_lists(job)
    from lead.evaluation.measures import check_measures

    try:
        check_measures(job.settings.evaluation.measures)
    except LeadError as e:
        raise LeadError(f"{job.dataset.file}: run '{job.run}': {e}") from None


def check_meant(job: Job) -> None:
    """Refuse a run if it, or a run that it depends on, is for other datasets only. Raises LeadError."""
    for name in job.jobs.rows.ancestors(job.run):
        only = job.jobs.rows[name].datasets
        if only is not None and job.dataset.name not in only:
            raise LeadError(
                f"{job.jobs.rows.where}: run '{name}' is for {', '.join(only)} only, not for '{job.dataset.name}'"
            )


def check_scores(job: Job) -> None:
    """Refuse scores that are neither those of a run with a model nor in a file of the dataset. Raises LeadError."""
    rows, dataset = job.jobs.rows, job.dataset
    for name in job.row.scores or ():
        if name not in dataset.data.scores and (name not in rows or not rows.method(name).has_model):
            raise LeadError(
                f"{_where(job)}: key 'scores': no run '{name}' with a model, and no such file in the key 'scores' of "
                f"{dataset.file}; add it there"
            )


def _check_score_files(job: Job) -> None:
    """Refuse a file of scores that does not exist, or that can teach nothing. Raises LeadError."""
    dataset = job.dataset
    for file in (file for name, file in dataset.scores.items() if name in (job.row.scores or ())):
        where = f"{dataset.file}: key 'scores'"
        if not os.path.isfile(file):
            raise LeadError(f"{where}: {file} does not exist; fix the path")
        try:
            _read_scores(Path(file), os.stat(file).st_mtime_ns, dataset)
        except LeadError as e:
            raise LeadError(f"{where}: {e}") from None


@functools.cache
def _read_scores(file: Path, _written: int, dataset: PlannedDataset) -> None:
    from lead.data.scores import check_file

    check_file(file, dataset.train_ids())


def check_grant(job: Job, granted: int) -> None:
    """Refuse a number of GPUs that does not divide the batch of a training that is still to run. Raises LeadError."""
    gpus = job.dataset.gpus
    ranks = min(granted, gpus)
    trained = [a for a in map(job.other, job.jobs.rows.ancestors(job.run)) if a.method.trains]
    sizes = {a.run: a.settings.train.batch_size for a in trained if not Path(a.model).exists()}
    for name, size in sizes.items():
        if ranks > 1 and size % ranks:
            fitting = [str(n) for n in range(1, gpus + 1) if not any(b % n for b in sizes.values())]
            raise LeadError(
                f"--resources gpu={granted}: run '{name}' on '{job.dataset.name}' cannot share its batch of {size} "
                f"queries between {ranks} GPUs; grant {', '.join(fitting)}"
            )


def check_models(job: Job) -> None:
    """Refuse a run that its models do not allow: layers, linear layers, widths, tokens. Only local files are read."""
    row = job.row
    try:
        if row.init is not None and job.kind is not None:
            model = job.encoder
            pretrained_layers(model)
            size = None if model.linear is None else model.linear.size
            width = None if size is None else encoder_width(model.reference)
            check_linear(size, width, job.kind)
        if job.method.sees == "layers":
            n, m = (_layers(job.other(name)) for name in (row.teacher, row.start))
            check_layers(job.settings.distil.layers, n, m)
        if job.method.sees == "maps":
            _check_maps(job)
        _check_widths(job)
    except LeadError as e:
        raise LeadError(f"{_where(job)}: {e}") from None


def _layers(job: Job) -> int | None:
    """Number of layers of its model; None where only the model itself can tell."""
    n = None if job.is_ready else pretrained_layers(job.encoder)
    return n if n is None else n + _gains_linear(job)


def _gains_linear(job: Job) -> bool:
    """Whether alignment gave its model a linear layer, as far as is known, so that it is as wide as its teacher."""
    origin = job.origin
    if origin.method.stage != "align" or origin.encoder.linear is not None:
        return False
    own, taught = vector_width(origin.encoder), width_of(origin.other(origin.row.teacher))
    return own is not None and taught is not None and own != taught


def _where(job: Job) -> str:
    return f"{job.jobs.rows.where}: run '{job.run}' on '{job.dataset.name}'"


def width_of(job: Job) -> int | None:
    """Width of its model's vectors; None where only the model itself can tell."""
    origin = job.origin
    if origin.method.stage == "align" and origin.encoder.linear is None:
        return width_of(origin.other(origin.row.teacher))
    return None if job.is_ready else vector_width(job.encoder)


def _check_maps(job: Job) -> None:
    """Refuse FD on models that do not read the same tokens, as far as local files show. Raises LeadError."""
    teacher, student = job.other(job.row.teacher), job.other(job.row.start)
    # vocabularies only: lead.models.maps compares the rules that split texts, after transformers has loaded them
    t, s = (vocabulary_sum(of.encoder.reference) for of in (teacher, student))
    lengths = teacher.origin.settings.lengths == student.origin.settings.lengths
    prompts = len({of.encoder.prompts or Prompts() for of in (teacher, student)}) == 1
    ready = teacher.is_ready or student.is_ready  # a ready model says itself how it reads texts
    same = (ready or (lengths and prompts)) and (t is None or s is None or t == s)
    n, m = (pretrained_layers(of.encoder.model_copy(update={"linear": None})) for of in (teacher, student))
    kind = teacher.kind
    assert kind is not None
    check_maps(same, n, m, (kind, getattr(teacher.origin.settings.scoring, kind.name)))


def _check_widths(job: Job) -> None:
    """Refuse to learn vectors of another width: queries for passages (ADORE), or a teacher's. Raises LeadError."""
    row = job.row
    if job.method.stage == "align":
        own, taught = (width_of(of) for of in (job, job.other(row.teacher)))
        if own is not None and taught is not None and own != taught:
            raise LeadError(
                f"its vectors have {own} outputs, those of `teacher: {row.teacher}` have {taught}: set its "
                f"linear layer to size {taught}"
            )
    if row.passages is None:
        return
    q, p = (width_of(job.other(name)) for name in (row.start, row.passages))
    if q is not None and p is not None and q != p:
        raise LeadError(
            f"'{row.start}' has {q} outputs, the vectors of `passages: {row.passages}` have {p}; name a run of equal "
            "width"
        )


def _check_lists(job: Job) -> None:
    """Refuse to rerank a run without a list, or lists that the dataset lacks. Raises LeadError."""
    dataset, rows = job.dataset, job.jobs.rows
    source = dataset.settings.retrieval.rerank_from
    where = f"{dataset.file}: key 'settings.retrieval.rerank_from'"
    if source in RENAMED:
        raise LeadError(f"{where}: the run '{source}' is called '{RENAMED[source]}' now; rename it")
    if source not in rows or (rows.method(source).has_model and rows.kind(source).ranks_by != "search"):
        listed = source in METHODS and not METHODS[source].has_model
        remedy = f"add `{source}: {{method: {source}}}` to {rows.where}" if listed else "name one"
        raise LeadError(f"{where}: '{source}' is no run of a dual encoder, bm25 or external; {remedy}")
    if "external" in job.stages or ("rerank" in job.stages and source == "external"):
        for file in dataset.external_files:
            if not os.path.isfile(file):
                raise LeadError(f"{dataset.file}: key 'external_run': {file} does not exist; fix the path")


def _check_index(job: Job) -> None:
    """Refuse an index that faiss cannot make. An evaluation set must have the index of its collection. LeadError."""
    r, collection = job.settings.retrieval, job.dataset.collection.name
    shared = job.jobs[collection, job.run].settings.retrieval.index
    if r.index != shared:
        raise LeadError(
            f"{job.dataset.file}: key 'settings.retrieval.index': vectors and index are those of '{collection}', whose "
            f"index is {shared}; leave it out here"
        )
    if "retrieve" not in job.stages or (r.index is None and r.index_parameters is None):
        return
    from lead.retrieval.engine import check_index

    try:
        check_index(r.index, r.index_parameters, width_of(job))
    except LeadError as e:
        raise LeadError(f"{job.dataset.file}: run '{job.run}': {e}") from None
