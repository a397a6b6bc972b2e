"""The registries name their classes and functions as "module:name", so that reading a record imports no torch."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
from pathlib import Path
from typing import Any

from lead.errors import LeadError, nearest


@functools.cache  # plans ask thousands of times
def check_reference(reference: str, where: str) -> None:
    """Refuse a reference to a missing module or name. The module is not run. where: its record. Raises LeadError."""
    module, _, name = reference.partition(":")
    try:
        spec = importlib.util.find_spec(module) if name else None
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None:
        raise LeadError(f"{where}: there is no '{reference}'; write module:name of an existing module")
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    defined = [n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    if name not in defined:
        raise LeadError(f"{where}: {module} defines no '{name}'; {nearest(name, defined)}")


def imported(reference: str, where: str) -> Any:
    """The class or function of "module:name". where: its record, for the message. Raises LeadError."""
    check_reference(reference, where)
    module, _, name = reference.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as e:
        raise LeadError(f"{where}: '{reference}' cannot be imported: {e}") from e
