"""The registries name their classes and functions as "module:name", so that reading a record imports no torch."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from lead.errors import LeadError


def check_reference(reference: str, where: str) -> None:
    """Refuse a reference whose module is not there. The module is not run. Raises LeadError; `where`: whose it is."""
    module, _, name = reference.partition(":")
    try:
        found = bool(name) and importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        found = False
    if not found:
        raise LeadError(f"{where}: there is no '{reference}'; write module:name of a module that is there")


def imported(reference: str, where: str) -> Any:
    """The class or function that "module:name" names. Raises LeadError; `where`: whose it is, for the message."""
    check_reference(reference, where)
    module, _, name = reference.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as e:
        raise LeadError(f"{where}: '{reference}' cannot be imported: {e}") from e
