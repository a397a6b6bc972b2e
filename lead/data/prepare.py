"""The stage `prepare`: any source becomes checked Parquet files, and whatever looks odd is counted and reported."""

from __future__ import annotations

import hashlib
import logging
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

from lead.config.sources import Checks, EvaluationSource, Expect, FilesSource, IrDatasetsSource, PydocsSource
from lead.config.stages import PrepareSettings
from lead.data import files, ir, pydocs
from lead.data.collection import Collection, Split, hash64
from lead.errors import LeadError
from lead.store.atomic import atomic_file
from lead.store.tables import SCHEMAS, open_table, read_table, table_writer, write_json, write_table

log = logging.getLogger("lead")

EXAMPLES = 3


@dataclass(frozen=True)
class Share:
    """How many of `total` things are odd, with a few of their ids."""

    where: str  # the corpus, or a split
    count: int
    total: int
    examples: list[str]


@dataclass(frozen=True)
class Corpus:
    """What is remembered of a corpus that has been streamed to disk: 8 bytes a passage."""

    passages: int
    ids: NDArray[np.uint64]  # [passages] hash64 of each pid, sorted
    duplicates: Share  # passages whose text occurs before, surrounding space aside; empty ones are not among them
    empty: Share  # passages without text

    def holds(self, pids: pa.Array) -> NDArray[np.bool_]:
        """For each pid [n], whether the corpus has it."""
        hashes = np.fromiter((hash64(pid) for pid in pids.to_pylist()), dtype=np.uint64, count=len(pids))
        at = np.searchsorted(self.ids, hashes).clip(max=len(self.ids) - 1)
        return np.asarray(self.ids[at] == hashes)


def prepare(*, settings: PrepareSettings, out: Path, corpus: Path | None = None) -> None:
    """Write corpus.parquet, {queries,qrels}.{train,dev,test}.parquet and report.json into the folder `out`.

    Memory: a batch of passages, 24 bytes a passage (about 200 MB for MS MARCO, twice that while they are sorted), and
    all queries and judgements. Raises LeadError for unreadable input, an empty split, or a share above its check.
    """
    if isinstance(settings.source, EvaluationSource):
        _prepare_evaluation(settings, settings.source, corpus, out)
        return
    if corpus is not None:
        raise LeadError("--corpus is read for a source of kind evaluation only; leave it out")
    collection = _collect(settings.source)
    # Checks are made inside the block, so that a corpus that fails one, or whose splits do, leaves no file
    with atomic_file(out / "corpus.parquet") as temporary:
        passages = _write_corpus(collection.passages, temporary)
        log.info("corpus: %s passages", f"{passages.passages:,}")
        _check("duplicate_passages", passages.duplicates, settings.checks)
        _check("empty_passages", passages.empty, settings.checks)
        report: dict[str, Any] = {}
        splits = {name: _resolve(name, split, passages, settings, report) for name, split in collection.splits.items()}
        _check_counts(settings.expect, passages.passages, splits, settings.relevance)
        if "dev" not in splits:
            splits["train"], splits["dev"] = _carve(splits["train"], settings.dev_share)
        _report_leaks(splits, report)
    for name, split in splits.items():
        report.setdefault(name, {})["queries"] = split.queries.num_rows
        report[name]["judgements"] = split.qrels.num_rows
        log.info("%s: %s queries with %s judgements", name, f"{split.queries.num_rows:,}", f"{split.qrels.num_rows:,}")
        write_table(split.queries, out / f"queries.{name}.parquet", "queries")
        write_table(split.qrels, out / f"qrels.{name}.parquet", "qrels")
    counts = {
        "passages": passages.passages,
        "duplicate_passages": passages.duplicates.count,
        "empty_passages": passages.empty.count,
    }
    source = {"kind": settings.source.kind} | collection.facts
    write_json({"source": source, "corpus": counts, "splits": report}, out / "report.json")


def _collect(source: PydocsSource | FilesSource | IrDatasetsSource) -> Collection:
    if isinstance(source, PydocsSource):
        return pydocs.collect(source)
    return files.collect(source) if isinstance(source, FilesSource) else ir.collect(source)


