"""Measures of a ranked list against relevance judgements, by `ir_measures` (section 4.2)."""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lead import __version__
from lead.config.stages import EvaluateSettings
from lead.errors import LeadError
from lead.evaluation.measures import check_measures, parse_measures, provider
from lead.evaluation.stats import bootstrap_interval
from lead.lists import ranks
from lead.store.atomic import atomic_file
from lead.store.tables import ABOUT, read_table, write_json, write_table

if TYPE_CHECKING:
    from ir_measures import Measure

__all__ = ["check_measures", "evaluate", "query_values", "write_trec"]

log = logging.getLogger("lead")

QUERIES = 1000  # evaluated at a time; ir_measures needs them as Python dictionaries
DIGITS = 6
OWN_ID = 0.1  # warn if this share of queries finds the passage with the query's id first
PACKAGES = (
    "ir_measures",
    "pytrec_eval-terrier",
    "numpy",
    "torch",
    "transformers",
    "faiss-cpu",
    "faiss-gpu",
    "PyStemmer",
)  # a value may depend on their versions


def evaluate(
    *,
    settings: EvaluateSettings,
    ranked: Path,
    qrels: Path,
    out: Path,
    per_query: Path,
    trec: Path | None,
) -> None:
    """Write the result of a `ranked` list: means over judged queries with bootstrap intervals, and each query's values.

    A query is judged if `qrels` has a row for it. A judged query without a list counts as 0. The list of a query
    that is not judged is ignored. A relevant passage that the corpus lacks counts as not found, as in trec_eval. trec:
    where to write the evaluated lists. Raises LeadError if the files do not belong together. Memory: the lists and
    judgements, and Python's dictionaries of `QUERIES` queries.
    """
    names, chosen = settings.evaluation.measures, settings.evaluation
    measures = parse_measures(names, chosen.relevance)
    lists, judgements = read_table(ranked, "ranked"), read_table(qrels, "qrels")
    if settings.ignore_identical_ids:
        lists = drop_own_ids(lists)
    else:
        _warn_of_own_ids(lists, judgements)
    missing = _about(judgements).get("missing_passages", 0)
    if missing:
        log.warning("%s judged passages are not in the corpus; they count as not found", f"{missing:,}")
    qids, values = query_values(lists, judgements, [measures[name] for name in names], ranked, qrels)

    depth = pc.max(lists["rank"]).as_py() or 0
    for name in names:
        if (measures[name].params.get("cutoff") or 0) > depth:
            log.warning("%s is measured on lists of at most %d passages", name, depth)
    metrics = {}
    for name, column in zip(names, values.T, strict=True):
        low, high = bootstrap_interval(column, chosen.resamples, chosen.confidence, settings.seed)
        numbers = {"mean": float(column.mean()), "low": low, "high": high}
        metrics[name] = {key: round(number, DIGITS) for key, number in numbers.items()}
    result: dict[str, Any] = {
        "metrics": metrics,
        "measures": names,
        "relevance": chosen.relevance,
        "queries": len(qids),
        "missing_passages": missing,
        "ignore_identical_ids": settings.ignore_identical_ids,
        "confidence": chosen.confidence,
        "resamples": chosen.resamples,
        "seed": settings.seed,
        "made_by": settings.made_by,
        "ranked_depth": depth,
        "versions": {"lead": __version__, **_versions()},
    }
    if about := _about(lists):  # of an approximate index, or of lists without an order
        result["search"] = about
        if about.get("unordered"):
            log.warning("the lists have no order: only recall at their full depth is meaningful")
    columns = {"qid": np.repeat(qids, len(names)), "measure": np.tile(names, len(qids)), "value": values.ravel()}
    table = pa.table(columns).sort_by([("qid", "ascending"), ("measure", "ascending")])
    if trec is not None:
        write_trec(lists, trec)
    write_table(table, per_query, "per_query")
    write_json(result, out, first=["metrics", "queries", "confidence", "measures"])  # then how it was made
    log.info("%s", "  ".join(f"{name} {value['mean']:.4f}" for name, value in metrics.items()))


def _about(table: pa.Table) -> dict[str, Any]:
    """The further facts in a table's metadata (`ABOUT`); empty if there are none."""
    about: dict[str, Any] = json.loads((table.schema.metadata or {}).get(ABOUT.encode(), "{}"))
    return about


def drop_own_ids(lists: pa.Table) -> pa.Table:
    """The lists without the passage that has the query's id, ranked anew from 1. Rows may be in any order."""
    kept = lists.filter(pc.not_equal(lists["qid"], lists["pid"]))
    codes = kept["qid"].combine_chunks().dictionary_encode().indices.to_numpy()
    order = np.lexsort((kept["rank"].to_numpy(), codes))
    rank = np.empty(len(kept), np.int32)
    rank[order] = ranks(codes[order])
    return kept.set_column(kept.column_names.index("rank"), "rank", pa.array(rank))


