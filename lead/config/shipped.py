"""Where the workflow and the configuration are that come with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

PACKAGE = Path(__file__).resolve().parents[1]
DEFAULT_CONFIG = Path("config/config.yaml")  # the user's own, in the folder that we are in


def shipped(name: Literal["workflow", "config"]) -> Path:
    """The folder that comes with the package: inside it where a wheel was installed, beside it in a checkout."""
    inside = PACKAGE / "shipped" / name
    return inside if inside.is_dir() else PACKAGE.parent / name
