"""A parser of command lines that says which command or option was perhaps meant."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from lead.errors import nearest


class Parser(argparse.ArgumentParser):
    """As argparse's, with the nearest valid name after a name that is none."""

    def error(self, message: str) -> NoReturn:
        """Print usage and the mistake, and exit with status 2."""
        if match := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message):
            names = re.findall(r"[\w-]+", match[2])
            message = f"{message[: match.start()]}invalid choice: '{match[1]}'; {nearest(match[1], names)}"
        super().error(message)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """As argparse's; options of the command that was given are suggested for those that it does not know."""
        found, rest = self.parse_known_args(args, namespace)
        if rest:
            known = self._options(getattr(found, "command", None))
            wrong = next((word.partition("=")[0] for word in rest if word.startswith("--")), None)
            hint = f"; {nearest(wrong, known)}" if wrong else ""
            self.error(f"unrecognized arguments: {' '.join(rest)}{hint if 'mean' in hint else ''}")
        return found

    def _options(self, command: str | None) -> list[str]:
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction) and command in action.choices:
                return [name for name in action.choices[command]._option_string_actions if name.startswith("--")]
        return []
