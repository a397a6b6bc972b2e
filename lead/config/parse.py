"""Safe YAML, bounded in size, with the line of every mistake."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from lead.errors import LeadError

LIMIT = 1 << 18  # characters of a configuration file


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice and reads 5e-5 as a number (YAML 1.2; plain PyYAML reads text).

    Aliases are refused: a few of them can make a value of billions of items, or a value that holds itself. Tags are
    refused too: they can ask for a value of any type.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        alias, tag = isinstance(event, yaml.AliasEvent), getattr(event, "tag", None)
        if alias or tag:
            what = f"aliases (*{event.anchor})" if alias else f"tags ({tag})"
            problem = f"{what} are not supported; write the plain value"
            raise yaml.composer.ComposerError(None, None, problem, event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # PyYAML refuses it
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        value = super().construct_yaml_int(node)
        if value.bit_length() > 64:
            raise yaml.constructor.ConstructorError(None, None, "number of more than 64 bits", node.start_mark)
        return value


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML (or JSON) text. Raises LeadError with the line of a syntax error."""
    if len(text) > LIMIT:
        raise LeadError(f"{where}: more than {LIMIT >> 10} KiB; is this a configuration file?")
    try:
        return yaml.load(text, _Loader)  # noqa: S506 (a SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        mark = getattr(e, "problem_mark", None)
        place = f"{where}:{mark.line + 1}" if mark else where
        raise LeadError(f"{place}: not valid YAML: {getattr(e, 'problem', None) or str(e).splitlines()[0]}") from e


def read_text(path: Path) -> str:
    """The text of a file, up to the limit of `parse_yaml`. Raises OSError, and ValueError for bad UTF-8."""
    with path.open(encoding="utf-8") as file:
        return file.read(LIMIT + 1)


def read_yaml(path: Path) -> tuple[Any, str]:
    """The value and the text of a YAML file. Raises LeadError when it cannot be read."""
    try:
        text = read_text(path)
    except (OSError, ValueError) as e:
        raise LeadError(f"cannot read {path}: {getattr(e, 'strerror', None) or e}") from e
    return parse_yaml(text, str(path)), text


def card_header(readme: Path) -> dict[str, Any]:
    """The keys of the YAML header of a repository's README.md; none if no header can be read."""
    try:
        header = re.match(r"---\s*\n(.*?)\n---\s*\n", readme.read_text(encoding="utf-8"), re.DOTALL)
        value = parse_yaml(header[1], str(readme)) if header else None
    except (OSError, ValueError, LeadError):
        return {}
    return value if isinstance(value, dict) else {}


def line_of(text: str, location: tuple[Any, ...]) -> int | None:
    """Line, from 1, of the deepest node on the path `location` that the YAML text has."""
    try:
        node = yaml.compose(text, _Loader)
    except yaml.YAMLError:
        return None
    line = None
    for part in location:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(part):
                    node, line = value, key.start_mark.line + 1
                    break
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
    return line
