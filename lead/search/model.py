"""The Python API: a trained dual encoder that encodes texts and searches passages. `lead.load` makes one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from lead.errors import LeadError
from lead.lists import Floats, Ints
from lead.search.light import light_encoder
from lead.search.passages import Hit, Passages, Vectors, checked

if TYPE_CHECKING:
    from lead.models.bi_encoder import BiEncoder

BATCH_TOKENS = 16384  # padded tokens that are encoded together


class Model:
    """A dual encoder, and the passages that it searches.

    folder: where it was loaded from. passages: what `search` searches, None before `index` where a folder was loaded.
    of_passages: the model that encodes passages: itself, or that of the run whose passages this run searches (methods
    asymmetric and, with `passages`, contrastive: ADORE).
    """

    def __init__(
        self,
        folder: Path,
        passages: Passages | None = None,
        vectors: Vectors | None = None,
        of_passages: Model | None = None,
    ) -> None:
        """`vectors`: those of `passages`, made by `of_passages` (None: this model)."""
        self.folder, self.passages, self._vectors = folder, passages, vectors
        self.of_passages = of_passages or self

    def __repr__(self) -> str:
        """Folder and number of passages."""
        return f"<lead model {self.folder}, {len(self.passages or ()):,} passages>"

    def encode_queries(self, texts: Sequence[str]) -> Floats:
        """Vectors [n, d] of n queries, float32. The score of a passage is the inner product with its vector."""
        return self._encode("query", texts)

    def encode_passages(self, texts: Sequence[str]) -> Floats:
        """Vectors [n, d] of n passages, float32."""
        return self.of_passages._encode("passage", texts)

    def index(self, passages: Sequence[str] | str | Path) -> Model:
        """Encode passages, and search them from now on. Returns the model itself.

        passages: texts, whose ids are "0", "1", ..; or a file of a corpus: JSONL (_id, title, text), TSV (id, [title,]
        text), CSV or Parquet. Memory: the texts and 4 d bytes a passage. Raises LeadError for a file it cannot read.
        """
        given = isinstance(passages, str | Path)
        found = Passages.of_file(Path(passages)) if given else Passages.of_texts(passages)  # type: ignore[arg-type]
        vectors = self.encode_passages(found.read(range(len(found))))
        self.passages, self._vectors = found, Vectors([(vectors, None)], found.order)
        return self

    def search(self, query: str, k: int = 10) -> list[Hit]:
        """The k passages with the highest inner products with the query, best first; ties go to the first id.

        Raises LeadError if there are no passages.
        """
        passages, (rows, scores) = self.passages, self.rank(query, k)
        assert passages is not None
        return passages.hits(rows, scores)

    def rank(self, query: str, k: int) -> tuple[Ints, Floats]:
        """Rows of `passages` and scores of the k best, best first. Raises LeadError if there are no passages."""
        if self._vectors is None:
            raise LeadError(f"{self.folder}: no passages to search; give them with `index`, or load DATASET/RUN")
        if k < 1:
            raise LeadError(f"k: {k} passages; give at least 1")
        return self._vectors.search(self._query(query), k)

    # --- encoding ----------------------------------------------------------------------------------------------------
    @cached_property
    def encoder(self) -> BiEncoder:
        """The dual encoder itself, a torch module in eval mode. Raises LeadError for a folder of another model."""
        from lead.models.base import LayeredModel
        from lead.models.bi_encoder import BiEncoder

        model = LayeredModel.load(self.folder).must_rank_by("search", str(self.folder), ": it has no vectors of texts")
        assert isinstance(model, BiEncoder)
        return model.eval()

    @cached_property
    def _query(self) -> Callable[[str], Floats]:
        """Encodes the query of a search: without torch, if that is possible."""
        return light_encoder(self.folder) or (lambda text: self.encode_queries([text])[0])

    def _encode(self, side: Literal["query", "passage"], texts: Sequence[str]) -> Floats:
        from lead.retrieval.encode import encode_ids

        texts = checked(texts)
        vectors = np.empty((len(texts), self.encoder.size), np.float32)
        ids = self.encoder.tokenize(side, texts) if texts else []
        for rows, x in encode_ids(self.encoder, ids, BATCH_TOKENS, "fp32", f"{side} vectors"):
            vectors[rows] = x.cpu().numpy()
        return vectors