def _warn_of_own_ids(lists: pa.Table, judgements: pa.Table) -> None:
    """Warn if many queries find the passage with the query's id first, and it is not judged relevant."""
    first = lists.filter(pc.equal(lists["rank"], 1))
    own = first.filter(pc.equal(first["qid"], first["pid"]))["qid"]
    relevant = judgements.filter(
        pc.and_(pc.equal(judgements["qid"], judgements["pid"]), pc.greater(judgements["rel"], 0))
    )
    wrong = len(own) - (pc.sum(pc.is_in(own, value_set=relevant["qid"])).as_py() or 0)
    if wrong and wrong >= OWN_ID * len(first):
        log.warning(
            "%d of %d queries have the passage with their own id at rank 1; if queries are passages of the corpus, set "
            "retrieval.ignore_identical_ids: true",
            wrong,
            len(first),
        )


def _versions() -> dict[str, str]:
    """Versions of the packages that a value depends on, if they are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def query_values(
    ranked: pa.Table,
    qrels: pa.Table,
    measures: Sequence[Measure],
    ranked_name: str | Path = "ranked",
    qrels_name: str | Path = "qrels",
) -> tuple[list[str], NDArray[np.float64]]:
    """Return the judged queries, sorted, and their values of each measure: [queries, measures].

    Only the `rank` column counts, not the scores: the measures get minus the rank as score. Raises LeadError if there
    is nothing to evaluate, or a list is invalid (see `_lists`).
    """
    judgements: dict[str, dict[str, int]] = {}
    for qid, pid, rel in zip(*(qrels[name].to_pylist() for name in ("qid", "pid", "rel")), strict=True):
        judgements.setdefault(qid, {})[pid] = rel
    qids = sorted(judgements)
    if not qids:
        raise LeadError(f"{qrels_name} holds no judgement")
    if ranked.num_rows and not pc.any(pc.is_in(ranked["qid"], value_set=pa.array(qids, pa.string()))).as_py():
        raise LeadError(f"no query of {ranked_name} is judged in {qrels_name}; are they of the same split?")
    values = {}
    lists = _lists(ranked, qids, ranked_name)
    for start in range(0, len(qids), QUERIES):
        part = {qid: judgements[qid] for qid in qids[start : start + QUERIES]}
        run = {qid: ranking for qid, ranking in itertools.islice(lists, len(part)) if ranking}
        for metric in provider().iter_calc(set(measures), part, run):
            values[metric.query_id, metric.measure] = metric.value
    return qids, np.array([[values[qid, measure] for measure in measures] for qid in qids], dtype=np.float64)


def _lists(ranked: pa.Table, qids: list[str], name: str | Path) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield each of `qids` with its list: {pid: -rank}. LeadError unless ranks are 1, 2, .. and passages distinct."""
    codes = pc.index_in(ranked["qid"], value_set=pa.array(qids, pa.string())).fill_null(-1).to_numpy()
    rank = ranked["rank"].to_numpy()
    order = np.lexsort((rank, codes))
    bounds = np.searchsorted(codes[order], np.arange(len(qids) + 1))
    pids = ranked["pid"].combine_chunks()
    for qid, low, high in zip(qids, bounds[:-1], bounds[1:], strict=True):
        rows = order[low:high]
        ranking = {pid: -float(place) for place, pid in enumerate(pids.take(pa.array(rows)).to_pylist(), start=1)}
        if len(ranking) != rows.size or not np.array_equal(rank[rows], ranks(codes[rows])):
            raise LeadError(
                f"{name}: query {qid!r} lists a passage twice, or its ranks are not 1, 2, ..; make it again"
            )
        yield qid, ranking


def check_trec_ids(table: pa.Table, path: Path) -> None:
    """Refuse ids with white space, which TREC's formats cannot express. Raises LeadError."""
    for column in ("qid", "pid"):
        spaced = table.filter(pc.match_substring_regex(table[column], r"\s"))
        if spaced.num_rows:
            name = spaced[column][0].as_py()
            raise LeadError(f"cannot write {path}: {column} {name!r} holds white space; leave out --trec")


def write_trec(ranked: pa.Table, path: Path) -> None:
    """Write a `ranked` table as a TREC run: `qid Q0 pid rank score lead`.

    Tools sort by score and break ties in different ways. So a score that is not below the one before it is written as
    the next lower float32. Then every tool has our order and computes the values of `evaluate`. Raises LeadError for an
    id with white space, which the format cannot express.
    """
    check_trec_ids(ranked, path)
    last: dict[str, np.float32] = {}  # the lowest score of each query so far
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as f:
        for batch in _in_order(ranked).to_batches(2**16):
            columns = (batch[name].to_pylist() for name in ("qid", "pid", "rank"))
            for qid, pid, rank, score in zip(*columns, batch["score"].to_numpy(), strict=True):
                if qid in last and score >= last[qid]:
                    score = np.nextafter(last[qid], np.float32(-np.inf))
                last[qid] = score
                f.write(f"{qid} Q0 {pid} {rank} {score:.9g} lead\n")  # nine digits distinguish all float32 numbers


def _in_order(ranked: pa.Table) -> pa.Table:
    """The table with each query's rows sorted by rank; the order of queries stays."""
    codes = ranked["qid"].combine_chunks().dictionary_encode().indices.to_numpy()
    order = np.lexsort((ranked["rank"].to_numpy(), codes))
    return ranked if np.array_equal(order, np.arange(len(order))) else ranked.take(pa.array(order))
