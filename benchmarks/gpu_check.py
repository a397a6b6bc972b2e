"""Everything that only a GPU can tell, in about 8 minutes: `make gpu-check`.

    python benchmarks/gpu_check.py [--out DIR] [--minutes 8]
    python benchmarks/gpu_check.py --device cpu --tiny     # the same code with tiny sizes, on any machine

It needs a checkout and the packages in `NEEDED`: no network, no installed lead, no faiss. It checks results against the
CPU's, then measures a LEAD step of the paper's size, encoding, reranking and search, and writes gpu-check.json and
gpu-check.md to DIR. A part that fails is told and does not end the others; the exit status is 1 then. docs/gpu.md.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import importlib.util
import json
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

NEEDED = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "pyarrow", "pydantic", "yaml", "tqdm")
USEFUL = {"faiss": "exact search by faiss is not compared", "triton": "compiled steps are left out"}
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "V100": 125e12}  # dense, half
GOALS = {"step": 0.45, "encoding": 0.50, "against padded fp32": 5.0}

missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
if missing:
    sys.exit(
        f"error: gpu-check needs {', '.join(missing)}; where there is no network, bring wheels made elsewhere: "
        f"pip download {' '.join('pyyaml' if m == 'yaml' else m for m in missing)}, then pip install --no-index "
        "--find-links WHEELS --target SITE, and PYTHONPATH=SITE"
    )
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from gpu_parts import CHECKS, PAPER, SMALL, TINY, Parts, Size, forward, step_operations  # noqa: E402

from lead.device import allow_tf32, device, number_format  # noqa: E402
from lead.models.microbatch import MicroBatchEncoder  # noqa: E402
from lead.retrieval.encode import encode_ids  # noqa: E402
from lead.retrieval.search import search  # noqa: E402
from lead.retrieval.torch_index import torch_engine  # noqa: E402


class Check:
    """The machine, the sizes, and what was found."""

    def __init__(self, on: torch.device, size: Size, folder: Path, out: Path, until: float) -> None:
        self.on, self.size, self.folder, self.out, self.until = on, size, folder, out, until
        self.parts = Parts(folder, size)
        self.half = "bf16" if number_format(on.type, "bf16") != torch.float32 else "fp32"
        self.found: dict[str, Any] = {}
        self.failed: list[str] = []
        self.peak = 0.0

    def run(self, name: str, what: Callable[[], dict[str, Any]], probe: bool = False) -> None:
        """Run a part, unless the time is over; write what it returns, or how it failed. probe: it may fail."""
        if time.monotonic() > self.until:
            self.found[name] = {"left out": "the time was over"}
            print(f"{name}: left out, the time was over", flush=True)
            return
        started = time.monotonic()
        try:
            self.found[name] = what()
            if self.found[name].get("passed") is False:
                self.failed.append(name)
        except Exception as e:  # whatever a machine does that none of ours did
            self.failed += [] if probe else [name]
            self.found[name] = {"failed": f"{type(e).__name__}: {e}"[:500], "where": traceback.format_exc()[-1500:]}
        self.free()
        self.found[name]["seconds"] = round(time.monotonic() - started, 1)
        print(f"{name}: {json.dumps(self.found[name])[:600]}", flush=True)
        self.write()

    def write(self) -> None:
        """What was found so far: a check that is stopped leaves it."""
        text = json.dumps(self.found | {"failed": self.failed}, indent=1)
        (self.out / "gpu-check.json").write_text(text + "\n")

    def free(self) -> None:
        """Give back the memory of what is not needed any more, though it may be part of a cycle."""
        gc.collect()
        if self.on.type == "cuda":
            torch.cuda.empty_cache()

    def wait(self) -> None:
        """Until the device has done all that it was told."""
        if self.on.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, what: Callable[[], object], times: int = 3) -> float:
        """Median time of a call, after one that does not count."""
        taken = []
        for _ in range(1 + times):
            self.wait()
            started = time.perf_counter()
            what()
            self.wait()
            taken.append(time.perf_counter() - started)
        return statistics.median(taken[1:])

    # --- the machine -------------------------------------------------------------------------------------------------
    def machine(self) -> dict[str, Any]:
        """The card, its peak by its name or, of an unknown one, by a matrix product; packages."""
        dtype = number_format(self.on.type, self.half)
        n = 8192 if self.on.type == "cuda" else 512
        a = torch.randn(n, n, device=self.on, dtype=dtype)
        product = 2.0 * n**3 / self.seconds(lambda: a @ a, 5)
        name = torch.cuda.get_device_name() if self.on.type == "cuda" else "CPU"
        self.peak = next((peak for key, peak in PEAKS.items() if key in name), product)
        packages = ("torch", "transformers", "tokenizers", "numpy", "pyarrow", "pydantic")
        return {
            "device": name,
            "computes in": str(dtype).removeprefix("torch."),
            "peak TFLOP/s": self.peak / 1e12,
            f"matrix product of {n}, TFLOP/s": product / 1e12,
            "memory GB": torch.cuda.mem_get_info(self.on)[1] / 1e9 if self.on.type == "cuda" else None,
            "versions": {package: importlib.metadata.version(package) for package in packages},
            "lacks": {name: then for name, then in USEFUL.items() if importlib.util.find_spec(name) is None},
        }

    # --- a step of the paper's size ----------------------------------------------------------------------------------
    def step(self, precision: str, full: bool, *rest: Any, **train: Any) -> dict[str, Any]:
        """`measure`, with the graph of as many tokens as the memory holds."""
        for most, after in zip(GRAPHS, [*GRAPHS[1:], None], strict=True):
            try:
                return self.measure(precision, full, *rest, cache_above=most, **train) | {"cache_above": most}
            except torch.OutOfMemoryError:
                if after is None:
                    raise
            self.free()
        raise AssertionError

    def measure(
        self, precision: str, full: bool, steps: int = 3, compiled: bool = False, **train: Any
    ) -> dict[str, Any]:
        """Median time of whole steps (optimizer and look-ahead included), MFU and memory.

        full: all texts have the most tokens, as if padded; else lengths vary as MS MARCO's do.
        """
        if self.on.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        step = self.parts.step(self.on, precision=precision, **train)
        if compiled:
            for model in step.trained().values():
                model.encoder.compile(dynamic=True)  # type: ignore[operator]
        data = self.parts.data(steps + 1, full)
        encoders, max_sim = step_operations(step, data, self.size)
        name = f"step-{time.monotonic_ns()}"
        lines = self.parts.loop(step, data, steps + 1, name)
        seconds = statistics.median(line["seconds"] for line in lines[1:])
        self.wait()
        return {
            "seconds": [line["seconds"] for line in lines],
            "step seconds": seconds,
            "waited for batches": self.parts.waited,
            "loss": [line["loss"]["total"] for line in lines],
            "encoders TFLOP": encoders / 1e12,
            "MaxSim TFLOP": max_sim / 1e12,
            "MFU": encoders / max(seconds, 1e-9) / self.peak,
            "MFU with MaxSim": (encoders + max_sim) / max(seconds, 1e-9) / self.peak,
            "peak memory GB": torch.cuda.max_memory_allocated() / 1e9 if self.on.type == "cuda" else None,
        }

    def profile(self) -> dict[str, Any]:
        """Where the time of a step goes: kernels by their own time."""
        from torch.autograd import DeviceType
        from torch.profiler import ProfilerActivity, profile

        step = self.parts.step(self.on, precision=self.half, cache_above=32768, **LARGE)
        data = self.parts.data(2, full=False)
        step(step.prepare(data.batch(0)), 0)
        ready = step.prepare(data.batch(1))
        self.wait()
        cuda = self.on.type == "cuda"
        with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as seen:
            step(ready, 1)
            self.wait()
        of = "self_device_time_total" if cuda else "self_cpu_time_total"
        # of a GPU's time, operations of the CPU tell what they started: it would count twice
        on = DeviceType.CUDA if cuda else DeviceType.CPU
        averages = [e for e in seen.key_averages() if e.device_type == on and not getattr(e, "is_user_annotation", 0)]
        events = sorted(averages, key=lambda e: -getattr(e, of))
        total = sum(getattr(e, of) for e in events) or 1
        top = [{"kernel": e.key[:90], "share": getattr(e, of) / total, "calls": e.count} for e in events[:20]]
        return {"device ms" if cuda else "CPU ms": total / 1e3, "top": top}

    # --- inference ---------------------------------------------------------------------------------------------------
    def encoding(self, layers: int, batch_tokens: int, half: bool = False, compiled: bool = False) -> dict[str, Any]:
        """Texts a second from token ids to vectors on the CPU, as `lead encode` does, and MFU.

        Not as `lead encode` does: half, weights and all between them in half precision; compiled, by torch.compile.
        """
        model, size, precision = self.parts.model("de", layers, self.on, 2), self.size, self.half
        if half:
            model.encoder.to(number_format(self.on.type, self.half))
            precision = "fp32"  # no autocast
        if compiled:
            model.encoder.compile(dynamic=True)  # type: ignore[operator]
        ids = model.tokenize("passage", self.parts.texts(size.encoded, size.passage, full=False))  # type: ignore[operator]
        out = np.zeros((len(ids), model.size), np.float32)
        allow_tf32(self.half)

        def encode() -> None:
            for rows, x in encode_ids(model, ids, batch_tokens, precision, "encode"):  # type: ignore[arg-type]
                out[rows] = x.numpy()

        seconds = self.seconds(encode, 1)
        operations = forward([len(i) for i in ids], layers, size.width)
        return {"texts a second": len(ids) / seconds, "MFU": operations / seconds / self.peak}

    def reranking(self, kind: str) -> dict[str, Any]:
        """Pairs a second from texts to scores, as `lead rerank` does, and MFU (of ColBERT: encoding alone counts)."""
        size, model = self.size, self.parts.model(kind, self.size.teacher, self.on, 1).eval()
        queries = self.parts.texts(size.asked, size.query, False)
        passages = self.parts.texts(size.asked * size.depth, size.passage, False)
        rows = np.arange(len(passages)).reshape(size.asked, -1)
        parts: dict[str, float] = {}

        @torch.inference_mode()
        def rerank() -> None:
            started = time.perf_counter()
            score = model.scorer(queries, passages, MicroBatchEncoder(65536, self.half))
            parts["before scoring"] = time.perf_counter() - started
            for q, own in enumerate(rows):
                score(q, own)

        seconds = self.seconds(rerank, 1)
        lengths = [len(text.split()) + 2 for text in passages]
        if kind == "ce":
            lengths = [n + len(queries[q].split()) + 1 for q, own in enumerate(rows) for n in (lengths[i] for i in own)]
        operations = forward(lengths, size.teacher, size.width)
        found = {"pairs a second": len(passages) / seconds, "MFU": operations / seconds / self.peak}
        return found | {"share before scoring": parts["before scoring"] / seconds}

    def searching(self) -> dict[str, Any]:
        """Queries a second of exact search, depth 1000, and the share of PyTorch's products and top k in it."""
        rng, size = np.random.default_rng(0), self.size
        passages, queries = (rng.standard_normal((n, size.width), np.float32) for n in (size.vectors, 512))
        engine, k = torch_engine(passages, self.on), min(1000, size.vectors)
        order = np.arange(len(passages))
        whole = self.seconds(lambda: list(search(queries, passages, k, order, engine)), 1)
        alone = self.seconds(lambda: engine.propose(queries, k), 1)
        operations = 2.0 * passages.size * len(queries)
        return {"queries a second": len(queries) / whole, "of the device alone": len(queries) / alone,
                "TFLOP/s of the device": operations / alone / 1e12}  # fmt: skip


