"""Make documented values again, and compare each with the documented one.

    python benchmarks/reproduce.py docs/values/demo.json                       # about 8 minutes on two cores
    python benchmarks/reproduce.py docs/values/demo.json --results results     # only compare what is there
    python benchmarks/reproduce.py docs/values/pydocs.json --results results --record rd_cb lead_best
    python benchmarks/reproduce.py docs/values/pydocs.json --results results --against aligned_more rd_cb lead_best
    python benchmarks/reproduce.py --tables                                    # those of docs/results.md anew

A file of values has a dataset, a measure, and for each run its mean over queries, the ends of the interval, and how far
another machine may be from the mean. `--record` writes such a file from results, or adds runs to it; where there are
results of other seeds (`RUN-s2`), it has the mean of each. Only the first seed is compared. Ends with status 1 if a
value is too far off. `--against` adds how far the first run is above each of the others, over all seeds that each has,
and p of a paired t-test over queries. A table of them corrects p (Holm) for the tests of each column.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from lead.config.load import load
from lead.errors import LeadError
from lead.evaluation.stats import holm, paired_test
from lead.plan.plan import Plan
from lead.plan.rows import SEED
from lead.report.seeds import Runs, check_queries
from lead.report.table import difference
from lead.store.tables import read_json

DOCS = Path("docs")
CONFIG = "config/config.yaml"
TABLE = re.compile(r"(?<=<!-- values: )([\w ]+)( -->\n).*?(?=<!-- end -->)", re.S)
DIFFERENCES = re.compile(r"(<!-- differences: ([\w/\s]+)\sagainst\s([\w\s]+) -->\n).*?(?=<!-- end -->)", re.S)
FRESH = Path("results/reproduced")  # apart from other results; `make clean` removes it


def compare(documented: dict[str, Any], results: Path) -> list[str]:
    """Print a line a run. The runs whose value is too far from the documented one, or missing."""
    wrong = []
    for run, said in documented["values"].items():
        value, tolerance = said["mean"], said["within"]
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


def record(values: Path, results: Path, runs: list[str], measure: str, within: float) -> None:
    """Write the file `values`, or add to it: runs of the folder `results`."""
    documented: dict[str, Any] = {"dataset": values.stem, "measure": measure, "values": {}}
    if values.exists():
        documented = json.loads(values.read_text(encoding="utf-8"))
    for run in runs:
        found = read_json(results / f"{run}.json")["metrics"][documented["measure"]]
        said = {key: round(found[key], 6) for key in ("mean", "low", "high")} | {"within": within}
        seeds = [path for path in sorted(results.glob(f"{run}-s*.json")) if re.fullmatch(run + SEED, path.stem)]
        if seeds:
            means = (read_json(path)["metrics"][documented["measure"]]["mean"] for path in seeds)
            said["seeds"] = [said["mean"], *(round(mean, 6) for mean in means)]
        documented["values"][run] = said
    write(documented, values)


def record_differences(values: Path, results: Path, base: str, others: list[str]) -> None:
    """Add to the file `values`: by how much `base` is above each of `others`, and p, not corrected."""
    documented = json.loads(values.read_text(encoding="utf-8"))
    runs, measure = Runs(results, Plan(load(CONFIG)).rows), documented["measure"]
    best, said = runs[base], documented.setdefault("differences", {}).setdefault(base, {})
    for other in others:
        check_queries(results, best, runs[other])
        a, b = best.per_query(measure), runs[other].per_query(measure)
        said[other] = {"mean": round(float((a - b).mean()), 6), "p": float(f"{paired_test(a, b):.3g}")}
    write(documented, values)


def write(documented: dict[str, Any], path: Path) -> None:
    """Write a file of values, a line a run."""
    text = re.sub(r"\{[^{}]*\}", lambda one: " ".join(one[0].split()), json.dumps(documented, indent=2))
    path.write_text(text + "\n", encoding="utf-8")


def read_values(dataset: str) -> dict[str, Any]:
    """A file of values of docs/."""
    file: dict[str, Any] = json.loads((DOCS / f"values/{dataset}.json").read_text(encoding="utf-8"))
    return file


def table(names: list[str]) -> str:
    """A table in Markdown: a row a run, a column a dataset, each value with its interval."""
    files = [read_values(name) for name in names]
    about = {name: row.about for name, row in load(CONFIG).experiments.runs.items()}
    (measure,) = {file["measure"] for file in files}
    lines = [f"| {measure} | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    longest_first = sorted(files, key=lambda file: -len(file["values"]))  # its order is the table's
    for run in dict.fromkeys(run for file in longest_first for run in file["values"]):
        cells = [_cell(file["values"].get(run)) for file in files]
        lines.append(f"| `{run}`: {about[run]} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def _cell(said: dict[str, Any] | None) -> str:
    if said is None:
        return "not run"
    mean, low, high = (f"{said[key]:.3f}".removeprefix("0") for key in ("mean", "low", "high"))
    seeds = ""
    if of := said.get("seeds"):
        seeds = f"; {len(of)} seeds {statistics.mean(of):.3f} ± {statistics.stdev(of):.3f}".replace(" 0.", " .")
    return f"{mean} [{low}, {high}]{seeds}"


def table_of_differences(columns: list[str], runs: list[str]) -> str:
    """A table in Markdown: a row a run, a column a DATASET/BASE; by how much BASE is above the run, and Holm's p."""
    about = {name: row.about for name, row in load(CONFIG).experiments.runs.items()}
    bases = [column.split("/") for column in columns]
    files = [read_values(dataset) for dataset, _ in bases]
    (measure,) = {file["measure"] for file in files}
    lines = [f"| {measure} above that of | " + " | ".join(f"{dataset}: `{base}`" for dataset, base in bases) + " |"]
    lines.append("|---" * (len(bases) + 1) + "|")
    cells = []
    for file, (_, base) in zip(files, bases, strict=True):
        said = {run: file["differences"][base][run] for run in runs if run in file["differences"][base]}
        corrected = zip(said.items(), holm([one["p"] for one in said.values()]), strict=True)
        cells.append({run: difference(one["mean"], p) for (run, one), p in corrected})
    for run in runs:
        lines.append(f"| `{run}`: {about[run]} | " + " | ".join(column.get(run, "not run") for column in cells) + " |")
    return "\n".join([*lines, ""])


