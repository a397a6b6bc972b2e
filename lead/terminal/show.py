"""`lead show`: what there is, and the settings of a run with where each value comes from."""

from __future__ import annotations

import json

from lead.config.recipe import flat
from lead.config.shipped import shipped
from lead.errors import LeadError
from lead.plan.job import Job
from lead.plan.plan import Plan
from lead.plan.rows import split_seed
from lead.plan.settings import train_settings
from lead.plan.stage_settings import execution_of, recipe_of, stage_settings
from lead.plan.targets import wanted

DEFAULT = "default"


def show(plan: Plan, target: str | None, stage: str | None, everything: bool, as_json: bool) -> str:
    """What `lead show` prints. Raises LeadError for an unknown name, and for a stage that the run does not have."""
    if target is None:
        return plan.overview()
    dataset, _, run = target.partition("/")
    if not run:
        raise LeadError(f"'{target}' is not DATASET/RUN; `lead show` alone lists both")
    job = plan[dataset, run]
    every = {"prepare", "bm25", *job.stages, *(["mine"] if "retrieve" in job.stages else [])}
    if stage and stage not in every:
        raise LeadError(f"run '{run}' has no stage {stage}; it has {', '.join(job.stages)}")
    if stage:
        return json.dumps(stage_settings(job, stage), indent=2)
    if as_json:
        found = ((stage, stage_settings(job, stage)) for stage in job.stages)
        parts = {stage: {"recipe": recipe_of(stage, s), "execution": execution_of(stage, s)} for stage, s in found}
        return json.dumps(parts, indent=2)
    return "\n".join([*_about(job), *_settings(job, everything)])


def _about(job: Job) -> list[str]:
    row, of = job.row, {key: getattr(job.row, key) for key in ("init", "start", "teacher", "of", "passages", "denoise")}
    made = ", ".join(f"{key} {value}" for key, value in of.items() if value is not None)
    lines = [f"{job.dataset.name}/{job.run}: {row.about or job.method.about}"]
    kind = f", {job.kind.title}" if job.kind else ""
    lines.append(f"  method      {row.method}{kind}{f' ({made})' if made else ''}")
    if job.method.judged:
        lines.append(f"  negatives   {job.negatives}")
    behind = job.jobs.rows.ancestors(job.run)[1:]
    if behind:
        lines.append(f"  made from   {', '.join(behind)}")
    lines.append(f"  stages      {', '.join(job.stages)}")
    lines.append(f"  result      {', '.join(wanted(job))}")
    return lines


def _settings(job: Job, everything: bool) -> list[str]:
    """A line for each setting that the run reads: key, value, where from. Defaults are left out, or `everything`."""
    values = flat(job.settings.model_dump(mode="json"))
    origin = origins(job)
    shown = []
    for key, value in values.items():
        if not _read(job, key) or key.startswith("phases."):
            continue
        where = origin.get(key, DEFAULT).replace(f"{shipped('config')}/", "shipped ")
        if everything or where != DEFAULT:
            shown.append((key, json.dumps(value), where))
    widths = [max((len(line[n]) for line in shown), default=0) for n in (0, 1)]
    lines = [f"  {key:<{widths[0]}}  {value:<{min(44, widths[1])}}  {where}" for key, value, where in shown]
    hint = (
        "every key of Settings" if everything else "what differs from the defaults; --all: every key, --json: by stage"
    )
    return [f"settings ({hint}):", *lines]


def _read(job: Job, key: str) -> bool:
    """Whether a run of this method reads a key of `Settings`, as far as its first part tells."""
    first, _, second = key.partition(".")
    if first == "distil":
        inside, _, part = second.partition(".")
        parts = job.method.reads.get(inside, set())
        return parts is True or part in parts
    if first == "train" and job.method.trains:
        return second in stage_settings(job, str(job.method.stage))["train"]
    if first in ("train", "phases"):
        return False
    if job.method.has_model and job.is_ready and _of_folder(job, key) and key not in flat(job.origin.row.settings):
        return False
    if first in ("models", "lengths"):
        return job.method.has_model
    if first == "align":
        return job.method.stage == "align"
    if first == "denoise":
        return job.row.denoise is not None
    if key in ("retrieval.rerank_depth", "retrieval.cross_depth", "retrieval.rerank_from"):
        return "rerank" in job.stages
    if first == "scoring":
        return job.kind is not None and second.partition(".")[0] in (job.kind.name, _kind_of_teacher(job))
    return True


def _of_folder(job: Job, key: str) -> bool:
    """Whether a key is one that the folder of a ready model decides (docs/teachers.md)."""
    own = f"scoring.{job.kind.name}." if job.kind else "-"
    return key.startswith("lengths.") or (
        key.startswith(own) and key.rpartition(".")[2] not in ("scale", "layer_scale", "layer_normalise")
    )


def _kind_of_teacher(job: Job) -> str:
    kind = job.other(job.row.teacher).kind if job.row.teacher is not None else None
    return kind.name if kind is not None else ""


def origins(job: Job) -> dict[str, str]:
    """Where each key that is no default comes from: the file, and the phase."""
    loaded, found = job.jobs.loaded, dict[str, str]()
    for part in loaded.parts(job.dataset.name, split_seed(job.run)[0]):
        found |= {key: part.where for key in flat(part.tree) if not key.startswith("train.")}
    train = train_settings(loaded, job.jobs.rows, job.dataset.name, job.run)
    found |= {f"train.{key}": where for key, (_, where) in train.items()}
    overridden, file = flat(loaded.overrides.get("settings", {})), str(loaded.path)
    for key, where in found.items():
        said_in, _, phase = where.partition(": ")  # of the phase `phases.distil`, or of none
        if said_in == file and (key.replace("train", phase, 1) if phase else key) in overridden:
            found[key] = where.replace(file, "--config", 1)
    if split_seed(job.run)[1] != 1:
        found["seed"] = f"the name {job.run}"
    return found
