"""The stage `lead align`: a student learns a dual encoder teacher's vectors of unlabelled texts.

Passages and queries are texts of their own: no judgement and no negative is read. Afterwards student and teacher share
a space: the student's queries search the teacher's passages, and the student is a start for distillation.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from lead.config.alignment import align_steps
from lead.config.schema import Linear, Train
from lead.config.stages import AlignSettings
from lead.data.copies import same_text
from lead.data.texts import mapped, mapped_batches, take_texts
from lead.data.unlabelled import read_texts
from lead.device import device
from lead.errors import LeadError
from lead.methods.align import align as align_loss
from lead.methods.losses import Loss
from lead.models.bi_encoder import BiEncoder
from lead.models.dual_encoder import DualEncoder
from lead.pretrained import local_weights
from lead.store.atomic import check_replaceable
from lead.store.tables import read_table
from lead.train.data import Batch, Queries, RowNumbers
from lead.train.dev import DevPool
from lead.train.exchange import Exchange, join_ranks
from lead.train.loop import Loop
from lead.train.state import open_state, state_key, state_name
from lead.train.step import Encoded, Inputs, Prepared, Step

log = logging.getLogger("lead")

WINDOW = 32  # batches whose texts are sorted by length together, so that a batch has little padding
NOTHING = torch.zeros(0, 0)


class Texts(Batch):
    """A step's texts, or a rank's part: some queries and some passages, which have nothing to do with each other."""

    def __init__(self, queries: list[str], passages: list[str]) -> None:
        super().__init__(queries, passages, NOTHING, NOTHING)

    def shard(self, rank: int, world: int) -> Texts:
        """Every `world`-th text, whatever its side: each rank has as many, so the mean of their means is the mean."""
        n = len(self.queries)
        rows = range(rank, n + len(self.passages), world)
        return Texts([self.queries[i] for i in rows if i < n], [self.passages[i - n] for i in rows if i >= n])


class AlignData:
    """The stream of batches of texts. An epoch is a permutation seeded by (seed, generation, epoch).

    Texts of similar length are in a batch: `WINDOW` batches are sorted together, and all batches are shuffled. Texts
    that do not fill the last batch are left out of an epoch. Memory: 20 bytes a text, 24 more while an epoch is begun.
    """

    def __init__(
        self, passages: pa.ChunkedArray, queries: pa.ChunkedArray, batch_size: int, seed: int, generation: int = 0
    ) -> None:
        """`passages`, `queries`: their texts. Raises LeadError when a batch cannot be filled."""
        self.texts = pa.chunked_array([*passages.chunks, *queries.chunks], pa.string())
        self.passages, self.batch_size, self.key = len(passages), batch_size, (seed, generation)
        if batch_size > len(self.texts):
            raise LeadError(f"train.batch_size: {batch_size} is more than the {len(self.texts)} texts; lower it")
        self.steps = len(self.texts) // batch_size  # of an epoch
        self.lengths = np.concatenate([_lengths(chunk) for chunk in self.texts.chunks])
        self._orders: dict[int, RowNumbers] = {}

    def batch(self, step: int) -> Texts:
        """The texts of this step (0-based). Several threads may ask at once."""
        epoch, place = divmod(step, self.steps)
        rows = self._order(epoch)[place * self.batch_size : (place + 1) * self.batch_size]
        q, p = rows[rows >= self.passages], rows[rows < self.passages]
        return Texts(take_texts(self.texts, q), take_texts(self.texts, p))

    def _order(self, epoch: int) -> RowNumbers:
        """The rows of an epoch's batches, one after another."""
        known = self._orders  # another thread may put a new dictionary in its place
        if epoch not in known:
            seed, generation = self.key
            rng = np.random.default_rng([seed, 0xA116, epoch, generation])
            order = rng.permutation(len(self.texts))[: self.steps * self.batch_size]
            size = WINDOW * self.batch_size
            for start in range(0, len(order), size):
                window = order[start : start + size]
                order[start : start + size] = window[np.argsort(self.lengths[window], kind="stable")]
            order = order.reshape(self.steps, self.batch_size)[rng.permutation(self.steps)].ravel()
            known = {e: rows for e, rows in known.items() if e >= epoch - 1} | {epoch: order}
            self._orders = known
        return known[epoch]


