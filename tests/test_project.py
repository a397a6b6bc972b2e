"""What the files around the package promise: dependencies agree everywhere, sources are safe and portable."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import lead

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SOURCES = sorted((ROOT / "lead").rglob("*.py"))
PYTHON_LINES = 350  # one idea a file

# Never both: they provide the same module. Constraints are for machines without a GPU.
NOT_PINNED = {"faiss-gpu"}
CONDA_NAMES = {"pytorch-gpu": "torch"}
# Distributions by the module they provide, where the names differ.
DISTRIBUTIONS = {
    "Stemmer": "pystemmer",
    "faiss": "faiss-cpu",
    "pydantic_core": "pydantic",  # released together
    "sklearn": "scikit-learn",
    "snakemake_interface_logger_plugins": "snakemake",  # its own interface
    "yaml": "pyyaml",
}


def git(*args: str) -> list[str]:
    """Lines of a git command's answer; skips the test where this is no checkout."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    answer = subprocess.run(["git", *args, "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in answer.stdout.split("\0") if name]


def by_name(requirements: list[str]) -> dict[str, SpecifierSet]:
    parsed = [Requirement(text) for text in requirements]
    return {canonicalize_name(requirement.name): requirement.specifier for requirement in parsed}


def required(*extras: str) -> dict[str, SpecifierSet]:
    optional = PROJECT["project"]["optional-dependencies"]
    return by_name(PROJECT["project"]["dependencies"] + [text for extra in extras for text in optional[extra]])


def constraints() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.partition("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, _, version in pins}


def environment() -> dict[str, SpecifierSet]:
    listed = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    (from_pip,) = (entry["pip"] for entry in listed if isinstance(entry, dict))
    conda = [entry for entry in listed if isinstance(entry, str) and not re.match(r"(python|pip)\b(?!-)", entry)]
    specs = by_name(conda + [entry for entry in from_pip if not entry.startswith("-")])
    return {CONDA_NAMES.get(name, name): spec for name, spec in specs.items()}


def test_the_conda_environment_agrees_with_pyproject() -> None:
    assert environment() == required("demo", "gpu", "test")


def test_the_conda_environment_has_a_python_that_the_package_allows() -> None:
    listed = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    (python,) = (entry.partition("=")[2] for entry in listed if isinstance(entry, str) and entry.startswith("python="))
    assert f"{python}.0" in SpecifierSet(PROJECT["project"]["requires-python"])


def test_a_requirement_named_twice_has_one_bound() -> None:
    core = by_name(PROJECT["project"]["dependencies"])
    for extra, requirements in PROJECT["project"]["optional-dependencies"].items():
        for name, spec in by_name(requirements).items():
            assert core.get(name, spec) == spec, f"{name} in the extra {extra}"


def test_every_requirement_is_pinned_to_a_version_it_allows() -> None:
    pins = constraints()
    everything = required(*PROJECT["project"]["optional-dependencies"]) | by_name(PROJECT["build-system"]["requires"])
    for name, spec in everything.items():
        if name not in NOT_PINNED:
            assert name in pins, f"{name} is not in constraints.txt: make constraints"
            assert pins[name] in spec, f"{name}: {pins[name]} is not {spec}"


def test_constraints_are_plain_pins_and_hold_one_faiss() -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pins = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9.]*", pin) for pin in pins), (
        "a pin is NAME==VERSION, no local version"
    )
    assert "://" not in text and "@" not in text
    assert len(pins) == len(constraints()), "a name is pinned twice"
    assert not NOT_PINNED & set(constraints())


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_set_up_installs_the_pinned_torch_first() -> None:
    command = ["make", "--always-make", "--dry-run", "setup", f"PYTHON={sys.executable}"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    installs = [line for line in said.splitlines() if "pip" in line and " install " in line]
    assert f"torch=={constraints()['torch']}" in installs[0]
    assert all("-c constraints.txt" in line for line in installs)
    others = re.findall(r"torch==([0-9][0-9.]*)", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert set(others) <= {str(constraints()["torch"])}


@pytest.mark.parametrize("form", ["bug", "idea"])
def test_an_issue_form_asks_what_a_forge_understands(form: str) -> None:
    asked = yaml.safe_load((ROOT / f".github/ISSUE_TEMPLATE/{form}.yml").read_text(encoding="utf-8"))
    assert {"name", "description", "body"} == asked.keys()
    for field in asked["body"]:
        assert field.keys() <= {"type", "attributes", "validations"} and field["type"] in ("input", "textarea")
        assert field["attributes"].keys() <= {"label", "description"}  # a comma that is not quoted makes more


def test_a_forge_runs_what_runs_elsewhere() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))["jobs"]
    assert [step["run"] for step in jobs["all"]["steps"] if ".ci/run" in step.get("run", "")]
    assert os.access(ROOT / ".ci/run", os.X_OK)


def test_the_version_is_the_same_everywhere() -> None:
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "lead.__version__"}
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation.get("repository-code") == PROJECT["project"]["urls"].get("Repository")
    cited = citation["version"]
    logged = re.search(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert logged is not None
    assert cited == logged[1] == lead.__version__


def test_the_command_exists() -> None:
    module, _, function = PROJECT["project"]["scripts"]["lead"].partition(":")
    tree = ast.parse((ROOT / Path(*module.split("."))).with_suffix(".py").read_text(encoding="utf-8"))
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def imported(tree: ast.AST) -> set[str]:
    """Top-level names of the modules a file imports, anywhere in it."""
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) if not node.level}
    return {name.partition(".")[0] for name in names}


