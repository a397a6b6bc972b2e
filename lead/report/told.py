"""What was done, in sentences: the data, the models, each training and the evaluation, from the settings of results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lead.config.phases import passes
from lead.plan.job import Job
from lead.plan.rows import split_seed
from lead.pretrained import shown
from lead.report.facts import model_facts
from lead.report.results import Results
from lead.report.table import read_result
from lead.report.training import PARTS
from lead.store.provenance import record_of
from lead.store.tables import open_table

POOLED = {"cls": "the first token", "mean": "the mean of the tokens", "last": "the last token"}


def trainings(results: Results) -> list[str]:
    """The runs that have results or metrics, and those that they grew from, first to last."""
    rows = results.plan.rows
    trained = {split_seed(path.stem)[0] for path in (results.folder / "metrics").glob("*.jsonl")}
    known = [name for name in {*results.names, *trained} if name in rows]
    behind = {run for name in known for run in rows.ancestors(name)}
    return [run for run in sorted(behind, key=lambda r: (rows.generation(r), list(rows).index(r)))]


def settings_behind(results: Results) -> dict[str, dict[str, Any]]:
    """Settings by `RUN.STAGE` as the results say they were made; of models without a result, as their folders say."""
    found: dict[str, dict[str, Any]] = {}
    for name in results.names:
        found |= read_result(results.runs.files[name][0]).settings
    for folder in sorted((results.folder / "models").glob("*")):
        if folder.is_dir() and (record := record_of(folder)) is not None:
            found.setdefault(f"{folder.name}.{record['stage']}", record["settings"])
    return found


class Methods:
    """What was done. before, after: paragraphs; runs: a sentence on each training, list and model, by run."""

    def __init__(self, results: Results) -> None:
        """Of the runs that have results, and those that they grew from."""
        behind = settings_behind(results)
        jobs = [job for run in trainings(results) if (job := results.job(run)) is not None]
        made = [behind.get(f"{job.run}.{job.method.stage}", {}) for job in jobs if job.method.judged]
        shared = _shared([settings["train"] for settings in made if "train" in settings])
        steps = f"A step has {shared}, unless said otherwise." if shared else ""
        self.before = [text for text in (_data(results), _models(jobs, behind), steps) if text]
        self.runs = [(job.run, text) for job in jobs if (text := _training(job, behind, shared))]
        self.after = [text] if (text := _evaluation(results, jobs)) else []


def _shared(trains: list[dict[str, Any]]) -> str:
    """The batch that most trainings on judged queries have."""
    found = [_batch(train) for train in trains]
    return max(found, key=found.count) if found else ""


def _batch(train: dict[str, Any]) -> str:
    return f"{train['batch_size']} queries and {train.get('negatives', 0)} hard negatives for each"


def _data(results: Results) -> str:
    collection = results.dataset.collection
    counts = []
    for file, folder, what in (
        ("corpus", collection.folder, "passages"),
        ("queries.train", collection.folder, "train queries"),
        ("queries.dev", collection.folder, "dev queries"),
        ("queries.test", results.dataset.folder, "test queries"),
    ):
        path = Path(folder) / "data" / f"{file}.parquet"
        counts += [f"{open_table(path).metadata.num_rows:,} {what}"] if path.exists() else []
    about = results.dataset.data.about
    name = f"The collection {results.dataset.name}" + (f" ({about})" if about else "")
    drawn = collection.data.queries
    source = "" if drawn is None else " Its train queries were drawn from the passages themselves."
    return f"{name} has {_and(counts)}.{source}" if counts else f"{name}."


def _models(jobs: list[Job], behind: dict[str, Any]) -> str:
    """The pretrained encoders, with the layers that are really there."""
    said: dict[str, str] = {}
    lengths: dict[str, list[str]] = {}
    for job in jobs:
        if job.kind is None or job.row.init is None:
            continue
        made = behind.get(f"{job.run}.{job.method.stage}", {})
        model = model_facts(Path(job.model))
        reference = (made.get("model") or {}).get("reference") or job.encoder.reference
        kept = (made.get("model") or {}).get("layers")
        text = f"the {job.row.init}\u2019s encoder is {shown(reference)}"
        text += f" with its layers {_and(list(map(str, kept)))}" if kept else ""
        if model.layers and model.parameters:
            text += f" ({model.layers} layers, {model.parameters / 1e6:.1f} million weights)"
        said.setdefault(str(job.row.init), text)
        if model.cut:
            lengths.setdefault("queries to {} tokens and passages to {}".format(*model.cut), []).append(job.run)
    cuts = [
        f"{what} ({_and(runs)})" if len(lengths) > 1 else what
        for what, runs in sorted(lengths.items(), key=lambda item: -len(item[1]))
    ]
    text = f"{_capital('; '.join(said.values()))}." if said else ""
    return f"{text} Texts are cut: {'; '.join(cuts)}." if cuts else text


def _training(job: Job, behind: dict[str, Any], shared: str) -> str:
    """A sentence on how a run's model or list was made. shared: the batch that goes without saying."""
    made, row, method = behind.get(f"{job.run}.{job.method.stage}", {}), job.row, job.method
    train = made.get("train", {})
    if method.stage == "bm25":
        s = made.get("bm25", {})
        return f"BM25 with k1 = {s['k1']:g} and b = {s['b']:g} (analyser: {s.get('analyser', 'english')})." if s else ""
    if method.stage == "pretrained":
        return f"The {row.init}\u2019s encoder as it is, {_kind(job)}."
    if method.name == "teacher_of":
        return f"The teacher that {row.of} left."
    if method.name == "asymmetric":
        return f"Queries are encoded by {row.start}, and search the vectors of {row.passages}."
    if not method.trains or not made:
        return ""
    start = f"starts from {row.start}" if row.start else f"starts from the {row.init}\u2019s encoder"
    words = [f"{_capital(_kind(job))}, {start}"]
    if row.teacher:
        layers = model_facts(Path(job.teacher)).layers
        words.append(
            f"learns from {row.teacher}" + (f" ({_kind(job.other(row.teacher))}, {layers} layers)" if layers else "")
        )
    elif row.scores:
        words.append(f"learns from scores of {_and(list(row.scores))}")
    words.append(_loss(job, made))
    if epochs := made.get("epochs") or train.get("epochs"):
        long = passes(epochs, made.get("between"), "the train queries" if method.judged else "the texts")
        words.append(long if method.judged else f"{long}, {train['batch_size']} a step")
    elif "steps" in train:
        words.append(f"{train['steps']:,} steps" + ("" if method.judged else f" of {train['batch_size']} texts"))
    if method.judged and train and _batch(train) != shared:
        words.append(f"a step has {_batch(train)}")
    if method.judged and train.get("negatives"):
        words.append(
            f"hard negatives of {row.negatives}"
            + (f" without those that {row.denoise} scores high" if row.denoise else "")
        )
    words.append(f"learning rate {train['lr']:g}" if "lr" in train else "")
    return f"{', '.join(word for word in words if word)}."


