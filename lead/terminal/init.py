"""`lead init`: a look at a collection's files, and a dataset file for it with lengths, steps and batch that fit."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import pyarrow as pa

from lead.config.folders import Located, LocatedSplit, expand, judged_splits, locate
from lead.config.load import validate
from lead.config.parse import parse_yaml
from lead.config.schema import Dataset
from lead.config.shipped import DEFAULT_CONFIG
from lead.config.sources import BeirSource, HfSource
from lead.config.types import NAME
from lead.data.collection import Split
from lead.data.files import read_qrels, read_queries
from lead.data.layout import CORPUS, QUERIES, Layout, rows
from lead.data.pseudo import fitting
from lead.data.splits import carve
from lead.data.unlabelled import read_texts
from lead.errors import LeadError
from lead.store.atomic import atomic_file
from lead.terminal.dataset_file import DEPLOY, Found, dataset_file
from lead.terminal.look import SAMPLE, Look, look, words_of

TEST_SHARE, TEST_MOST = 0.2, 1000  # judged queries that are held out where no test split is given


def init(
    name: str,
    corpus: str,
    queries: str | None,
    qrels: str | None,
    test: tuple[str | None, str | None],
    force: bool,
    config: Path = DEFAULT_CONFIG,
) -> str:
    """Write config/datasets/NAME.yaml; returns what people read. `test`: queries and judgements to evaluate on.

    Without judged queries, the dataset is for alignment: training queries are drawn from the corpus, and `queries` are
    aligned on too. Raises LeadError for files that cannot be read, and a dataset that is there.
    """
    if not re.fullmatch(NAME, name):
        raise LeadError(f"'{name}' is no name of a dataset; use letters, digits, '_', '.' and '-'")
    path = config.parent / "datasets" / f"{name}.yaml"
    if path.exists() and not force:
        raise LeadError(f"{path} is there already; give another name, or --force to write it anew")
    for option, given in (("--corpus", corpus), ("--queries", queries), ("--qrels", qrels),
                          ("--test-queries", test[0]), ("--test-qrels", test[1])):  # fmt: skip
        if given is not None and not os.path.exists(expand(given)):
            raise LeadError(f"{option} {given} does not exist; fix the path")
    folder = expand(corpus).is_dir()
    found = _folder(expand(corpus), queries, qrels, test) if folder else _files(corpus, queries, qrels, test)
    text = dataset_file(name, found, path)
    validate(Dataset, parse_yaml(text, str(path)), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    for split, part in found.carved.items():
        with atomic_file(path.parent / name / f"qrels.{split}.tsv") as temporary:
            rows = part.qrels.to_pylist()
            lines = [f"{row['qid']}\t{row['pid']}\t{row['rel']}\n" for row in rows]
            temporary.write_text("qid\tpid\trel\n" + "".join(lines), encoding="utf-8")
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return "\n".join([*found.lines, f"wrote {path}; read it, then:", *_following(name, found)])


def _following(name: str, found: Found) -> list[str]:
    """The commands that come next, each with what it does."""
    run, table = f"{name}/{DEPLOY[found.drawn is not None]}", (f"lead table results/{name}/*.json", "compare them")
    measured = found.drawn is None or bool(found.judged)
    commands = [
        (f"lead plan {name if measured else run}", "what it takes on this machine"),
        (f"lead run {run}", f"the student to deploy, {'measured' if measured else 'and its vectors of the passages'}"),
        (f'lead search {run} "a question"', "or a prompt, without the question"),
        (f"lead export {run} --to {name}-model", "a folder for sentence-transformers"),
    ]
    commands += [(f"lead run {name}", "what it is compared with: BM25, its teacher, .."), table] if measured else []
    width = max(len(command) for command, _ in commands)
    return [f"  {command:<{width}}  # {what}" for command, what in commands]


# --- what is there ---------------------------------------------------------------------------------------------------
def _folder(folder: Path, queries: str | None, qrels: str | None, test: tuple[str | None, str | None]) -> Found:
    """A folder in BEIR's or MTEB's layout. A folder with train judgements alone is split into train and test.

    The other files are those of the options; they stand in for what a folder without judgements lacks.
    """
    name = str(folder)
    splits = sorted(Path(p).name.partition(".tsv")[0] for p in glob.glob(f"{glob.escape(name)}/qrels/*.tsv*"))
    beir = bool(glob.glob(f"{glob.escape(name)}/corpus.jsonl*"))
    if (splits or not beir) and any(given is not None for given in (queries, qrels, *test)):
        raise LeadError(
            f"--corpus {name}: the folder has queries and judgements of its own; leave out the other options, or give "
            "--corpus the file of its passages"
        )
    if not beir:
        source: dict[str, object] = {"kind": "hf", "folder": name}
        if "train" not in judged_splits(folder):  # to be measured on, or nothing
            located = locate(HfSource(kind="hf", folder=name, train=None))
            return _unjudged(source, located.corpus, located.splits.get("test"), None)
        return _located(source, locate(HfSource(kind="hf", folder=name)))
    if "train" in splits and "test" in splits:
        return _located({"kind": "beir", "folder": name}, locate(BeirSource(kind="beir", folder=name)))
    if not splits:
        inside = next(iter(glob.glob(f"{glob.escape(name)}/queries.jsonl*")), None)
        return _files(glob.glob(f"{glob.escape(name)}/corpus.jsonl*")[0], queries or inside, qrels, test)
    one = next((split for split in ("test", "train") if split in splits), splits[0])
    located = locate(BeirSource(kind="beir", folder=name, train=None, test=one))
    (passages,), split = located.corpus, located.splits["test"]
    asked, judged = str(split.queries[0]), str(split.qrels[0])
    if one == "test":  # most sets of BEIR: to be measured on, never to be trained on
        found = _files(str(passages), None, None, (asked, judged))
    else:
        found = _files(str(passages), asked, judged, (None, None))
    if "dev" in located.splits and one != "dev":
        dev = str(located.splits["dev"].qrels[0])
        found.source["dev"] = {"queries": asked, "qrels": dev}
        found.lines.append(f"dev judgements: {dev}")
    return found


def _files(corpus: str, queries: str | None, qrels: str | None, test: tuple[str | None, str | None]) -> Found:
    if test[0] is not None and test[1] is None:
        raise LeadError("--test-queries without judgements; give --test-qrels too, or leave it out")
    source: dict[str, object] = {"kind": "files", "corpus": corpus}
    if qrels is None:
        tested, asked = None, test[0] or queries
        if test[1] is not None:
            if asked is None:
                raise LeadError("--test-qrels without queries; give --test-queries too")
            source["test"] = {"queries": asked, "qrels": test[1]}
            tested = LocatedSplit([expand(asked)], [expand(test[1])])
        return _unjudged(source, [expand(corpus)], tested, None if tested and test[0] is None else queries)
    if queries is None:
        raise LeadError("--qrels without queries; give --queries too")
    train = LocatedSplit([expand(queries)], [expand(qrels)])
    if test[0] is None and test[1] is None:
        parts = _part(train)
        found = _located(source, Located([expand(corpus)], {"train": train}), parts)
        return found
    tested = LocatedSplit([expand(test[0] or queries)], [expand(test[1] or qrels)])
    source |= {
        "train": {"queries": queries, "qrels": qrels},
        "test": {"queries": str(test[0] or queries), "qrels": str(test[1] or qrels)},
    }
    return _located(source, Located([expand(corpus)], {"train": train, "test": tested}))


def _unjudged(
    source: dict[str, object], corpus: Sequence[Path], test: LocatedSplit | None, queries: str | None
) -> Found:
    """A corpus without judged queries to train on: some are drawn from it. `queries` are aligned on too."""
    if test is not None:
        found = _located(source, Located(corpus, {"test": test}))
    else:
        seen = look(corpus, CORPUS)
        found = Found(source, seen, None, {}, set(), [_texts("corpus", seen, "passages")])
    found.tested, found.queries = found.queries, None
    sample = (row for _, row in islice(rows(corpus[0], CORPUS, Layout()), SAMPLE))
    way, why = found.drawn = fitting((str(row.get("title") or ""), str(row.get("text") or "")) for row in sample)
    found.lines.append(f"no judged queries to train on: training queries are drawn from the corpus ({way}: {why})")
    if queries is not None:
        words = sorted(words_of(text) for batch in read_texts([expand(queries)]) for text in batch["text"].to_pylist())
        found.asked = Look([Path(queries)], len(words), True, words, Layout())
        found.lines.append(f"queries: {queries}: {len(words):,} without judgements, to align on")
    return found


def _part(split: LocatedSplit) -> dict[str, Split]:
    """Judged queries in two parts, train and test; queries of the same text go together."""
    queries = read_queries(split.queries)
    qrels, _ = read_qrels(split.qrels)
    asked = set(qrels["qid"].to_pylist())
    kept = queries.filter(pa.array([qid in asked for qid in queries["qid"].to_pylist()], pa.bool_()))
    if kept.num_rows < 2:
        raise LeadError(
            f"{split.qrels[0]}: {kept.num_rows} of the queries are judged; are the ids those of {split.queries[0]}?"
        )
    train, test = carve(Split(kept, qrels), min(TEST_SHARE, TEST_MOST / kept.num_rows))
    return {"train": train, "test": test}


def _located(source: dict[str, object], located: Located, carved: dict[str, Split] | None = None) -> Found:
    corpus = look(located.corpus, CORPUS)
    queries = look((located.splits.get("train") or located.splits["test"]).queries, QUERIES)
    lines = [_texts("corpus", corpus, "passages"), _texts("queries", queries, "queries")]
    judged, grades = {}, set()
    for name, split in located.splits.items():
        layout: dict[str, dict[str, object]] = {}
        qrels, _ = read_qrels(split.qrels, layout)
        per_query = Counter(qrels["qid"].to_pylist())
        judged[name] = len(per_query)
        own = set(qrels["rel"].unique().to_pylist())
        grades |= own
        how = ", ".join(f"{value} from {where}" for value, where in layout["qrels"]["columns"].items())  # type: ignore[attr-defined]
        lines.append(
            f"{'' if carved else f'{name} '}judgements: {split.qrels[0]}: {qrels.num_rows:,} for {len(per_query):,} "
            f"queries, {qrels.num_rows / max(1, len(per_query)):.1f} each, grades "
            f"{', '.join(map(str, sorted(own)[:6]))} ({how})"
        )
    if carved:
        judged = {name: len(part.queries) for name, part in carved.items()}
        lines.append(
            f"no test split: {judged['test']:,} of the judged queries are held out to evaluate on, {judged['train']:,} "
            "are trained on"
        )
    return Found(source, corpus, queries, judged, grades, lines, carved or {})


def _texts(key: str, seen: Look, what: str) -> str:
    """A line on some texts."""
    layout: Layout = seen.layout
    columns = ", ".join(f"{value} from {where}" for value, where in sorted(layout.columns.items()))
    header = {None: "", True: ", a header", False: ", no header"}[layout.header]
    more = f" and {len(seen.paths) - 1} more files" if len(seen.paths) > 1 else ""
    count = (
        f"{seen.count:,} {what}" if seen.exact else f"about {seen.count:,} {what} (from the first {len(seen.words):,})"
    )
    middle, long = (
        seen.words[min(len(seen.words) - 1, int(share * len(seen.words)))] if seen.words else 0 for share in (0.5, 0.95)
    )
    return (
        f"{key}: {seen.paths[0]}{more}: {count} ({columns}{header}); {middle} words in the middle, 95 % have at most "
        f"{long} (about {seen.tokens(0.95)} tokens)"
    )
