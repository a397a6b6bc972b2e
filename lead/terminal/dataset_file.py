"""The dataset file that `lead init` writes: lengths, steps and batch that fit a collection and this machine."""

from __future__ import annotations

import glob
import json
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lead.config.folders import expand
from lead.config.load import validate
from lead.config.parse import read_yaml
from lead.config.phases import ALIGN, Align
from lead.config.schema import Settings
from lead.config.shipped import shipped
from lead.data.collection import Split
from lead.terminal.look import Look

PRESET = "tuned"
RUNS = ("bm25", "student", "student_more", "rd_cb", "lead_cb")
ALIGNED = "student_aligned"  # the run that needs no judged queries
PHASES = ("miner", "teacher", "teacher_ce", "student", "distil")
EPOCHS = 3  # a small train set is seen at most so often in each training
ALIGN_STEPS = 3000, 60_000  # of an alignment, at most: without and with a GPU
ALIGN_LEAST, ALIGN_EPOCHS = 500, 20  # a small collection is seen more often: so many steps, at most so many times
DRAWN = 20_000  # queries that are drawn from a corpus, at most
WORDY = {"titles": 32, "sentences": 64, "crops": 32}  # tokens of drawn queries
PASSAGE, QUERY = (0.95, 256), (0.99, 64)  # this share of the texts is not cut, but no length is above so many tokens
SHARD = 1_500_000  # passages from which on a corpus is encoded in several jobs


@dataclass
class Found:
    """What a collection was found to be, in lines for people, and what its dataset file says of it.

    queries: None where there are none to train on. Then train queries are drawn from the corpus, as `drawn` says (the
    way, and why), and the unjudged queries `asked` are aligned on too.
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


def dataset_file(name: str, found: Found, path: Path) -> str:
    """The text of the dataset file `path`."""
    corpus, (passage, cut) = found.corpus, _passages(found.corpus)
    gpus = len(glob.glob("/dev/nvidia[0-9]*"))
    own = path.parent.parent / "presets" / f"{PRESET}.yaml"
    preset, _ = read_yaml(own if own.exists() else shipped("config") / "presets" / own.name)
    machine = f"{gpus} GPU{'s' * (gpus > 1)}" if gpus else f"{os.cpu_count() or 1} CPU cores, no GPU"
    if found.queries is None:
        about, query, chosen = "no judged queries to train on", *_drawn(found)
        training = _alignment(found, gpus, machine)
    else:
        about, query, chosen = f"{found.judged['train']:,} training queries", _length(found.queries, *QUERY), list(RUNS)
        training = _trainings(found.judged["train"], preset, gpus, machine)
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
        '  # models: {teacher: {reference: "hub:NAME"}, student: {reference: "hub:NAME"}} # others than the preset\'s',
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


def _passages(corpus: Look) -> tuple[int, float]:
    """The length of passages in tokens, and the share that it cuts."""
    length = _length(corpus, *PASSAGE)
    return length, sum(words * 1.35 + 2 > length for words in corpus.words) / max(1, len(corpus.words))


def _trainings(train: int, preset: dict[str, Any], gpus: int, machine: str) -> list[str]:
    """Batch and steps of trainings on judged queries."""
    settings = validate(Settings, preset, PRESET)
    usual, most = settings.train.batch_size, settings.train.steps
    batch = usual * (4 if gpus else 1)
    while batch > 4 and batch * 8 > train:  # at least eight steps an epoch
        batch //= 2
    given = {phase: getattr(settings.phases, phase).get("steps", most) for phase in PHASES}
    steps = {phase: _steps(phase, n, train, batch, gpus) for phase, n in given.items()}
    epochs = steps["distil"] * batch / max(1, train)
    few = [f"  # the batch is below the preset's {usual}: there are few training queries"] if batch < usual else []
    return [
        *few,
        f"  # for {machine}; {train:,} training queries are {math.ceil(train / batch):,} steps an epoch",
        f"  train: {{batch_size: {batch}, checkpoint_every: {max(20, min(100, steps['distil'] // 4))}}}",
        f"  phases: # at most {EPOCHS} epochs each; distillation: {epochs:.1f}",
        *(f"    {phase}: {{steps: {n}}}" for phase, n in steps.items()),
    ]


def _drawn(found: Found) -> tuple[int, list[str]]:
    """A length for queries drawn from the corpus and those without judgements, and the runs that need no others."""
    assert found.drawn is not None
    asked = _length(found.asked, *QUERY) if found.asked else 0
    runs = ["bm25", "pretrained_teacher", ALIGNED] if "test" in found.judged else [ALIGNED]
    return max(WORDY[found.drawn[0]], asked), runs


def _alignment(found: Found, gpus: int, machine: str) -> list[str]:
    """Epochs and batch of an alignment."""
    texts = found.corpus.count + min(found.corpus.count, DRAWN) + (found.asked.count if found.asked else 0)
    batch, epochs = min(int(ALIGN["batch_size"]), max(1, texts // 8)), Align().epochs
    epoch = max(1, texts // batch)  # steps of one
    epochs = max(epochs, min(ALIGN_EPOCHS, math.ceil(ALIGN_LEAST / epoch)))
    most = ALIGN_STEPS[bool(gpus)] / epoch
    epochs = epochs if most >= epochs else max(0.01, round(most, 2))
    more = f", queries: [{_quoted(str(found.asked.paths[0]))}]" if found.asked else ""
    smaller = [f"  phases: {{align: {{batch_size: {batch}}}}} # few texts"] if batch < ALIGN["batch_size"] else []
    return [
        f"  # for {machine}: about {texts:,} texts, {math.ceil(epochs * epoch):,} steps of {batch}",
        f"  align: {{epochs: {epochs:g}{more}}}",
        *smaller,
    ]


def _length(seen: Look, share: float, most: int) -> int:
    """A length in tokens that this share of the texts does not exceed: a multiple of 8, at most `most`."""
    return min(most, max(16, 8 * math.ceil(seen.tokens(share) / 8)))


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
