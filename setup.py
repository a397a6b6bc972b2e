"""Which packages a wheel holds. All else is in pyproject.toml."""

from setuptools import find_packages, setup

# Workflow and configuration travel inside the package. In a checkout they stand beside it (lead.config.shipped).
SHIPPED = {f"lead.shipped.{name}": name for name in ("workflow", "config")}

setup(packages=[*find_packages(include=["lead*"]), *SHIPPED], package_dir=SHIPPED)
