"""The model card of an exported run: what it is, what it was made of, how good it is, how to use it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from lead.config.phases import passes
from lead.export.licences import licence
from lead.export.onnx import FP32, INT8
from lead.export.quality import MEASURE, Quality
from lead.models.card import TAGS, usage, vectors
from lead.models.dual_encoder import DualEncoder
from lead.models.encoder import depth
from lead.models.interchange import Interchange
from lead.plan.job import Job
from lead.pretrained import shown
from lead.report.table import Result, number, read_result
from lead.store.provenance import record_of
from lead.store.tables import open_table

CONTROLS = ("bm25", "student_more", "rd_cb")  # shown beside a run where they exist, and what it was made from


@dataclass(frozen=True)
class Extras:
    """What an export adds to a model's folder. difference: of the ONNX vectors from the model's, at most."""

    difference: float | None = None
    quality: Quality | None = None
    vectors: bool = False
    trec: bool = False


def card(job: Job, model: DualEncoder, about: Interchange, extras: Extras, name: str, on_hub: bool = False) -> str:
    """The README.md of an exported run. name: of the folder, or of the repository on the hub, for the code in it."""
    results = {run: read_result(file) for run in _compared(job) if (file := _result(job, run)).exists()}
    made = _made_by(job, results.get(job.run))
    references = _references(job, made)
    onnx = None if extras.difference is None else FP32
    facts = about.facts
    lines = [
        f"---\n{_header(job, results.get(job.run), references)}\n---",
        "",
        f"# {job.run} ({job.dataset.name})",
        "",
        f"A dual encoder for retrieval: {depth(model.encoder)} layers, {_millions(model)} million weights, vectors of "
        f"{model.size} numbers.",
        f"{_capital(job.row.about or job.method.about)}. "
        "Made by LEAD, which distils strong retrievers into small ones.",
        "",
        *_results(job, results),
        *_training(job, made),
        *_data(job),
        *_licences(references),
        *vectors(facts),
        "",
        *_extras(job, extras),
        *usage(name, facts, onnx, on_hub),
    ]
    return "\n".join(lines)


def _result(job: Job, run: str) -> Path:
    return Path(job.dataset.folder) / f"{run}.json"


def _compared(job: Job) -> list[str]:
    """The run, and those to compare it with."""
    behind = [run for run in job.jobs.rows.ancestors(job.run) if run != job.row.negatives]
    return list(dict.fromkeys([*behind, *(run for run in CONTROLS if run in job.jobs.rows)]))


def _made_by(job: Job, result: Result | None) -> dict[str, Any]:
    """Settings of the runs that made the model, first to last, as its result or the models' folders tell."""
    rows = job.jobs.rows
    order = [run for run in reversed(rows.ancestors(job.run)) if rows.method(run).has_model]
    if result is not None and result.settings:
        found = result.settings
    else:
        folders = {run: folder for run in order if (folder := Path(job.other(run).model)).is_dir()}
        records = {run: record_of(folder) for run, folder in folders.items()}
        found = {f"{run}.{record['stage']}": record["settings"] for run, record in records.items() if record}
    keys = {run: f"{run}.{rows.method(run).stage}" for run in order}
    return {run: found[key] for run, key in keys.items() if key in found}


def _references(job: Job, made: dict[str, Any]) -> dict[str, list[str]]:
    """The pretrained models behind these runs, and which runs start from each."""
    found: dict[str, list[str]] = {job.encoder.reference: []}
    for run, settings in made.items():
        if model := settings.get("model"):
            found.setdefault(model["reference"], []).append(run)
    return found


def _header(job: Job, result: Result | None, references: dict[str, list[str]]) -> str:
    """The YAML that the hub reads. A licence is named if all pretrained models have it."""
    licences = {licence(reference) for reference in references}
    repository = getattr(job.dataset.collection.data.source, "repository", None)
    hub = [reference[len("hub:") :] for reference in references if reference.startswith("hub:")]
    scores = [] if result is None else [
        EvalResult(
            task_type="text-retrieval",
            dataset_type=repository or job.dataset.name,
            dataset_name=job.dataset.name,
            metric_type=measure,
            metric_value=round(result.metrics[measure]["mean"], 4),
        )
        for measure in result.measures
    ]  # fmt: skip
    data = ModelCardData(
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=TAGS,
        license=licences.pop() if len(licences) == 1 else None,
        base_model=hub or None,
        datasets=[repository] if repository else None,
        model_name=job.run if scores else None,
        eval_results=scores or None,
    )
    return str(data.to_yaml())


def _results(job: Job, results: dict[str, Result]) -> list[str]:
    if job.run not in results:
        return ["## Results", "", "It has not been evaluated.", ""]
    own, other, rows = results[job.run], job.row.passages, []
    for run, result in results.items():
        cells = [_cell(result.metrics.get(measure)) for measure in own.measures]
        bold = "**" if run == job.run else ""
        rows.append(f"| {bold}{run}{bold} | {job.jobs.rows[run].about} | {' | '.join(cells)} |")
    return [
        "## Results",
        "",
        f"On the {own.queries:,} judged test queries of {job.dataset.name}; means with {own.confidence:.0%} bootstrap "
        "intervals over queries.",
        *([f"**{job.run} searched vectors of passages by `{job.row.passages}`, not by this model.**"] if other else []),
        "",
        f"| run | what it is | {' | '.join(own.measures)} |",
        "|---|---|" + "---|" * len(own.measures),
        *rows,
        "",
    ]


