"""The commands for people, beside those of the stages: options and functions. Nothing heavy is imported before a call."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

SNAKEMAKE = {  # commands whose words are targets and Snakemake's options
    "run": "Run the workflow. DATASET/RUN is short for results/DATASET/RUN.json, DATASET for all its default runs.",
    "plan": "Say which jobs would run, for how many epochs, and about how many minutes and bytes they take.",
}


def add(commands: Any) -> None:
    """Add the commands to those of the parser."""
    for name, about in SNAKEMAKE.items():
        usage = f"lead {name} DATASET/RUN .. [options of Snakemake]"
        more = "-n: only say what would run. --verbose: Snakemake's own output. " if name == "run" else ""
        more += "Workflow and configuration are those of this folder (config/), and what it lacks is the shipped one's."
        sub = commands.add_parser(name, help=about, description=about, usage=usage, epilog=more)
        sub.add_argument("words", nargs="*", metavar="DATASET/RUN", help="also any file that the workflow makes")
        sub.set_defaults(call=_CALLS[name])


def snakemake_command(argv: Sequence[str]) -> argparse.Namespace | None:
    """The arguments of a command that passes its words on, unless help is asked for."""
    if not argv or argv[0] not in SNAKEMAKE or {"-h", "--help"} & set(argv):
        return None
    return argparse.Namespace(command=argv[0], words=list(argv[1:]), call=_CALLS[argv[0]])


def _run(args: argparse.Namespace) -> int:
    from lead.terminal.run import run

    return run(args.words)


def _plan(args: argparse.Namespace) -> int:
    from lead.terminal.plan import plan

    return plan(args.words)


_CALLS: dict[str, Callable[[argparse.Namespace], int | None]] = {"run": _run, "plan": _plan}
