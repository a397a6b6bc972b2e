"""Loading and checking configuration files. Every mistake is one line: file, line, key, what is wrong, the remedy."""

from __future__ import annotations

import inspect
import os
import re
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from lead.config.experiments import Config, Experiments, path_in_rules
from lead.config.folders import locate, split_files
from lead.config.parse import line_of, read_yaml
from lead.config.schema import Dataset, Settings, Train
from lead.config.shipped import DEFAULT_CONFIG, shipped
from lead.config.sources import KINDS_OF_SOURCE, EvaluationSource, OnDisk, Source, SplitFiles
from lead.config.types import NAME
from lead.errors import LeadError, Named, nearest

T = TypeVar("T", bound=BaseModel)
Tree = dict[str, Any]
S = TypeVar("S", bound=Source)
# old names of keys, and their names today
RENAMED_KEYS = {"hard_candidates": "contrastive_candidates", "given": "external_run"}


# --- checking --------------------------------------------------------------------------------------------------------
def validate(cls: type[T], data: Any, where: str, text: str | None = None, prefix: tuple[str, ...] = ()) -> T:
    """`data` as a checked `cls`. Raises LeadError for the first mistake: key, file, nearest valid name.

    prefix: the place of `data` in the file.
    """
    try:
        return cls.model_validate(data)
    except ValidationError as e:
        errors = e.errors(include_url=False)
        # a misspelt required key is both unknown and missing: report it as unknown
        error = next((found for found in errors if found["type"] == "extra_forbidden"), errors[0])
    location = tuple(error["loc"])
    line = line_of(text, (*prefix, *location)) if text else None
    place = f"{where}:{line}" if line else where
    key = ".".join(str(p) for p in (*prefix, *_without_tags(cls, location)))
    kind, message = error["type"], error["msg"]
    if kind == "extra_forbidden" and (now := RENAMED_KEYS.get(str(location[-1]))):
        raise LeadError(f"{place}: key '{key}' is called '{now}' now; rename it")
    if kind == "extra_forbidden":
        raise LeadError(f"{place}: unknown key '{key}'; {nearest(str(location[-1]), _fields(cls, location[:-1]))}")
    if kind == "union_tag_invalid":
        tags = re.findall(r"'(\w+)'", error["ctx"]["expected_tags"])
        raise LeadError(
            f"{place}: key '{key}.kind': no kind '{error['ctx']['tag']}'; {nearest(error['ctx']['tag'], tags)}"
        )
    if kind == "union_tag_not_found":
        raise LeadError(f"{place}: key '{key}.kind' is missing; add it")
    if kind == "missing":
        raise LeadError(f"{place}: key '{key}' is missing; add it")
    message = message.removeprefix("Value error, ").removeprefix("Input ")
    given = error.get("input")
    given = "a mapping" if isinstance(given, dict) else "a list" if isinstance(given, list) else repr(given)
    shown = f", not {given}" if kind != "value_error" else ""
    raise LeadError(f"{place}: {f'key {key!r}: ' if key else ''}{message}{shown}")


def _options(annotation: Any) -> list[type[BaseModel]]:
    """The models inside an annotation such as `A | B`, `list[A]`, `dict[str, A]`, `Annotated[A, ..]`."""
    if inspect.isclass(annotation) and typing.get_origin(annotation) is None:
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [m for a in typing.get_args(annotation) for m in _options(a)]


