"""A dual encoder as ONNX, and as ONNX with weights in 8 bits: made, compared with the model, and run.

The graph has inputs input_ids and attention_mask [texts, tokens], and outputs last_hidden_state and sentence_embedding:
the vectors of tokens, and those of texts, pooled and of unit length as the model says.
"""

from __future__ import annotations

import contextlib
import io
import logging
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from lead.errors import LeadError
from lead.lists import Floats
from lead.models.dual_encoder import DualEncoder, pooled
from lead.models.microbatch import micro_batches

FP32, INT8 = "onnx/model.onnx", "onnx/model_int8.onnx"
INPUTS, VECTOR = ("input_ids", "attention_mask"), "sentence_embedding"
TOLERANCE = 1e-4  # largest difference of a number of a vector between ONNX and the model
ONE_FILE = 2**31 - 2**27  # bytes of weights up to which a graph and its weights fit into one file
BATCH_TOKENS = 4096  # padded tokens encoded together


class Graph(nn.Module):
    """What is exported: token ids to the vectors of tokens and texts."""

    def __init__(self, model: DualEncoder) -> None:
        super().__init__()
        self.encoder, self.linear, self.scoring = model.encoder, model.linear, model.scoring

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """States [n, T, width] and vectors [n, d] of n texts."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        x = pooled(states, attention_mask, self.scoring.pooling)
        x = x if self.linear is None else self.linear(x)  # as in lead.models.interchange
        return states, normalize(x, dim=-1) if self.scoring.normalise == "unit" else x


def check_installed() -> None:
    """Raises LeadError if a package of the extra `export` is missing."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            __import__(name)
        except ImportError:
            raise LeadError(f"ONNX needs the package {name}; pip install 'lead-distil[export]'") from None


def write_onnx(model: DualEncoder, file: Path) -> None:
    """Write the graph of a model. Memory: its weights, three times. Raises LeadError if torch cannot export it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    graph = Graph(model).eval()
    ids = torch.zeros(2, 8, dtype=torch.long)  # no dimension is 1, which would be taken as fixed
    texts, tokens = torch.export.Dim("texts"), torch.export.Dim("tokens", max=max(model.lengths.model_dump().values()))
    size = sum(p.numel() * p.element_size() for p in graph.parameters())
    try:
        with _quiet():
            torch.onnx.export(
                graph,
                (ids, torch.ones_like(ids)),
                str(file),
                input_names=list(INPUTS),
                output_names=["last_hidden_state", VECTOR],
                dynamic_shapes={name: {0: texts, 1: tokens} for name in INPUTS},
                dynamo=True,
                external_data=size > ONE_FILE,
                verbose=False,
            )
    except Exception as e:  # torch promises no exceptions
        reason = " ".join(str(e).split())[:200]
        raise LeadError(f"--onnx: torch cannot export {type(model.encoder).__name__}: {reason}; leave it out") from e


def write_int8(file: Path, out: Path) -> None:
    """Write a graph's weights in 8 bits, its activations to be quantized as they come.

    Seven bits are used, a scale for each channel: CPUs without VNNI overflow with eight.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(file, out, per_channel=True, reduce_range=True, weight_type=QuantType.QInt8)


class OnnxEncoder:
    """A graph that is run by onnxruntime on the CPU, with as many threads as torch has."""

    def __init__(self, file: Path, pad: int) -> None:
        """`pad`: the token id that fills a batch."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors only
        self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self.pad, self.seconds = pad, 0.0  # spent in the graph so far

    def encode(self, ids: Sequence[list[int]]) -> Floats:
        """Vectors [n, d] of n tokenized texts."""
        out: list[Any] = [None] * len(ids)
        for group in micro_batches([len(i) for i in ids], BATCH_TOKENS):
            width = max(len(ids[i]) for i in group)
            padded = np.array([ids[i] + [self.pad] * (width - len(ids[i])) for i in group], np.int64)
            mask = np.array([[1] * len(ids[i]) + [0] * (width - len(ids[i])) for i in group], np.int64)
            started = time.perf_counter()
            (vectors,) = self.session.run([VECTOR], dict(zip(INPUTS, (padded, mask), strict=True)))
            self.seconds += time.perf_counter() - started
            for i, vector in zip(group, vectors, strict=True):
                out[i] = vector
        return np.stack(out)


@torch.inference_mode()
def check_agreement(model: DualEncoder, encoder: OnnxEncoder, ids: Sequence[list[int]]) -> float:
    """Largest difference between the numbers of both models' vectors of tokenized texts. LeadError if too large."""
    name = type(model.encoder).__name__
    try:
        theirs = encoder.encode(ids)
    except Exception as e:  # such as a size that torch took as fixed
        reason = " ".join(str(e).split())[:200]
        raise LeadError(f"--onnx: the graph of {name} does not run: {reason}; leave it out") from e
    ours = model.vectors(model.eval().encode(list(ids), (model.n_layers,))).cpu().numpy()
    difference = float(np.abs(ours - theirs).max())
    if not difference <= TOLERANCE * max(1.0, float(np.abs(ours).max())):
        raise LeadError(f"--onnx: vectors of {name} differ by {difference:.2g}; leave it out")
    return difference


@contextlib.contextmanager
def _quiet() -> Any:
    """Without the progress and warnings of the exporters."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
