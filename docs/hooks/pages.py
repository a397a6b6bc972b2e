"""What the site has beside the files of docs/: pages made from the code, and what GitHub renders by itself.

Generated, never committed: index.md (the README), reference/ (configuration, commands, stages, the Python API) and
source/ (files that pages link to). Equations become MathML, which browsers draw without a script.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import tomllib
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from lead.cli import parser
from lead.commands import STAGES
from lead.config import experiments, schema
from lead.config.describe import describe, keys
from lead.config.sources import Source
from lead.store.tables import SCHEMAS

ROOT = Path(__file__).resolve().parents[2]
BADGE = re.compile(r"^\[?!\[[^\]]*\]\(https?://.*\n", re.M)
MODULE = re.compile(r"^lead/([\w/]+)\.py$")
LINK = re.compile(r"(?<=\]\()\.\./(\w[\w./-]+)(?=[)#])")  # to a file of the repository, from a page of docs/
SHOWN = ("lead", *(f"lead.{name}" for name in ("config", "data", "methods", "models", "search", "store", "train")))


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The project's address, if pyproject.toml has one."""
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
    config.repo_url = urls.get("Repository")
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    pages = {"index.md": _readme()}
    linked: set[str] = set()
    for file in files.documentation_pages():
        linked |= set(LINK.findall(file.content_string))
    linked |= {name.removeprefix("../") for name in re.findall(r"\]\((\.\./[\w./-]+)", pages["index.md"])}
    modules = {_module(name) for name in linked if MODULE.match(name)} | set(_documented())
    pages |= {
        "reference/configuration.md": _configuration(),
        "reference/commands.md": _commands(),
        "reference/stages.md": _stages(),
        "reference/api/index.md": _api(sorted(modules)),
    }
    pages |= {f"reference/api/{name}.md": f"# {name}\n\n::: {name}\n" for name in modules}
    pages |= {f"source/{name}.md": _source(ROOT / name) for name in linked if not MODULE.match(name)}
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Point links to files of the repository at their pages, and render equations."""
    up = "../" * page.file.src_uri.count("/")
    if (Path(config.docs_dir) / page.file.src_uri).exists() or page.file.src_uri == "index.md":
        markdown = LINK.sub(lambda match: up + _page_of(match[1]), markdown)
    return re.sub(r"^```math\n(.*?)^```$", _equation, markdown, flags=re.M | re.S)


def on_post_build(config: MkDocsConfig) -> None:
    """Write the search index as a script too: pages that are opened as files may not fetch JSON."""
    index = Path(config.site_dir, "search", "search_index.json")
    index.with_suffix(".js").write_text(f"var __index = {index.read_text(encoding='utf-8')}", encoding="utf-8")


def _equation(block: re.Match[str]) -> str:
    return f'<div class="equation">{convert(block[1].strip(), display="block")}</div>'


def _readme() -> str:
    """The README as a page of docs/: its links count from there, and images of other servers are left out."""
    text = BADGE.sub("", (ROOT / "README.md").read_text(encoding="utf-8"))
    return re.sub(r"\]\((?!https?:|#)(?:docs/)?([^)]+)\)", lambda m: f"]({_from_docs(m[0], m[1])})", text)


def _from_docs(link: str, target: str) -> str:
    return target if "](docs/" in link else f"../{target}"


def _module(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _page_of(path: str) -> str:
    return f"reference/api/{_module(path)}.md" if MODULE.match(path) else f"source/{path}.md"


def _source(path: Path) -> str:
    """A file, or the names in a folder."""
    name = path.relative_to(ROOT)
    if path.suffix == ".ipynb":
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        texts = [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
        return "\n\n".join(f"```python\n{text}\n```" if kind == "code" else text for kind, text in texts)
    if path.is_dir():
        content = "\n".join(sorted(child.name for child in path.iterdir()))
    else:
        content = path.read_text(encoding="utf-8")
    language = {".py": "python", ".yaml": "yaml", ".cff": "yaml"}.get(path.suffix, "text")
    return f"# {name}\n\n````{language}\n{content}\n````\n"


def _documented() -> Iterator[str]:
    """The door, and the modules of the packages that people extend."""
    yield "lead"
    yield "lead.errors"
    for package in ("data", "methods", "models", "search", "store", "train"):
        for path in (ROOT / "lead" / package).glob("*.py"):
            if path.name != "__init__.py":
                yield _module(str(path.relative_to(ROOT)))


def _api(modules: list[str]) -> str:
    """The modules that have a page, with the first sentence of each."""
    rows = [f"| [{name}]({name}.md) | {_about(name)} |" for name in modules]
    door = "`lead.load` is the door; [Searching](../../search.md) shows it. All else serves the commands."
    return f"# Python\n\n{door}\n\n| module | |\n|---|---|\n" + "\n".join(rows) + "\n"


def _about(module: str) -> str:
    path = ROOT / (module.replace(".", "/") + ".py")
    text = (path if path.exists() else path.with_suffix("") / "__init__.py").read_text(encoding="utf-8")
    return text.removeprefix('"""').split("\n")[0].split('"""')[0].replace("|", "\\|")


def _configuration() -> str:
    """Every key of the configuration files."""
    parts = [
        "# Configuration",
        "Every key, its default in brackets, and what it means. `lead show DATASET/RUN` prints the values of a run "
        "and where each comes from; `lead schema Settings` the same keys as JSON Schema.",
    ]
    for title, where, cls in (
        ("config.yaml", "`config/config.yaml`: what holds for all datasets.", experiments.Config),
        ("A dataset", "`config/datasets/NAME.yaml`.", schema.Dataset),
        ("A run", "A row of `config/experiments.yaml`, under `runs`.", experiments.Row),
        ("settings", "Under `settings` of a preset, a dataset or a row; the later of these wins.", schema.Settings),
        ("settings: models.NAME", "An encoder.", schema.ModelRef),
        *(
            (f"source: {_kind(source)}", (source.__doc__ or "").split("\n")[0], source)
            for source in Source.__subclasses__()
        ),
    ):
        rows = [f"| `{key}` | {_cell(about)} |" for key, about in keys(cls)]
        parts += [f"## {title}", where, "| key | what it is [default] |\n|---|---|\n" + "\n".join(rows)]
    return "\n\n".join(parts) + "\n"


def _kind(source: type[Source]) -> str:
    return str(typing.get_args(source.model_fields["kind"].annotation)[0])


def _cell(text: str) -> str:
    """Text of a table's cell, where only code stands for more than itself."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part[:1] == "`" else _plain(part) for part in parts)


