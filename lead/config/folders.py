"""The files of a source: those that it names, or those in a folder with BEIR's or MTEB's layout."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lead.config.parse import card_header
from lead.config.sources import BeirSource, FilesSource, HfSource, OnDisk, SplitFiles
from lead.errors import LeadError

DATA = re.compile(r"\.(parquet|jsonl|json|ndjson|tsv|csv|txt)(\.gz|\.zst)?$")
SHARD = re.compile(r"-\d+-of-\d+$")
OTHER_JSON = ("dataset_infos.json", "dataset_info.json", "state.json")  # files of the library datasets without data
JUDGED = ("qrels", "default", "data")  # configurations of judgements in MTEB's layout
DEV = ("dev", "validation", "valid")
Splits = Mapping[str, Sequence[Path]]


@dataclass(frozen=True)
class LocatedSplit:
    """Files of queries and judgements of one split. A table may have several files."""

    queries: Sequence[Path]
    qrels: Sequence[Path]


@dataclass(frozen=True)
class Located:
    """Files of a collection."""

    corpus: Sequence[Path]
    splits: Mapping[str, LocatedSplit]  # train and test, if not drawn or missing, and perhaps dev

    def files(self) -> list[str]:
        """All of them, each once."""
        found = [*self.corpus, *(f for s in self.splits.values() for f in (*s.queries, *s.qrels))]
        return list(dict.fromkeys(map(str, found)))


def locate(source: OnDisk) -> Located:
    """The files of a source. A repository of the hub is downloaded first, unless it is on this machine already.

    It does not check that named files exist; their reader does. Raises LeadError if a folder lacks a part of its
    layout.
    """
    if isinstance(source, FilesSource):
        splits = {"train": source.train, "dev": source.dev, "test": source.test}
        found = {name: split_files(split) for name, split in splits.items() if split is not None}
        return Located([expand(source.corpus)], found)
    return _beir(source) if isinstance(source, BeirSource) else _hf(source)


def split_files(split: SplitFiles) -> LocatedSplit:
    """The two files of a split."""
    return LocatedSplit([expand(split.queries)], [expand(split.qrels)])


def expand(path: str) -> Path:
    """A path with `~` for the home folder."""
    return Path(os.path.expanduser(path))


# --- BEIR ------------------------------------------------------------------------------------------------------------
def _beir(source: BeirSource) -> Located:
    folder = _folder(source.folder)
    corpus = _one(folder, "corpus", ".jsonl")
    if source.train is None and not (folder / "qrels").is_dir():  # a corpus alone
        return Located([corpus], {})
    queries = _one(folder, "queries", ".jsonl")
    qrels = {p.name.partition(".tsv")[0]: [p] for p in sorted((folder / "qrels").glob("*.tsv*")) if _is_data(p)}
    splits = _choose(source, qrels, folder / "qrels")
    return Located([corpus], {name: LocatedSplit([queries], files) for name, files in splits.items()})


def _one(folder: Path, name: str, suffix: str) -> Path:
    for packed in ("", ".gz", ".zst"):
        if (path := folder / f"{name}{suffix}{packed}").is_file():
            return path
    raise LeadError(f"source.folder: {folder} has no {name}{suffix}; give an unpacked folder in BEIR's layout")


# --- Hugging Face ----------------------------------------------------------------------------------------------------
def _hf(source: HfSource) -> Located:
    folder = _folder(source.folder) if source.folder is not None else _download(str(source.repository), source.revision)
    configs = _configs(folder)
    apart = configs
    if source.qrels is not None:
        apart = _configs(_folder(source.qrels) if source.folder is not None else _download(source.qrels, None))
    corpus = _config(configs, ("corpus",), folder)
    if source.train is None and not _named(apart, JUDGED):
        return Located(_whole(corpus, source.test), {})  # a corpus alone
    queries, qrels = _config(configs, ("queries",), folder), _config(apart, JUDGED, folder)
    splits = {}
    for name, files in _choose(source, qrels, folder).items():
        split = source.train if name == "train" else source.test if name == "test" else source.dev
        splits[name] = LocatedSplit(queries.get(str(split)) or _every(queries), files)
    return Located(_whole(corpus, source.test), splits)


def _whole(corpus: Splits, test: str) -> Sequence[Path]:
    """Files of the passages."""
    whole = [path for split, files in corpus.items() if split.startswith("corpus") for path in files]  # corpus-2 too
    return whole or corpus.get(test) or _every(corpus)


def judged_splits(folder: Path) -> Sequence[str]:
    """Splits of the judgements in a folder in MTEB's layout; none where it has none."""
    return sorted(_named(_configs(folder), JUDGED) or {})


