"""What the files beside a pretrained model say of its licence."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from lead.config.parse import card_header
from lead.errors import LeadError
from lead.pretrained import resolve


def licence(reference: str) -> str | None:
    """The licence in the header of a model's README.md, else that of its package; None where nothing here says it."""
    kind, _, rest = reference.partition(":")
    if kind == "hub":
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(rest, "README.md")
        return _of_card(Path(cached)) if isinstance(cached, str) else None
    try:
        said = _of_card(Path(resolve(reference)) / "README.md")
    except LeadError:
        return None
    return said or (_of_package(rest.partition("/")[0]) if kind == "package" else None)


def _of_card(file: Path) -> str | None:
    said = card_header(file).get("license")
    return said if isinstance(said, str) else None


def _of_package(module: str) -> str | None:
    for name in importlib.metadata.packages_distributions().get(module, []):
        about = importlib.metadata.metadata(name).json
        said = str(about.get("license_expression") or about.get("license") or "").strip()
        return said if said and "\n" not in said else None  # not a licence's whole text
    return None
