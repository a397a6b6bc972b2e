"""LEAD beside its peers, in one run: processor seconds and wall seconds of the same work.

    make bench                                    # or: python benchmarks/bench
    python benchmarks/bench --only search bm25 --rounds 9

Every contestant lives in a process of its own, with one thread, and is asked in turn: a round asks each once, so other
work on the machine slows all alike. A ratio is the peer's time over ours in the same round; above 1 the peer is slower.
Peers are installed into an environment of their own, .cache/bench/venv, which sees the packages of this one. What
cannot be installed, or does not run, is named and skipped. Results: a Markdown table and bench.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
PEERS = "bm25s", "tantivy", "numba"  # sentence-transformers and faiss are in the environment already
VERSIONS = "torch", "transformers", "sentence-transformers", "faiss-cpu", "numpy", "scipy", *PEERS


@dataclass(frozen=True)
class Comparison:
    """The same work by LEAD, the first of `contestants`, and by its peers.

    contestants: title -> function in contestants.py or rerankers.py.
    """

    key: str
    title: str
    contestants: dict[str, str]
    arguments: dict[str, int]


def _search(k: int) -> Comparison:
    return Comparison(
        f"search{k}", f"exact search, top {k}", {"LEAD": "lead_search", "IndexFlatIP": "faiss_search"}, {"k": k}
    )


def _bm25(k: int) -> Comparison:
    peers = {"LEAD": "lead_bm25_search", "bm25s, compiled": "bm25s_search"}
    return Comparison(f"bm25-search{k}", f"BM25 search, top {k}", peers, {"k": k})


COMPARISONS = [
    Comparison("de-step", "training step, dual encoder",
               {"LEAD": "lead_de_step", "sentence-transformers": "sentence_transformers_de_step"}, {}),
    Comparison("lead-step", "training step, LEAD",
               {"LEAD": "lead_step", "padded": "padded_step", "matrix products alone": "products"}, {}),
    Comparison("encode", "encoding passages",
               {"LEAD": "lead_encode", "sentence-transformers": "sentence_transformers_encode"}, {}),
    Comparison("rerank-ce", "reranking and denoising, cross encoder",
               {"LEAD": "lead_cross_encoder", "sentence-transformers": "sentence_transformers_cross_encoder"}, {}),
    Comparison("rerank-cb", "reranking, ColBERT", {"LEAD": "lead_colbert", "padded": "padded_colbert"}, {}),
    _search(100),
    _search(1000),
    Comparison("bm25-index", "BM25 indexing",
               {"LEAD": "lead_bm25_index", "bm25s": "bm25s_index", "tantivy": "tantivy_index"}, {}),
    _bm25(100),
    _bm25(1000),
]  # fmt: skip


class Process:
    """A contestant's process."""

    def __init__(self, python: str, function: str, arguments: dict[str, int], inputs: Path) -> None:
        command = [python, str(HERE / "worker.py"), function, json.dumps(arguments), str(inputs)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=_one_thread(),
        )
        self.skipped: str | None = self._answer().get("skipped")

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"skipped": "its process ended"}  # type: ignore[no-any-return]

    def ask(self) -> dict[str, float]:
        """Seconds of one request; `skipped` says why there are none."""
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):  # it has ended
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
        answer = self._answer()
        self.skipped = answer.get("skipped")
        return answer

    def end(self) -> None:
        """Close its input, at which it ends."""
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()


