"""What can be known of a run before any work: its layers, its index, its measures, and the files it is made from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from lead.config.experiments import UNTRAINED
from lead.config.schema import ModelRef, Settings
from lead.errors import LeadError
from lead.methods.layers import check_layers
from lead.plan.runs import TRAINING, split_seed
from lead.pretrained import check_hub, encoder_width, pretrained_layers, vector_width, vocabulary_sum

if TYPE_CHECKING:
    from lead.plan.plan import Plan


def check_run(plan: Plan, dataset: str, run: str) -> None:
    """K, M and N, the rerank source, source files, indexes, measures of a run and all it is made from. LeadError."""
    path = plan.loaded.datasets[dataset][1]
    for file in plan.source_files(dataset):
        if not os.path.isfile(file):
            raise LeadError(f"{path}: key 'source': {file} does not exist; mend the path")
    for name in plan.ancestors(run):
        s, row = plan.resolve(dataset, name), plan.rows[name]
        where = f"{plan.loaded.experiments_path}: run '{name}' on '{dataset}'"
        check_models(plan, dataset, name)
        try:
            if row.init is not None and not os.path.exists(plan.model(dataset, name)):
                check_hub(s.models[row.init].reference)
        except LeadError as e:
            raise LeadError(f"{where}: {e}") from None
        if row.method == "lead" and s.distil.joint != (split_seed(name)[0] in plan.joint()):
            raise LeadError(f"{where}: distil.joint is switched off in the row's settings, not elsewhere; move it")
        _check_index(plan, dataset, name, s)
    _check_lists(plan, dataset, run)
    from lead.evaluation.measures import check_measures

    try:
        check_measures(plan.resolve(dataset, run).evaluation.measures)
    except LeadError as e:
        raise LeadError(f"{path}: run '{run}': {e}") from None


def _check_lists(plan: Plan, dataset: str, run: str) -> None:
    """Refuse to rerank what is no list, and a dataset without the lists that are asked for. Raises LeadError."""
    path, stages = plan.loaded.datasets[dataset][1], plan.stages(dataset, run)
    source = plan.resolve(dataset).retrieval.rerank_from
    if source not in plan.runs(kind="de") + plan.runs(*UNTRAINED):
        remedy = f"add `{source}: {{method: {source}}}` to {plan.loaded.experiments_path}"
        raise LeadError(
            f"{path}: key 'settings.retrieval.rerank_from': '{source}' is no run of a dual encoder, bm25 or given; "
            + (remedy if source in UNTRAINED else "name one")
        )
    if "given" in stages or ("rerank" in stages and source == "given"):
        for file in plan.given_files(dataset):
            if not os.path.isfile(file):
                raise LeadError(f"{path}: key 'given': {file} does not exist; mend the path")


def check_grant(plan: Plan, dataset: str, run: str, granted: int) -> None:
    """Refuse a number of GPUs that a training yet to be done for a run cannot share its batch between. LeadError."""
    ranks = min(granted, plan.gpus(dataset))
    trained = [name for name in plan.ancestors(run) if plan.rows[name].method in TRAINING]
    sizes = {n: plan.resolve(dataset, n).train.batch_size for n in trained if not Path(plan.model(dataset, n)).exists()}
    for name, size in sizes.items():
        if ranks > 1 and size % ranks:
            fitting = [str(n) for n in range(1, plan.gpus(dataset) + 1) if not any(b % n for b in sizes.values())]
            raise LeadError(
                f"--resources gpu={granted}: run '{name}' on '{dataset}' cannot share its batch of {size} queries "
                f"between {ranks} GPUs; grant {', '.join(fitting)}"
            )


def check_models(plan: Plan, dataset: str, run: str) -> None:
    """Refuse a run that its models do not allow, as far as files here tell: layers, linear layers, widths, tokens."""
    row = plan.rows[run]
    try:
        if row.init is not None:
            model = plan.resolve(dataset, run).models[row.init]
            pretrained_layers(model)
            _check_linear(model, row.kind)
        _check_layer_selection(plan, dataset, run)
        _check_maps(plan, dataset, run)
        _check_widths(plan, dataset, run)
    except LeadError as e:
        raise LeadError(f"{plan.loaded.experiments_path}: run '{run}' on '{dataset}': {e}") from None


def _check_layer_selection(plan: Plan, dataset: str, run: str) -> None:
    """Refuse a LEAD run whose layer selection its teacher and student do not allow. Raises LeadError."""
    row = plan.rows[run]
    if row.method != "lead":
        return
    n, m = (pretrained_layers(plan.encoder(dataset, str(name))) for name in (row.teacher, row.start))
    check_layers(plan.resolve(dataset, run).distil.layers, n, m)


def _check_linear(model: ModelRef, kind: str) -> None:
    """Refuse a linear layer that this kind of model cannot have, as far as files here tell. Raises LeadError."""
    size = None if model.linear is None else model.linear.size
    if size is None or (width := encoder_width(model.reference)) is None:
        return
    if size > width:
        raise LeadError(f"models: linear.size {size} is more than the {width} outputs of '{model.reference}'; lower it")
    if kind == "ce" and size != width:
        raise LeadError(f"models: linear.size of a cross encoder must be its width, {width}: w is shared by all layers")


def _check_widths(plan: Plan, dataset: str, run: str) -> None:
    """Refuse to learn queries for passages' vectors of another width (ADORE). Raises LeadError."""
    row = plan.rows[run]
    if row.passages is None:
        return
    q, p = (vector_width(plan.encoder(dataset, str(name))) for name in (row.start, row.passages))
    if q is not None and p is not None and q != p:
        raise LeadError(
            f"'{row.start}' has {q} outputs, the vectors of `passages: {row.passages}` have {p}; name a run of equal "
            "width"
        )


