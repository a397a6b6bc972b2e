"""BM25 as Lucene computes it: a run of its own, and the first hard negatives (section 4.3)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.sparse import csr_array
from tqdm import tqdm

from lead.artifacts import SCHEMAS, read_table, take_texts, write_table
from lead.config.schema import Bm25
from lead.config.stages import Bm25Settings
from lead.errors import LeadError
from lead.retrieval.mine import known_positives, most_positives, write_negatives
from lead.retrieval.search import best, check_distinct, ranked_table

if TYPE_CHECKING:
    from bm25s.tokenization import Tokenizer

MATCHES = 2**25  # (query, passage) pairs scored at a time, at most, unless one query has more: 256 MB


class Index:
    """A BM25 index of a corpus. Its rankings do not depend on the order of the corpus, nor on threads.

    Passages are held sorted by id, so that the lower position wins a tie.
    """

    def __init__(self, corpus: pa.Table, settings: Bm25) -> None:
        """Index a `corpus` table. Raises LeadError when no passage has a word."""
        import bm25s

        logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets itself to DEBUG
        pids, order = corpus["pid"].combine_chunks(), pc.sort_indices(corpus["pid"])
        self.pids: pa.Array = pids.take(order)
        self.tokenizer = _tokenizer(settings)
        strings = _sorted_strings(corpus["text"], order.to_numpy())
        texts = tqdm(strings, total=corpus.num_rows, desc="tokenize", unit="passage", disable=None)
        tokens = list(self.tokenizer.streaming_tokenize(texts, update_vocab=True, allow_empty=False))
        vocabulary = self.tokenizer.get_vocab_dict()
        if not vocabulary:
            raise LeadError("no passage of the corpus has a word to index; look at its text column")
        index = bm25s.BM25(k1=settings.k1, b=settings.b, method="lucene", csc_backend="scipy")
        index.index((tokens, vocabulary), create_empty_token=False, show_progress=False)
        # columns of bm25s's matrix [passages, words] are the rows of this one: a word's score in each passage
        parts = (index.scores["data"], index.scores["indices"], index.scores["indptr"])
        self.scores = csr_array(parts, shape=(len(vocabulary), corpus.num_rows))

    def rank(self, queries: pa.Table, depth: int) -> Iterator[pa.Table]:
        """`ranked` tables of depth `depth`, one a batch of the rows of a `queries` table, in their order.

        Only passages that share a word with the query are listed, so a query of unknown words has no row.
        """
        tokens = self.tokenizer.streaming_tokenize(_strings(queries["text"]), update_vocab=False, allow_empty=False)
        words = [np.asarray(ids, dtype=np.int64) for ids in tokens]
        lengths = np.array([ids.size for ids in words], dtype=np.int64)
        rows, columns = np.repeat(np.arange(len(words)), lengths), np.concatenate([np.empty(0, np.int64), *words])
        counts = np.ones(rows.size, np.float32)  # a word that a query repeats counts as often
        weights = csr_array((counts, (rows, columns)), shape=(len(words), self.scores.shape[0]))
        matches = weights @ np.diff(self.scores.indptr).astype(np.float64)
        batches = np.flatnonzero(np.diff(np.cumsum(matches) // MATCHES, prepend=0)).tolist()
        qids = queries["qid"].combine_chunks()
        with tqdm(total=len(words), desc="BM25", unit="query", disable=None) as progress:
            for start, stop in zip([0, *batches], [*batches, len(words)], strict=True):
                yield self._rank_batch(qids, weights[start:stop], start, depth)
                progress.update(stop - start)

    def _rank_batch(self, qids: pa.Array, weights: csr_array, start: int, depth: int) -> pa.Table:
        """Rank for the queries from position `start` on, with words `weights` [b, words]."""
        product = (weights @ self.scores).tocsr()
        queries, passages, scores = [], [], []
        for row, (low, high) in enumerate(zip(product.indptr[:-1], product.indptr[1:], strict=True)):
            found, values = product.indices[low:high].astype(np.int64), product.data[low:high]
            top = best(values, found, depth)
            queries.append(np.full(top.size, start + row))
            passages.append(found[top])
            scores.append(values[top])
        if not queries:  # a batch without queries
            return SCHEMAS["ranked"].empty_table()
        return ranked_table(qids, self.pids, np.concatenate(queries), np.concatenate(passages), np.concatenate(scores))


def _tokenizer(settings: Bm25) -> Tokenizer:
    """Lower-cased words of two characters or more, without Lucene's English stop words, stemmed."""
    import Stemmer
    from bm25s.tokenization import Tokenizer

    stemmer = None if settings.stemmer == "none" else Stemmer.Stemmer(settings.stemmer)
    return Tokenizer(stopwords="english" if settings.stop_words else [], stemmer=stemmer)


def _sorted_strings(column: pa.ChunkedArray, order: NDArray[np.int64]) -> Iterator[str]:
    """Yield the strings of a column in this order of rows, a few thousand in memory at a time."""
    return (text for start in range(0, len(order), 8192) for text in take_texts(column, order[start : start + 8192]))


def _strings(column: pa.ChunkedArray) -> Iterator[str]:
    """Yield the strings of a column, a few thousand in memory at a time."""
    return (text for batch in pa.table({"text": column}).to_batches(8192) for text in batch["text"].to_pylist())


def bm25(
    *,
    settings: Bm25Settings,
    corpus: Path,
    queries: list[Path] | None,
    qrels: list[Path] | None,
    test_queries: Path,
    negatives: Path | None,
    ranked: Path,
) -> None:
    """Rank the test queries as a run, and the train and dev `queries` for hard negatives without any known positive.

    Without `negatives` it ranks only. Raises LeadError when two files of `queries` hold the same id.
    """
    if (negatives is None) != (not queries) or (negatives is None) != (not qrels):
        raise LeadError("lead bm25: --queries, --qrels and --negatives go together; give all three or none")
    seen: dict[str, Path] = {}
    to_mine = [read_table(path, "queries") for path in queries or []]
    for table, path in zip(to_mine, queries or [], strict=True):
        check_distinct(table["qid"].to_pylist(), path, seen)
    to_rank = read_table(test_queries, "queries")
    index = Index(read_table(corpus, "corpus"), settings.bm25)

    tables = index.rank(to_rank, settings.depth)
    write_table(pa.concat_tables([SCHEMAS["ranked"].empty_table(), *tables]), ranked, "ranked")

    if negatives is None:
        return
    positives = known_positives(qrels or [], settings.relevance)
    deep = settings.mine_depth + most_positives(positives)
    deep_lists = (lists for table in to_mine for lists in index.rank(table, deep))
    write_negatives(deep_lists, positives, settings.mine_depth, negatives)
