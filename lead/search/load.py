"""`lead.load`: a model by the name of its run, or by its folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lead.errors import LeadError
from lead.search.model import Model


def load(model: str | Path, config: str | Path, overrides: dict[str, Any] | None = None) -> Model:
    """As `lead.load`."""
    if os.path.isfile(os.path.join(model, "lead.json")):
        return Model(Path(model))
    if os.path.isdir(model) or os.path.isabs(model):
        raise LeadError(f"{model} is no folder of a model that lead trained (no lead.json); give one, or DATASET/RUN")
    from lead.search.systems import Collection

    return Collection.find(str(model), Path(config), overrides).model()
