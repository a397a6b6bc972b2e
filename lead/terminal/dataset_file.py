"""The dataset file that `lead init` writes: lengths, steps and batch that fit a collection and this machine."""

from __future__ import annotations

import glob
import json
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lead.config.folders import expand
from lead.config.load import validate
from lead.config.parse import read_yaml
from lead.config.phases import ALIGN, Align, align_steps
from lead.config.schema import Settings
from lead.config.shipped import shipped
from lead.data.collection import Split
from lead.plan.settings import LENGTH
from lead.terminal.look import Look

PRESET = "best"
DEPLOY = "best", "best_unlabelled"  # the run to deploy, with judged queries and without
RUNS = ("bm25", "pretrained_teacher", "student", "best_unlabelled", "best")
PHASES = ("miner", "teacher", "teacher_ce", "student", "distil")
EPOCHS = 3  # a small train set is seen at most so often in each training
ONE_PASS = 2000  # without a GPU: steps of the pass over a large train set from an aligned student, at most
ALIGN_STEPS = (1000, 3000), (3000, 60_000)  # of an alignment, fewest and most: without and with a GPU
ALIGN_EPOCHS = 50  # a small collection is seen at most so often
DRAWN = 20_000  # queries that are drawn from a corpus, at most
WORDY = {"titles": 32, "sentences": 64, "crops": 32}  # tokens of drawn queries
UNCUT = {"passage": 0.95, "query": 0.99}  # share of the texts that are not cut, if MOST allows it
MOST = {"passage": (128, 256), "query": (64, 64)}  # tokens of a text, at most: without and with a GPU
SHARD = 1_500_000  # passages from which on a corpus is encoded in several jobs


@dataclass
class Found:
    """What a collection was found to be, in lines for people, and what its dataset file says of it.

    queries: None where there are none to train on. Then train queries are drawn from the corpus, as `drawn` says (the
    way, and why), and the unjudged queries `asked` are aligned on too; those of the test split are `tested`.
    """

    source: dict[str, object]
    corpus: Look
    queries: Look | None
    judged: dict[str, int]  # queries with a judgement, by split
    grades: set[int]
    lines: list[str] = field(default_factory=list)
    carved: dict[str, Split] = field(default_factory=dict)  # train and test, where `lead init` splits them
    drawn: tuple[str, str] | None = None
    asked: Look | None = None
    tested: Look | None = None


def dataset_file(name: str, found: Found, path: Path) -> str:
    """The text of the dataset file `path`."""
    corpus, gpus = found.corpus, len(glob.glob("/dev/nvidia[0-9]*"))
    passage, cut = _passages(corpus, gpus)
    own = path.parent.parent / "presets" / f"{PRESET}.yaml"
    preset, _ = read_yaml(own if own.exists() else shipped("config") / "presets" / own.name)
    machine = f"{gpus} GPU{'s' * (gpus > 1)}" if gpus else f"{os.cpu_count() or 1} CPU cores, no GPU"
    if found.queries is None:
        about, (query, chosen, training) = "no judged queries to train on", _unjudged(found, gpus, machine)
    else:
        about, chosen = f"{found.judged['train']:,} training queries", list(RUNS)
        query = _length("query", found.queries, gpus)
        training = _trainings(found, preset, gpus, machine)
    measures = ["nDCG@10", "RR@10", "R@100"] if len(found.grades - {0}) > 1 else ["RR@10", "R@100"]
    lines = [
        f"about: {json.dumps(f'{corpus.count:,} passages, {about}')}",
        *_source(found, path, name),
        f"preset: {PRESET} # small models: `lead show {name}/{chosen[-1]}` prints them, and every other setting",
        f"runs: [{', '.join(chosen)}] # what `lead run {name}` makes; null: every row of experiments.yaml",
    ]
    if corpus.count > SHARD:
        lines.append(f"shards: {math.ceil(corpus.count / SHARD)} # parts that the corpus is encoded and searched in")
    if gpus:
        lines.append(
            f"gpus: {gpus} # what a training asks for; it uses those that are granted (--resources gpu={gpus})"
        )
    lines += [
        "settings:",
        "  # models: # others than the preset's, whose student is cut to three layers; layers: null keeps all",
        '  #   teacher: {reference: "hub:NAME"}',
        '  #   student: {reference: "hub:NAME", layers: null}',
        f"  # in tokens: {100 * (1 - cut):.0f} % of the passages are not cut; shorter is faster",
        f"  lengths: {{query: {query}, passage: {passage}}}",
        *training,
    ]
    if "test" in found.judged:
        lines += [
            f"  retrieval: {{depth: {min(1000, corpus.count)}, rerank_depth: {min(100, corpus.count)}}}",
            f"  evaluation: {{measures: {json.dumps(measures)}}}",
        ]
    if corpus.latin < 0.8:
        lines.append("  bm25: {analyser: unicode} # most of the texts are not in Latin script")
    return "\n".join(["# Made by `lead init`; every key: `lead schema Dataset`, `lead schema Settings`.", *lines, ""])


def _passages(corpus: Look, gpus: int) -> tuple[int, float]:
    """The length of passages in tokens, and the share that it cuts."""
    length = _length("passage", corpus, gpus)
    return length, sum(words * 1.35 + 2 > length for words in corpus.words) / max(1, len(corpus.words))


