"""The commands `search`, `serve` and `speed`: their options, and what they do with them."""

from __future__ import annotations

import argparse
import io
import os
import sys
from pathlib import Path
from typing import Any

from lead.config.shipped import DEFAULT_CONFIG
from lead.errors import LeadError
from lead.imports import lean_imports

SEARCH = """\
examples:
  lead search demo/lead_cb "read a csv file"            the ten best passages of the demo's student
  lead search demo/lead_cb                              a prompt; the first query is the slowest
  lead search demo/lead_cb "read a csv file" --compare  and what BM25 and the student's teacher find
  lead search demo/lead_cb --json < queries.txt         a line of JSON for each line

The run must have been made (lead run demo/lead_cb). BM25 and a ColBERT are runs too:
demo/bm25, demo/teacher_cb. For passages of your own: lead search results/demo/models/lead_cb --corpus mine.jsonl
"""
SPEED = """\
examples:
  lead speed demo/lead_cb    milliseconds a query, passages encoded a second; into results/demo/speed/lead_cb.json
  lead speed demo            every run of the demo that can be searched, BM25 and rerankers too

Nothing else should run meanwhile. `lead report` shows these numbers.
"""
SERVE = """\
examples:
  lead serve demo/lead_cb                           beside BM25, at http://127.0.0.1:8000
  lead serve demo/lead_cb --against teacher_cb      beside its teacher
  ssh -L 8000:localhost:8000 machine                then the same address on your own machine

Test and dev queries of the collection are offered; passages judged for them are marked. Ctrl-C ends it.
"""


def add_commands(commands: Any) -> None:
    """Add them to the subcommands of `lead`."""
    raw = argparse.RawDescriptionHelpFormatter
    about = "Search a dataset with a run that was made: type a query, read the best passages."
    search = commands.add_parser("search", help=about, description=about, epilog=SEARCH, formatter_class=raw)
    search.add_argument("target", metavar="DATASET/RUN", help="what searches; or the folder of a model, with --corpus")
    search.add_argument("query", nargs="?", metavar="QUERY", help="default: a prompt, or one query a line from stdin")
    search.add_argument("-k", type=int, default=10, metavar="N", help="passages to show (default: 10)")
    search.add_argument("--compare", action="store_true", help="also show what BM25 and the teacher find")
    search.add_argument("--json", action="store_true", help="one line of JSON for each query, with whole texts")
    search.add_argument("--corpus", type=Path, metavar="PATH", help="passages of your own instead: JSONL, TSV, ..")
    search.set_defaults(call=_search)
    about = "Show a page on which two systems answer the same query, side by side."
    serve = commands.add_parser("serve", help=about, description=about, epilog=SERVE, formatter_class=raw)
    serve.add_argument("target", metavar="DATASET/RUN", help="a run that was made")
    serve.add_argument("--against", default="bm25", metavar="RUN", help="another run on the dataset (default: bm25)")
    serve.add_argument("--port", type=int, default=8000, metavar="N", help="default: 8000; 0: any that is free")
    serve.add_argument("--host", default="127.0.0.1", metavar="ADDRESS",
                       help="address to listen at (default: 127.0.0.1, this machine alone)")  # fmt: skip
    serve.add_argument("--allow-host", action="append", default=[], metavar="NAME",
                       help="another name of this machine in the address, such as its full domain name")  # fmt: skip
    serve.set_defaults(call=_serve)
    about = "Measure how long a query takes and how fast passages are encoded, on this machine, for `lead report`."
    speed = commands.add_parser("speed", help=about, description=about, epilog=SPEED, formatter_class=raw)
    speed.add_argument("target", metavar="DATASET[/RUN]", help="runs that were made")
    speed.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads (default: 1)")
    speed.set_defaults(call=_speed)
    for command in (search, serve, speed):
        command.add_argument(
            "--config", type=Path, default=DEFAULT_CONFIG, metavar="PATH", help=f"default: {DEFAULT_CONFIG}"
        )
        command.add_argument("--overrides", metavar="JSON", help="keys that win over the config's: {results: FOLDER}")


def _overrides(text: str | None) -> Any:
    from lead.config.parse import parse_yaml

    return None if text is None else parse_yaml(text, "--overrides")


def _search(args: argparse.Namespace) -> None:
    if args.k < 1:
        raise LeadError(f"-k {args.k}: give at least 1")
    from lead.search import terminal
    from lead.search.snippet import Marker

    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that cannot show a letter shows a question mark
        sys.stdout.reconfigure(errors="replace")

    lean_imports()
    asked = terminal.queries(args.query)
    if args.corpus is not None:
        from lead.config.lists import Bm25
        from lead.search.load import load
        from lead.search.systems import Dense

        if args.compare:
            raise LeadError("--compare goes with DATASET/RUN; leave out --corpus")
        model = load(args.target, args.config, _overrides(args.overrides)).index(args.corpus)
        assert model.passages is not None
        system = Dense(str(args.target), "dual encoder", model, model.passages)
        show = terminal.Terminal(model.passages, system, [], Marker(Bm25()), args.k, args.json)
    else:
        from lead.search.systems import Collection

        found = Collection.find(args.target, args.config, _overrides(args.overrides))
        others = found.compared() if args.compare else []
        marker = Marker(found.job.settings.bm25)
        show = terminal.Terminal(found.passages, found.system(), others, marker, args.k, args.json)
    for query in asked:
        show(query)


def _serve(args: argparse.Namespace) -> None:
    from lead.search.server import serve
    from lead.search.systems import Collection

    lean_imports()
    found = Collection.find(args.target, args.config, _overrides(args.overrides))
    serve(found, [found.system(), found.against(args.against)], args.host, args.port, args.allow_host)


def _speed(args: argparse.Namespace) -> None:
    if args.threads < 1:
        raise LeadError(f"--threads {args.threads}: give at least 1")
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # before NumPy and torch start
        os.environ[variable] = str(args.threads)
    from lead.search.speed import speed

    speed(args.target, args.config, _overrides(args.overrides), args.threads)
