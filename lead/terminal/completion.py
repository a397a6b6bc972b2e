"""Scripts that complete commands, options and DATASET/RUN in a shell."""

from __future__ import annotations

import argparse

NAMES = "$(lead show --names 2>/dev/null)"
PREAMBLE = {
    "bash": f'_lead_targets() {{ compgen -W "{NAMES}" -- "$1"; }}',
    "zsh": f'_lead_targets() {{ compadd -- ${{(f)"{NAMES}"}} }}',
}


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script for a shell. What takes `DATASET/RUN` is completed with the names that the configuration has."""
    import shtab

    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    for command in commands.choices.values():
        for action in command._actions:
            if action.metavar == "DATASET/RUN":
                action.complete = {name: "_lead_targets" for name in PREAMBLE}
            elif action.metavar in ("PATH", "FILE", "RESULT.json"):
                action.complete = shtab.FILE
    return str(shtab.complete(parser, shell, preamble=PREAMBLE[shell]))