def _one_thread() -> dict[str, str]:
    threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "RAYON_NUM_THREADS")
    return {**os.environ, **dict.fromkeys(threads, "1"), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def compare(comparison: Comparison, python: str, inputs: Path, rounds: int) -> dict[str, Any]:
    """Seconds of every round by contestant, or why it was skipped."""
    processes = {
        name: Process(python, function, comparison.arguments, inputs)
        for name, function in comparison.contestants.items()
    }
    times: dict[str, list[dict[str, float]]] = {name: [] for name in processes}
    for _ in range(rounds):
        for name, process in processes.items():
            if process.skipped is None:
                times[name].append(process.ask())
    for process in processes.values():
        process.end()
    skipped = {name: process.skipped for name, process in processes.items() if process.skipped}
    times = {name: of for name, of in times.items() if name not in skipped}
    return {"key": comparison.key, "title": comparison.title, "times": times, "skipped": skipped}


def lines(result: dict[str, Any]) -> list[str]:
    """The rows of a comparison in the table."""
    ours, rows = result["times"].get("LEAD", []), []
    for name, times in result["times"].items():
        cells = [result["title"], name, f"{1000 * median(t['cpu'] for t in times):,.0f}",
                 f"{1000 * median(t['wall'] for t in times):,.0f}"]  # fmt: skip
        if name == "LEAD" or not ours:
            cells += ["", ""]
        else:
            ratios = sorted(t["cpu"] / o["cpu"] for t, o in zip(times, ours, strict=True))
            cells += [f"{median(ratios):.2f}", f"{ratios[0]:.2f} to {ratios[-1]:.2f}"]
        rows.append(f"| {' | '.join(cells)} |")
    return rows + [f"| {result['title']} | {name} | skipped: {why} | | | |" for name, why in result["skipped"].items()]


def environment(folder: Path) -> str:
    """The interpreter of the peers' environment, which is made at the first call."""
    python = folder / "bin/python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        site = subprocess.run([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
                              check=True, text=True, capture_output=True).stdout.strip()  # fmt: skip
        parent = sysconfig.get_path("purelib")
        (Path(site) / "parent.pth").write_text(f"import site; site.addsitedir({parent!r})\n")
    installed = folder / "installed"
    missing = [peer for peer in PEERS if peer not in (installed.read_text().split() if installed.exists() else [])]
    for peer in missing:
        pip = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check", peer]
        if subprocess.run(pip).returncode == 0:
            with installed.open("a") as file:
                file.write(f"{peer}\n")
    return str(python)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", default=[""], help="what begins so, of: " + ", ".join(c.key for c in COMPARISONS)
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--quick", action="store_true", help="one round, and 2,000 random vectors to search: a test of this tool"
    )
    parser.add_argument(
        "--here", action="store_true", help="install nothing; skip the peers that this environment lacks"
    )
    parser.add_argument(
        "--out", type=Path, default=Path(".cache/bench"), help="folder of inputs, environment and bench.json"
    )
    args = parser.parse_args()
    chosen = [c for c in COMPARISONS if c.key.startswith(tuple(args.only))]
    inputs = args.out / ("quick" if args.quick else "inputs")
    inputs.mkdir(parents=True, exist_ok=True)
    python = sys.executable if args.here else environment(args.out.resolve() / "venv")

    def make(what: str, arguments: object, needed: bool, made: str) -> None:
        if needed and not (inputs / made).exists():
            command = [sys.executable, str(HERE / "worker.py"), what, json.dumps(arguments), str(inputs)]
            subprocess.run(command, check=True, env=_one_thread(), stdout=subprocess.DEVNULL)

    searched = any(c.key.startswith("search") for c in chosen)
    make("inputs", {}, not args.quick or any(not c.key.startswith("search") for c in chosen), "data/report.json")
    make("vectors", args.quick, searched, "queries.npy")
    results = []
    print("| | | CPU ms | wall ms | peer / LEAD, CPU | spread |\n|---|---|--:|--:|--:|---|")
    for comparison in chosen:
        results.append(compare(comparison, python, inputs, 1 if args.quick else args.rounds))
        print("\n".join(lines(results[-1])), flush=True)
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format", "json"], check=True, text=True, capture_output=True
    )
    versions = {p["name"]: p["version"] for p in json.loads(listed.stdout) if p["name"].lower() in VERSIONS}
    about = {"machine": platform.processor() or platform.machine(), "python": platform.python_version(),
             "versions": versions, "lead": version("lead-distil")}  # fmt: skip
    (args.out / "bench.json").write_text(json.dumps({**about, "comparisons": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
