"""The command line: one subcommand per stage, generated from `STAGES`, and a few that help people.

A stage is a function of named input paths, named output paths and the checked settings that it reads.
Nothing heavy is imported until its arguments and settings have been checked.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lead import __version__
from lead.commands import STAGES, Stage, settings_class
from lead.config.shipped import DEFAULT_CONFIG
from lead.errors import LeadError
from lead.export import command as export
from lead.imports import importing, lean_imports
from lead.report import command as report
from lead.search.commands import add_commands


def _settings(stage: str, settings: str, execution: str) -> Any:
    """Check `--settings`, with `--execution` laid over it, against the stage's class in lead.config.stages."""
    from lead.config.load import merge, validate
    from lead.config.recipe import execution_keys, flat

    cls = settings_class(stage)
    tree, where = _tree("--settings", settings)
    over, where_over = _tree("--execution", execution)
    if not isinstance(over, dict):
        raise LeadError(f"{where_over}: expected keys and values")
    checked = validate(cls, tree, where)
    if over:
        checked = validate(cls, merge(tree, over), where_over)
        if others := flat(over).keys() - flat(execution_keys(cls)).keys():
            raise LeadError(f"{where_over}: key '{min(others)}' decides numbers; give it in --settings")
    return checked


def _tree(option: str, text: str) -> tuple[Any, str]:
    """The value of an option that takes JSON or YAML, inline or in a file, and its name for messages."""
    from lead.config.parse import parse_yaml, read_text

    where, raw = option, text
    if not text.lstrip().startswith("{"):
        where = text
        try:
            raw = read_text(Path(text))
        except (OSError, ValueError) as e:
            reason = getattr(e, "strerror", None) or e
            raise LeadError(f"{option} {text}: {reason}; give JSON text or the path of a file") from e
    return parse_yaml(raw, where) or {}, where


def _path(text: str) -> Path:
    if not text:  # Path("") is the folder we are in
        raise argparse.ArgumentTypeError("give a path")
    try:
        text.encode()  # artifacts say in JSON what they were made from
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{os.fsencode(text)!r} is not UTF-8; rename the file or folder") from None
    return Path(text)


def _paths(options: Iterable[str], keywords: dict[str, Any]) -> list[Path]:
    """The paths given for these options of a stage."""
    values = [keywords[option.rstrip("?+").replace("-", "_")] for option in options]
    return [path for v in values if v is not None for path in (v if isinstance(v, list) else [v])]