def tables(text: str) -> str:
    """The text of a page with its tables made anew.

    A table starts with `<!-- values: DATASET .. -->` or `<!-- differences: DATASET/BASE .. against RUN .. -->`. It ends
    with `<!-- end -->`.
    """
    text = TABLE.sub(lambda found: found[1] + found[2] + table(found[1].split()), text)
    return DIFFERENCES.sub(lambda found: found[1] + table_of_differences(found[2].split(), found[3].split()), text)


def main() -> int:
    """Run the workflow if asked, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("values", type=Path, nargs="?", help="docs/values/{dataset}.json")
    parser.add_argument("--results", type=Path, help=f"compare what is there; without it all is made in {FRESH}")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--record", nargs="+", metavar="RUN", help="write the file from these runs of --results")
    parser.add_argument("--against", nargs="+", metavar="RUN", help="add the first run's differences to the others")
    parser.add_argument("--measure", default="RR@10", help="of --record (default RR@10)")
    parser.add_argument("--within", type=float, default=0.035, help="tolerance of --record (default .035)")
    parser.add_argument("--tables", action="store_true", help="write the tables of docs/results.md anew")
    args = parser.parse_args()
    if args.tables:
        page = DOCS / "results.md"
        page.write_text(tables(page.read_text(encoding="utf-8")), encoding="utf-8")
        return 0
    if args.values is None:
        parser.error("give a file of values, or --tables")
    folder = (args.results or FRESH) / args.values.stem
    if args.record:
        record(args.values, folder, args.record, args.measure, args.within)
    if args.against:
        record_differences(args.values, folder, args.against[0], args.against[1:])
    if args.record or args.against:
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
