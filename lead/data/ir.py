"""Collections of the library `ir_datasets`: it downloads and verifies the files, we stream them.

Its files are in `IR_DATASETS_HOME` (default ~/.ir_datasets).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from lead.config.sources import IrDatasetsSource
from lead.data.collection import Collection, Split, own_queries, passage_batches
from lead.errors import LeadError
from lead.store.tables import SCHEMAS


def collect(source: IrDatasetsSource) -> Collection:
    """Read queries and judgements of each split, and get ready to stream the corpus. Raises LeadError."""
    corpus = load_ids(source.corpus, "source.corpus", "docs")
    given = {"train": source.train, "dev": source.dev, "test": source.test}
    ids = {name: id_ for name, id_ in given.items() if id_ is not None}
    splits = {name: read_split(id_, f"source.{name}") for name, id_ in ids.items()}
    nothing: dict[str, set[str]] = {name: set() for name in ids}
    return Collection(_passages(corpus, source), own_queries(splits, nothing), {"corpus": source.corpus} | ids)


def load_ids(id_: str, key: str, *parts: str) -> Any:
    """Load a dataset of the library that has these parts (docs, queries, qrels). Raises LeadError naming the key."""
    import ir_datasets

    try:
        dataset = ir_datasets.load(id_)
    except KeyError:
        raise LeadError(f"{key}: ir_datasets has no '{id_}'; ids are listed at https://ir-datasets.com") from None
    for part in parts:
        if not getattr(dataset, f"has_{part}")():
            raise LeadError(f"{key}: '{id_}' of ir_datasets has no {part}; give an id that has them")
    return dataset


def read_split(id_: str, key: str) -> Split:
    """Read queries and judgements of an id. Two judgements of the same pair must agree. Raises LeadError."""
    dataset = load_ids(id_, key, "queries", "qrels")
    try:
        queries = [(q.query_id, q.default_text()) for q in dataset.queries_iter()]
        judged: dict[tuple[str, str], int] = {}
        rows = 0
        for judgement in dataset.qrels_iter():
            rows += 1
            pair = judgement.query_id, judgement.doc_id
            before = judged.setdefault(pair, judgement.relevance)
            if before != judgement.relevance:
                raise LeadError(f"{key}: '{id_}' judges query {pair[0]} and passage {pair[1]} twice, differently")
    except (OSError, RuntimeError, ValueError) as e:
        raise _unavailable(key, id_, e) from e
    qids, texts = zip(*queries, strict=True) if queries else ((), ())
    columns = [[q for q, _ in judged], [p for _, p in judged], list(judged.values())]
    return Split(
        pa.table({"qid": list(qids), "text": list(texts)}, schema=SCHEMAS["queries"]),
        pa.table(columns, schema=SCHEMAS["qrels"]),
        rows - len(judged),
    )


def read_lists(id_: str, key: str) -> Iterator[tuple[str, str, float]]:
    """Query, passage and score (0 if there is none) of an id's lists (scoreddocs). Raises LeadError."""
    dataset = load_ids(id_, key, "scoreddocs")
    try:
        for found in dataset.scoreddocs_iter():
            yield found.query_id, found.doc_id, float(getattr(found, "score", 0.0))
    except (OSError, RuntimeError, ValueError) as e:
        raise _unavailable(key, id_, e) from e


def _passages(dataset: Any, source: IrDatasetsSource) -> Iterator[pa.RecordBatch]:
    """Batches (pid, text) of the chosen fields, in the library's order."""
    _check_fields(dataset.docs_cls(), source.fields)
    try:
        yield from passage_batches(
            (doc.doc_id, " ".join(part for field in source.fields if (part := getattr(doc, field))))
            for doc in dataset.docs_iter()
        )
    except (OSError, RuntimeError, ValueError) as e:
        raise _unavailable("source.corpus", source.corpus, e) from e


def _check_fields(cls: Any, fields: Sequence[str]) -> None:
    known = [name for name in cls._fields if name != "doc_id"]
    for field in fields:
        if field not in known:
            raise LeadError(f"source.fields: passages have no '{field}'; they have {', '.join(known)}")


def _unavailable(key: str, id_: str, error: Exception) -> LeadError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return LeadError(
        f"{key}: cannot get '{id_}' from ir_datasets: {reason[:200]}; check the network and IR_DATASETS_HOME, or "
        "use the official files with a source of kind files"
    )
