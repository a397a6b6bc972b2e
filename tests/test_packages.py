"""Packages whose docstrings are a collection, installed into a folder of their own: real pip, wheels made here."""

from __future__ import annotations

import hashlib
import shutil
import sys
import zipfile
from pathlib import Path

import pytest

from lead.cli import main
from lead.config.load import load
from lead.config.sources import PydocsSource
from lead.data import pydocs
from lead.errors import LeadError
from lead.plan.plan import Plan
from lead.plan.stage_settings import settings_of
from lead.store.checksums import check_folder
from tests.test_data_pydocs import function

ROOT = Path(__file__).parents[1]


def wheel(folder: Path, name: str, version: str = "1.0") -> str:
    """Write a wheel for CPython 3.12 on Linux; return its line of a requirements file."""
    path = folder / f"{name}-{version}-cp312-cp312-manylinux_2_17_x86_64.whl"
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}/__init__.py": "raise RuntimeError('imported')\n",
        f"{name}/solve.py": "".join(function(f"f{i}", f"Function number {i} of {name}.") for i in range(20)),
        f"{name}/_fast.cpython-312-x86_64-linux-gnu.so": "machine code",
        f"{name}/data/table.csv": "1,2\n",
        f"{name}/tests/test_it.py": function("test", "Test that tests are not kept."),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: nothing\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: cp312-cp312-manylinux_2_17_x86_64\n",
        f"{info}/licenses/LICENSE": "Anybody may read this.\n",
    }
    record = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as packed:
        for file, text in (files | {f"{info}/RECORD": record}).items():
            packed.writestr(file, text)
    return f"{name}=={version} --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


@pytest.fixture(scope="module")
def requirements(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pinned packages, whose wheels are beside the file."""
    folder = tmp_path_factory.mktemp("wheels")
    lines = [wheel(folder, "leadone"), wheel(folder, "leadtwo")]
    file = folder / "requirements.txt"
    file.write_text(f"--no-index\n--find-links {folder}\n{''.join(lines)}")
    return file


@pytest.fixture(scope="module")
def installed(requirements: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `lead packages` makes of them."""
    folder = tmp_path_factory.mktemp("packages") / "packages"
    assert main(["packages", "--requirements", str(requirements), "--out", str(folder)]) == 0
    return folder


def test_only_sources_and_licences_stay(installed: Path) -> None:
    kept = {str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file()}
    assert {"leadone/solve.py", "leadtwo/__init__.py", "leadone-1.0.dist-info/licenses/LICENSE"} <= kept
    assert not [file for file in kept if file.endswith((".so", ".csv", ".pyc")) or "/tests/" in file]
    assert check_folder(installed) == installed  # with checksums, as every folder of lead


def test_their_docstrings_are_a_collection_and_nothing_is_imported(installed: Path) -> None:
    source = PydocsSource(kind="pydocs", packages=["leadtwo", "leadone"], folder=str(installed), evaluation=10)
    found = pydocs.collect(source)
    assert found.facts["packages"]["leadone"] == {"version": "1.0", "passages": 20, "queries": 20}
    assert found.splits["train"].queries.num_rows == 30
    assert not {"leadone", "leadtwo"} & sys.modules.keys()
    assert str(installed) not in sys.path


def test_a_package_that_is_not_in_the_folder(installed: Path) -> None:
    source = PydocsSource(kind="pydocs", packages=["numpy"], folder=str(installed))
    with pytest.raises(LeadError, match=f"source.packages: 'numpy' is no package in {installed}"):
        pydocs.collect(source)


def test_another_file_than_the_pinned_one_is_refused(
    requirements: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pinned = requirements.read_text().replace("sha256:", "sha256:" + "0" * 8)
    (tmp_path / "r.txt").write_text("\n".join(line[:-8] if "sha256" in line else line for line in pinned.splitlines()))
    assert main(["packages", "--requirements", str(tmp_path / "r.txt"), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "r.txt: pip cannot install it: " in said and "HASHES" in said
    assert not list(tmp_path.glob("*out*"))


def test_pinned_packages_are_installed_where_results_are(requirements: Path, tmp_path: Path) -> None:
    """`prepare` reads results/{dataset}/packages; the file of the packages is the input of the rule that makes it."""
    shutil.copytree(ROOT / "config", tmp_path / "config")
    shutil.copy(requirements, tmp_path / "config/mine.txt")
    dataset = "source: {kind: pydocs, packages: [leadone], requirements: ../mine.txt}\npreset: tuned\n"
    (tmp_path / "config/datasets/mine.yaml").write_text(dataset)
    plan = Plan(load(tmp_path / "config/config.yaml", {"results": str(tmp_path / "results")}))
    planned = plan.datasets["mine"]
    folder = str(tmp_path / "results/mine/packages")
    assert [Path(file).resolve() for file in planned.requirements] == [(tmp_path / "config/mine.txt").resolve()]
    assert planned.source_files == [folder]
    assert settings_of(plan.jobs, "prepare", "mine")["source"]["folder"] == folder
    assert plan.datasets["pydocs"].requirements == plan.datasets["pydocs"].source_files == []


def test_the_wide_collections_packages_are_all_pinned() -> None:
    """A version and a hash each, sorted."""
    text = (ROOT / "config/packages/pydocs_wide.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert all(len(line.partition(" --hash=sha256:")[2]) == 64 and "==" in line for line in lines)
    assert lines == sorted(lines, key=str.lower)
    source = load(ROOT / "config/config.yaml").datasets["pydocs_wide"][0].source
    assert isinstance(source, PydocsSource)
    assert len(lines) <= len(source.packages) and source.evaluation == 2000