LARGE = {"micro_tokens": 32768}
# tokens of a model that keep their graph: the first that the memory holds is taken
GRAPHS = (131072, 98304, 65536, 32768, 1)


def everything(check: Check) -> None:
    """All parts, the most important first."""
    half, cuda = check.half, check.on.type == "cuda"
    check.run("machine", check.machine)
    with tempfile.TemporaryDirectory(dir=check.folder) as folder:
        small = Parts(Path(folder), SMALL if cuda else TINY)
        for name, one in CHECKS.items():
            check.run(f"check: {name}", lambda one=one: one(small, check.on))  # type: ignore[misc]
    check.run("step, micro-batches of 32,768", lambda: check.step(half, False, **LARGE))
    check.run("step, default micro-batches", lambda: check.step(half, False))
    check.run("step, all texts of full length", lambda: check.step(half, True, **LARGE))
    check.run("step, padded fp32", lambda: check.step("fp32", True, 1))
    check.run("encoding, student", lambda: check.encoding(check.size.student, 65536))
    check.run("encoding, student, default batches", lambda: check.encoding(check.size.student, 16384))
    check.run("encoding, teacher", lambda: check.encoding(check.size.teacher, 65536))
    for kind in ("cb", "ce"):
        check.run(f"reranking, {kind}", lambda kind=kind: check.reranking(kind))  # type: ignore[misc]
    check.run("search", check.searching)
    check.run("profile of a step", check.profile)
    student = check.size.student
    check.run("encoding, student, half", lambda: check.encoding(student, 65536, half=True), probe=True)
    if cuda and importlib.util.find_spec("triton"):
        for much in (False, True):
            name = f"encoding, student, compiled{', half' * much}"
            check.run(name, lambda much=much: check.encoding(student, 65536, much, compiled=True), probe=True)  # type: ignore[misc]
        check.run("step, compiled", lambda: check.step(half, False, 3, True, **LARGE), probe=True)


