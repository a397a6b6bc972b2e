"""Which packages a wheel holds, and what a package index shows. All else is in pyproject.toml."""

import re
import tomllib
from pathlib import Path

from setuptools import find_namespace_packages, find_packages, setup

# Workflow and configuration travel inside the package. In a checkout they stand beside it (lead.config.shipped).
SHIPPED = ("workflow", "config")
inside = find_namespace_packages(include=[pattern for name in SHIPPED for pattern in (name, f"{name}.*")])

# Links to files of the repository lead to its address; while it has none, their paths stand in brackets. Figures go.
here = Path(__file__).parent
home = tomllib.loads((here / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"].get("Repository")
readme = (here / "README.md").read_text(encoding="utf-8")
readme = re.sub(r"^!\[[^]]*\]\((?!https?:)[^)]*\)\n+", "", readme, flags=re.M)
linked = rf"[\1]({home}/blob/main/\2)" if home else r"\1 (\2)"
readme = re.sub(r"(?<!!)\[([^][]*)\]\((?!https?:|#)([^)]*)\)", linked, readme)

setup(
    packages=[*find_packages(include=["lead*"]), *(f"lead.shipped.{name}" for name in inside)],
    package_dir={f"lead.shipped.{name}": name for name in SHIPPED},
    long_description=readme,
    long_description_content_type="text/markdown",
)
