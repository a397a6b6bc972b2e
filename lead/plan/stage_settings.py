"""The part of a run's settings that each stage reads: the keys of its class in lead.config.stages.

The recipe decides what a stage makes: a stage runs again when its recipe changes, and only then. The execution decides
time and memory (lead.config.recipe).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

from lead.commands import settings_class
from lead.config.lists import Mining
from lead.config.load import Tree, merge, validate
from lead.config.recipe import execution, recipe
from lead.config.schema import Settings
from lead.config.sources import EvaluationSource
from lead.errors import LeadError, Named
from lead.plan.datasets import PlannedDataset
from lead.plan.job import Job, Jobs
from lead.plan.settings import LENGTH


def settings_of(jobs: Jobs, stage: str, dataset: str, name: str | None = None) -> Tree:
    """The settings of a stage on a dataset. name: the run's name, or the tokenizer's. Raises LeadError."""
    if stage == "tokenize":
        return _tokenizer(jobs, dataset, str(name))
    if stage in OF_DATASET:  # the same for all runs
        planned = jobs.datasets[dataset]
        return OF_DATASET[stage](planned, jobs[dataset, stage].settings if stage in jobs.rows else planned.settings)
    return OF_RUN[stage](jobs[dataset, str(name)])


def stage_settings(job: Job, stage: str) -> Tree:
    """The settings of a stage of this run. Raises LeadError."""
    return settings_of(job.jobs, stage, job.dataset.name, job.run)


def recipe_of(stage: str, settings: Tree) -> Tree:
    """The keys of a stage's settings that decide what it makes."""
    return _within(recipe(validate(settings_class(stage), settings, stage)), settings)


def execution_of(stage: str, settings: Tree) -> Tree:
    """The keys of a stage's settings that decide only time and memory."""
    return _within(execution(validate(settings_class(stage), settings, stage)), settings)


def _within(part: Tree, settings: Tree) -> Tree:
    """The keys of `part` that `settings` has too. Keys that a run does not read are in neither result."""
    found = {key: (value, settings[key]) for key, value in part.items() if key in settings}
    return {key: _within(v, s) if isinstance(v, dict) and isinstance(s, dict) else v for key, (v, s) in found.items()}


# --- stages of a dataset ---------------------------------------------------------------------------------------------
def _packages(dataset: PlannedDataset, s: Settings) -> Tree:
    return {}


def _prepare(dataset: PlannedDataset, s: Settings) -> Tree:
    source = dataset.source
    share: Tree = {} if isinstance(source, EvaluationSource) else {"dev_share": s.dev_share}
    share |= {} if dataset.data.queries is None else {"queries": dataset.data.queries.model_dump(mode="json")}
    relevance = s.evaluation.relevance
    return _json(source=source, **share, relevance=relevance, checks=s.checks, expect=dataset.data.expect)


def _bm25(dataset: PlannedDataset, s: Settings) -> Tree:
    r = s.retrieval
    relevance, same = s.evaluation.relevance, r.ignore_identical_ids
    depth = r.depth + same  # one more, where a query's own passage is dropped
    return _json(bm25=s.bm25, depth=depth, mine_depth=r.mine_depth, relevance=relevance, ignore_identical_ids=same)


def _external(dataset: PlannedDataset, s: Settings) -> Tree:
    return {"external_run": dataset.external_run, "depth": s.retrieval.depth}


def _tokenizer(jobs: Jobs, dataset: str, name: str) -> Tree:
    """The settings that make the store of token ids with this name."""
    searching = (jobs[dataset, run] for run in jobs.rows.ranked_by("search"))
    stored = (job for job in searching if not job.is_ready and job.origin.row.init in job.origin.settings.models)
    known = dict(job.tokenizer for job in stored)
    return Named("tokenizer", f"the runs on {dataset}", known)[name]