def _config(configs: Mapping[str, Splits], names: Sequence[str], folder: Path) -> Splits:
    """As `_named`. Raises LeadError where there is none."""
    if (found := _named(configs, names)) is not None:
        return found
    raise LeadError(
        f"source: {folder} has no configuration {' or '.join(names)}, only {', '.join(configs) or 'nothing'}; give a "
        "dataset in MTEB's layout (corpus, queries, qrels)"
    )


def _named(configs: Mapping[str, Splits], names: Sequence[str]) -> Splits | None:
    """The first of these configurations that exists, also as `en-corpus` if there is only one language."""
    for name in names:
        fitting = [c for c in configs if c == name or c.endswith(f"-{name}")]
        if name in fitting or len(fitting) == 1:
            return configs[name if name in fitting else fitting[0]]
    return None


def _every(splits: Splits) -> list[Path]:
    return [path for files in splits.values() for path in files]


def _configs(folder: Path) -> dict[str, Splits]:
    """Configuration -> split -> files: from the README's header, else by the names of folders and files."""
    said: dict[str, dict[str, list[Path]]] = {}
    for config in _card(folder):
        files = config.get("data_files")
        parts = files if isinstance(files, list) and files and isinstance(files[0], dict) else [{"path": files}]
        splits = said.setdefault(str(config.get("config_name", "default")), {})
        for part in parts:
            if found := _matching(folder, part.get("path")):
                splits.setdefault(str(part.get("split", "train")), []).extend(found)
    if any(said.values()):
        return {name: splits for name, splits in said.items() if splits}
    seen: dict[str, dict[str, list[Path]]] = {}
    for path in sorted(p for p in folder.rglob("*") if _is_data(p)):
        folders = path.relative_to(folder).parts[:-1]
        split = SHARD.sub("", DATA.sub("", path.name))
        if split.isdigit() and len(folders) > 1:  # the hub's own Parquet: corpus/corpus/0000.parquet
            name, split = folders[-2:]
        elif folders:
            name = folders[-1]
        else:
            name = split if split in ("corpus", "queries") else "default"
        seen.setdefault(name, {}).setdefault(split, []).append(path)
    return dict(seen)


def _matching(folder: Path, patterns: Any) -> list[Path]:
    """Data files in `folder` that match a README's pattern or list of patterns."""
    found = []
    for pattern in patterns if isinstance(patterns, list) else [patterns]:
        paths = glob.glob(os.path.join(glob.escape(str(folder)), str(pattern)), recursive=True)
        found += [path for path in map(Path, sorted(paths)) if _is_data(path)]
    return found


def _card(folder: Path) -> list[dict[str, Any]]:
    """`configs` in the YAML header of a repository's README.md; none without such a header."""
    configs = card_header(folder / "README.md").get("configs")
    return [config for config in configs if isinstance(config, dict)] if isinstance(configs, list) else []


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    wanted = ["README.md", *(f"*.{kind}{packed}" for kind in ("parquet", "jsonl", "json", "ndjson", "tsv", "csv", "txt")
                             for packed in ("", ".gz", ".zst"))]  # fmt: skip
    try:
        return Path(snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=wanted))
    except Exception as e:  # the library does not document its exceptions
        reason = " ".join(str(e).split())[:200] or type(e).__name__
        raise LeadError(
            f"source.repository: cannot get the dataset '{name}' from the hub: {reason}; check the name and the "
            "network, or download it and give `folder`"
        ) from e


# --- both ------------------------------------------------------------------------------------------------------------
def _folder(path: str) -> Path:
    folder = expand(path)
    if not os.path.isdir(folder):
        raise LeadError(f"source.folder: no folder {folder}; download and unpack it, or fix the path")
    return folder


def _is_data(path: Path) -> bool:
    return DATA.search(path.name) is not None and path.name not in OTHER_JSON and path.is_file()


def _choose(source: BeirSource | HfSource, qrels: Splits, where: Path) -> dict[str, Sequence[Path]]:
    """The judgements of train, test and, if there are any, dev. Raises LeadError for a missing split."""
    taken = {source.train, source.test}
    alone = source.train is None and source.test not in qrels
    dev = source.dev or next((name for name in DEV if name in qrels and name not in taken), None)
    wanted = {"train": source.train, "dev": dev, "test": None if alone else source.test}
    for key, name in wanted.items():
        if name is not None and name not in qrels:
            there = ", ".join(sorted(qrels)) or "none"
            raise LeadError(
                f"source.{key}: {where} has no judgements '{name}', only: {there}; name one of these as `{key}`, or "
                "use kind `files` with queries and judgements from elsewhere"
            )
    if source.train == source.test:
        raise LeadError(f"source.train: '{source.train}' is the test split too; train on another")
    return {key: qrels[name] for key, name in wanted.items() if name is not None}
