"""The built-in collections: docstrings of packages, query = the summary, passage = the rest.

Sources are parsed, never imported: no foreign code runs. The result depends only on the packages' versions. Everything
is sorted, and every choice is made by hash, so the same versions give the same bytes.
"""

from __future__ import annotations

import ast
import gc
import hashlib
import importlib.metadata
import importlib.util
import logging
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm import tqdm

from lead.config.folders import expand
from lead.config.sources import PydocsSource
from lead.data.collection import Collection, Split
from lead.errors import LeadError
from lead.store.tables import SCHEMAS

log = logging.getLogger("lead")

SKIPPED_FOLDERS = {"tests", "test", "vendored", "externals"}
SUMMARY_WORDS = range(3, 31)
MIN_PASSAGE_WORDS = 15
# A first paragraph that is a notice, a heading, markup, or the first entry of a list of parameters: `x (`Tensor`): ...`
JUNK = re.compile(
    r"\W*(deprecated|copyright|licen[cs]ed?|todo|note|warning|args?|arguments?|parameters?|returns?:|examples?|alias|internal"
    r"|see|https?:)\b|\.\. |```|>>>|\*|\W*\w+ \(`",
    re.IGNORECASE,
)
UNDERLINE = re.compile(r"([^\w\s])\1{2,}")


@dataclass(frozen=True)
class Docstring:
    """One documented definition, such as `numpy.linalg.solve`; its docstring is split in two."""

    name: str
    summary: str
    rest: str


Group = list[Docstring]
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def collect(source: PydocsSource) -> Collection:
    """Collect docstrings: splits `train` and `test`, every judgement of relevance 1.

    Memory: the docstrings, some tens of MB. Raises LeadError when a package is not there.
    """
    packages, folder = sorted(set(source.packages)), None if source.folder is None else expand(source.folder)
    roots = {package: _roots(package, folder) for package in packages}  # find all before parsing any
    docstrings = _merge([d for package in packages for d in _docstrings(package, roots[package])])
    groups = _groups(docstrings)
    if source.passages is not None:
        groups = _take(groups, source.passages, lambda group: len({d.rest for d in group}))
    queries = sum(len({d.summary for d in group}) for group in groups)
    wanted = source.evaluation
    if wanted > queries // 3:
        wanted = queries // 3
        log.info("pydocs: %d queries for evaluation instead of %d: a third of all", wanted, source.evaluation)
    test = _take(groups, wanted, lambda group: len({d.summary for d in group}))
    held_out = {d.name for group in test for d in group}
    kept = sorted((d for group in groups for d in group), key=lambda d: d.name)
    passage_ids: dict[str, str] = {}  # equal passages are one, named after the first
    for d in kept:
        passage_ids.setdefault(d.rest, d.name)
    splits = {
        "train": _split([d for d in kept if d.name not in held_out], passage_ids),
        "test": _split([d for d in kept if d.name in held_out], passage_ids),
    }
    corpus = pa.table({"pid": list(passage_ids.values()), "text": list(passage_ids)}, schema=SCHEMAS["corpus"])
    return Collection(iter(corpus.to_batches()), splits, _facts(_versions(packages, folder), splits, passage_ids))


def _roots(package: str, folder: Path | None = None) -> list[Path]:
    """Folders of a top-level package, in `folder` or the environment, found without importing it.

    Finding `a.b` in the environment would import `a`.
    """
    if folder is not None:
        if not package.isidentifier() or not (folder / package).is_dir():
            raise LeadError(f"source.packages: '{package}' is no package in {folder}; install it there, or take it off")
        return [folder / package]
    try:
        spec = None if "." in package else importlib.util.find_spec(package)
    except ValueError:  # an empty name, or a module without a spec
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise LeadError(
            f"source.packages: '{package}' is not an installed top-level package; install it, or take it off the list"
        )
    return sorted(Path(folder) for folder in spec.submodule_search_locations)


def _versions(packages: list[str], folder: Path | None) -> dict[str, str]:
    """Versions of the distributions that provide import names (`sklearn`: that of scikit-learn)."""
    if folder is None:
        providers = importlib.metadata.packages_distributions()
        found = {p: {importlib.metadata.version(d) for d in providers.get(p, [])} for p in packages}
    else:
        found = {p: set() for p in packages}
        for distribution in importlib.metadata.distributions(path=[str(folder)]):
            for package in {file.parts[0] for file in distribution.files or []} & found.keys():
                found[package].add(distribution.version)
    return {package: ", ".join(sorted(versions)) or "unknown" for package, versions in found.items()}


def is_documentation(file: Path) -> bool:
    """Whether to parse a file of a package: no tests, vendored or private folders, or templates of other files.

    Private folders hold internals (compilers, adapters). The exception is numpy's `_core`, which holds much of its
    public interface. transformers generates its `modeling_x.py` from `modular_x.py`.
    """
    private = any(folder.startswith("_") and folder != "_core" for folder in file.parts[:-1])
    return not private and not SKIPPED_FOLDERS.intersection(file.parts) and not file.name.startswith("modular_")


