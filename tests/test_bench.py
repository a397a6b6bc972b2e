"""The tool of `make bench`: a real run on the cheapest comparison, and what it says of a peer that is not there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[1] / "benchmarks/bench"


def test_a_quick_run_gives_a_table_and_a_file(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCH), "--only", "search100", "--quick", "--here", "--out", str(tmp_path)]
    run = subprocess.run(command, check=True, text=True, capture_output=True, cwd=BENCH.parents[1])
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in run.stdout.splitlines()]
    ours, peer = (row for row in rows if row[0] == "exact search, top 100")
    assert (ours[1], peer[1], ours[4]) == ("LEAD", "IndexFlatIP", "") and float(peer[4]) > 0
    result = json.loads((tmp_path / "bench.json").read_text())
    of_search = next(c for c in result["comparisons"] if c["key"] == "search100")
    assert all(t["cpu"] > 0 and t["wall"] > 0 for times in of_search["times"].values() for t in times)
    assert not of_search["skipped"] and result["versions"]["numpy"]


def test_a_contestant_that_does_not_run_says_why(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCH / "worker.py"), "faiss_search", '{"k": 5}', str(tmp_path)]  # without vectors
    run = subprocess.run(command, check=True, text=True, capture_output=True, input="go\n")
    assert "FileNotFoundError" in json.loads(run.stdout)["skipped"]