def _check_maps(plan: Plan, dataset: str, run: str) -> None:
    """Refuse an FD run whose two models do not read the same tokens, as far as files here tell. Raises LeadError."""
    row = plan.rows[run]
    if row.method != "fd":
        return
    names = [str(name) for name in (row.teacher, row.start)]
    teacher, student = (plan.encoder(dataset, name) for name in names)
    lengths = [plan.resolve(dataset, plan.origin(name)).lengths for name in names]
    # words alone: the rules that cut texts are known for sure when transformers has loaded them (lead.models.maps)
    t, s = vocabulary_sum(teacher.reference), vocabulary_sum(student.reference)
    if lengths[0] != lengths[1] or (t is not None and s is not None and t != s):
        raise LeadError(
            "method fd compares maps over tokens, so teacher and student must have the same tokenizer and lengths; use "
            "rd or lead, which compare scores"
        )
    n, m = (pretrained_layers(model.model_copy(update={"linear": None})) for model in (teacher, student))
    if n is not None and m is not None and m > n:
        raise LeadError(f"method fd: the student has {m} transformer layers, the teacher only {n}; it needs as many")
    origin = plan.origin(str(row.teacher))
    scoring = plan.resolve(dataset, origin).scoring.cb
    if plan.kind(origin) == "cb" and (scoring.markers or scoring.expand):
        raise LeadError("method fd: scoring.cb.markers and expand add tokens to ColBERT's texts; set both to false")


def _check_index(plan: Plan, dataset: str, run: str, s: Settings) -> None:
    """Refuse an index that faiss cannot make, or that would not be the one that evaluation sets share."""
    r, whole, path = s.retrieval, plan.whole(dataset), plan.loaded.datasets[dataset][1]
    shared = plan.resolve(whole, run).retrieval.index
    if r.index != shared:
        raise LeadError(
            f"{path}: key 'settings.retrieval.index': vectors and index are those of '{whole}', whose index is "
            f"{shared}; leave it out here"
        )
    searches = plan.rows[run].method not in UNTRAINED and plan.kind(run) == "de"
    if not searches or (r.index is None and r.index_parameters is None):
        return
    from lead.retrieval.engine import check_index

    try:
        check_index(r.index, r.index_parameters, vector_width(plan.encoder(dataset, run)))
    except LeadError as e:
        raise LeadError(f"{path}: run '{run}': {e}") from None
