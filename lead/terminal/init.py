"""`lead init`: a look at a collection's files, and a dataset file for it with lengths, steps and batch that fit."""

from __future__ import annotations

import glob
import json
import math
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from lead.config.folders import Located, LocatedSplit, expand, locate
from lead.config.load import validate
from lead.config.parse import parse_yaml, read_yaml
from lead.config.schema import Dataset, Settings
from lead.config.shipped import DEFAULT_CONFIG, shipped
from lead.config.sources import BeirSource, HfSource
from lead.config.types import NAME
from lead.data.collection import Split
from lead.data.files import read_qrels, read_queries
from lead.data.layout import CORPUS, QUERIES, Layout
from lead.data.splits import carve
from lead.errors import LeadError
from lead.store.atomic import atomic_file
from lead.terminal.look import Look, look

PRESET = "tuned"
RUNS = ("bm25", "student", "student_more", "rd_cb", "lead_cb")
PHASES = ("miner", "teacher", "teacher_ce", "student", "distil")
EPOCHS = 3  # a small train set is seen at most so often in each training
TEST_SHARE, TEST_MOST = 0.2, 1000  # judged queries that are held out where no test split is given
PASSAGE, QUERY = (0.95, 256), (0.99, 64)  # this share of the texts is not cut, but no length is above so many tokens
SHARD = 1_500_000  # passages from which on a corpus is encoded in several jobs


@dataclass
class Found:
    """What a collection was found to be, in lines for people, and what its dataset file says of it."""

    source: dict[str, object]
    corpus: Look
    queries: Look
    judged: dict[str, int]  # queries with a judgement, by split
    grades: set[int]
    lines: list[str] = field(default_factory=list)
    carved: dict[str, Split] = field(default_factory=dict)  # train and test, where they had to be parted here


