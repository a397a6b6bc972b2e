"""Splitting queries into train and dev, and finding queries that two splits share."""

from __future__ import annotations

import hashlib
import logging
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lead.data.collection import Split
from lead.data.copies import query_form
from lead.errors import LeadError

log = logging.getLogger("lead")

EXAMPLES = 3


def select(queries: pa.Table, qrels: pa.Table, qids: pa.Array) -> Split:
    """The queries with these ids and their judgements."""
    return Split(
        queries.filter(pc.is_in(queries["qid"], value_set=qids)), qrels.filter(pc.is_in(qrels["qid"], value_set=qids))
    )


def carve(train: Split, share: float) -> tuple[Split, Split]:
    """Split train into train and dev. dev gets the queries whose ids have the smallest SHA-256.

    Queries with equal text stay together, at the place of the smallest hash among them.
    """
    sums = {qid: hashlib.sha256(qid.encode()).digest() for qid in train.queries["qid"].to_pylist()}
    if len(sums) < 2:
        raise LeadError(
            "the train split has one query: too few to carve a dev split from; give source.dev, or more queries"
        )
    groups: dict[str, list[str]] = {}
    for qid, text in zip(sums, train.queries["text"].to_pylist(), strict=True):
        groups.setdefault(query_form(text) or qid, []).append(qid)
    if len(groups) < 2:
        raise LeadError("all train queries have the same text: no dev split can be carved from them; give source.dev")
    size = min(max(1, round(share * len(sums))), len(sums) - 1)
    dev: list[str] = []
    for group in sorted(groups.values(), key=lambda group: min(sums[qid] for qid in group)):
        if len(dev) + len(group) <= size:
            dev += group
    dev = dev or min(groups.values(), key=len)
    rest = sorted(sums.keys() - set(dev))
    carved, left = (select(train.queries, train.qrels, pa.array(part)) for part in (dev, rest))
    return left, carved


def report_leaks(splits: dict[str, Split], report: dict[str, Any]) -> None:
    """Warn of queries whose text is judged in another split too. Refuse an id that is in both train and dev.

    Texts are compared (`query_form`), not ids: ids of two files may agree by chance.
    """
    train, dev = (splits[name].queries for name in ("train", "dev"))
    both = dev.filter(pc.is_in(dev["qid"], value_set=train["qid"]))["qid"]
    if len(both):
        raise LeadError(
            f"source.dev: query id {both[0]} is in train too, and {len(both) - 1} others; negatives go by query id, "
            f"so give distinct ids, or leave out source.dev"
        )
    forms = {name: [query_form(text) for text in split.queries["text"].to_pylist()] for name, split in splits.items()}
    judged = set(splits["test"].qrels["qid"].to_pylist())
    test = {t for t, qid in zip(forms["test"], splits["test"].queries["qid"].to_pylist(), strict=True) if qid in judged}
    for name, key, others, what in (
        ("train", "leaked_queries", test, "test"),
        ("dev", "leaked_queries", test, "test"),
        ("dev", "queries_of_train", set(forms["train"]), "train"),
    ):
        qids = splits[name].queries["qid"].to_pylist()
        leaked = [qid for qid, text in zip(qids, forms[name], strict=True) if text and text in others]
        report.setdefault(name, {})[key] = len(leaked)
        if leaked:
            examples = ", ".join(leaked[:EXAMPLES])
            log.warning("%s: %s queries have the text of a %s query, e.g. %s", name, f"{len(leaked):,}", what, examples)
