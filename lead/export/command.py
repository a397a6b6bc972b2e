"""The command `lead export`. It imports nothing heavy before its arguments are checked."""

from __future__ import annotations

import argparse
from typing import Any

from lead.config.shipped import DEFAULT_CONFIG
from lead.errors import LeadError
from lead.imports import importing, lean_imports


def add(commands: Any, path: Any) -> None:
    """Add the command to the command line's; `path`: the type of arguments that are paths."""
    about = "Write a run's dual encoder as a folder of its own, with a model card; also as ONNX, and to the hub."
    sub = commands.add_parser("export", help=about, description=about, epilog="docs/export.md says more.")
    sub.add_argument("target", metavar="DATASET/RUN")
    sub.add_argument("--to", type=path, required=True, metavar="FOLDER", help="new, or made by lead export before")
    sub.add_argument("--onnx", action="store_true", help="add onnx/model.onnx, compared with the model")
    sub.add_argument(
        "--int8",
        action="store_true",
        help="add onnx/model_int8.onnx too; RR@10 on dev queries and speed, both ways, go into the card",
    )
    sub.add_argument("--vectors", action="store_true", help="add the passages' vectors (Parquet: id, vector)")
    sub.add_argument("--trec", action="store_true", help="add the run on test queries and their judgements")
    sub.add_argument("--push-to-hub", metavar="NAME", help="upload the folder to this repository of the hub")
    sub.add_argument("--private", action="store_true", help="make the repository private, if it is new")
    sub.add_argument("--config", type=path, default=DEFAULT_CONFIG, metavar="PATH")
    sub.add_argument("--overrides", metavar="JSON", help="keys that win over the config's: {results: FOLDER}")
    sub.set_defaults(call=_export)


def _export(args: argparse.Namespace) -> None:
    from lead.config.load import load
    from lead.config.parse import parse_yaml
    from lead.plan.plan import Plan

    dataset, _, run = args.target.partition("/")
    if not run:
        raise LeadError(f"'{args.target}' is not DATASET/RUN; `lead show` lists both")
    overrides = None if args.overrides is None else parse_yaml(args.overrides, "--overrides")
    job = Plan(load(args.config, overrides))[dataset, run]
    lean_imports()
    with importing():
        from lead.export.export import Wanted, export

    wanted = Wanted(args.onnx, args.int8, args.vectors, args.trec, args.push_to_hub, args.private)
    export(job, args.to, wanted)
