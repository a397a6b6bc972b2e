"""The commands for people, beside those of the stages. Nothing heavy is imported before one is called."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lead.commands import STAGES
from lead.config.shipped import DEFAULT_CONFIG

SNAKEMAKE = {  # commands whose words are targets and Snakemake's options
    "run": "Run the workflow. DATASET/RUN is short for results/DATASET/RUN.json, DATASET for all its default runs.",
    "plan": "Say which jobs would run, for how many epochs, and about how many minutes and bytes they take.",
}


def add(commands: Any, parser: argparse.ArgumentParser) -> None:
    """Add the commands to those of the parser."""
    for name, about in SNAKEMAKE.items():
        usage = f"lead {name} DATASET/RUN .. [options of Snakemake]"
        more = "-n: only say what would run. --verbose: Snakemake's own output. " if name == "run" else ""
        more += "Workflow and configuration are those of this folder (config/), and what it lacks is the shipped one's."
        sub = commands.add_parser(name, help=about, description=about, usage=usage, epilog=more)
        sub.add_argument("words", nargs="*", metavar="DATASET/RUN", help="also any file that the workflow makes")
        sub.set_defaults(call=_CALLS[name])
    about = "Look at a collection's files and write a dataset file for it, with lengths, steps and batch that fit."
    init = commands.add_parser("init", help=about, description=about)
    init.add_argument("name", metavar="NAME", help="of the dataset: config/datasets/NAME.yaml")
    init.add_argument(
        "--corpus", required=True, metavar="PATH", help="file of passages, or a folder in BEIR's or MTEB's layout"
    )
    init.add_argument("--queries", metavar="FILE", help="queries to train on; without --qrels: queries to align on")
    init.add_argument(
        "--qrels",
        metavar="FILE",
        help="their judgements: query id, passage id, grade; without any, the model needs no labels",
    )
    init.add_argument("--test-queries", metavar="FILE", help="queries to evaluate on (default: --queries)")
    init.add_argument("--test-qrels", metavar="FILE", help="judgements to evaluate on; default: a part of --qrels")
    init.add_argument("--force", action="store_true", help="write the dataset file anew if it is there")
    init.set_defaults(call=_init)
    about = "List datasets and runs, or print the settings of a run, and where each comes from."
    show = commands.add_parser("show", help=about, description=about)
    show.add_argument("target", nargs="?", metavar="DATASET/RUN")
    show.add_argument("--all", action="store_true", help="the defaults too")
    show.add_argument("--json", action="store_true", help="recipe and execution of each stage")
    show.add_argument("--stage", choices=STAGES, help="only this stage's settings, ready for --settings")
    show.add_argument("--names", action="store_true", help=argparse.SUPPRESS)  # for completion
    show.add_argument("--config", type=Path, default=DEFAULT_CONFIG, metavar="PATH")
    show.set_defaults(call=_show)
    about = "Tell what is done, running, stopped, failed and missing."
    status = commands.add_parser("status", help=about, description=about)
    status.add_argument("datasets", nargs="*", metavar="DATASET", help="default: all that have results")
    status.add_argument("--config", type=Path, default=DEFAULT_CONFIG, metavar="PATH")
    status.set_defaults(call=_status)
    about = 'Print a script that completes commands, options and DATASET/RUN: eval "$(lead completion bash)".'
    completion = commands.add_parser("completion", help=about, description=about)
    completion.add_argument("shell", choices=["bash", "zsh"])
    completion.set_defaults(call=lambda args: _completion(args, parser))


def snakemake_command(argv: Sequence[str]) -> argparse.Namespace | None:
    """The arguments of a command that passes its words on, unless help is asked for."""
    if not argv or argv[0] not in _CALLS or {"-h", "--help"} & set(argv):
        return None
    if argv[0] == "score" and (len(argv) == 1 or argv[1].startswith("-")):  # the stage, with files
        return None
    return argparse.Namespace(command=argv[0], words=list(argv[1:]), call=_CALLS[argv[0]])


def _run(args: argparse.Namespace) -> int:
    from lead.terminal.run import run

    return run(args.words)


def _score(args: argparse.Namespace) -> int:
    from lead.terminal.run import run
    from lead.terminal.workflow import score_words

    return run(score_words(args.words))


def _plan(args: argparse.Namespace) -> int:
    from lead.terminal.plan import plan

    return plan(args.words)


def _init(args: argparse.Namespace) -> None:
    from lead.terminal.init import init

    print(init(args.name, args.corpus, args.queries, args.qrels, (args.test_queries, args.test_qrels), args.force))


def _show(args: argparse.Namespace) -> None:
    from lead.config.load import load
    from lead.plan.plan import Plan
    from lead.terminal.show import show

    plan = Plan(load(args.config))
    if args.names:
        print("\n".join(f"{dataset}/{run}" for dataset in plan.datasets for run in plan.rows))
    else:
        print(show(plan, args.target, args.stage, args.all, args.json))


def _status(args: argparse.Namespace) -> None:
    from lead.config.load import load
    from lead.plan.plan import Plan
    from lead.terminal.status import status

    print(status(Plan(load(args.config)), args.datasets))


def _completion(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    from lead.terminal.completion import script

    print(script(parser, args.shell))


_CALLS: dict[str, Callable[[argparse.Namespace], int | None]] = {"run": _run, "plan": _plan, "score": _score}