def _cell(metric: dict[str, float] | None) -> str:
    return "-" if metric is None else f"{number(metric['mean'])} [{number(metric['low'])}, {number(metric['high'])}]"


def _training(job: Job, made: dict[str, Any]) -> list[str]:
    lines = ["## Training", ""]
    for run, settings in made.items():
        train, distil, method = settings.get("train", {}), settings.get("distil", {}), job.jobs.rows.method(run)
        what = "texts" if method.stage == "align" else "queries"
        if epochs := settings.get("epochs") or train.get("epochs"):
            seen = "passages and queries" if method.stage == "align" else "the train queries"
            words = [f"{passes(epochs, settings.get('between'), seen)}, {train['batch_size']} {what} a step"]
        else:
            words = [f"{train['steps']:,} steps of {train['batch_size']} {what}" if "steps" in train else ""]
        words += [f"{train['negatives']} hard negatives for each" if method.judged and "negatives" in train else ""]
        words += [f"learning rate {train['lr']:g}" if "lr" in train else ""]
        words += [f"temperature {distil['tau']:g}" if "tau" in distil else ""]
        if "layers" in distil:
            words.append(f"{distil['layers']['k']} pairs of layers ({distil['layers']['strategy']})")
        words += [f"seed {settings['seed']}" if "seed" in settings else ""]
        if layers := (settings.get("model") or {}).get("layers"):
            words.append(f"from layers {', '.join(map(str, layers))} of {shown(settings['model']['reference'])}")
        told = ", ".join(word for word in words if word)
        lines.append(f"- `{run}`, {method.about}{': ' + told if told else ''}.")
    return [*lines, ""]


def _data(job: Job) -> list[str]:
    collection = job.dataset.collection
    source = collection.data.source
    name = None if source.on_disk else getattr(source, "repository", getattr(source, "corpus", None))
    kind = " ".join(filter(None, [source.kind, name]))
    counts = []
    drawn = "" if collection.data.queries is None else " drawn from them"
    files = ("corpus", "passages"), ("queries.train", f"train queries{drawn}"), ("queries.dev", f"dev queries{drawn}")
    for file, what in files:
        path = Path(collection.folder) / "data" / f"{file}.parquet"
        counts += [f"{open_table(path).metadata.num_rows:,} {what}"] if path.exists() else []
    about = f": {collection.data.about}" if collection.data.about else ""
    return [
        "## Data",
        "",
        f"{collection.name}{about} ({kind}). {', '.join(counts)}.",
        "",
    ]


def _licences(references: dict[str, list[str]]) -> list[str]:
    rows = []
    for reference, runs in references.items():
        layers = f"`{'`, `'.join(runs)}`" if runs else "this model"
        rows.append(f"| {shown(reference)} | {layers} | {licence(reference) or 'not said here: look it up'} |")
    return [
        "## Base models and licences",
        "",
        "| pretrained model | what grew from it | its licence |",
        "|---|---|---|",
        *rows,
        "",
        "These licences, and the terms of the data above, bind this model too.",
        "",
    ]


def _extras(job: Job, extras: Extras) -> list[str]:
    lines = []
    if extras.difference is not None:
        lines.append(
            f"- `{FP32}`: inputs `input_ids`, `attention_mask`; outputs `sentence_embedding`, `last_hidden_state`. "
            f"Its vectors differ from the model's by at most {extras.difference:.1g}."
        )
    if (q := extras.quality) is not None:
        low, high = map(lambda x: number(x, "+"), q.interval)
        pool = f"{'all' if q.whole else 'a part of the'} passages, {q.passages:,}"
        lines += [
            f"- `{INT8}`: weights in 8 bits. {MEASURE} on {q.queries:,} dev queries over {pool}: {number(q.rr[1])}, "
            f"in fp32 {number(q.rr[0])}",
            f"  (difference {number(q.difference, '+')}, 95% interval {low} to {high}). It encodes {q.speed[1]:.0f} "
            f"passages a second, fp32 {q.speed[0]:.0f}",
            f"  ({q.speed[1] / q.speed[0]:.1f} times as many; threads: {q.threads}; it depends on the CPU).",
        ]
    by = f" by `{job.row.passages}`" if job.row.passages else ""
    lines += [f"- `vectors/`: the passages' vectors{by} (Parquet: id, vector)."] if extras.vectors else []
    lines += (
        ["- `trec/`: the run's lists on the test queries (run.txt) and their judgements (qrels.txt)."]
        if extras.trec
        else []
    )
    return ["## Also here", "", *lines, ""] if lines else []


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _millions(model: DualEncoder) -> str:
    return f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}"
