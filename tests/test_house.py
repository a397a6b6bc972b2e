"""The house: which module may import which, and that nothing goes round in circles (docs/code.md)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# From the bottom up. A module imports only from its own line and from those above it.
FLOORS = (
    {"__init__", "errors"},
    {"config"},
    {"device", "imports", "lists", "pretrained", "store", "tokenizer"},
    {"data"},
    {"models"},
    {"methods"},
    {"train"},
    {"retrieval"},
    {"evaluation"},
    {"commands", "plan"},
    {"report"},
    {"export"},
    {"terminal"},
    {"search"},
    {"__main__", "cli"},
)
DOOR = ROOT / "lead" / "__init__.py"  # opens lead.search when it is called
SOURCES = sorted(path for path in (ROOT / "lead").rglob("*.py") if path != DOOR)


def module_of(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    """Modules of lead that a module imports, anywhere in it; `if TYPE_CHECKING` counts too."""
    found: set[str] = set()
    modules = {module_of(p) for p in SOURCES}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inside & modules) or {node.module}
            if not inside <= modules:
                found.add(node.module)
    return {name for name in found & modules if name not in ("lead", module_of(path))}


def floor(module: str) -> int:
    name = module.split(".")[1] if "." in module else "__init__"
    (found,) = (n for n, floor in enumerate(FLOORS) if name in floor)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_a_module_imports_only_from_above(path: Path) -> None:
    upwards = [name for name in imports(path) if floor(name) > floor(module_of(path))]
    assert not upwards


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = {module_of(path): imports(path) for path in SOURCES}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join([*above[above.index(name) :], name])
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*above, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())