def dotted(node: ast.AST) -> str:
    """`torch.load` for the expression torch.load, "" for what is not a chain of names."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def literal(call: ast.Call, keyword: str) -> object:
    """The constant a call passes for a keyword, None where it passes none."""
    return next((k.value.value for k in call.keywords if k.arg == keyword and isinstance(k.value, ast.Constant)), None)


def unsafe(source: str) -> list[str]:
    """What a source does that could run code out of data."""
    tree = ast.parse(source)
    safe_loaders = {"yaml.SafeLoader", "yaml.CSafeLoader"}
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    safe_loaders |= {node.name for node in classes if {dotted(base) for base in node.bases} & safe_loaders}
    found = [
        f"imports {name}" for name in imported(tree) & {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg in {"allow_pickle", "shell", "trust_remote_code"}:
            if not (isinstance(node.value, ast.Constant) and node.value.value is False):
                found.append(f"line {node.value.lineno}: {node.arg}")
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        if name in {"eval", "exec", "compile", "os.system", "os.popen", "yaml.unsafe_load", "yaml.full_load"}:
            found.append(f"line {node.lineno}: {name}")
        if name == "torch.load" and literal(node, "weights_only") is not True:
            found.append(f"line {node.lineno}: torch.load without weights_only=True")
        if name.endswith(".from_pretrained") and literal(node, "trust_remote_code") is not False:
            found.append(f"line {node.lineno}: from_pretrained without trust_remote_code=False")
        loaders = {dotted(value) for value in [*node.args, *(keyword.value for keyword in node.keywords)]}
        if name == "yaml.load" and not loaders & safe_loaders:
            found.append(f"line {node.lineno}: yaml.load without a safe loader")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_sources_run_no_code_out_of_data(path: Path) -> None:
    assert unsafe(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "eval('1')",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "AutoModel.from_pretrained(name, trust_remote_code=trust)",
        "AutoModel.from_pretrained(name)",
        "yaml.load(text, Loader=yaml.Loader)",
        "class Own(yaml.Loader): pass\nyaml.load(text, Own)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(command, shell=True)",
    ],
)
def test_unsafe_code_is_seen(source: str) -> None:
    assert unsafe(source)


def test_safe_code_passes() -> None:
    assert unsafe("model.eval(); torch.load(path, weights_only=True); yaml.safe_load(text); re.compile('a')") == []
    assert unsafe("class Strict(yaml.SafeLoader): pass\nyaml.load(text, Strict)") == []


def test_what_is_imported_is_declared() -> None:
    declared = set(required("cpu", "demo", "export"))
    names = {name for path in SOURCES for name in imported(ast.parse(path.read_text(encoding="utf-8")))}
    third_party = names - set(sys.stdlib_module_names) - {"lead"}
    assert {canonicalize_name(DISTRIBUTIONS.get(name, name)) for name in third_party} <= declared


def test_python_files_are_short() -> None:
    files = [
        path
        for folder in ("lead", "tests", "workflow")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".py", ".smk"}
    ]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {name: lines for name, lines in lengths.items() if lines > PYTHON_LINES} == {}


def test_nothing_ignored_is_tracked() -> None:
    assert git("ls-files", "--cached", "--ignored", "--exclude-standard")[:5] == []


def test_tracked_files_name_no_place_on_one_machine() -> None:
    ignored = set(git("ls-files", "--cached", "--ignored", "--exclude-standard"))
    place = re.compile(r"(?<![\w.~$}/-])/(?:work|root|opt|home|Users|mnt|tmp)/\w")
    found = []
    for name in git("ls-files"):
        path = ROOT / name
        if name in ignored or path == Path(__file__).resolve() or not path.is_file():
            continue
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        found += [
            f"{name}:{number}: {line.strip()[:100]}" for number, line in enumerate(lines, 1) if place.search(line)
        ]
    assert found == []


def test_ci_runs_what_developers_run() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111, "not executable"
    text = script.read_text(encoding="utf-8")
    assert all(target in text for target in ("make lint test", "make demo"))
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0


def test_every_rule_with_a_gpu_is_among_those_that_can_do_without() -> None:
    rules: dict[str, bool] = {}
    for file in sorted((ROOT / "workflow/rules").glob("*.smk")):
        for block in re.split(r"\n(?=rule |use rule )", file.read_text(encoding="utf-8")):
            if of := re.match(r"use rule (\w+) as (\w+)", block):
                rules[of[2]] = rules[of[1]]
            elif of := re.match(r"rule (\w+)", block):
                rules[of[1]] = "gpu=" in block and "gpu=0," not in block
    asking = {rule for rule, asks in rules.items() if asks}
    assert {"train", "align", "retrieve_part"} <= asking and "prepare" not in asking
    profile = (ROOT / "workflow/profiles/slurm/config.yaml").read_text(encoding="utf-8")
    assert set(re.findall(r"- (\w+):gpu=0", profile)) == asking
    cluster = (ROOT / "docs/cluster.md").read_text(encoding="utf-8").replace("\\\n", "")  # lines that go on
    (listed,) = re.findall(r"--set-resources \{(train[\w,]+)\}:gpu=0", cluster)
    assert set(listed.split(",")) == asking