def init(
    name: str,
    corpus: str,
    queries: str | None,
    qrels: str | None,
    test: tuple[str | None, str | None],
    force: bool,
    config: Path = DEFAULT_CONFIG,
) -> str:
    """Write config/datasets/NAME.yaml; returns what people read. `test`: queries and judgements to evaluate on.

    Raises LeadError for files that cannot be read, a collection without judged queries, and a dataset that is there.
    """
    if not re.fullmatch(NAME, name):
        raise LeadError(f"'{name}' is no name of a dataset; use letters, digits, '_', '.' and '-'")
    path = config.parent / "datasets" / f"{name}.yaml"
    if path.exists() and not force:
        raise LeadError(f"{path} is there already; give another name, or --force to write it anew")
    for option, given in (("--corpus", corpus), ("--queries", queries), ("--qrels", qrels),
                          ("--test-queries", test[0]), ("--test-qrels", test[1])):  # fmt: skip
        if given is not None and not os.path.exists(expand(given)):
            raise LeadError(f"{option} {given} does not exist; fix the path")
    found = _folder(expand(corpus)) if expand(corpus).is_dir() else _files(corpus, queries, qrels, test)
    text = _yaml(name, found, path)
    validate(Dataset, parse_yaml(text, str(path)), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    for split, part in found.carved.items():
        with atomic_file(path.parent / name / f"qrels.{split}.tsv") as temporary:
            rows = part.qrels.to_pylist()
            lines = [f"{row['qid']}\t{row['pid']}\t{row['rel']}\n" for row in rows]
            temporary.write_text("qid\tpid\trel\n" + "".join(lines), encoding="utf-8")
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    following = f"""wrote {path}; read it, then:
  lead plan {name}                   # what its runs take on this machine
  lead run {name}                    # or one of them: lead run {name}/lead_cb
  lead table results/{name}/*.json   # compare them"""
    return "\n".join([*found.lines, following])


# --- what is there ---------------------------------------------------------------------------------------------------
def _folder(folder: Path) -> Found:
    """A folder in BEIR's or MTEB's layout. Judgements of one split only are parted into train and test."""
    name = str(folder)
    if not glob.glob(f"{glob.escape(name)}/corpus.jsonl*"):
        source: BeirSource | HfSource = HfSource(kind="hf", folder=name)
        return _located({"kind": "hf", "folder": name}, locate(source))
    splits = sorted(Path(p).name.partition(".tsv")[0] for p in glob.glob(f"{glob.escape(name)}/qrels/*.tsv*"))
    if "train" in splits and "test" in splits:
        return _located({"kind": "beir", "folder": name}, locate(BeirSource(kind="beir", folder=name)))
    if not splits:
        raise LeadError(f"{folder} has no judgements in qrels/; training needs judged queries")
    one = next((s for s in ("train", "test") if s in splits), splits[0])
    files = [
        glob.glob(f"{glob.escape(name)}/{part}")[0] for part in ("corpus.jsonl*", "queries.jsonl*", f"qrels/{one}.tsv*")
    ]
    return _files(files[0], files[1], files[2], (None, None))


def _files(corpus: str, queries: str | None, qrels: str | None, test: tuple[str | None, str | None]) -> Found:
    if queries is None or qrels is None:
        seen = look([expand(corpus)], CORPUS)
        lacks = " and ".join(name for name, given in (("--queries", queries), ("--qrels", qrels)) if given is None)
        raise LeadError(
            f"{_texts('corpus', seen, 'passages')}; training needs judged queries: give {lacks} (a query id, a passage "
            "id and a grade a line)"
        )
    train = LocatedSplit([expand(queries)], [expand(qrels)])
    source: dict[str, object] = {"kind": "files", "corpus": corpus}
    if test[0] is None and test[1] is None:
        parts = _part(train)
        found = _located(source, Located([expand(corpus)], {"train": train}), parts)
        return found
    tested = LocatedSplit([expand(test[0] or queries)], [expand(test[1] or qrels)])
    source |= {
        "train": {"queries": queries, "qrels": qrels},
        "test": {"queries": str(test[0] or queries), "qrels": str(test[1] or qrels)},
    }
    return _located(source, Located([expand(corpus)], {"train": train, "test": tested}))


def _part(split: LocatedSplit) -> dict[str, Split]:
    """Judged queries in two parts, train and test; queries of the same text go together."""
    queries = read_queries(split.queries)
    qrels, _ = read_qrels(split.qrels)
    asked = set(qrels["qid"].to_pylist())
    kept = queries.filter(pa.array([qid in asked for qid in queries["qid"].to_pylist()], pa.bool_()))
    if kept.num_rows < 2:
        raise LeadError(
            f"{split.qrels[0]}: {kept.num_rows} of the queries are judged; are the ids those of {split.queries[0]}?"
        )
    train, test = carve(Split(kept, qrels), min(TEST_SHARE, TEST_MOST / kept.num_rows))
    return {"train": train, "test": test}


def _located(source: dict[str, object], located: Located, carved: dict[str, Split] | None = None) -> Found:
    corpus = look(located.corpus, CORPUS)
    train = located.splits["train"]
    queries = look(train.queries, QUERIES)
    lines = [_texts("corpus", corpus, "passages"), _texts("queries", queries, "queries")]
    judged, grades = {}, set()
    for name, split in located.splits.items():
        layout: dict[str, dict[str, object]] = {}
        qrels, _ = read_qrels(split.qrels, layout)
        per_query = Counter(qrels["qid"].to_pylist())
        judged[name] = len(per_query)
        grades |= set(qrels["rel"].unique().to_pylist())
        how = ", ".join(f"{value} from {where}" for value, where in layout["qrels"]["columns"].items())  # type: ignore[attr-defined]
        lines.append(
            f"{'' if carved else f'{name} '}judgements: {split.qrels[0]}: {qrels.num_rows:,} for {len(per_query):,} "
            f"queries, {qrels.num_rows / max(1, len(per_query)):.1f} each, grades "
            f"{', '.join(map(str, sorted(grades)[:6]))} ({how})"
        )
    if carved:
        judged = {name: len(part.queries) for name, part in carved.items()}
        lines.append(
            f"no test split: {judged['test']:,} of the judged queries are held out to evaluate on, {judged['train']:,} "
            "are trained on"
        )
    return Found(source, corpus, queries, judged, grades, lines, carved or {})


def _texts(key: str, seen: Look, what: str) -> str:
    """A line on some texts."""
    layout: Layout = seen.layout
    columns = ", ".join(f"{value} from {where}" for value, where in sorted(layout.columns.items()))
    header = {None: "", True: ", a header", False: ", no header"}[layout.header]
    more = f" and {len(seen.paths) - 1} more files" if len(seen.paths) > 1 else ""
    count = (
        f"{seen.count:,} {what}" if seen.exact else f"about {seen.count:,} {what} (from the first {len(seen.words):,})"
    )
    middle, long = (
        seen.words[min(len(seen.words) - 1, int(share * len(seen.words)))] if seen.words else 0 for share in (0.5, 0.95)
    )
    return (
        f"{key}: {seen.paths[0]}{more}: {count} ({columns}{header}); {middle} words in the middle, 95 % have at most "
        f"{long} (about {seen.tokens(0.95)} tokens)"
    )


# --- the file --------------------------------------------------------------------------------------------------------
def _yaml(name: str, found: Found, path: Path) -> str:
    """The text of the dataset file."""
    corpus, queries, train = found.corpus, found.queries, found.judged["train"]
    passage, query = (_length(seen, *rule) for seen, rule in ((corpus, PASSAGE), (queries, QUERY)))
    cut = sum(words * 1.35 + 2 > passage for words in corpus.words) / max(1, len(corpus.words))
    gpus = len(glob.glob("/dev/nvidia[0-9]*"))
    own = path.parent.parent / "presets" / f"{PRESET}.yaml"
    preset, _ = read_yaml(own if own.exists() else shipped("config") / "presets" / own.name)
    defaults = validate(Settings, preset, PRESET)
    batch = defaults.train.batch_size * (4 if gpus else 1)
    while batch > 4 and batch * 8 > train:  # at least eight steps an epoch
        batch //= 2
    steps = {phase: _steps(phase, preset["phases"][phase]["steps"], train, batch, gpus) for phase in PHASES}
    epochs = steps["distil"] * batch / max(1, train)
    measures = ["nDCG@10", "RR@10", "R@100"] if len(found.grades - {0}) > 1 else ["RR@10", "R@100"]
    processors = os.cpu_count() or 1
    machine = f"{gpus} GPU{'s' * (gpus > 1)}" if gpus else f"{processors} CPU cores, no GPU"
    lines = [
        f"about: {json.dumps(f'{name}: {corpus.count:,} passages, {train:,} training queries')}",
        *_source(found, path, name),
        f"preset: {PRESET} # small models: `lead show {name}/lead_cb` prints what they are, and every other setting",
    ]
    lines.append(f"runs: [{', '.join(RUNS)}] # what `lead run {name}` makes; null: every row of experiments.yaml")
    if corpus.count > SHARD:
        lines.append(f"shards: {math.ceil(corpus.count / SHARD)} # parts that the corpus is encoded and searched in")
    if gpus:
        lines.append(
            f"gpus: {gpus} # what a training asks for; it uses those that are granted (--resources gpu={gpus})"
        )
    lines += [
        "settings:",
        '  # models: {teacher: {reference: "hub:NAME"}, student: {reference: "hub:NAME"}} # others than the preset\'s',
        f"  # in tokens: {100 * (1 - cut):.0f} % of the passages are not cut; shorter is faster",
        f"  lengths: {{query: {query}, passage: {passage}}}",
        f"  # for {machine}; {train:,} training queries are {math.ceil(train / batch):,} steps an epoch",
        f"  train: {{batch_size: {batch}, checkpoint_every: {max(20, min(100, steps['distil'] // 4))}}}",
        f"  phases: # at most {EPOCHS} epochs each; distillation: {epochs:.1f}",
        *(f"    {phase}: {{steps: {n}}}" for phase, n in steps.items()),
        f"  retrieval: {{depth: {min(1000, corpus.count)}, rerank_depth: {min(100, corpus.count)}}}",
        f"  evaluation: {{measures: {json.dumps(measures)}}}",
    ]
    if corpus.latin < 0.8:
        lines.append("  bm25: {analyser: unicode} # most of the texts are not in Latin script")
    if batch < defaults.train.batch_size:
        lines.append(f"  # the batch is below the preset's {defaults.train.batch_size}: there are few training queries")
    return "\n".join(["# Made by `lead init`; every key: `lead schema Dataset`, `lead schema Settings`.", *lines, ""])


def _length(seen: Look, share: float, most: int) -> int:
    """A length in tokens that this share of the texts does not exceed: a multiple of 8, at most `most`."""
    return min(most, max(16, 8 * math.ceil(seen.tokens(share) / 8)))


def _steps(phase: str, preset: int, train: int, batch: int, gpus: int) -> int:
    """The preset's steps, or fewer: no more than `EPOCHS`; with a GPU a large train set is seen once."""
    epoch = math.ceil(train / batch)
    return max(1, min(max(preset, epoch if gpus and phase in ("student", "distil") else 0), EPOCHS * epoch))


def _source(found: Found, path: Path, name: str) -> list[str]:
    source = dict(found.source)
    if found.carved:
        train = next(iter(found.queries.paths))
        source |= {
            split: {"queries": str(train), "qrels": str(path.parent / name / f"qrels.{split}.tsv")}
            for split in found.carved
        }
    lines = ["source: # paths count from this file"]
    for key, value in source.items():
        if isinstance(value, dict):
            inner = ", ".join(f"{k}: {_quoted(_seen(v, path))}" for k, v in value.items())
            lines.append(f"  {key}: {{{inner}}}")
        else:
            lines.append(f"  {key}: {_quoted(_seen(str(value), path)) if key in ('corpus', 'folder') else value}")
    if found.corpus.titled:
        lines.append("  fields: [title, text] # what makes up a passage")
    return lines


def _seen(file: str, path: Path) -> str:
    """A path as it is written into the dataset file: relative to it, if it lies below the folder that we are in."""
    absolute = Path(os.path.abspath(expand(file)))
    return os.path.relpath(absolute, path.parent) if absolute.is_relative_to(Path.cwd()) else str(absolute)


def _quoted(text: str) -> str:
    return text if re.fullmatch(r"[\w./-]+", text) else json.dumps(text, ensure_ascii=False)