def _kind(job: Job) -> str:
    return "" if job.kind is None else job.kind.a


def _loss(job: Job, made: dict[str, Any]) -> str:
    """The losses of a training, their factors where they are not 1, layers and temperature."""
    distil = made.get("distil", {})
    if job.method.stage == "align":
        return f"with the {made.get('loss', 'squared')} distance of vectors as its loss"
    if not job.method.distils:
        return "with the contrastive loss alone"
    joint = job.method.moves_teacher(job.settings.distil)
    weights, read = distil.get("weights", {}), job.method.reads.get("weights", ())
    names = [name for name in PARTS if name in read and weights.get(name) and (joint or name != "tch")]
    used = [(f"{weights[name]:g} times " if weights[name] != 1 else "") + PARTS[name] for name in names]
    words = [f"with {_and(used)}" if used else f"with the loss of {job.method.about}"]
    if "layers" in distil:
        layers = distil["layers"]
        how = {"random": "drawn anew every step", "last": "the last", "skip": "every second", "pairs": "given"}
        words.append(f"{layers['k']} pairs of layers ({how.get(layers['strategy'], layers['strategy'])})")
        words.append("teacher and student trained jointly" if joint else "the teacher frozen")
    words += [f"temperature {distil['tau']:g}"] if "tau" in distil else []
    return ", ".join(words)


def _evaluation(results: Results, jobs: list[Job]) -> str:
    if not results.names:
        return ""
    first, of = read_result(results.runs.files[results.names[0]][0]), results.dataset.settings.evaluation
    text = (
        f"Every run is measured on {first.queries:,} judged test queries, in {_and(results.measures)}; intervals are "
        f"{of.confidence:.0%} bootstrap intervals over queries."
    )
    rerankers = [
        job.run for job in jobs if job.kind is not None and job.kind.ranks_by == "rerank" and job.run in results.names
    ]
    if rerankers:
        sources = _and(sorted({job.reranked for job in jobs if job.run in rerankers}))
        text += f" The lists of {sources} are reranked by {_and(rerankers)}."
    seeded = [name for name in results.names if len(results.runs[name].seeds) > 1]
    if seeded:
        named = "; ".join(f"{name} {results.runs[name].named_seeds()}" for name in seeded)
        text += f" Several seeds: {named}; means are over seeds."
    return text


def _and(words: list[str]) -> str:
    """Words as a list in a sentence.

    >>> _and(["a", "b", "c"]), _and(["a"])
    ('a, b and c', 'a')
    """
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
