"""Make documented values again from nothing, and compare each with the documented one.

    python benchmarks/reproduce.py docs/values/demo.json                       # about 8 minutes on two cores
    python benchmarks/reproduce.py docs/values/demo.json --results results     # only compare what is there
    python benchmarks/reproduce.py docs/values/pydocs.json --results results --record bm25 rd_cb lead_best

A file of values has a dataset, a measure, and for each run its value and how far another machine may be from it.
`--record` writes such a file from results, with the tolerance `--within`. Ends with status 1 if a value is too far off.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from lead.errors import LeadError
from lead.store.tables import read_json

FRESH = Path("results/reproduced")  # what was made before is no reproduction


def compare(documented: dict[str, Any], results: Path) -> list[str]:
    """Print a line a run. The runs whose value is too far from the documented one, or missing."""
    wrong = []
    for run, (value, tolerance) in documented["values"].items():
        try:
            found = read_json(results / documented["dataset"] / f"{run}.json")["metrics"][documented["measure"]]["mean"]
        except LeadError as e:
            found, note = None, str(e)
        else:
            note = f"{found:.4f} ({found - value:+.4f}, at most {tolerance})"
        good = found is not None and abs(found - value) <= tolerance
        print(f"{'ok' if good else 'OFF':<4} {run:<24} {value:.4f}  {note}")
        wrong += [] if good else [run]
    return wrong


def main() -> int:
    """Run the workflow if asked, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("values", type=Path, help="docs/values/{dataset}.json")
    parser.add_argument("--results", type=Path, help=f"compare what is there; without it all is made in {FRESH}")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--record", nargs="+", metavar="RUN", help="write the file from these runs of --results")
    parser.add_argument("--measure", default="RR@10", help="of --record (default RR@10)")
    parser.add_argument("--within", type=float, default=0.035, help="tolerance of --record (default .035)")
    args = parser.parse_args()
    if args.record:
        results = (args.results or FRESH) / args.values.stem
        means = {run: read_json(results / f"{run}.json")["metrics"][args.measure]["mean"] for run in args.record}
        documented = {"dataset": args.values.stem, "measure": args.measure}
        documented["values"] = {run: [round(mean, 4), args.within] for run, mean in means.items()}
        args.values.write_text(json.dumps(documented, indent=2) + "\n", encoding="utf-8")
        return 0
    documented = json.loads(args.values.read_text(encoding="utf-8"))
    if args.results is None:
        targets = [str(FRESH / documented["dataset"] / f"{run}.json") for run in documented["values"]]
        snakemake = [sys.executable, "-m", "snakemake", "--cores", str(args.cores), "--config", f"results={FRESH}"]
        if status := subprocess.run([*snakemake, "--", *targets]).returncode:
            return status
    wrong = compare(documented, args.results or FRESH)
    print(f"{len(documented['values']) - len(wrong)} of {len(documented['values'])} as documented")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