# --- stages of a run -------------------------------------------------------------------------------------------------
def _train(job: Job) -> Tree:
    shared, s, row = _training(job), job.settings, job.row
    if row.init is None:  # the model folder says what kind of model it is
        return shared
    scoring = getattr(s.scoring, row.kind)
    return shared | _json(model=job.encoder, kind=row.kind, scoring=scoring, lengths=s.lengths)


def _pretrained(job: Job) -> Tree:
    s, kind, own = job.settings, job.row.kind, job.row.settings
    given = sorted({*own.get("scoring", {}).get(kind, {}), *own.get("lengths", {})})
    shared = _json(model=job.encoder, kind=kind, scoring=getattr(s.scoring, kind), lengths=s.lengths)
    return shared | {"given": given}


def _distil(job: Job) -> Tree:
    read = job.settings.distil.model_dump(mode="json", include=dict(job.method.reads))
    distil = _within(read, recipe(job.settings.distil))  # keys that came later are there if they are not the default
    weights = {} if job.row.scores is None else {"score_weights": list(job.row.scores.values())}
    return _training(job) | {"method": job.row.method, "distil": distil, **weights}


def _align(job: Job) -> Tree:
    """`train` without what alignment does not read; `steps` only where the phase or the row gives them."""
    s, row = job.settings, job.row
    unread = {"negatives", "negatives_depth", "teacher_lr"}
    steps = s.train.epochs is None and ("steps" in s.phases.align or "steps" in row.settings.get("train", {}))
    train = s.train.model_dump(mode="json", exclude={*unread, "epochs"} if steps else {*unread, *LENGTH})
    length: Tree = {"epochs": None if steps else s.train.epochs or s.align.epochs}
    if not steps and s.train.epochs is None and s.align.between is not None:
        length["between"] = s.align.between
    shared = _training(job) | {"train": train, "loss": s.align.loss, **length}
    if row.init is None:
        return shared
    return shared | _json(model=s.models[row.init], scoring=getattr(s.scoring, row.kind), lengths=s.lengths)


def _training(job: Job) -> Tree:
    s, generation = job.settings, job.jobs.rows.generation(job.run)
    made = _json(seed=s.seed, train=s.train, generation=generation, relevance=s.evaluation.relevance)
    if s.train.epochs is not None:
        del made["train"]["steps"]
    return made


def _encode(job: Job) -> Tree:
    return {"fp16": job.settings.retrieval.fp16, **_encoding(job)}


def _index(job: Job) -> Tree:
    return {"index": job.settings.retrieval.index, "seed": job.settings.seed}


def _mine(job: Job) -> Tree:
    s, r = job.settings, job.settings.retrieval
    if s.mining != Mining() and len(job.dataset.shards) > 1:
        raise LeadError(
            f"dataset '{job.dataset.name}': `mining` needs a corpus in one shard; set shards: 1, or denoise"
        )
    kept = _json(mine_depth=r.mine_depth, mining=s.mining, ignore_identical_ids=r.ignore_identical_ids)
    return {**kept, "relevance": s.evaluation.relevance, **_searching(job)}


def _denoise(job: Job) -> Tree:
    s = job.settings
    return _json(**s.denoise.model_dump(), relevance=s.evaluation.relevance, **_encoding(job))


def _score(job: Job) -> Tree:
    s = job.settings
    return {"depth": s.train.negatives_depth, "relevance": s.evaluation.relevance, **_encoding(job)}


def _retrieve(job: Job) -> Tree:
    r = job.settings.retrieval
    return {"depth": r.depth + r.ignore_identical_ids, **_searching(job)}


def _rerank(job: Job) -> Tree:
    r = job.settings.retrieval
    one_at_a_time = job.kind is not None and job.kind.candidates == "own"  # a cross encoder reads every pair
    depth = r.cross_depth if one_at_a_time and r.cross_depth is not None else r.rerank_depth
    return {"rerank_depth": depth, **_encoding(job)}


def _evaluate(job: Job) -> Tree:
    s, same = job.settings, job.settings.retrieval.ignore_identical_ids
    return _json(evaluation=s.evaluation, seed=s.seed, ignore_identical_ids=same, made_by=_made_by(job))