def _prepare_evaluation(settings: PrepareSettings, source: EvaluationSource, corpus: Path | None, out: Path) -> None:
    """Write queries.test.parquet, qrels.test.parquet and report.json of queries that are asked of a prepared corpus."""
    if corpus is None:
        raise LeadError("--corpus is missing: a source of kind evaluation needs the prepared corpus of its dataset")
    if isinstance(source.test, str):
        split = ir.read_split(source.test, "source.test")
    else:
        split = files.collect_split("test", source.test)
    if not open_table(corpus).schema_arrow.equals(SCHEMAS["corpus"]):
        raise LeadError(f"--corpus {corpus} holds no passages (pid, text); give what lead prepare made of the dataset")
    pids = read_table(corpus, columns=["pid"])["pid"]
    hashes = np.fromiter((hash64(p.as_py()) for p in pids), dtype=np.uint64, count=len(pids))
    nothing = Share("corpus", 0, len(pids), [])
    report: dict[str, Any] = {}
    split = _resolve("test", split, Corpus(len(pids), np.sort(hashes), nothing, nothing), settings, report)
    _check_counts(settings.expect, None, {"test": split}, settings.relevance)
    report["test"] |= {"queries": split.queries.num_rows, "judgements": split.qrels.num_rows}
    write_table(split.queries, out / "queries.test.parquet", "queries")
    write_table(split.qrels, out / "qrels.test.parquet", "qrels")
    write_json({"source": {"kind": source.kind, "of": source.of}, "splits": report}, out / "report.json")


def _check_counts(expect: Expect, passages: int | None, splits: dict[str, Split], relevance: int) -> None:
    """Raise LeadError where a known count of the collection is another: a file is truncated, or another version."""

    def judged(name: str) -> int:
        qrels = splits[name].qrels
        # a TREC topic is judged whatever its grades
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
                "again, or mend `expect` in the dataset's file"
            )


def _write_corpus(passages: Iterator[pa.RecordBatch], path: Path) -> Corpus:
    """Stream passages into one Parquet file, a row group a batch."""
    ids, texts = array("Q"), array("Q")
    with (
        table_writer(path, SCHEMAS["corpus"]) as writer,
        tqdm(desc="corpus", unit=" passages", disable=None) as bar,
    ):
        for batch in passages:
            writer.write_batch(batch)
            ids.extend(map(hash64, batch["pid"].to_pylist()))
            texts.extend(hash64(text.strip()) for text in batch["text"].to_pylist())
            bar.update(batch.num_rows)
    if not ids:
        raise LeadError("source.corpus holds no passages; give a file that has some")
    hashes = np.frombuffer(texts, dtype=np.uint64)
    order = np.argsort(hashes, kind="stable")  # stable, so that of equal texts the first comes first
    again = np.sort(order[1:][hashes[order[1:]] == hashes[order[:-1]]])
    no_text = np.uint64(hash64(""))
    duplicates, empty = again[hashes[again] != no_text], np.flatnonzero(hashes == no_text)
    return Corpus(
        passages=len(ids),
        ids=np.sort(np.frombuffer(ids, dtype=np.uint64)),
        duplicates=Share("corpus", len(duplicates), len(ids), _pids_at(path, duplicates[:EXAMPLES].tolist())),
        empty=Share("corpus", len(empty), len(ids), _pids_at(path, empty[:EXAMPLES].tolist())),
    )


def _pids_at(path: Path, rows: list[int]) -> list[str]:
    """Ids of a few rows of a written corpus."""
    found, start = [], 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(columns=["pid"]) if rows else ():
            found += [batch["pid"][row - start].as_py() for row in rows if start <= row < start + batch.num_rows]
            start += batch.num_rows
    return found


