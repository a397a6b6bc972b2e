"""Engines that propose candidates for a search: exact search of faiss on CPU or GPU, or an approximate index.

The scores of candidates are computed again in float64 (lead.retrieval.search), so they are exact with every engine. An
exact engine finds all passages of the true lists, an approximate one most of them.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lead.errors import LeadError
from lead.lists import Floats, Ints
from lead.retrieval.exact import SMALL
from lead.store.checksums import check_folder, identity
from lead.store.tables import read_json, write_json

INDEX, DESCRIPTION = "index.faiss", "index.json"  # files of an index's folder
GPU_DEEPEST = 2048  # longest list that faiss makes on a GPU
WIDTHS = (384, 768, 1024)  # of vectors, tried if the width is unknown (a model of the hub)

log = logging.getLogger("lead")


@dataclass(frozen=True)
class Engine:
    """Proposes passages among the n vectors of a shard.

    propose: (queries [b, d], k) -> products [b, k], rows [b, k], best first; row -1 if fewer are found.
    """

    propose: Callable[[Floats, int], tuple[Floats, Ints]]
    exact: bool = True  # whether it proposes the k best, up to rounding in float32
    on_cpu: bool = False  # exact search on the CPU: lead.retrieval.exact searches a small corpus instead


# --- faiss -----------------------------------------------------------------------------------------------------------
def openblas_coretype(flags: Collection[str]) -> str | None:
    """Name the OpenBLAS kernels for a CPU with these flags (as in /proc/cpuinfo); None leaves the choice to OpenBLAS.

    >>> openblas_coretype(["sse4_2", "avx", "avx2"])
    'HASWELL'
    """
    if {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= set(flags):
        return "SKYLAKEX"
    return "HASWELL" if "avx2" in flags else None


def _cpu_flags() -> list[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return []
    return next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])


def load_faiss() -> Any:
    """Import faiss. Its OpenBLAS reads the environment during the import.

    The OpenBLAS of the wheel does not recognise newer CPUs. Without a name it uses much slower kernels for them.
    Raises LeadError if faiss is not installed: it comes with an extra of the package.
    """
    coretype = openblas_coretype(_cpu_flags())
    if coretype is not None:
        os.environ.setdefault("OPENBLAS_CORETYPE", coretype)
    try:
        import faiss
    except ModuleNotFoundError:
        raise LeadError("search needs faiss; pip install 'lead-distil[cpu]', or [gpu]") from None
    return faiss


def reason(error: RuntimeError) -> str:
    """The message of faiss's exception in one line, without the place in faiss's source."""
    return " ".join(re.sub(r"^Error in .*? at \S+:\d+: ", "", str(error), flags=re.DOTALL).split())


# --- exact search ----------------------------------------------------------------------------------------------------
def exact_engine(passages: Floats, gpu: int | None = None) -> Engine:
    """An engine that compares all `passages` [n, d], on the CPU or on GPU number `gpu`, which then holds a copy.

    Raises LeadError if faiss is needed and not installed: on the CPU a small corpus is searched without it.
    """

    def on_cpu(queries: Floats, k: int) -> tuple[Floats, Ints]:
        faiss = load_faiss()
        # the same computation as IndexFlatIP.search, without its copy of all passages
        products, rows = faiss.knn(queries, passages, k, metric=faiss.METRIC_INNER_PRODUCT)
        return products, rows

    if gpu is None and len(passages) <= SMALL:
        return Engine(on_cpu, on_cpu=True)
    faiss = load_faiss()  # tell before any work that it is not installed
    if gpu is None or not len(passages):
        return Engine(on_cpu, on_cpu=True)
    config = faiss.GpuIndexFlatConfig()
    config.device = gpu
    index = faiss.GpuIndexFlatIP(_gpu_resources(), passages.shape[1], config)
    index.add(passages)
    return Engine(lambda queries, k: index.search(queries, k) if k <= GPU_DEEPEST else on_cpu(queries, k))


@cache
def _gpu_resources() -> Any:
    """Scratch memory and streams of this process's GPU."""
    return load_faiss().StandardGpuResources()


def search_gpu(gpu: int) -> int | None:
    """Number of the GPU for search; None for the CPU: no GPU was requested. Raises LeadError if it is absent."""
    if gpu == 0:
        return None
    from lead.device import device

    return int(device(gpu).index)


def faiss_on_gpu() -> bool:
    """Whether faiss is installed and knows a GPU (faiss-gpu)."""
    try:
        return bool(load_faiss().get_num_gpus())
    except LeadError:  # not installed
        return False


# --- approximate indexes ---------------------------------------------------------------------------------------------
def make_index(index: str, width: int) -> Any:
    """An empty faiss index for inner products from an index_factory string. Raises LeadError naming the key."""
    faiss = load_faiss()
    try:
        return faiss.index_factory(width, index, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as e:
        raise LeadError(
            f"key 'retrieval.index': faiss makes no '{index}' for vectors of width {width}: {reason(e)}; give an "
            "index_factory string such as IVF1024,Flat or HNSW32, or null for exact search"
        ) from e


def _set_parameters(made: Any, index: str, parameters: str | None) -> None:
    try:
        load_faiss().ParameterSpace().set_index_parameters(made, parameters or "")
    except RuntimeError as e:
        raise LeadError(
            f"key 'retrieval.index_parameters': '{index}' does not take '{parameters}'; give pairs such as nprobe=16 "
            "(IVF) or efSearch=128 (HNSW), with commas between them"
        ) from e


def check_index(index: str | None, parameters: str | None, width: int | None) -> None:
    """Raises LeadError if faiss does not take this index with these parameters.

    width: of the vectors. If it is None (unknown), faiss must take one of `WIDTHS`.
    """
    if index is None:
        if parameters is not None:
            raise LeadError("key 'retrieval.index_parameters' is read with `retrieval.index` only; leave it out")
        return
    for n, one in enumerate(widths := (width,) if width else WIDTHS):
        try:
            _set_parameters(make_index(index, one), index, parameters)
            return
        except LeadError:
            if n + 1 == len(widths):
                raise


def approximate_engine(folder: Path, passages: Path, parameters: str | None) -> tuple[Engine, str]:
    """The engine of the index that `lead index` built from `passages`, and its index_factory string.

    Raises LeadError for a damaged index, an index of other vectors, or parameters that the index does not take.
    """
    description = read_json(check_folder(folder) / DESCRIPTION)
    if description["passages"] != identity(passages):
        raise LeadError(f"{folder} is not the index of {passages}; make it again with lead index")
    index = load_faiss().read_index(str(folder / INDEX))
    _set_parameters(index, description["index"], parameters)
    return Engine(index.search, exact=False), description["index"]


def write_index(index: Any, folder: Path, description: dict[str, Any]) -> None:
    """Write a faiss index and its description into a folder, inside `atomic_folder`. Raises OSError."""
    try:
        load_faiss().write_index(index, str(folder / INDEX))
    except RuntimeError as e:
        raise OSError(reason(e)) from e
    write_json(description, folder / DESCRIPTION)
