"""Scripts that complete commands, options and DATASET/RUN in a shell."""

from __future__ import annotations

import argparse

RUNS = "$(lead show --names 2>/dev/null)"
DATASETS = "$(lead show --names 2>/dev/null | cut -d/ -f1 | uniq)"
FUNCTIONS = {"_lead_targets": RUNS, "_lead_datasets": DATASETS}
COMPLETED = {"DATASET/RUN": "_lead_targets", "DATASET[/RUN]": "_lead_targets", "DATASET": "_lead_datasets"}
PREAMBLE = {
    "bash": "\n".join(f'{name}() {{ compgen -W "{words}" -- "$1"; }}' for name, words in FUNCTIONS.items()),
    "zsh": "\n".join(f'{name}() {{ compadd -- ${{(f)"{words}"}} }}' for name, words in FUNCTIONS.items()),
}


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script for a shell. Datasets and runs are completed with the names that the configuration has."""
    import shtab

    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    for command in commands.choices.values():
        for action in command._actions:
            if action.metavar in COMPLETED:
                action.complete = dict.fromkeys(PREAMBLE, COMPLETED[str(action.metavar)])
            elif action.metavar in ("PATH", "FILE", "RESULT.json"):
                action.complete = shtab.FILE
    return str(shtab.complete(parser, shell, preamble=PREAMBLE[shell]))
