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

from lead.config.phases import align_steps
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
from lead.train.taught import Taught

log = logging.getLogger("lead")

WINDOW = 32  # batches whose texts are sorted by length together, so that a batch has little padding
NOTHING = torch.zeros(0, 0)


class Texts(Batch):
    """A step's texts, or a rank's part: some queries and some passages, which have nothing to do with each other.

    rows: their numbers among all texts, those of the queries first.
    """

    rows: RowNumbers

    def __init__(self, queries: list[str], passages: list[str], rows: RowNumbers) -> None:
        super().__init__(queries, passages, NOTHING, NOTHING)
        object.__setattr__(self, "rows", rows)

    def shard(self, rank: int, world: int) -> Texts:
        """Every `world`-th text, whatever its side: each rank has as many, so the mean of their means is the mean."""
        return self.only(np.arange(rank, len(self.rows), world))

    def only(self, places: RowNumbers) -> Texts:
        """The texts at these places, queries counted first."""
        n = len(self.queries)
        passages = [self.passages[i - n] for i in places if i >= n]
        return Texts([self.queries[i] for i in places if i < n], passages, self.rows[places])


class AlignData:
    """The stream of batches of texts. An epoch is a permutation seeded by (seed, generation, epoch).

    Texts of similar length are in a batch: `WINDOW` batches are sorted together, and all batches are shuffled. Texts
    that do not fill the last batch are left out of an epoch. Memory: 20 bytes a text, 24 more while an epoch is begun.
    """

    def __init__(
        self, passages: pa.ChunkedArray, queries: pa.ChunkedArray, batch_size: int, seed: int, generation: int = 0
    ) -> None:
        """`passages`, `queries`: their texts. Raises LeadError when a batch cannot be filled."""
        self.texts = _joined(passages, queries)
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
        return Texts(take_texts(self.texts, q), take_texts(self.texts, p), np.concatenate([q, p]))

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
    """The student's vectors of a step's texts are drawn to the frozen teacher's, which are computed once."""

    student: DualEncoder

    def __init__(
        self, student: DualEncoder, teacher: DualEncoder, train: Train, loss: str, seed: int, taught: Taught
    ) -> None:
        """`loss`: as in `lead.config.phases.Align`. `taught`: the teacher's vectors that are known.

        Raises LeadError when the vectors differ in size.
        """
        super().__init__(student, train, seed)
        if student.size != teacher.size:
            raise LeadError(
                f"method align: the student's vectors have {student.size} outputs, the teacher's {teacher.size}; "
                f"give the student `linear: {{size: {teacher.size}}}`"
            )
        self.teacher, self.distance, self.taught = teacher.eval().requires_grad_(False), loss, taught

    def trained(self) -> dict[str, Any]:
        """The student."""
        return {"student": self.student}

    def inputs(self, batch: Batch) -> dict[str, Inputs]:
        """Token ids of queries and passages in a row: all for the student, those not known yet for the teacher."""
        assert isinstance(batch, Texts)
        new = np.flatnonzero(~self.taught.known(batch.rows))
        teacher = {**_tokenize(self.teacher, batch.only(new)), "rows": batch.rows[new].tolist()}
        return {"student": _tokenize(self.student, batch), "teacher": teacher}

    def loss(self, prepared: Prepared, step: int) -> tuple[Loss, list[Encoded]]:
        """The distance of both models' vectors."""
        assert isinstance(prepared.batch, Texts)
        ids, last = prepared.inputs, (self.student.n_layers,)
        self._teach(ids["teacher"], step)
        t = self.taught.take(prepared.batch.rows).to(self.device)
        (s,), replays = self.features(self.student, "student", ids["student"], last, step, frozen=False)
        loss = align_loss(t, self.student.vectors(s), self.distance)
        return loss, [Encoded(self.student, (s,), replays, self.exchange)]

    def _teach(self, inputs: Inputs, step: int) -> None:
        """Compute the teacher's vectors that are still not known: since `inputs` was called, other steps were taken."""
        rows = np.array(inputs["rows"], dtype=np.int64)
        new = np.flatnonzero(~self.taught.known(rows))
        if len(new):
            texts = {"texts": [inputs["texts"][i] for i in new]}
            (t,), _ = self.features(self.teacher, "teacher", texts, (self.teacher.n_layers,), step, frozen=True)
            self.taught.put(rows[new], self.teacher.vectors(t).float().cpu().numpy())


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
    more_queries: list[Path] | None = None,
    start: Path | None,
    teacher: Path,
    passages: list[Path] | None = None,
    out: Path,
    state: Path,
    metrics: Path,
) -> None:
    """Align a pretrained encoder, or the model in `start`, with the dual encoder in `teacher`, and write it to `out`.

    `queries`: train queries, as texts. `dev_queries`, `dev_qrels`: to compare checkpoints only. `texts`: more passages.
    `more_queries`: more queries. `passages`: the teacher's vectors of the corpus, if they are there; it encodes every
    other text once (`Taught`). A pretrained encoder whose vectors differ in size from the teacher's gets a linear
    layer. Memory of a rank: the student with gradients and two moments (16 bytes a parameter), the teacher's
    parameters, activations of `train.micro_tokens` tokens, `AlignData`, and the train queries. All other texts are
    mapped (lead.data.texts).
    """
    if (settings.model is None) == (start is None):
        raise LeadError("lead align needs one of settings.model (a pretrained encoder) and --start (a model folder)")
    check_replaceable(out)
    on = device(gpu)
    join_ranks(on)
    model = DualEncoder.load(teacher).to(on)
    student = (_pretrained(settings, model.size) if start is None else DualEncoder.load(start)).to(on)
    files = {"corpus": corpus, "queries": queries, "dev_queries": dev_queries, "dev_qrels": dev_qrels}
    given = {"texts": texts or [], "more queries": more_queries or []}
    files |= {f"{key} {i}": path for key, paths in given.items() for i, path in enumerate(paths, start=1)}
    files |= {"teacher": teacher}
    origin = start if settings.model is None else local_weights(settings.model.reference)
    files |= {f"passages {i}": path for i, path in enumerate(passages or [], start=1)}
    table = mapped(corpus, state / "corpus.arrow", Exchange.here())
    asked = read_table(queries, "queries")["text"]
    data = align_data(settings, table["text"], asked, texts or [], more_queries or [], state)
    steps = settings.train.steps
    if settings.epochs is not None:
        steps = align_steps(settings.epochs, settings.between, data.steps)
    train = settings.train.model_copy(update={"steps": steps})
    log.info("%d texts, %.2f epochs of %d steps", len(data.texts), steps / data.steps, data.steps)
    dev = _dev_pool(table, dev_queries, dev_qrels, settings)
    key = state_key(settings, {**files, "start": origin})
    if Exchange.here().rank == 0:
        open_state(state, settings, key)
    own = state / state_name(key)
    taught = Taught(own, len(data.texts), model.size, Exchange.here())
    if passages:
        taught.fill(passages, table["pid"], Exchange.here())
    step = AlignStep(student, model, train, settings.loss, settings.seed, taught)
    Loop(step, data, dev, train, own).complete({out: student}, metrics)


def align_data(
    settings: AlignSettings,
    passages: pa.ChunkedArray,
    queries: pa.ChunkedArray,
    texts: list[Path],
    more_queries: list[Path],
    state: Path,
) -> AlignData:
    """Passages and queries, with those of the files. `state`: where the temporary files are. LeadError: a bad file."""
    more, asked = (_mapped(files, state / f"{n}.arrow") for n, files in (("texts", texts), ("queries", more_queries)))
    train = settings.train
    passages, queries = _joined(passages, more), _joined(queries, asked)
    return AlignData(passages, queries, train.batch_size, settings.seed, settings.generation)


def _mapped(files: list[Path], beside: Path) -> pa.ChunkedArray:
    return mapped_batches(lambda: read_texts(files), beside, Exchange.here())["text"]


def _joined(*columns: pa.ChunkedArray) -> pa.ChunkedArray:
    return pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.string())


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