def _trainings(found: Found, preset: dict[str, Any], gpus: int, machine: str) -> list[str]:
    """Batch and steps of trainings on judged queries, and of the alignment that they start from."""
    settings, train = validate(Settings, preset, PRESET), found.judged["train"]
    usual, most = settings.train.batch_size, settings.train.steps
    batch = usual * (4 if gpus else 1)
    while batch > 4 and batch * 8 > train:  # at least eight steps an epoch
        batch //= 2
    given = {phase: getattr(settings.phases, phase).get("steps", most) for phase in PHASES}
    steps = {phase: _steps(phase, n, train, batch, gpus) for phase, n in given.items()}
    once = min(math.ceil(train / batch), ONE_PASS)
    own = next((f"{key}: {n}" for key, n in settings.phases.aligned.items() if key in LENGTH), None)
    longer = f"steps: {once}" if once > steps["distil"] else None
    aligned = [f"    aligned: {{{own or longer}}} # of trainings from an aligned student"] if own or longer else []
    epochs = steps["distil"] * batch / max(1, train)
    align, few_texts = _alignment(found.corpus.count + train, gpus, machine)
    few = [f"  # the batch is below the preset's {usual}: there are few training queries"] if batch < usual else []
    return [
        *few,
        f"  # for {machine}; {train:,} training queries are {math.ceil(train / batch):,} steps an epoch",
        f"  train: {{batch_size: {batch}, checkpoint_every: {max(20, min(100, steps['distil'] // 4))}}}",
        *align,
        f"  phases: # about {EPOCHS} epochs each at most; distillation: {epochs:.1f}",
        *few_texts,
        *(f"    {phase}: {{steps: {n}}}" for phase, n in steps.items()),
        *aligned,
    ]


def _unjudged(found: Found, gpus: int, machine: str) -> tuple[int, list[str], list[str]]:
    """Without judged queries: the length of queries in tokens, the runs, and the lines on the alignment."""
    assert found.drawn is not None
    asked = max((_length("query", seen, gpus) for seen in (found.asked, found.tested) if seen), default=0)
    runs = ["bm25", "pretrained_teacher", DEPLOY[1]] if "test" in found.judged else [DEPLOY[1]]
    texts = found.corpus.count + min(found.corpus.count, DRAWN) + (found.asked.count if found.asked else 0)
    more = f", queries: [{_quoted(str(found.asked.paths[0]))}]" if found.asked else ""
    align, few_texts = _alignment(texts, gpus, machine, more)
    return max(WORDY[found.drawn[0]], asked), runs, align + (["  phases:", *few_texts] if few_texts else [])


def _alignment(texts: int, gpus: int, machine: str, queries: str = "") -> tuple[list[str], list[str]]:
    """Lines on an alignment on so many texts, and its line in `phases`, if it needs one. queries: a key more."""
    batch = min(int(ALIGN["batch_size"]), max(1, texts // 8))
    epoch = max(1, texts // batch)  # steps of one
    fewest, most = ALIGN_STEPS[bool(gpus)]
    between = [min(fewest, ALIGN_EPOCHS * epoch), most]
    steps = align_steps(Align().epochs, between, epoch)
    return [
        f"  # alignment, for {machine}: about {texts:,} texts, {steps:,} steps of {batch}",
        f"  align: {{epochs: {Align().epochs:g}, between: {between}{queries}}}",
    ], [f"    align: {{batch_size: {batch}}} # few texts"] if batch < ALIGN["batch_size"] else []


def _length(side: Literal["passage", "query"], seen: Look, gpus: int) -> int:
    """A length in tokens, a multiple of 8, that few texts exceed."""
    return min(MOST[side][bool(gpus)], max(16, 8 * math.ceil(seen.tokens(UNCUT[side]) / 8)))


def _steps(phase: str, preset: int, train: int, batch: int, gpus: int) -> int:
    """The preset's steps, or fewer: no more than `EPOCHS`; with a GPU a large train set is seen once."""
    epoch = math.ceil(train / batch)
    return max(1, min(max(preset, epoch if gpus and phase in ("student", "distil") else 0), EPOCHS * epoch))


def _source(found: Found, path: Path, name: str) -> list[str]:
    source = dict(found.source)
    if found.carved and found.queries is not None:
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
    if found.drawn:
        way, why = found.drawn
        number = min(found.corpus.count, DRAWN)
        lines.append(f"# training queries are drawn from the corpus: {why}; titles, sentences or crops")
        if way == "titles":
            lines.append("# a passage begins with its title: fine to align on; to train on such pairs: fields: [text]")
        lines.append(f"queries: {{from: {way}, number: {number}}}")
    return lines


def _seen(file: str, path: Path) -> str:
    """A path as it is written into the dataset file: relative to it, if it lies below the folder that we are in."""
    absolute = Path(os.path.abspath(expand(file)))
    return os.path.relpath(absolute, path.parent) if absolute.is_relative_to(Path.cwd()) else str(absolute)


def _quoted(text: str) -> str:
    return text if re.fullmatch(r"[\w./-]+", text) else json.dumps(text, ensure_ascii=False)
