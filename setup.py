"""Which packages a wheel holds. All else is in pyproject.toml."""

from setuptools import find_namespace_packages, find_packages, setup

# Workflow and configuration travel inside the package. In a checkout they stand beside it (lead.config.shipped).
SHIPPED = ("workflow", "config")
inside = find_namespace_packages(include=[pattern for name in SHIPPED for pattern in (name, f"{name}.*")])

setup(
    packages=[*find_packages(include=["lead*"]), *(f"lead.shipped.{name}" for name in inside)],
    package_dir={f"lead.shipped.{name}": name for name in SHIPPED},
)