def _plain(text: str) -> str:
    return re.sub(r"[\\|*_[]", r"\\\g<0>", text).replace("<", "&lt;")


def _commands() -> str:
    """What `lead COMMAND --help` prints, for every command."""
    shutil.get_terminal_size = lambda fallback=(100, 24): os.terminal_size((100, 24))
    (commands,) = (action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    parts = ["# Commands", f"```text\n{parser().format_help()}```"]
    for name, command in commands.choices.items():
        if name in STAGES:
            command.epilog = describe(STAGES[name].settings)
        parts += [f"## lead {name}", f"```text\n{command.format_help()}```"]
    return "\n\n".join(parts) + "\n"


def _stages() -> str:
    """Columns of the tables, and what each stage reads and writes."""
    columns = [f"| {name} | {', '.join(f'`{f.name}` {f.type}' for f in of)} |" for name, of in SCHEMAS.items()]
    parts = [
        "# Columns and stages",
        "[Artifacts](../artifacts.md) says where each file is.",
        "## Columns of the tables",
        "| table | columns |\n|---|---|\n" + "\n".join(columns),
    ]
    for name, stage in STAGES.items():
        rows = [
            f"| {group} | `--{option.rstrip('?+')}`{' (optional)' if '?' in option else ''} | {_cell(about)} |"
            for group, options in (("reads", stage.inputs), ("writes", stage.outputs))
            for option, about in options.items()
        ]
        parts += [f"## {name}", stage.about, "| | option | |\n|---|---|---|\n" + "\n".join(rows)]
    return "\n\n".join(parts) + "\n"