def _resolve(name: str, split: Split, corpus: Corpus, settings: PrepareSettings, report: dict[str, Any]) -> Split:
    """Drop judgements of unknown ids and, but for the test split, queries without a relevant passage; count both."""
    queries, qrels = split.queries, split.qrels
    pids = qrels["pid"].unique()
    known = pc.is_in(qrels["pid"], value_set=pids.filter(pa.array(corpus.holds(pids))))
    known = pc.and_(known, pc.is_in(qrels["qid"], value_set=queries["qid"]))
    lost = qrels.filter(pc.invert(known))
    qrels = qrels.filter(known)
    relevant = qrels.filter(pc.greater_equal(qrels["rel"], settings.relevance))["qid"].unique()
    judged = pc.is_in(queries["qid"], value_set=relevant)
    unjudged = queries.filter(pc.invert(judged))
    empty = pc.sum(pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(queries["text"])), 0)).as_py() or 0
    report[name] = {
        "unresolved_judgements": lost.num_rows,
        "repeated_judgements": split.repeated,
        "unjudged_queries": unjudged.num_rows,
        "empty_queries": empty,
    }
    examples = [f"{row['qid']} {row['pid']}" for row in lost.slice(0, EXAMPLES).to_pylist()]
    unresolved = Share(name, lost.num_rows, split.qrels.num_rows, examples)
    _check("unresolved_judgements", unresolved, settings.checks)
    if split.repeated:
        log.info("%s: %s judgements repeat another", name, f"{split.repeated:,}")
    if empty:
        log.warning("%s: %s queries have no text", name, f"{empty:,}")
    examples = unjudged["qid"].slice(0, EXAMPLES).to_pylist()
    _check("unjudged_queries", Share(name, unjudged.num_rows, queries.num_rows, examples), settings.checks)
    if len(relevant) == 0:
        raise LeadError(
            f"the {name} split has no query with a relevant passage (rel >= {settings.relevance}); "
            f"look at its queries and qrels, or lower `relevance`"
        )
    return Split(queries, qrels) if name == "test" else _select(queries, qrels, relevant)


def _select(queries: pa.Table, qrels: pa.Table, qids: pa.Array) -> Split:
    return Split(
        queries.filter(pc.is_in(queries["qid"], value_set=qids)), qrels.filter(pc.is_in(qrels["qid"], value_set=qids))
    )


def _carve(train: Split, share: float) -> tuple[Split, Split]:
    """Part train into train and dev; dev are the queries whose ids have the smallest SHA-256."""
    qids = sorted(train.queries["qid"].to_pylist(), key=lambda qid: hashlib.sha256(qid.encode()).digest())
    if len(qids) < 2:
        raise LeadError(
            "the train split has one query: too few to carve a dev split from; give source.dev, or more queries"
        )
    size = min(max(1, round(share * len(qids))), len(qids) - 1)
    dev, rest = (_select(train.queries, train.qrels, pa.array(part)) for part in (qids[:size], qids[size:]))
    return rest, dev


def _report_leaks(splits: dict[str, Split], report: dict[str, Any]) -> None:
    """Warn of train and dev queries that are test queries too; refuse an id that is in both train and dev."""
    train, dev, test = (splits[name].queries for name in ("train", "dev", "test"))
    both = dev.filter(pc.is_in(dev["qid"], value_set=train["qid"]))["qid"]
    if len(both):
        raise LeadError(
            f"source.dev: query id {both[0]} is in train too, and {len(both) - 1} others; negatives go by query id, "
            f"so give distinct ids, or leave out source.dev"
        )
    for name, queries in (("train", train), ("dev", dev)):
        same_id = pc.is_in(queries["qid"], value_set=test["qid"])
        same_text = pc.is_in(queries["text"], value_set=test["text"])
        leaked = queries.filter(pc.or_(same_id, same_text))["qid"]
        report.setdefault(name, {})["leaked_queries"] = len(leaked)
        if len(leaked):
            examples = ", ".join(leaked.slice(0, EXAMPLES).to_pylist())
            log.warning(
                "%s: %s queries are test queries too, by id or text, e.g. %s", name, f"{len(leaked):,}", examples
            )


def _check(name: str, share: Share, checks: Checks) -> None:
    """Log a share; raise LeadError if it exceeds the limit `checks.<name>`."""
    value = share.count / share.total if share.total else 0.0
    limit = getattr(checks, name)
    what = f"{share.where}: {share.count:,} of {share.total:,} {name.replace('_', ' ')}"
    if share.examples:
        what += f", e.g. {', '.join(share.examples)}"
    log.info("%s (%.1f%%)", what, 100 * value)
    if value > limit:
        raise LeadError(f"checks.{name}: {what}: {value:.3g} is above the limit {limit:g}; mend the data, or raise it")
