"""The stage `prepare`: it turns any source into checked Parquet files, and reports unusual data."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

from lead.config.folders import split_files
from lead.config.registry import imported
from lead.config.sources import Checks, EvaluationSource, Expect
from lead.config.stages import PrepareSettings
from lead.data import files, ir
from lead.data.collection import Collection, Split, hash64
from lead.data.copies import first_rows, passage_form, query_form
from lead.data.layout import tell
from lead.data.pseudo import pseudo_queries
from lead.data.splits import carve, report_leaks, select
from lead.errors import LeadError
from lead.store.atomic import atomic_file
from lead.store.tables import SCHEMAS, open_table, read_table, table_writer, write_json, write_table

log = logging.getLogger("lead")

EXAMPLES = 3


@dataclass(frozen=True)
class Share:
    """A number of unusual items out of `total`, and a few of their ids."""

    where: str  # the corpus, or a split
    count: int
    total: int
    examples: list[str]


@dataclass(frozen=True)
class Corpus:
    """Facts about a corpus on disk: 8 bytes a passage."""

    passages: int
    ids: NDArray[np.uint64]  # [passages] hash64 of each pid, sorted
    duplicates: Share  # passages whose text occurs before, without empty ones
    empty: Share  # passages without visible text
    queries: frozenset[str] = frozenset()  # queries that are passages under the same id

    def holds(self, ids: pa.Array) -> NDArray[np.bool_]:
        """For each id [n], whether a passage of the corpus has it."""
        hashes = np.fromiter((hash64(id_) for id_ in ids.to_pylist()), dtype=np.uint64, count=len(ids))
        at = np.searchsorted(self.ids, hashes).clip(max=len(self.ids) - 1)
        return np.asarray(self.ids[at] == hashes)


def prepare(*, settings: PrepareSettings, out: Path, corpus: Path | None = None) -> None:
    """Write corpus.parquet, {queries,qrels}.{train,dev,test}.parquet and report.json into the folder `out`.

    Memory: a batch of passages, 24 bytes a passage (about 200 MB for MS MARCO, three times that during the sort), and
    all queries and judgements. Raises LeadError for unreadable input, an empty split, or a share above its check.
    """
    if isinstance(settings.source, EvaluationSource):
        _prepare_evaluation(settings, settings.source, corpus, out)
        return
    if corpus is not None:
        raise LeadError("--corpus is read for a source of kind evaluation only; leave it out")
    source = settings.source
    collection: Collection = imported(source.collect, f"source of kind '{source.kind}' (lead.config.sources)")(source)
    # Checks are inside the block: if one fails, no corpus is left
    with atomic_file(out / "corpus.parquet") as temporary:
        passages = _write_corpus(collection, temporary)
        tell(collection.facts.get("files", {}))
        log.info("corpus: %s passages", f"{passages.passages:,}")
        _check("duplicate_passages", passages.duplicates, settings.checks)
        _check("empty_passages", passages.empty, settings.checks)
        report: dict[str, Any] = {}
        found = dict(collection.splits)
        facts = {"kind": source.kind} | collection.facts
        if settings.queries is not None:
            texts = partial(_texts, temporary)
            if getattr(settings.queries, "from") == "titles" and "title" in getattr(source, "fields", ()):
                log.warning(
                    "queries.from: titles: every passage begins with its query, which is fine to align on, but teaches "
                    "a run that trains on them little; give the source `fields: [text]`, or draw sentences"
                )
            found["train"], facts["queries"] = pseudo_queries(
                settings.queries, texts, collection.titles, settings.relevance
            )
        elif "train" not in found or "test" not in found:
            raise LeadError("source.train and source.test are missing; add them, or set queries.from")
        splits = {name: _resolve(name, split, passages, settings, report) for name, split in found.items()}
        _check_counts(settings.expect, passages.passages, splits, settings.relevance)
        if "dev" not in splits:
            splits["train"], splits["dev"] = carve(splits["train"], settings.dev_share)
            if settings.queries is not None:
                log.info("dev: carved from the queries that were drawn from the corpus")
        if "test" not in splits:
            log.warning("the source has no test queries: models can be made and compared on dev, but not evaluated")
            splits["test"] = Split(SCHEMAS["queries"].empty_table(), SCHEMAS["qrels"].empty_table())
        report_leaks(splits, report)
    for name, split in splits.items():
        _write_split(name, split, report.setdefault(name, {}), out)
    counts = {
        "passages": passages.passages,
        "duplicate_passages": passages.duplicates.count,
        "empty_passages": passages.empty.count,
    }
    write_json({"source": facts, "corpus": counts, "splits": report}, out / "report.json")


def _texts(corpus: Path) -> Iterator[tuple[str, str]]:
    """Ids and texts of a written corpus."""
    with pq.ParquetFile(corpus) as file:
        for batch in file.iter_batches():
            yield from zip(batch["pid"].to_pylist(), batch["text"].to_pylist(), strict=True)


def _prepare_evaluation(settings: PrepareSettings, source: EvaluationSource, corpus: Path | None, out: Path) -> None:
    """Write queries.test.parquet, qrels.test.parquet and report.json of more queries for a prepared corpus."""
    if corpus is None:
        raise LeadError("--corpus is missing: a source of kind evaluation needs the prepared corpus of its dataset")
    facts: dict[str, Any] = {}
    if isinstance(source.test, str):
        split = ir.read_split(source.test, "source.test")
    else:
        split = files.collect_split("test", split_files(source.test), facts)
    if not open_table(corpus).schema_arrow.equals(SCHEMAS["corpus"]):
        raise LeadError(f"--corpus {corpus} holds no passages (pid, text); give the one that lead prepare wrote")
    pids = read_table(corpus, columns=["pid"])["pid"]
    hashes = np.fromiter((hash64(p.as_py()) for p in pids), dtype=np.uint64, count=len(pids))
    nothing = Share("corpus", 0, len(pids), [])
    known = Corpus(len(pids), np.sort(hashes), nothing, nothing, _queries_inside(corpus, split))
    tell(facts)
    report: dict[str, Any] = {}
    split = _resolve("test", split, known, settings, report)
    _check_counts(settings.expect, None, {"test": split}, settings.relevance)
    _write_split("test", split, report["test"], out)
    made_of = {"kind": source.kind, "of": source.of} | ({"files": facts} if facts else {})
    write_json({"source": made_of, "splits": report}, out / "report.json")


def _write_split(name: str, split: Split, report: dict[str, Any], out: Path) -> None:
    """Write a split's two tables. The judgements' metadata count judged passages that the corpus lacks."""
    report |= {"queries": split.queries.num_rows, "judgements": split.qrels.num_rows}
    log.info("%s: %s queries with %s judgements", name, f"{split.queries.num_rows:,}", f"{split.qrels.num_rows:,}")
    missing = {key: report[key] for key in ("missing_passages", "missing_judgements") if report.get(key)}
    write_table(split.queries, out / f"queries.{name}.parquet", "queries")
    write_table(split.qrels, out / f"qrels.{name}.parquet", "qrels", about=missing or None)


def _check_counts(expect: Expect, passages: int | None, splits: dict[str, Split], relevance: int) -> None:
    """Raise LeadError if a known count of the collection differs: a file is truncated, or of another version."""

    def judged(name: str) -> int:
        qrels = splits[name].qrels
        # a TREC topic is judged with any grades
        return len(
            (qrels if name == "test" else qrels.filter(pc.greater_equal(qrels["rel"], relevance)))["qid"].unique()
        )

    found = {"passages": passages} | {name: judged(name) for name in ("train", "test") if name in splits}
    for name, count in found.items():
        wanted = getattr(expect, name)
        if wanted is not None and count is not None and wanted != count:
            what = "passages" if name == "passages" else f"judged {name} queries"
            raise LeadError(
                f"expect.{name}: {count:,} {what}, not {wanted:,}: a file is incomplete or of another version; get it "
                "again, or fix `expect` in the dataset's file"
            )


def _write_corpus(collection: Collection, path: Path) -> Corpus:
    """Stream passages into one Parquet file, one row group for each batch."""
    ids, texts = array("Q"), array("Q")
    inside = _Inside(collection.splits.values())
    with (
        table_writer(path, SCHEMAS["corpus"]) as writer,
        tqdm(desc="corpus", unit=" passages", disable=None) as bar,
    ):
        for batch in collection.passages:
            writer.write_batch(batch)
            pids, passages = batch["pid"].to_pylist(), batch["text"].to_pylist()
            ids.extend(map(hash64, pids))
            texts.extend(hash64(passage_form(text)) for text in passages)
            inside.see(pids, passages)
            bar.update(batch.num_rows)
    if not ids:
        raise LeadError("source.corpus holds no passages; give a file that has some")
    hashes = np.frombuffer(texts, dtype=np.uint64)
    again = np.flatnonzero(first_rows(hashes) != np.arange(len(hashes)))
    no_text = np.uint64(hash64(""))
    duplicates, empty = again[hashes[again] != no_text], np.flatnonzero(hashes == no_text)
    return Corpus(
        passages=len(ids),
        ids=np.sort(np.frombuffer(ids, dtype=np.uint64)),
        duplicates=Share("corpus", len(duplicates), len(ids), _pids_at(path, duplicates[:EXAMPLES].tolist())),
        empty=Share("corpus", len(empty), len(ids), _pids_at(path, empty[:EXAMPLES].tolist())),
        queries=frozenset(inside.found),
    )


class _Inside:
    """Finds queries that are passages: the ids agree, and the passage holds the query's text (ArguAna, Quora).

    Equal ids alone mean nothing: MS MARCO numbers both its queries and its passages.
    """

    def __init__(self, splits: Iterable[Split]) -> None:
        self.found: set[str] = set()
        self._texts: dict[str, list[str]] = {}
        for split in splits:
            for row in split.queries.to_pylist():
                self._texts.setdefault(row["qid"], []).append(query_form(row["text"]))

    def see(self, pids: list[str], texts: list[str]) -> None:
        for pid, text in zip(pids, texts, strict=True):
            if pid in self._texts:
                passage = query_form(text)
                if any(query and query in passage for query in self._texts[pid]):
                    self.found.add(pid)


def _queries_inside(corpus: Path, split: Split) -> frozenset[str]:
    """`_Inside` for a corpus on disk."""
    inside = _Inside([split])
    table = open_table(corpus, "corpus")
    for group in range(table.num_row_groups):
        found = table.group(group)
        inside.see(found["pid"].to_pylist(), found["text"].to_pylist())
    return frozenset(inside.found)


def _pids_at(path: Path, rows: list[int]) -> list[str]:
    """Ids of a few rows of a written corpus."""
    found, start = [], 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(columns=["pid"]) if rows else ():
            found += [batch["pid"][row - start].as_py() for row in rows if start <= row < start + batch.num_rows]
            start += batch.num_rows
    return found


def _resolve(name: str, split: Split, corpus: Corpus, settings: PrepareSettings, report: dict[str, Any]) -> Split:
    """Drop and count unusable queries and judgements.

    Every split drops judgements of unknown queries. Train and dev also drop judgements of passages that the corpus
    lacks, and queries without a relevant passage. The test split keeps both: every measure counts a passage that
    cannot be found.
    """
    queries, qrels = split.queries, split.qrels
    pids = qrels["pid"].unique()
    found = pc.is_in(qrels["pid"], value_set=pids.filter(pa.array(corpus.holds(pids))))
    asked = pc.is_in(qrels["qid"], value_set=queries["qid"])
    lost = qrels.filter(pc.invert(pc.and_(found, asked)))
    missing = qrels.filter(pc.and_(pc.invert(found), asked))
    qrels = qrels.filter(asked if name == "test" else pc.and_(found, asked))
    answers = qrels.filter(pc.greater_equal(qrels["rel"], settings.relevance))
    relevant = answers["qid"].unique()
    own = set(answers.filter(pc.equal(answers["qid"], answers["pid"]))["qid"].to_pylist())  # the passage is the answer
    unjudged = queries.filter(pc.invert(pc.is_in(queries["qid"], value_set=relevant)))
    empty = sum(not passage_form(text) for text in queries["text"].to_pylist())
    inside = [qid for qid in queries["qid"].to_pylist() if qid in corpus.queries and qid not in own]
    report[name] = {
        "unresolved_judgements": lost.num_rows,
        "missing_passages": pc.count_distinct(missing["pid"]).as_py(),
        "missing_judgements": missing.num_rows,
        "repeated_judgements": split.repeated,
        "unjudged_queries": unjudged.num_rows,
        "other_queries": split.others,
        "empty_queries": empty,
        "queries_in_corpus": len(inside),
    }
    examples = [f"{row['qid']} {row['pid']}" for row in lost.slice(0, EXAMPLES).to_pylist()]
    unresolved = Share(name, lost.num_rows, split.qrels.num_rows, examples)
    _check("unresolved_judgements", unresolved, settings.checks)
    _warn(name, split, missing, inside, empty)
    examples = unjudged["qid"].slice(0, EXAMPLES).to_pylist()
    _check("unjudged_queries", Share(name, unjudged.num_rows, queries.num_rows, examples), settings.checks)
    if len(relevant) == 0:
        raise LeadError(
            f"the {name} split has no query with a relevant passage (rel >= {settings.relevance}); "
            f"look at its queries and qrels, or lower `relevance`"
        )
    return Split(queries, qrels) if name == "test" else select(queries, qrels, relevant)


def _warn(name: str, split: Split, missing: pa.Table, inside: list[str], empty: int) -> None:
    """Log what is unusual in a split, but no error."""
    if split.repeated:
        log.info("%s: %s judgements repeat another", name, f"{split.repeated:,}")
    if split.others:
        log.info("%s: %s queries of its file are not judged here: they are left out", name, f"{split.others:,}")
    if missing.num_rows:
        log.warning(
            "%s: the corpus lacks %s judged passages, e.g. %s: their judgements %s", name,
            f"{pc.count_distinct(missing['pid']).as_py():,}", ", ".join(missing["pid"][:EXAMPLES].to_pylist()),
            "stay, so measures count them as not found" if name == "test" else "are dropped",
        )  # fmt: skip
    if inside:
        log.warning(
            "%s: %s queries are passages of the corpus under the same id, e.g. %s: set `ignore_identical_ids`, or each "
            "is its own best passage", name, f"{len(inside):,}", ", ".join(inside[:EXAMPLES]),
        )  # fmt: skip
    if empty:
        log.warning("%s: %s queries have no text", name, f"{empty:,}")


def _check(name: str, share: Share, checks: Checks) -> None:
    """Log a share; raise LeadError if it exceeds the limit `checks.<name>`."""
    value = share.count / share.total if share.total else 0.0
    limit = getattr(checks, name)
    what = f"{share.where}: {share.count:,} of {share.total:,} {name.replace('_', ' ')}"
    if share.examples:
        what += f", e.g. {', '.join(share.examples)}"
    log.info("%s (%.1f%%)", what, 100 * value)
    if value > limit:
        raise LeadError(f"checks.{name}: {what}: {value:.3g} is above the limit {limit:g}; fix the data, or raise it")
