"""What each stage reads of a run's settings: keys of its class in lead.config.stages, and nothing else.

A stage runs again when its slice changes, and only then.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from lead.config.experiments import UNTRAINED
from lead.config.load import source_paths
from lead.config.schema import Mining, Settings
from lead.config.sources import EvaluationSource, FilesSource
from lead.errors import LeadError, Named
from lead.plan.runs import READS, TRAINING

if TYPE_CHECKING:
    from lead.plan.plan import Plan

SHARED = ("prepare", *UNTRAINED)  # stages of a dataset, not of a run
LISTING = (*UNTRAINED, "retrieve", "rerank")  # stages that an evaluation set has of its own


def stage_settings(plan: Plan, stage: str, dataset: str, run: str | None = None) -> dict[str, Any]:
    """The slice of settings that a stage of this run reads: keys of its class in lead.config.stages."""
    if stage == "tokenize":
        return _tokenizer(plan, dataset, str(run))
    if stage in SHARED:  # of the dataset, whatever the run
        run = stage if stage in plan.rows else None
    s = plan.resolve(dataset, run)
    relevance = s.evaluation.relevance
    if stage == "prepare":
        data, path = plan.loaded.datasets[dataset]
        on_disk = isinstance(data.source, FilesSource | EvaluationSource)
        source = source_paths(data.source, path) if on_disk else data.source
        share = {} if isinstance(source, EvaluationSource) else {"dev_share": s.dev_share}
        return _json(source=source, **share, relevance=relevance, checks=s.checks, expect=data.expect)
    if stage == "bm25":
        r = s.retrieval
        same = r.ignore_identical_ids
        return _json(
            bm25=s.bm25, depth=r.depth, mine_depth=r.mine_depth, relevance=relevance, ignore_identical_ids=same
        )
    if stage == "given":
        return {"given": plan.given(dataset), "depth": s.retrieval.depth}
    if stage in ("encode", "rerank"):
        r = s.retrieval
        shared = {"batch_tokens": r.batch_tokens, "precision": s.train.precision}
        if stage == "encode":
            return _json(**shared, fp16=r.fp16)
        crossed = run is not None and plan.kind(run) == "ce" and r.cross_depth is not None
        return _json(**shared, rerank_depth=r.cross_depth if crossed else r.rerank_depth)
    if stage == "denoise":
        precision = {"batch_tokens": s.retrieval.batch_tokens, "precision": s.train.precision}
        return _json(**s.denoise.model_dump(), relevance=relevance, **precision)
    if stage == "mine":
        if s.mining != Mining() and plan.loaded.datasets[dataset][0].shards > 1:
            raise LeadError(f"dataset '{dataset}': `mining` filters no corpus in shards; set shards: 1, or use denoise")
        same = s.retrieval.ignore_identical_ids
        kept = _json(mine_depth=s.retrieval.mine_depth, mining=s.mining, ignore_identical_ids=same)
        return kept | {"relevance": relevance} | _searching(s)
    if stage == "retrieve":
        return _json(depth=s.retrieval.depth) | _searching(s)
    assert run is not None
    if stage == "index":
        return _json(index=s.retrieval.index, seed=s.seed)
    row = plan.rows[run]
    if stage == "train":
        shared = _json(seed=s.seed, train=s.train, generation=plan.generation(run), relevance=relevance)
        if row.init is None:  # the model folder says what kind of model it is
            return shared
        scoring = getattr(s.scoring, row.kind)
        return shared | _json(model=s.models[row.init], kind=row.kind, scoring=scoring, lengths=s.lengths)
    if stage == "distil":
        distil = s.distil.model_dump(mode="json", include=READS[row.method])
        shared = _json(seed=s.seed, train=s.train, generation=plan.generation(run), relevance=relevance)
        return shared | _json(method=row.method, distil=distil)
    if stage == "evaluate":
        same = s.retrieval.ignore_identical_ids
        return _json(evaluation=s.evaluation, seed=s.seed, ignore_identical_ids=same) | {
            "made_by": _made_by(plan, dataset, run)
        }
    raise ValueError(f"no stage {stage}")


def _tokenizer(plan: Plan, dataset: str, name: str) -> dict[str, Any]:
    """What `tokens` names so: a tokenizer and the length of passages."""
    known = {}
    for run in plan.runs(kind="de"):
        reference, length = (
            plan.encoder(dataset, run).reference,
            plan.resolve(dataset, plan.origin(run)).lengths.passage,
        )
        known[tokens_name(reference, length)] = {"reference": reference, "length": length}
    return Named("tokenizer", f"the runs on {dataset}", known)[name]


def _searching(s: Settings) -> dict[str, Any]:
    """What a search reads of an approximate index's settings; nothing when it is exact."""
    return {} if s.retrieval.index is None else {"index_parameters": s.retrieval.index_parameters}


def _made_by(plan: Plan, dataset: str, run: str) -> dict[str, Any]:
    """What a result tells of its making: the settings of every stage behind it, by `run.stage`."""
    whole = plan.whole(dataset)
    made = {"prepare": stage_settings(plan, "prepare", whole)}
    if whole != dataset:
        made["prepare_evaluation"] = stage_settings(plan, "prepare", dataset)
    lists = [run]
    if "rerank" in plan.stages(dataset, run):
        lists.append(plan.reranked(dataset, run))
    for listed in lists:
        for name in plan.ancestors(listed):
            # of the runs whose lists are read, all stages; of the others, what made their model or negatives
            stages = [t for t in plan.stages(dataset, name) if t != "evaluate"]
            for stage in stages if name in lists else stages[:1]:
                of = dataset if stage in LISTING and name in lists else whole
                made[f"{name}.{stage}"] = stage_settings(plan, stage, of, name)
            row = plan.rows[name]
            if row.method in TRAINING and row.negatives != "bm25":
                searched = [*plan.vector_stages(whole, row.negatives), "mine"]
                made |= {f"{row.negatives}.{s}": stage_settings(plan, s, whole, row.negatives) for s in searched}
            if (passages := row.passages) is not None:
                stages = plan.vector_stages(whole, passages)
                made |= {f"{passages}.{s}": stage_settings(plan, s, whole, passages) for s in stages}
            if row.denoise is not None:
                made[f"{row.negatives}.{row.denoise}.denoise"] = stage_settings(plan, "denoise", whole, row.negatives)
    facts = {"dataset": dataset, "run": run, "settings": made}
    return facts if len(lists) == 1 else {**facts, "rerank_from": lists[1]}


def tokens_name(reference: str, length: int) -> str:
    """The name of a store of token ids.

    >>> tokens_name("hub:Luyu/co-condenser-marco", 144)
    'hub_Luyu_co-condenser-marco-144'
    """
    return re.sub(r"[^A-Za-z0-9.-]+", "_", reference) + f"-{length}"


def _json(**parts: Any) -> dict[str, Any]:
    return {k: v.model_dump(mode="json") if hasattr(v, "model_dump") else v for k, v in parts.items()}
