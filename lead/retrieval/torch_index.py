"""Exact search by PyTorch: blocks of matrix products and their top k, on a GPU or the CPU, without faiss.

It proposes candidates, as faiss does. lead.retrieval.search computes their scores again and breaks ties by id, so the
lists are the same.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from lead.device import without_tf32
from lead.lists import Floats, Ints
from lead.retrieval.engine import Engine, exact_engine, faiss_on_gpu

log = logging.getLogger("lead")

BLOCK = 1 << 28  # products [b, p] of a batch and a block of passages that a GPU holds at a time: 1 GB
SPARE = 3 << 30  # bytes of a GPU's memory that passages leave free, for blocks and their top k


def exact_engine_on(passages: Floats, gpu: int) -> Engine:
    """An exact engine on this GPU: of faiss where it knows GPUs (faiss-gpu), else of PyTorch."""
    return exact_engine(passages, gpu) if faiss_on_gpu() else torch_engine(passages, torch.device("cuda", gpu))


def torch_engine(passages: Floats, on: torch.device, block: int = BLOCK) -> Engine:
    """An engine that compares all `passages` [n, d] on a device, which holds a copy of as many as its memory allows.

    The others travel to it block by block in every call. block: products held at a time, which bounds the memory of a
    call. Products are float32, never TF32: their error is within the bound of lead.retrieval.search.
    """
    vectors = torch.from_numpy(passages)
    resident = len(vectors)
    if on.type == "cuda":
        free, _ = torch.cuda.mem_get_info(on)
        resident = max(0, min(resident, (free - SPARE) // max(1, 4 * vectors.shape[1])))
        if resident < len(vectors):
            log.info("the GPU holds %d of %d vectors; the others travel to it for each batch", resident, len(vectors))
    here, rest = vectors[:resident].to(on), vectors[resident:]

    @torch.inference_mode()
    @without_tf32()
    def propose(queries: Floats, k: int) -> tuple[Floats, Ints]:
        q = torch.from_numpy(queries).to(on)
        size = max(1, block // max(1, len(q)))
        best = q.new_empty(len(q), 0), torch.empty(len(q), 0, dtype=torch.long, device=on)
        for held, offset in ((here, 0), (rest, resident)):
            for start in range(0, len(held), size):
                best = _merged(best, q, held[start : start + size].to(on), offset + start, k)
        return best[0].cpu().numpy(), best[1].cpu().numpy()

    return Engine(propose)


def _merged(best: tuple[Tensor, Tensor], q: Tensor, passages: Tensor, first: int, k: int) -> tuple[Tensor, Tensor]:
    """The k best of those found before and of a block of passages, whose first one has row `first`: products, rows."""
    found = (q @ passages.T).topk(min(k, len(passages)), sorted=False)
    products, rows = torch.cat([best[0], found.values], 1), torch.cat([best[1], found.indices + first], 1)
    top = products.topk(min(k, products.shape[1]))
    return top.values, rows.gather(1, top.indices)
