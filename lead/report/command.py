"""The commands `report` and `tensorboard`: their options, and what they do with them."""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lead.config.shipped import DEFAULT_CONFIG
from lead.imports import lean_imports

EXAMPLES = """\
examples:
  lead report demo                      results/demo/report.html, about the runs that exist
  lead report demo --baseline bm25      every run is tested against BM25
  lead run results/demo/report.html     makes the demo's default runs first
  lead speed demo                       measures what the page calls "not measured"

The page is one file: copy it, mail it, print it. Its figures are also files, in results/demo/report/.
"""


def add(commands: Any, path: Callable[[str], Path]) -> None:
    """Add them to the subcommands of `lead`. path: the type of an option that takes a path."""
    about = "Make a page about the runs of a dataset: quality, costs, training curves, gains and losses by query."
    report = commands.add_parser(
        "report", help=about, description=about, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    report.add_argument("dataset", metavar="DATASET")
    report.add_argument("--baseline", metavar="RUN", help="what every run is tested against (default: a control)")
    report.add_argument("--out", type=path, metavar="PATH", help="the page (default: results/DATASET/report.html)")
    about = "Write the metrics of trainings as event files for TensorBoard."
    board = commands.add_parser("tensorboard", help=about, description=about)
    board.add_argument("target", metavar="DATASET[/RUN]")
    board.add_argument("--out", type=path, metavar="PATH", help="folder (default: results/DATASET/tensorboard)")
    for command, call in ((report, _report), (board, _tensorboard)):
        command.add_argument("--config", type=path, default=DEFAULT_CONFIG, metavar="PATH")
        command.add_argument(
            "--overrides", metavar="JSON", help="keys that win over the config's, as Snakemake's --config"
        )
        command.add_argument("--log", type=path, metavar="PATH", help="write the log there too")
        command.set_defaults(call=call)


def _report(args: argparse.Namespace) -> None:
    from lead.config.parse import parse_yaml

    lean_imports()
    from lead.report.report import report

    overrides = None if args.overrides is None else parse_yaml(args.overrides, "--overrides")
    started = time.monotonic()
    print(report(args.config, args.dataset, args.out, overrides, args.baseline))
    logging.getLogger("lead").info("report done in %.1f s", time.monotonic() - started)


def _tensorboard(args: argparse.Namespace) -> None:
    from lead.config.parse import parse_yaml
    from lead.report.tensorboard import tensorboard

    overrides = None if args.overrides is None else parse_yaml(args.overrides, "--overrides")
    print(f"tensorboard --logdir {tensorboard(args.config, args.target, args.out, overrides)}")
