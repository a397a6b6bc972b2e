"""The stage `packages`: the sources of pinned packages, in a folder of their own. They are read and never imported."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

from lead.config.stages import PackagesSettings
from lead.data.pydocs import is_documentation
from lead.errors import LeadError
from lead.store.atomic import atomic_folder

log = logging.getLogger("lead")

# The same wheels on every machine: nothing of them runs, so they need not be for this one.
WHEELS = "--no-deps --no-compile --only-binary :all: --implementation cp --abi cp312 --abi abi3 --abi none".split()
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_24_x86_64", "manylinux_2_17_x86_64",
             "manylinux2014_x86_64", "any")  # fmt: skip
PIP = "install --quiet --disable-pip-version-check --root-user-action ignore --no-cache-dir".split()


def packages(*, settings: PackagesSettings, requirements: Path, out: Path) -> None:
    """Install what `requirements` pins into the folder `out`, without what it depends on, and keep its sources.

    Kept are the modules that may be read (`is_documentation`) and each package's *.dist-info, which holds its licence.
    Disk while pip works: the unpacked wheels. Memory: pip's. Raises LeadError with the last line of pip if it fails.
    """
    with atomic_folder(out) as temporary:
        log.info("pip downloads and unpacks the packages of %s; this takes minutes", requirements)
        done = subprocess.run(
            [sys.executable, "-m", "pip", *PIP, *WHEELS, "--python-version", settings.python]
            + [word for platform in PLATFORMS for word in ("--platform", platform)]
            + ["--target", str(temporary), "--requirement", str(requirements)],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")] or [done.stderr.strip()]
            raise LeadError(f"{requirements}: pip cannot install it: {errors[-1].removeprefix('ERROR: ')}")
        for path in sorted(temporary.rglob("*"), reverse=True):  # what is in a folder before the folder
            inside = path.relative_to(temporary)
            read = inside.parts[0].endswith(".dist-info") or (path.suffix == ".py" and is_documentation(inside))
            if path.is_symlink() or (path.is_file() and not read):
                path.unlink()
            elif path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        kept = [path.stat().st_size for path in temporary.rglob("*") if path.is_file()]
        log.info("%d files, %.0f MB", len(kept), sum(kept) / 1e6)
