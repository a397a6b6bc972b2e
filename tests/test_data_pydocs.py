"""Mining docstrings: what becomes a query, what is merged, what is parted, and that equal sources give equal bytes."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from lead.config.sources import PydocsSource
from lead.config.stages import PrepareSettings
from lead.data import pydocs
from lead.data.collection import Collection
from lead.data.prepare import prepare
from lead.errors import LeadError

REST = "This passage explains at some length, in fifteen words or a few more, what {} is for."


def function(name: str, summary: str, rest: str | None = None) -> str:
    """Source of a function with a docstring."""
    return f'def {name}():\n    """{summary}\n\n    {rest or REST.format(name)}\n    """\n\n\n'


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package on sys.path that raises when it is imported."""
    root = tmp_path / "site" / "leadfake"
    files = {
        "__init__.py": "raise RuntimeError('imported')\n",
        "_solve.py": function("solve", "Solve a linear\n    system of equations.")
        + function("_private", "Solve a private system of equations.")
        + function("short", "Too short")
        + function("old", "Deprecated since the version before.")
        + 'def brief():\n    """A summary of five words.\n\n    But a short rest.\n    """\n',
        "copies.py": function("first", "The first of two copies.", REST.format("both"))
        + function("second", "The second of two copies.", REST.format("both"))
        + function("twin_a", "Twins share this summary line.")
        + function("twin_b", "Twins share this summary line.")
        + function("same", "An exact copy of another.", REST.format("same"))
        + function("again", "An exact copy of another.", REST.format("same")),
        "nested.py": "if True:\n    class Outer:\n        def inner(self):\n"
        + f'            """Do what the method does.\n\n            {REST.format("inner")}\n            """\n',
        "broken.py": 'def f(:\n    """x"""\n',
        "latin.py": "# -*- coding: latin-1 -*-\n" + function("accent", "Name a café in French.") + "\n",
        "tests/test_it.py": function("test", "Test that tests are skipped."),
        "_internal/hidden.py": function("hidden", "Hide what is in here."),
        "many.py": "".join(function(f"f{i}", f"Function number {i} of many.") for i in range(90)),
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="latin-1" if name == "latin.py" else "utf-8")
    monkeypatch.syspath_prepend(root.parent)
    importlib.invalidate_caches()
    return "leadfake"


def collect(package: str, **options: int) -> tuple[Collection, dict[str, str]]:
    """The mined collection, and its passages by id."""
    collection = pydocs.collect(PydocsSource(kind="pydocs", packages=[package], **options))
    passages = {row["pid"]: row["text"] for batch in collection.passages for row in batch.to_pylist()}
    return collection, passages


def queries(collection: Collection, *names: str) -> dict[str, str]:
    """Query texts by id, of the splits named."""
    return {row["qid"]: row["text"] for name in names for row in collection.splits[name].queries.to_pylist()}


def test_query_is_the_summary_and_passage_the_rest(package: str) -> None:
    """Names leave private modules out; private, short, deprecated, vendored and broken sources do not appear."""
    collection, passages = collect(package)
    texts = queries(collection, "train", "test")
    assert texts["leadfake.solve"] == "Solve a linear system of equations."
    assert passages["leadfake.solve"] == REST.format("solve")
    assert texts["leadfake.nested.Outer.inner"] == "Do what the method does."
    assert texts["leadfake.latin.accent"] == "Name a café in French."
    assert not [n for n in texts if n.split(".")[-1] in {"_private", "short", "old", "brief", "test", "hidden"}]
    assert "leadfake" not in sys.modules
    assert collection.facts["packages"]["leadfake"]["version"] == "unknown"


def test_copies_are_merged(package: str) -> None:
    """One passage for equal passages, one query with several positives for equal summaries."""
    collection, passages = collect(package)
    assert len(set(passages.values())) == len(passages)
    texts = queries(collection, "train", "test")
    assert len(set(texts.values())) == len(texts)
    pairs = [(r["qid"], r["pid"]) for s in collection.splits.values() for r in s.qrels.to_pylist()]
    assert len(set(pairs)) == len(pairs)
    copies = [(q.split(".")[-1], p.split(".")[-1]) for q, p in pairs if ".copies." in q]
    assert sorted(copies) == [
        ("first", "first"), ("same", "same"), ("second", "first"), ("twin_a", "twin_a"), ("twin_a", "twin_b"),
    ]  # fmt: skip


@pytest.mark.parametrize("evaluation", range(1, 30, 4))
def test_no_passage_serves_both_splits(package: str, evaluation: int) -> None:
    """Whole groups are held out, exactly as many queries as asked."""
    collection, _ = collect(package, evaluation=evaluation)
    train, test = (set(collection.splits[s].qrels["pid"].to_pylist()) for s in ("train", "test"))
    assert not train & test
    assert collection.splits["test"].queries.num_rows == evaluation


def test_slices_are_nested_and_capped(package: str, caplog: pytest.LogCaptureFixture) -> None:
    """A part holds about as many passages as asked and at most a third of its queries are held out."""
    caplog.set_level("INFO", "lead")
    whole, _ = collect(package, evaluation=20)
    part, passages = collect(package, passages=30, evaluation=20)
    assert len(passages) == 30
    assert part.splits["test"].queries.num_rows == len(queries(part, "train", "test")) // 3
    assert "a third of all" in caplog.text
    assert set(queries(part, "test")) <= set(queries(whole, "test"))


def test_equal_sources_give_equal_bytes(package: str, tmp_path: Path) -> None:
    """Two runs of the stage agree in every byte of every file."""
    settings = PrepareSettings(source=PydocsSource(kind="pydocs", packages=[package], evaluation=10))
    for name in ("a", "b"):
        prepare(settings=settings, out=tmp_path / name)
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert len(names) == 8
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


@pytest.mark.parametrize("name", ["no_such_package_here", "numpy.linalg", "", "bisect"])
def test_package_that_is_not_installed(name: str) -> None:
    """One line that names key, package and remedy."""
    with pytest.raises(LeadError, match=f"source.packages: '{name}' .*install it"):
        pydocs.collect(PydocsSource(kind="pydocs", packages=[name]))


def test_numpy() -> None:
    """A real package gives hundreds of pairs, under the names that people know."""
    collection, passages = collect("numpy", evaluation=100)
    assert 500 < len(passages) < 3000
    assert "Parameters" in passages["numpy.linalg.solve"]
    assert queries(collection, "train", "test")["numpy.linalg.solve"].startswith("Solve a linear matrix equation")
    assert collection.splits["test"].queries.num_rows == 100
    assert collection.facts["packages"]["numpy"]["version"] != "unknown"