def summary(check: Check) -> str:
    """The report for people, in Markdown."""
    found = check.found
    lines = ["# GPU check", "", f"{found['machine'].get('device')}: "
             + ("all parts passed" if not check.failed else f"**failed**: {', '.join(check.failed)}"), "",
             "| part | result | s |", "|---|---|---|"]  # fmt: skip
    for name, one in found.items():
        shown = {k: v for k, v in one.items() if isinstance(v, int | float | str) and k not in ("seconds", "where")}
        told = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items())
        lines.append(f"| {name} | {told} | {one.get('seconds', '')} |")
    step, padded = found["step, micro-batches of 32,768"], found["step, padded fp32"]
    if "step seconds" in step and "step seconds" in padded:
        found["against padded fp32"] = padded["step seconds"] / max(step["step seconds"], 1e-9)
        lines += ["", f"The step takes 1/{found['against padded fp32']:.1f} of the padded fp32 form's time."]
    lines += ["", f"Goals: MFU {GOALS['step']} of the step, {GOALS['encoding']} of encoding, "
              f"{GOALS['against padded fp32']} times the padded fp32 form."]  # fmt: skip
    if top := found.get("profile of a step", {}).get("top"):
        lines += ["", "| kernel | share | calls |", "|---|---|---|"]
        lines += [f"| `{e['kernel']}` | {e['share']:.3f} | {e['calls']} |" for e in top]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run all parts and write both reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/gpu-check"), help="folder of the reports")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: does the code run?")
    parser.add_argument("--minutes", type=float, default=8.0, help="no part starts later than 3/4 of this (default 8)")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: PyTorch sees no GPU here; --device cpu --tiny runs the same code on the CPU")
    until = time.monotonic() + 45 * args.minutes
    with tempfile.TemporaryDirectory() as folder:
        size = TINY if args.tiny else PAPER
        args.out.mkdir(parents=True, exist_ok=True)
        check = Check(device(int(args.device == "cuda")), size, Path(folder), args.out, until)
        everything(check)
    report = summary(check)  # it adds to what was found
    check.write()
    (args.out / "gpu-check.md").write_text(report)
    print(f"\n{report}")
    sys.exit(bool(check.failed))


if __name__ == "__main__":
    main()
