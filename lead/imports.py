"""Imports of large packages by our commands, whose start is little else: torch 2 CPU seconds, transformers 4."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator
from importlib.abc import MetaPathFinder
from typing import Any

# transformers imports SciPy (1 s) to detect objects in images; the hub's client imports trio if it is installed
UNUSED = ("scipy", "trio")


class _Process:
    """Whether this process runs one of our commands, and nothing of somebody else's."""

    ours = False


class _NoPandas(MetaPathFinder):
    """Finds no pandas. A None in `sys.modules` would not do: pyarrow looks there itself."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> None:
        """Refuse pandas; leave others to the next finder."""
        if name == "pandas":
            raise ImportError(name)


def lean_imports() -> None:
    """Spare this process, which runs one of our commands, what packages import for uses that we do not have.

    pyarrow imports pandas (.4 s) with its first array, to recognise objects of pandas. Ours are none.
    `to_pandas` imports it all the same.
    """
    _Process.ours = True
    if "pandas" not in sys.modules:
        import pyarrow

        sys.meta_path.insert(0, finder := _NoPandas())
        pyarrow.array([0])
        sys.meta_path.remove(finder)


@contextlib.contextmanager
def importing(*without: str) -> Iterator[None]:
    """A block of imports in one of our commands; in other processes nothing is special.

    without: packages that are not found in the block, unless they have been imported before. Python's garbage collector
    is off, since imports leave no garbage and it took a ninth of their time. It skips what they made later on, too.
    """
    if not _Process.ours:
        yield
        return
    hidden = [name for name in without if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: Python's own way to say "not there"
    gc.disable()
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
        gc.freeze()
        gc.enable()


def import_transformers() -> None:
    """Import what loads models."""
    with importing(*UNUSED):
        import transformers.modeling_utils  # noqa: F401