def _check_writable(path: Path) -> None:
    """Refuse now, not after hours of training, an output that could not be written."""
    # os.path's: that of Path raises where a name is too long
    folder = next(p for p in path.absolute().parents if os.path.exists(p))
    if not os.path.isdir(folder):
        raise LeadError(f"cannot write {path}: {folder} is no folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise LeadError(f"cannot write {path}: no permission in {folder}, or the file system is read-only")


def _run_stage(stage: Stage, args: argparse.Namespace) -> None:
    settings = _settings(args.command, args.settings, args.execution)
    keywords: dict[str, Any] = {"settings": settings}
    for option in [*stage.inputs, *stage.outputs]:
        name = option.rstrip("?+").replace("-", "_")
        keywords[name] = getattr(args, name)
    for option in stage.inputs:
        for path in _paths([option], keywords):
            if not os.path.exists(path):
                raise LeadError(f"--{option.rstrip('?+')} {path} does not exist; run the stage that makes it")
    for path in _paths(stage.outputs, keywords):
        _check_writable(path)
    if args.threads is not None and args.threads < 1:
        raise LeadError(f"--threads {args.threads}: give at least 1, or leave it out for all")
    world, ranks = int(os.environ.get("WORLD_SIZE", "1")), int((args.ranks or args.gpu) if stage.ranks else 1)
    if args.threads:  # before NumPy, torch or faiss start their threads
        threads = max(1, args.threads // max(world, ranks))
        for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ[variable] = str(threads)
    module, function = stage.function.split(":")
    started = time.monotonic()
    lean_imports()
    if ranks > 1 and world == 1:
        with importing():
            from lead.train.exchange import check_shares, launch

        check_shares(keywords["settings"].train.batch_size, ranks)
        launch(ranks, sys.argv[1:] if args.argv is None else args.argv, None if args.gpu else (main, module))
        return
    if stage.gpu:
        keywords["gpu"] = args.gpu
    from lead.store.provenance import made_by, make_record

    with made_by(make_record(args.command, settings, _paths(stage.inputs, keywords))):
        with importing():
            call = getattr(importlib.import_module(module), function)
        call(**keywords)
    logging.getLogger("lead").info("%s done in %.1f s", args.command, time.monotonic() - started)


def _schema(args: argparse.Namespace) -> None:
    from lead.config import experiments, schema

    module = schema if hasattr(schema, args.model) else experiments
    print(json.dumps(getattr(module, args.model).model_json_schema(), indent=2))


def _table(args: argparse.Namespace) -> None:
    from lead.report.table import table

    print(table(args.results, args.baseline or ["rd_cb", "student_more"]))


def _tables(args: argparse.Namespace) -> None:
    from lead.config.parse import parse_yaml
    from lead.report.paper_tables import tables

    started = time.monotonic()
    overrides = None if args.overrides is None else parse_yaml(args.overrides, "--overrides")
    written = tables(args.config, args.dataset, args.results, args.out, overrides)
    log = logging.getLogger("lead")
    log.info("%d files, %s the last", len(written), written[-1])
    log.info("tables done in %.1f s", time.monotonic() - started)


def _verify(args: argparse.Namespace) -> None:
    lean_imports()
    from lead.config.load import load
    from lead.plan.plan import Plan
    from lead.plan.verify import verify

    plan = Plan(load(args.config))
    folder = Path(args.dataset)
    dataset = str(folder.relative_to(plan.results) if folder.is_relative_to(plan.results) else folder)
    found = verify(plan, dataset)
    for state, what in found:
        if state != "ok":
            print(f"{state:<8} {what}")
    bad = sum(state not in ("ok", "note") for state, _ in found)
    print(f"{sum(state == 'ok' for state, _ in found)} ok, {bad} not")
    if bad:
        raise LeadError(f"{bad} stale, altered or missing (above); make them again with snakemake --cores 2 -- TARGET")


def _setup_logging(log: Path | None) -> None:
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    rank = int(os.environ.get("RANK", "0"))
    if log is not None and rank == 0:
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            handlers.append(logging.FileHandler(log, mode="a" if "RANK" in os.environ else "w", encoding="utf-8"))
        except OSError as e:
            raise LeadError(f"cannot write --log {log}: {e.strerror or e}") from e
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", handlers=handlers, force=True
    )
    logging.raiseExceptions = False  # a log that cannot be written (a full disk) is no reason to stop
    logging.getLogger("lead").setLevel(logging.WARNING if rank else logging.INFO)


def parser() -> argparse.ArgumentParser:
    """The whole command line, built from `STAGES`."""
    from lead.config.describe import describe
    from lead.terminal.commands import add
    from lead.terminal.parser import Parser

    top = Parser(
        prog="lead",
        description="Distil a strong retriever into a small dual encoder by aligning layer-wise score distributions.",
        epilog="For people: init, plan, run, status, show, table, report, tensorboard, speed, search, serve, export, "
        "verify. The others are stages: `lead run` runs them.",
    )
    top.add_argument("--version", action="version", version=f"lead {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, stage in STAGES.items():
        sub = commands.add_parser(
            name,
            help=stage.about,
            description=stage.about,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog=describe(stage.settings) if "--help" in sys.argv or "-h" in sys.argv else None,
        )
        for group, options in (("inputs", stage.inputs), ("outputs", stage.outputs)):
            arguments = sub.add_argument_group(group)
            for option, about in options.items():
                arguments.add_argument(
                    f"--{option.rstrip('?+')}",
                    type=_path,
                    metavar="PATH",
                    help=about,
                    required="?" not in option,
                    nargs="+" if "+" in option else None,
                )
        sub.add_argument(
            "--settings", default="{}", metavar="JSON", help="this stage's settings: JSON text, or a JSON or YAML file"
        )
        sub.add_argument(
            "--execution", default="{}", metavar="JSON", help="more of them: those that decide only time and memory"
        )
        sub.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all)")
        sub.add_argument("--log", type=_path, metavar="PATH", help="write the log there too")
        if stage.gpu:
            sub.add_argument(
                "--gpu", type=int, default=0, metavar="N", help="GPUs granted; 0 (default): run on the CPU"
            )
        if stage.ranks:
            sub.add_argument("--ranks", type=int, metavar="N", help="processes that share a batch (default: one a GPU)")
        sub.set_defaults(call=lambda args, stage=stage: _run_stage(stage, args))
    add(commands, top)
    schema = commands.add_parser("schema", help="Print the JSON Schema of a configuration file.")
    schema.add_argument("model", choices=["Config", "Dataset", "Experiments", "Settings"])
    schema.set_defaults(call=_schema)
    table = commands.add_parser("table", help="Compare results on the terminal, with intervals and paired tests.")
    table.add_argument("results", nargs="+", type=_path, metavar="RESULT.json")
    table.add_argument(
        "--baseline",
        action="append",
        metavar="RUN",
        help="run to test against, can be given again (default: rd_cb, student_more)",
    )
    table.set_defaults(call=_table)
    paper = commands.add_parser(
        "tables", help="Rebuild the paper's tables from a dataset's results, as far as they exist."
    )
    paper.add_argument("dataset", metavar="DATASET")
    paper.add_argument("--out", type=_path, metavar="PATH", help="folder (default: tables in --results)")
    paper.add_argument("--results", type=_path, metavar="PATH", help="the dataset's results, if not where config says")
    paper.add_argument("--config", type=_path, default=DEFAULT_CONFIG, metavar="PATH")
    paper.add_argument("--overrides", metavar="JSON", help="keys that win over the config's, as Snakemake's --config")
    paper.add_argument("--log", type=_path, metavar="PATH", help="write the log there too")
    paper.set_defaults(call=_tables)
    report.add(commands, _path)
    export.add(commands, _path)
    check = commands.add_parser("verify", help="Tell which results, models and tables are stale, altered or missing.")
    check.add_argument("dataset", metavar="DATASET", help="its name, or its folder of results")
    check.add_argument("--config", type=_path, default=DEFAULT_CONFIG, metavar="PATH")
    check.set_defaults(call=_verify)
    add_commands(commands)
    return top


def _refuse_old_names(argv: Sequence[str]) -> None:
    """Refuse a command by its name of the past, with that of today. Raises LeadError."""
    from lead.config.methods import RENAMED

    if argv and argv[0] in RENAMED:
        _setup_logging(None)
        raise LeadError(f"the command '{argv[0]}' is called '{RENAMED[argv[0]]}' now")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. A user's mistake prints one line and returns 1."""
    try:
        _refuse_old_names(sys.argv[1:] if argv is None else argv)
        from lead.terminal.commands import snakemake_command

        args = snakemake_command(sys.argv[1:] if argv is None else argv) or parser().parse_args(argv)
        args.argv = argv
        _setup_logging(getattr(args, "log", None))
        return args.call(args) or 0
    except LeadError as e:
        if report := os.environ.get("LEAD_ERRORS"):  # one of several ranks: whoever launched them prints the first
            Path(report, os.environ.get("RANK", "0")).write_text(str(e), encoding="utf-8")
        elif logging.getLogger().handlers:  # the log file is one of them, if there is one
            logging.getLogger("lead").error("lead: error: %s", e)
        else:
            print(f"lead: error: {e}", file=sys.stderr)
        return getattr(e, "status", 1)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 0
    except Exception:
        if "LEAD_ERRORS" not in os.environ:
            raise
        traceback.print_exc()
        time.sleep(1)  # let a rank end first that caused this error in its peers: the first one is reported
        return 1
