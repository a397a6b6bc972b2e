"""LEAD: liberal feature-based distillation for dense retrieval (Sun et al., 2022).

`lead.load` gives a trained dual encoder: `encode_queries`, `encode_passages`, `index`, `search` (docs/search.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from lead.errors import LeadError
    from lead.search.model import Model
    from lead.search.passages import Hit

__version__ = "0.1.0"
__all__ = ["Hit", "LeadError", "Model", "__version__", "load"]


def load(
    model: str | Path, config: str | Path = "config/config.yaml", overrides: dict[str, Any] | None = None
) -> Model:
    """A trained dual encoder.

    model: DATASET/RUN, which then searches the passages of the dataset with the vectors that the run made; or a model
    folder, which has no passages before `index`. config: of the results, for DATASET/RUN; overrides: keys that win over
    its own, such as {"results": folder}. Raises LeadError: one line for what is missing or damaged.
    """
    from lead.search.load import load

    return load(model, config, overrides)


def __getattr__(name: str) -> Any:
    """`lead.Model`, `lead.Hit` and `lead.LeadError`, imported when they are asked for."""
    import importlib

    modules = {"Hit": "lead.search.passages", "LeadError": "lead.errors", "Model": "lead.search.model"}
    if name not in modules:
        raise AttributeError(f"module 'lead' has no attribute '{name}'")
    return getattr(importlib.import_module(modules[name]), name)
