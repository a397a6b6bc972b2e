"""The collection that every source gives to `prepare`, and the hash that compares ids and texts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from lead.store.tables import SCHEMAS

BATCH_ROWS = 50_000
BATCH_CHARACTERS = 16 << 20


@dataclass(frozen=True)
class Split:
    """Queries and judgements of one split, both held in memory, in the order of the source."""

    queries: pa.Table  # qid, text; qid is unique
    qrels: pa.Table  # qid, pid, rel; (qid, pid) is unique
    repeated: int = 0  # equal judgements of the same pair, already dropped
    others: int = 0  # queries of other splits in the same files, already dropped


@dataclass(frozen=True)
class Collection:
    """A retrieval collection. Its passages are streamed, so the whole corpus is never in memory."""

    passages: Iterator[pa.RecordBatch]  # pid, text; can be iterated once; pid is unique
    splits: dict[str, Split]  # train, test and perhaps dev
    facts: dict[str, Any] = field(default_factory=dict)  # for the report: equal inputs must give equal facts
    titles: Callable[[], Iterator[tuple[str, str]]] | None = None  # pid, title of every passage, where they have some


def passage_batches(passages: Iterable[tuple[str, str]]) -> Iterator[pa.RecordBatch]:
    """Batches (pid, text) of at most 50,000 passages. A batch ends with the passage that reaches 16 Mi characters."""
    pids: list[str] = []
    texts: list[str] = []
    characters = 0
    for pid, text in passages:
        pids.append(pid)
        texts.append(text)
        characters += len(text)
        if len(pids) >= BATCH_ROWS or characters >= BATCH_CHARACTERS:
            yield pa.record_batch([pids, texts], schema=SCHEMAS["corpus"])
            pids, texts, characters = [], [], 0
    if pids:
        yield pa.record_batch([pids, texts], schema=SCHEMAS["corpus"])


def own_queries(splits: Mapping[str, Split], files: Mapping[str, Set[str]]) -> dict[str, Split]:
    """Drop the queries of other splits from each split, and count them in `Split.others`.

    A split drops a query that it does not judge if another split judges it, or if another split reads its queries from
    the same file (BEIR's queries.jsonl). files: the query files of each split, and of those that are not read.
    """
    judged = {name: set(split.qrels["qid"].to_pylist()) for name, split in splits.items()}
    found = {}
    for name, split in splits.items():
        others = [other for other in splits if other != name]
        shared = any(files[name] & files[other] for other in files if other != name)
        own = [
            qid in judged[name] or not (shared or any(qid in judged[other] for other in others))
            for qid in split.queries["qid"].to_pylist()
        ]
        kept = split.queries.filter(pa.array(own, pa.bool_()))
        found[name] = replace(split, queries=kept, others=split.queries.num_rows - kept.num_rows)
    return found


def hash64(text: str) -> int:
    """Return the first 64 bits of SHA-256: equal in every process, unlike `hash()`.

    Two of ten million distinct strings agree by chance with probability 3e-6.
    """
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