def _encoding(job: Job) -> Tree:
    return {"batch_tokens": job.settings.retrieval.batch_tokens, "precision": job.settings.train.precision}


def _searching(job: Job) -> Tree:
    """The settings of an approximate index that a search reads; none if search is exact."""
    r = job.settings.retrieval
    return {} if r.index is None else {"index_parameters": r.index_parameters}


OF_DATASET: dict[str, Callable[[PlannedDataset, Settings], Tree]] = {
    "packages": _packages,
    "prepare": _prepare,
    "bm25": _bm25,
    "external": _external,
}
OF_RUN: Named[Callable[[Job], Tree]] = Named(
    "stage",
    "lead.plan.stage_settings",
    {
        "pretrained": _pretrained,
        "train": _train,
        "align": _align,
        "distil": _distil,
        "encode": _encode,
        "index": _index,
        "mine": _mine,
        "denoise": _denoise,
        "score": _score,
        "retrieve": _retrieve,
        "rerank": _rerank,
        "evaluate": _evaluate,
    },
)
LISTING = ("bm25", "external", "retrieve", "rerank")  # stages that an evaluation set runs itself


# --- the whole chain -------------------------------------------------------------------------------------------------
def _made_by(job: Job) -> Tree:
    """The recipes of all stages behind a result, by `run.stage`."""
    jobs, dataset = job.jobs, job.dataset.name
    collection = job.dataset.collection.name
    made = {"prepare": _recipe(jobs, "prepare", collection)}
    if collection != dataset:
        made["prepare_evaluation"] = _recipe(jobs, "prepare", dataset)
    lists = [job.run, *([job.reranked] if "rerank" in job.stages else [])]
    for listed in lists:
        for name in jobs.rows.ancestors(listed):
            behind = jobs[collection, name]
            # runs whose lists are read: all stages; other runs: the stages of their model or negatives
            stages = [stage for stage in jobs[dataset, name].stages if stage != "evaluate"]
            for stage in stages if name in lists else stages[:1]:
                of = dataset if stage in LISTING and name in lists else collection
                made[f"{name}.{stage}"] = _recipe(jobs, stage, of, name)
            row = behind.row
            if behind.method.judged and row.negatives != "bm25":
                searched = [*_vector_stages(behind.other(row.negatives)), "mine"]
                made |= {f"{row.negatives}.{s}": _recipe(jobs, s, collection, row.negatives) for s in searched}
            if row.passages is not None:
                stages = _vector_stages(behind.other(row.passages))
                made |= {f"{row.passages}.{s}": _recipe(jobs, s, collection, row.passages) for s in stages}
            if behind.method.stage == "align":
                made[f"{row.teacher}.encode"] = _recipe(jobs, "encode", collection, row.teacher)
            made |= {f"{n}.score": _recipe(jobs, "score", collection, n) for n in row.scores or () if n in jobs.rows}
            if row.denoise is not None:
                denoised = f"{row.negatives}.{row.denoise}.denoise"
                made[denoised] = _recipe(jobs, "denoise", collection, row.negatives)
    facts = {"dataset": dataset, "run": job.run, "settings": made}
    return facts if len(lists) == 1 else {**facts, "rerank_from": lists[1]}


def _recipe(jobs: Jobs, stage: str, dataset: str, run: str | None = None) -> Tree:
    key = stage, dataset, run
    if key not in jobs.recipes:
        jobs.recipes[key] = recipe_of(stage, settings_of(jobs, stage, dataset, run))
    return jobs.recipes[key]


def _vector_stages(job: Job) -> list[str]:
    """The stages that make a dual encoder's vectors of passages ready for search."""
    return [stage for stage in job.stages if stage in ("encode", "index")]


def _json(**parts: Any) -> Tree:
    return {k: merge(recipe(v), execution(v)) if isinstance(v, BaseModel) else v for k, v in parts.items()}