def _fields(cls: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """The valid keys at a location inside `cls`."""
    models: list[type[BaseModel]] = [cls]
    for part in location:
        inner = [o for m in models if part in m.model_fields for o in _options(m.model_fields[part].annotation)]
        tagged = [m for m in models if part in typing.get_args(getattr(m.model_fields.get("kind"), "annotation", None))]
        models = inner or tagged or models
    return [name for m in models for name in m.model_fields]


def _without_tags(cls: type[BaseModel], location: tuple[Any, ...]) -> list[Any]:
    """The location without the discriminator tags (`source.pydocs.packages` is `source.packages` in the file)."""
    return [p for n, p in enumerate(location) if not (n and location[n - 1] == "source" and p in KINDS_OF_SOURCE)]


# --- the files -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Part:
    """Some keys of `Settings` from one file."""

    tree: Tree
    where: str


@dataclass(frozen=True)
class Loaded:
    """All configuration files, each checked on its own.

    path: config.yaml. folders: where the others are; a file of an earlier one wins over its namesake in a later one.
    """

    path: Path
    folders: list[Path]
    config: Config
    presets: dict[str, Part]
    datasets: dict[str, tuple[Dataset, Path]]
    experiments: Experiments
    experiments_path: Path
    overrides: Tree

    def file(self, name: str) -> Path:
        """A file of the configuration by its name in the first folder that has it."""
        return _first(self.folders, name)

    def parts(self, dataset: str, run: str | None) -> list[Part]:
        """The keys that override the defaults: preset < dataset < config < experiment row."""
        data, path = self.datasets[dataset]
        shared = []
        if isinstance(data.source, EvaluationSource):  # the settings of its collection come first
            of, of_path = self.datasets[data.source.of]
            shared, data = [Part(of.settings, str(of_path))], data.model_copy(update={"preset": of.preset})
        parts = [
            self.presets[data.preset],
            *shared,
            Part(data.settings, str(path)),
            Part(self.config.settings, str(self.path)),
        ]
        if run is not None:
            parts.append(Part(self.experiments.runs[run].settings, f"{self.experiments_path}, run {run}"))
        return parts


def load(path: str | Path, overrides: Tree | None = None) -> Loaded:
    """Read config.yaml and every file it names. overrides: keys that replace those of config.yaml (snakemake --config).

    Where config/, here or that of `path`, has no config.yaml, the files that come with the package are read, and those
    of config/ laid over them: a dataset or preset wins over its namesake, a row of experiments.yaml likewise.
    Raises LeadError for the first mistake found.
    """
    path = Path(path)
    folders = [path.parent]
    own = path == DEFAULT_CONFIG or (path.parts[-2:] == DEFAULT_CONFIG.parts and path.parent.is_dir())
    if own and not path.exists():
        folders.append(shipped("config"))
    tree, text = read_yaml(_first(folders, path.name))
    if overrides:
        given = validate(Config, overrides, "--config")
        _check_settings(given.settings, "--config", "", ("settings",))
    tree = {} if tree is None else tree
    config = validate(Config, merge(tree, overrides or {}) if isinstance(tree, dict) else tree, str(path), text)
    _check_settings(config.settings, str(path), text, ("settings",))
    presets = {p.stem: _preset(p) for p in _files(folders, config.presets, "presets", path)}
    found = {p.stem: (_dataset(p, presets), p) for p in _files(folders, config.datasets, "datasets", path)}
    datasets = Named("dataset", path.parent / config.datasets, found)
    for data, data_path in found.values():
        if isinstance(data.source, EvaluationSource):
            _check_parent(data.source.of, data_path, found)
    rows_path = _first(folders, config.experiments)
    experiments = _experiments(rows_path, datasets)
    if len(folders) > 1 and not rows_path.is_relative_to(folders[1]):
        rows = _experiments(folders[1] / config.experiments, datasets).runs | experiments.runs
        experiments = experiments.model_copy(update={"runs": rows})
    return Loaded(path, folders, config, presets, datasets, experiments, rows_path, overrides or {})


def _first(folders: list[Path], name: str) -> Path:
    """The file of this name in the first folder that has it; in the first folder where none has."""
    return next((folder / name for folder in folders if os.path.exists(folder / name)), folders[0] / name)


def _files(folders: list[Path], name: str, key: str, config: Path) -> list[Path]:
    """The files of the folders of this name, sorted; a file of an earlier one stands for its namesakes."""
    there = [folder / name for folder in folders if os.path.isdir(folder / name)]
    if not there:
        raise LeadError(f"{config}: key '{key}': {folders[0] / name} is not a folder; create it or fix the key")
    files = {path.stem: path for folder in reversed(there) for path in folder.glob("*.yaml")}
    for path in files.values():
        if not re.fullmatch(NAME, path.stem):
            raise LeadError(f"{path}: a file of {key} is named with letters, digits, '_', '.' and '-' only; rename it")
    return [files[stem] for stem in sorted(files)]


def _experiments(path: Path, datasets: dict[str, Any]) -> Experiments:
    tree, text = read_yaml(path)
    experiments = validate(Experiments, tree, str(path), text)
    for name, row in experiments.runs.items():
        _check_settings(row.settings, str(path), text, ("runs", name, "settings"))
        for dataset in row.datasets or []:
            if dataset not in datasets:
                raise LeadError(f"{path}: run '{name}': no dataset '{dataset}'; {nearest(dataset, datasets)}")
    return experiments


def _preset(path: Path) -> Part:
    tree, text = read_yaml(path)
    _check_settings(tree or {}, str(path), text, ())
    return Part(tree or {}, str(path))


def _dataset(path: Path, presets: dict[str, Part]) -> Dataset:
    tree, text = read_yaml(path)
    dataset = validate(Dataset, tree, str(path), text)
    if isinstance(dataset.source, EvaluationSource):
        if "preset" in dataset.model_fields_set:
            raise LeadError(f"{path}: key 'preset' is that of the dataset '{dataset.source.of}'; leave it out here")
    elif dataset.preset not in presets:
        raise LeadError(f"{path}: key 'preset': no preset '{dataset.preset}'; {nearest(dataset.preset, presets)}")
    _check_settings(dataset.settings, str(path), text, ("settings",))
    return dataset


def _check_parent(of: str, path: Path, found: dict[str, tuple[Dataset, Path]]) -> None:
    with_corpus = [name for name, (dataset, _) in found.items() if not isinstance(dataset.source, EvaluationSource)]
    if of not in with_corpus:
        raise LeadError(f"{path}: key 'source.of': no dataset '{of}' with a corpus; {nearest(of, with_corpus)}")


def _check_settings(tree: Any, where: str, text: str, prefix: tuple[str, ...]) -> None:
    """Check the keys of one file separately, so that the message can name the file and the line."""
    if not isinstance(tree, dict):
        raise LeadError(f"{where}: expected keys and values, not {tree!r}")
    complete = {"models": {"teacher": {"reference": "path:."}, "student": {"reference": "path:."}}}
    validate(Settings, merge(complete, tree), where, text, prefix)
    for phase, keys in (tree.get("phases") or {}).items():
        validate(Train, keys, where, text, (*prefix, "phases", phase))


def merge(base: Tree, over: Tree) -> Tree:
    """`base`, overridden by `over`, mapping by mapping. Lists and scalars are replaced.

    >>> merge({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}})
    {'a': {'b': 1, 'c': 3}}
    """
    out = dict(base)
    for key, value in over.items():
        out[key] = merge(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out


def source_files(source: Source) -> list[str]:
    """The source files of a dataset; none if the source is not on disk. Raises LeadError for a missing folder."""
    if not source.on_disk:
        return []
    if isinstance(source, EvaluationSource):
        found = [source.test] if isinstance(source.test, SplitFiles) else []
        return [str(f) for s in map(split_files, found) for f in (*s.queries, *s.qrels)]
    if isinstance(source, OnDisk):
        return locate(source).files()
    return [str(path) for key in sorted(source.paths) if (path := getattr(source, key)) is not None]


def seen_path(path: str, dataset_file: Path, key: str) -> str:
    """A path of a dataset file, relative to the working directory. LeadError, naming `key`, if no rule can hold it."""
    path = str(dataset_file.parent / os.path.expanduser(path))
    try:
        return path_in_rules(path)
    except ValueError as e:
        raise LeadError(f"{dataset_file}: key '{key}': {path}: {e}") from None


def source_paths(source: S, dataset_file: Path) -> S:
    """The source with paths relative to the working directory. In the file, they are relative to the dataset file.

    They stay relative, so that moving a checkout reruns nothing. Raises LeadError for a path that no rule can hold.
    """

    def seen(tree: Any, key: str = "") -> Any:
        if isinstance(tree, dict):
            return {k: seen(v, k) for k, v in tree.items()}
        return seen_path(tree, dataset_file, "source") if key in paths and tree is not None else tree

    paths = source.paths if source.on_disk else frozenset()
    return type(source).model_validate(seen(source.model_dump()))
