"""BM25 as Lucene computes it: a run, and the first hard negatives (section 4.3)."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array
from tqdm import tqdm

from lead.config.lists import Bm25
from lead.config.stages import Bm25Settings
from lead.data.texts import mapped
from lead.errors import LeadError
from lead.lists import Floats, Ints, alphabetical, best, ranked_table
from lead.retrieval.mine import drop_positives, known_positives, most_positives, with_copies, write_negatives
from lead.retrieval.search import check_distinct
from lead.retrieval.words import Words
from lead.store.tables import open_table, read_rows, read_table, without_nulls, write_lists

log = logging.getLogger("lead")

SHARD = 2**19  # passages indexed together; a query's scores in a shard (2 MB) fit into the processor's cache
TEXTS = 2**28  # a shard ends at this many bytes of text, so long documents have smaller shards
READ = 2**13  # passages read at a time
BATCH = 4096  # queries in each table
TOGETHER = 64  # queries multiplied with a shard at a time: bounds memory
UNANSWERED = 0.2  # warn if this share of queries has no list


class Bm25Index:
    """A BM25 index of a corpus, in shards with common statistics.

    Lists depend neither on the shards nor on the order of the passages. As in BM25S (Lu, 2024) the scores of all words
    in all passages are computed beforehand. Memory: 8 bytes for each of these scores (MS MARCO: about 2.5 GB), the
    distinct words (1 GB), the ids, and the texts and words of one shard (five times the texts, 1.3 GB).
    """

    def __init__(self, corpus: Path, settings: Bm25) -> None:
        """Index a `corpus` file. Raises LeadError if no passage has a word."""
        file = open_table(corpus, "corpus")
        self.pids: pa.Array = read_table(corpus, columns=["pid"])["pid"].combine_chunks()
        self.order = alphabetical(self.pids)  # ties go to the lower id
        self.words, self.analyser = Words(settings), settings.analyser
        self.shards: list[csr_array] = []  # scores [words found so far, passages]
        lengths = []  # in words, of the passages of each shard
        with tqdm(total=len(self.pids), desc="index", unit="passage", disable=None) as progress:
            for chunk in _shards(read_rows(file, 0, len(self.pids), min(READ, SHARD))):
                numbers, counts = self.words.read(_strings(without_nulls(chunk, corpus)["text"]))
                places = numbers, np.repeat(np.arange(len(counts), dtype=np.int32), counts)
                shape = len(self.words.stems), len(counts)
                self.shards.append(coo_array((np.ones(len(numbers), np.float32), places), shape).tocsr())
                lengths.append(counts)
                progress.update(len(chunk))
        if not self.words.stems:
            raise LeadError("no passage of the corpus has a word to index; look at its text column")
        self._score(lengths, settings)

    def _score(self, lengths: list[NDArray[np.int32]], settings: Bm25) -> None:
        """Turn counts into scores: ln(1 + (N - df + .5) / (df + .5)) tf / (tf + k1 (1 - b + b length / mean length)).

        As in Lucene, N and the mean include only passages with a word. Lucene rounds lengths above 40; these are exact.
        """
        found = np.zeros(len(self.words.stems))  # df: passages that have each word
        for shard in self.shards:
            found[: shard.shape[0]] += np.diff(shard.indptr)
        total = sum(int(np.count_nonzero(part)) for part in lengths)
        mean = sum(int(part.sum()) for part in lengths) / total
        idf = np.log1p((total - found + 0.5) / (found + 0.5)).astype(np.float32)
        for shard, length in zip(self.shards, lengths, strict=True):
            half = (settings.k1 * (1 - settings.b + settings.b * length / mean)).astype(np.float32)
            shard.data /= shard.data + half[shard.indices]
            shard.data *= np.repeat(idf[: shard.shape[0]], np.diff(shard.indptr))

    def rank(self, queries: pa.Table, depth: int) -> Iterator[pa.Table]:
        """Yield `ranked` tables of depth `depth`, one for each batch of rows of a `queries` table, in their order.

        Only passages that share a word with the query are listed, so a query of unknown words has no row. A warning
        says so if many queries have none.
        """
        answered = 0
        with tqdm(total=len(queries), desc="BM25", unit="query", disable=None) as progress:
            for batch in queries.to_batches(BATCH):
                texts, lists = batch["text"].to_pylist(), []
                for start in range(0, len(texts), TOGETHER):
                    lists += self.tops(texts[start : start + TOGETHER], depth)
                    progress.update(len(lists) - start)
                answered += sum(len(found) > 0 for found, _ in lists)
                rows = np.repeat(np.arange(len(lists)), [len(found) for found, _ in lists])
                found, scores = (np.concatenate(column) for column in zip(*lists, strict=True))
                yield ranked_table(batch["qid"], self.pids, rows, found, scores)
        if len(queries) - answered > UNANSWERED * len(queries):
            log.warning(
                "%d of %d queries share no word with any passage; is bm25.analyser '%s' right for this language?",
                len(queries) - answered,
                len(queries),
                self.analyser,
            )

    def tops(self, texts: list[str], depth: int) -> list[tuple[Ints, Floats]]:
        """Positions and scores of the best passages for each query, best first. Memory: 8 bytes a score of a shard."""
        counts = [Counter(part.tolist()) for part in self.words.each(texts)]  # a repeated word counts each time
        words = np.array([word for of_query in counts for word in of_query], np.int32)
        weights = np.array([n for of_query in counts for n in of_query.values()], np.float32)
        ends = np.cumsum([0, *map(len, counts)])
        lists = [(np.empty(0, np.int64), np.empty(0, np.float32))] * len(texts)
        start = 0  # the position of a shard's first passage
        for shard in self.shards:
            known = words < shard.shape[0]
            rows = np.concatenate([[0], np.cumsum(known)])[ends].astype(np.int32)
            asked = csr_array((weights[known], words[known], rows), (len(texts), shard.shape[0]))
            products = asked @ shard  # adds in the order of the query's words, which decides the rounding of sums
            for query, (low, high) in enumerate(pairwise(products.indptr.tolist())):
                found, values = lists[query]
                new, scores = products.indices[low:high], products.data[low:high]
                least = values[-1] if len(found) == depth else -np.inf
                if len(new) > depth:  # what follows then reads few passages
                    least = max(least, np.partition(scores, len(new) - depth)[len(new) - depth])
                kept = np.flatnonzero(scores >= least)
                found, values = np.append(found, start + new[kept].astype(np.int64)), np.append(values, scores[kept])
                top = best(values, self.order[found], depth)
                lists[query] = found[top], values[top]
            start += shard.shape[1]
        return lists


def _shards(chunks: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Join chunks of a corpus up to SHARD passages or TEXTS bytes."""
    held: list[pa.Table] = []
    for chunk in chunks:
        held.append(chunk)
        if sum(map(len, held)) + READ > SHARD or sum(c["text"].nbytes for c in held) >= TEXTS:
            yield pa.concat_tables(held)
            held = []
    if held:
        yield pa.concat_tables(held)


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
    """Rank the test queries as a run, and the train and dev `queries` for hard negatives without known positives.

    A copy of a positive's text under another id counts as a positive. Without `negatives`, only the run is made.
    Memory: `with_copies` first; then `Bm25Index`, the queries and judgements, and the lists of 4,096 queries. Raises
    LeadError if two files of `queries` hold the same id.
    """
    if (negatives is None) != (not queries) or (negatives is None) != (not qrels):
        raise LeadError("lead bm25: --queries, --qrels and --negatives go together; give all three or none")
    seen: dict[str, Path] = {}
    to_mine = [read_table(path, "queries") for path in queries or []]
    for table, path in zip(to_mine, queries or [], strict=True):
        check_distinct(table["qid"].to_pylist(), path, seen)
    to_rank = read_table(test_queries, "queries")
    positives = known_positives(qrels or [], settings.relevance)  # read all inputs before hours of work
    if negatives is not None:
        positives = with_copies(positives, mapped(corpus, negatives.with_name(f"{negatives.name}.corpus.arrow")))
    index = Bm25Index(corpus, settings.bm25)

    write_lists(index.rank(to_rank, settings.depth), ranked)

    if negatives is None:
        return
    deep = settings.mine_depth + most_positives(positives) + settings.ignore_identical_ids
    kept = (
        drop_positives(lists, positives, settings.mine_depth, settings.ignore_identical_ids)
        for table in to_mine
        for lists in index.rank(table, deep)
    )
    write_negatives(kept, settings.mine_depth, negatives)