def _docstrings(package: str, roots: list[Path]) -> Iterator[Docstring]:
    files = [(root, path.relative_to(root)) for root in roots for path in root.rglob("*.py")]
    files = sorted((f for f in files if is_documentation(f[1])), key=lambda f: f[1].parts)
    collecting = gc.isenabled()
    gc.disable()  # syntax trees hold no cycles; the collector would visit each many times
    try:
        for root, relative in tqdm(files, desc=f"parse {package}", unit="file", disable=None):
            source = (root / relative).read_bytes()
            if b'"""' not in source and b"'''" not in source:
                continue  # a docstring of two paragraphs is triple-quoted: no need for the slow parser
            try:
                with warnings.catch_warnings(action="ignore"):  # our user cannot fix invalid escapes there
                    tree = ast.parse(source)
            except (SyntaxError, ValueError):
                log.info("pydocs: skipped %s/%s, which is not valid Python", package, relative.as_posix())
                continue
            # the source of numpy.linalg.solve is numpy/linalg/_linalg.py: private parts are not in the public name
            public = [part for part in relative.with_suffix("").parts if not part.startswith("_")]
            for name, node in _definitions(tree, ".".join([package, *public])):
                docstring = _parse(name, ast.get_docstring(node) or "")
                if docstring is not None:
                    yield docstring
    finally:
        if collecting:
            gc.enable()


def _definitions(node: ast.stmt | ast.Module, name: str) -> Iterator[tuple[str, Documented]]:
    """The public definitions in a tree, with their qualified names: outer first, in the order of the source."""
    if isinstance(node, Documented):
        yield name, node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if not child.name.startswith("_"):
                yield from _definitions(child, f"{name}.{child.name}")
        elif isinstance(child, ast.stmt):  # `if` and `try` may hold definitions; expressions do not
            yield from _definitions(child, name)


def _parse(name: str, docstring: str) -> Docstring | None:
    r"""Split a cleaned docstring at its first blank line. None if its parts are no useful query and passage.

    >>> _parse("a.b", "Solve a linear\nsystem.\n\n" + "word " * 15).summary
    'Solve a linear system.'
    """
    first, _, rest = docstring.strip().partition("\n\n")
    lines = [line.strip() for line in first.splitlines()]
    summary = " ".join(" ".join(line for line in lines if not UNDERLINE.fullmatch(line)).split())
    rest = rest.strip()
    if len(summary.split()) not in SUMMARY_WORDS or JUNK.match(summary) or len(rest.split()) < MIN_PASSAGE_WORDS:
        return None
    try:
        (summary + rest).encode()
    except UnicodeEncodeError:  # half a surrogate pair: valid Python, but no text
        return None
    return Docstring(name, summary, rest)


def _merge(docstrings: list[Docstring]) -> list[Docstring]:
    """Give every docstring a unique name: `a.b`, `a.b#2`, ... Keep only the first of exact copies."""
    seen: set[tuple[str, str]] = set()
    count: Counter[str] = Counter()
    kept = []
    for d in docstrings:
        if (d.summary, d.rest) in seen:
            continue
        seen.add((d.summary, d.rest))
        count[d.name] += 1
        kept.append(d if count[d.name] == 1 else Docstring(f"{d.name}#{count[d.name]}", d.summary, d.rest))
    return kept


def _groups(docstrings: list[Docstring]) -> list[Group]:
    """Connected components of queries and passages, in an order fixed by hash.

    Queries that share a passage must not be parted, or a test query's passage would be a training positive. The hash is
    that of one query text, so a package that grows by a function moves no other group from one side to the other.
    """
    parent: dict[tuple[str, str], tuple[str, str]] = {}

    def find(node: tuple[str, str]) -> tuple[str, str]:
        while parent.setdefault(node, node) != node:
            parent[node] = node = parent[parent[node]]
        return node

    for d in docstrings:
        parent[find(("query", d.summary))] = find(("passage", d.rest))
    groups: defaultdict[tuple[str, str], list[Docstring]] = defaultdict(list)
    for d in docstrings:
        groups[find(("query", d.summary))].append(d)
    return sorted(groups.values(), key=lambda g: hashlib.sha256(min(d.summary for d in g).encode()).digest())


def _take(groups: list[Group], limit: int, size: Callable[[Group], int]) -> list[Group]:
    """Whole groups, in order, until their sizes add up to `limit`. A group that would exceed it is skipped."""
    taken = []
    for group in groups:
        if size(group) <= limit:
            taken.append(group)
            limit -= size(group)
    return taken


def _split(docstrings: list[Docstring], passage_ids: dict[str, str]) -> Split:
    """Queries and judgements; equal summaries are one query, named after the first, with several positives."""
    query_ids: dict[str, str] = {}
    for d in docstrings:
        query_ids.setdefault(d.summary, d.name)
    qids = [query_ids[d.summary] for d in docstrings]
    pids = [passage_ids[d.rest] for d in docstrings]
    return Split(
        queries=pa.table({"qid": list(query_ids.values()), "text": list(query_ids)}, schema=SCHEMAS["queries"]),
        qrels=pa.table({"qid": qids, "pid": pids, "rel": [1] * len(qids)}, schema=SCHEMAS["qrels"]),
    )


def _facts(versions: dict[str, str], splits: dict[str, Split], passage_ids: dict[str, str]) -> dict[str, Any]:
    passages = Counter(_package(pid) for pid in passage_ids.values())
    queries = Counter(_package(qid) for split in splits.values() for qid in split.queries["qid"].to_pylist())
    return {
        "packages": {p: {"version": v, "passages": passages[p], "queries": queries[p]} for p, v in versions.items()},
    }


def _package(name: str) -> str:
    return re.split("[.#]", name)[0]