def _lengths(chunk: pa.Array) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Bytes of each text."""
    return np.asarray(pa.compute.binary_length(chunk).to_numpy(zero_copy_only=False), dtype=np.int32)


class AlignStep(Step):
    """The student's vectors of a step's texts are drawn to the frozen teacher's."""

    student: DualEncoder

    def __init__(self, student: DualEncoder, teacher: DualEncoder, train: Train, loss: str, seed: int) -> None:
        """`loss`: as in `lead.config.schema.Align`. Raises LeadError when the vectors differ in size."""
        super().__init__(student, train, seed)
        if student.size != teacher.size:
            raise LeadError(
                f"method align: the student's vectors have {student.size} outputs, the teacher's {teacher.size}; "
                f"give the student `linear: {{size: {teacher.size}}}`"
            )
        self.teacher, self.distance = teacher.eval().requires_grad_(False), loss
        self.alike = teacher.tokenization == student.tokenization

    def trained(self) -> dict[str, Any]:
        """The student."""
        return {"student": self.student}

    def inputs(self, batch: Batch) -> dict[str, Inputs]:
        """Token ids of queries and passages in a row, for both models; made once where both tokenize alike."""
        student = _tokenize(self.student, batch)
        return {"student": student, "teacher": student if self.alike else _tokenize(self.teacher, batch)}

    def loss(self, prepared: Prepared, step: int) -> tuple[Loss, list[Encoded]]:
        """The distance of both models' vectors."""
        ids, last = prepared.inputs, (self.student.n_layers,)
        (s,), replays = self.features(self.student, "student", ids["student"], last, step, frozen=False)
        (t,), _ = self.features(self.teacher, "teacher", ids["teacher"], (self.teacher.n_layers,), step, frozen=True)
        loss = align_loss(self.teacher.vectors(t), self.student.vectors(s), self.distance)
        return loss, [Encoded(self.student, (s,), replays, self.exchange)]


def _tokenize(model: BiEncoder, batch: Batch) -> Inputs:
    return {"texts": model.tokenize("query", batch.queries) + model.tokenize("passage", batch.passages)}


def align(
    *,
    settings: AlignSettings,
    gpu: int,
    corpus: Path,
    queries: Path,
    dev_queries: Path,
    dev_qrels: Path,
    texts: list[Path] | None = None,
    start: Path | None,
    teacher: Path,
    out: Path,
    state: Path,
    metrics: Path,
) -> None:
    """Align a pretrained encoder, or the model in `start`, with the dual encoder in `teacher`, and write it to `out`.

    `queries`: train queries, as texts. `dev_queries`, `dev_qrels`: to compare checkpoints only. `texts`: more texts. A
    pretrained encoder whose vectors differ in size from the teacher's gets a linear layer. Memory of a rank: the
    student with gradients and two moments (16 bytes a parameter), the teacher's parameters, activations of
    `train.micro_tokens` tokens, `AlignData`, and the queries. Passages and texts are mapped (lead.data.texts).
    """
    if (settings.model is None) == (start is None):
        raise LeadError("lead align needs one of settings.model (a pretrained encoder) and --start (a model folder)")
    check_replaceable(out)
    on = device(gpu)
    join_ranks(on)
    taught = DualEncoder.load(teacher).to(on)
    student = (_pretrained(settings, taught.size) if start is None else DualEncoder.load(start)).to(on)
    files = {"corpus": corpus, "queries": queries, "dev_queries": dev_queries, "dev_qrels": dev_qrels}
    files |= {f"texts {i}": path for i, path in enumerate(texts or [], start=1)} | {"teacher": teacher}
    origin = start if settings.model is None else local_weights(settings.model.reference)
    passages = mapped(corpus, state / "corpus.arrow", Exchange.here())
    more = mapped_batches(lambda: read_texts(texts or []), state / "texts.arrow", Exchange.here())
    data = AlignData(
        pa.chunked_array([*passages["text"].chunks, *more["text"].chunks], pa.string()),
        read_table(queries, "queries")["text"],
        settings.train.batch_size,
        settings.seed,
        settings.generation,
    )
    steps = settings.train.steps
    if settings.epochs is not None:
        steps = align_steps(settings.epochs, settings.between, data.steps)
    train = settings.train.model_copy(update={"steps": steps})
    log.info("%d texts, %.2f epochs of %d steps", len(data.texts), steps / data.steps, data.steps)
    step = AlignStep(student, taught, train, settings.loss, settings.seed)
    dev = _dev_pool(passages, dev_queries, dev_qrels, settings)
    key = state_key(settings, {**files, "start": origin})
    if Exchange.here().rank == 0:
        open_state(state, settings, key)
    Loop(step, data, dev, train, state / state_name(key)).complete({out: student}, metrics)


def _pretrained(settings: AlignSettings, size: int) -> DualEncoder:
    """The pretrained encoder to start from, with a linear layer if its vectors do not have this size."""
    assert settings.model is not None
    torch.manual_seed(settings.seed)
    model = DualEncoder.pretrained(settings.model, "de", settings.scoring, settings.lengths)
    if model.size != size and settings.model.linear is None:
        log.info(
            "the student has %d outputs: a linear layer makes %d of them, as many as the teacher has", model.size, size
        )
        mapping = settings.model.model_copy(update={"linear": Linear(size=size)})
        model = DualEncoder.pretrained(mapping, "de", settings.scoring, settings.lengths)
    return model


def _dev_pool(passages: pa.Table, queries: Path, qrels: Path, settings: AlignSettings) -> DevPool | None:
    """Dev queries and their relevant passages among passages drawn at random: there are no mined negatives."""
    train = settings.train
    if not train.dev_queries:
        return None
    judged = Queries(passages["pid"], queries, qrels, None, settings.relevance, 0, same_text(passages["text"]))
    rng = np.random.default_rng([settings.seed, 0xDE7])
    drawn = [rng.integers(len(passages), size=train.dev_negatives) for _ in judged.positives]
    judged.negatives = [rows[~np.isin(rows, p)] for rows, p in zip(drawn, judged.positives, strict=True)]
    return DevPool(passages, judged, train.dev_queries, train.dev_negatives)
