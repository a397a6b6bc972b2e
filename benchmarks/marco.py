"""Collections with the shape of MS MARCO: its files, sizes, lengths and term frequencies, with planted relevance.

    python benchmarks/marco.py --scale 1/100 --out marco100 [--documents]

The text is made of invented words. Frequencies follow Zipf's law with the stop words on top, a passage takes a part of
its words from its topic (50 passages share one), and a query takes words from its positive passage and, as noise, from
the topic and from all words. `NOISE` is set so that BM25 finds about as much as on MS MARCO. What it is good for:
time, memory and formats at full size, and a pipeline that has something to learn. What not: any conclusion on quality.

The same arguments give the same bytes. Passages are streamed: memory is 0.55 GB at full size, most of it the words.
"""

from __future__ import annotations

import argparse
import gzip
import io
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

STOP = (
    "the of a and to in is for or that are it as on with be by this an from you your can at not have if was will what "
    "which their has more they when all one may also these other but how used most than who into up its".split()
)
SYLLABLES = [c + v for c in "b c d f g h k l m n p r s t v w st tr".split() for v in "a e i o u".split()]
ENDINGS = ["", "s", "ing", "ed", "ly", "er", "ation", "ility"]  # so that a stemmer has something to do
WORDS = 600_000  # and one passage in four has a word of its own: MS MARCO has 2.7 million distinct ones
CHUNK = 20_000  # passages made at a time
TOPIC = 50  # passages that share a topic
TOPIC_WORDS = 120
SHARES = (0.35, 0.65)  # of stop words, and up to here of words of the topic; the rest are any
NOISE = (0.3, 0.75)  # the same for the words of a query, between stop words and words of its passage
FORMS = (0.84, 0.90, 0.95, 0.99)  # plain, capitalised, before a full stop, before a comma, with a possessive


@dataclass(frozen=True)
class Shape:
    """Sizes of a collection (Table 11), and the names of its official files."""

    passages: int
    train: int
    unjudged: int  # train queries without a judgement
    dev: int
    length: tuple[float, float]  # of the log-normal: mean in words, sigma
    corpus: str
    lists: tuple[str, int, str]  # ranked lists of the dev queries: file, passages in each, format of a line
    files: dict[str, tuple[str, str, str]]  # queries, judgements, and the format of a judgement


PASSAGE = Shape(
    8_841_823, 502_939, 305_792, 6_980, (56.0, 0.42), "collection.tsv",
    ("top1000.dev.tsv", 1000, "{0}\t{1}\t{2}\tpassage {1}\n"),
    {
        "train": ("queries.train.tsv", "qrels.train.tsv", "{0}\t0\t{1}\t{2}\n"),
        "dev": ("queries.dev.small.tsv", "qrels.dev.small.tsv", "{0}\t0\t{1}\t{2}\n"),
        "trec": ("msmarco-test2019-queries.tsv", "2019qrels-pass.txt", "{0} Q0 {1} {2}\n"),
    },
)  # fmt: skip
DOCUMENT = Shape(
    3_213_835, 367_013, 0, 5_193, (1100.0, 0.9), "msmarco-docs.tsv.gz",
    ("msmarco-docdev-top100.gz", 100, "{0} Q0 D{1} {3} {4} generated\n"),
    {
        "train": ("msmarco-doctrain-queries.tsv.gz", "msmarco-doctrain-qrels.tsv.gz", "{0} 0 D{1} {2}\n"),
        "dev": ("msmarco-docdev-queries.tsv.gz", "msmarco-docdev-qrels.tsv.gz", "{0} 0 D{1} {2}\n"),
        "trec": ("msmarco-test2019-queries.tsv.gz", "2019qrels-docs.txt", "{0} 0 D{1} {2}\n"),
    },
)  # fmt: skip
TOPICS, JUDGED = 200, 43  # of TREC-DL 2019, at every scale


def vocabulary() -> NDArray[Any]:
    """Forms of all words, [forms, words]: the lower a word's number, the more frequent it is."""
    n = len(SYLLABLES)
    words = list(STOP)
    for i in range(WORDS - len(STOP)):
        stem, ending = divmod(i, len(ENDINGS))
        word, stem = "", stem + n  # of two syllables or more
        while stem:
            word, stem = word + SYLLABLES[stem % n], stem // n
        words.append(str(i) if i % 40 == 39 else word + ENDINGS[ending])
    forms = [words, [w.capitalize() for w in words], *([w + end for w in words] for end in (".", ",", "'s"))]
    return np.array(forms, dtype=object)


def any_words(rng: np.random.Generator, n: int, first: int) -> Ints:
    """n words from number `first` on, by Zipf's law with exponent 1: the logarithm of the rank is uniform."""
    return (first * np.exp(rng.random(n, np.float32) * np.log(WORDS / first))).astype(np.int64).clip(max=WORDS - 1)


def topic_words(rng: np.random.Generator, topics: Ints) -> Ints:
    """One word of each topic [n]; its first words are the most frequent."""
    place = (TOPIC_WORDS * rng.random(len(topics), np.float32) ** 2).astype(np.int64)
    x = ((topics * TOPIC_WORDS + place).astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)  # a hash: the words of a topic are a fixed draw
    uniform = (x >> np.uint64(40)).astype(np.float64) / 2**24
    return (200 * np.exp(uniform * np.log(WORDS / 200))).astype(np.int64)


def passage_words(rng: np.random.Generator, topics: Ints) -> Ints:
    """A word of a passage on each of the topics [n]."""
    kind = rng.random(len(topics), np.float32)
    words = any_words(rng, len(topics), len(STOP))
    stop, topical = kind < SHARES[0], (kind >= SHARES[0]) & (kind < SHARES[1])
    words[stop] = (len(STOP) * rng.random(stop.sum()) ** 2).astype(np.int64)
    words[topical] = topic_words(rng, topics[topical])
    return words


def query_words(rng: np.random.Generator, topics: Ints, words: Ints, starts: Ints, lengths: Ints) -> list[list[int]]:
    """Words of queries [n] for passages `words[starts:starts + lengths]`."""
    sizes = (2 + rng.poisson(4, len(topics))).clip(max=15)
    each = np.repeat(np.arange(len(topics)), sizes)
    kind = rng.random(len(each))
    found = words[starts[each] + (rng.random(len(each)) * lengths[each]).astype(np.int64)]
    noisy = kind < NOISE[0]
    found[noisy] = passage_words(rng, topics[each[noisy]])
    near = (kind >= NOISE[0]) & (kind < NOISE[1])
    found[near] = topic_words(rng, topics[each[near]])
    return [part.tolist() for part in np.split(found, np.cumsum(sizes)[:-1])]


def generate(out: Path, scale: Fraction, shape: Shape, seed: int) -> None:
    """Write all files of a collection into the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    size = {name: max(7, round(getattr(shape, name) * scale)) for name in ("passages", "train", "dev")}
    n, unjudged = size["passages"], round(shape.unjudged * scale)
    n_topics = max(1, n // TOPIC)
    rng = np.random.default_rng(seed)
    split = np.repeat(np.arange(4), [size["train"], size["dev"], TOPICS, unjudged])
    positive = np.sort(rng.integers(n, size=len(split)))
    rng.shuffle(split)
    forms, queries = vocabulary(), []
    with _writing(out / shape.corpus) as file:
        for first in range(0, n, CHUNK):
            rng = np.random.default_rng([seed, first])
            pids = np.arange(first, min(first + CHUNK, n))
            mean, sigma = shape.length
            lengths = rng.lognormal(np.log(mean) - sigma**2 / 2, sigma, len(pids)).astype(np.int64).clip(5, 20_000)
            words = passage_words(rng, np.repeat(pids % n_topics, lengths))
            form = np.searchsorted(FORMS, rng.random(len(words), np.float32))
            ends = np.cumsum(lengths)
            file.writelines(_lines(forms[form, words].tolist(), pids.tolist(), ends.tolist(), shape is DOCUMENT))
            asked = positive[np.searchsorted(positive, first) : np.searchsorted(positive, first + len(pids))] - first
            starts = ends - lengths
            if len(asked):
                queries += query_words(rng, pids[asked] % n_topics, words, starts[asked], lengths[asked])
    dev: list[tuple[int, str, int]] = []
    plain, qids = forms[0], 2 + np.random.default_rng([seed, n]).permutation(len(split))
    order = np.argsort(np.random.default_rng([seed, n, 1]).random(len(split)))  # of the files
    for number, (asked_in, judged_in, form) in enumerate(shape.files.values()):
        with _writing(out / asked_in) as asking, _writing(out / judged_in) as judging:
            judged = 0
            for i in order[np.isin(split[order], (0, 3) if number == 0 else (number,))].tolist():
                asking.write(f"{qids[i]}\t{' '.join(plain[queries[i]])}\n")
                near = ((positive[i] + n_topics * np.arange(12)) % n).tolist()  # of the same topic
                if split[i] < 2:
                    relevant = near[: 1 + (i % 16 == 0)]  # one in 16 has a second
                    judging.writelines(form.format(qids[i], pid, 1) for pid in relevant)
                    if split[i] == 1:
                        dev.append((qids[i], " ".join(plain[queries[i]]), positive[i]))
                elif split[i] == 2 and (judged := judged + 1) <= JUDGED:
                    judging.writelines(
                        form.format(qids[i], p, max(0, 3 - k)) for k, p in enumerate(dict.fromkeys(near))
                    )

    name, listed, line = shape.lists
    rng = np.random.default_rng([seed, n, 2])
    with _writing(out / name) as listing:
        for qid, query, answer in dev:  # in two lists of three, among passages of any topic
            pids = rng.permutation(np.unique(rng.integers(n, size=listed)))
            if rng.random() < 2 / 3 and answer not in pids:
                pids[rng.integers(len(pids))] = answer
            for k, pid in enumerate(pids.tolist()):
                listing.write(line.format(qid, pid, query, k + 1, len(pids) - k))


def _lines(words: list[str], pids: list[int], ends: list[int], documents: bool) -> Any:
    start = 0
    for pid, end in zip(pids, ends, strict=True):
        text = " ".join(words[start:end])
        own = f" x{pid}q" if pid % 4 == 0 else ""
        if documents:
            title = " ".join(words[start : start + 6])
            yield f"D{pid}\thttps://example.org/{pid}\t{title}\t{text}{own}\n"
        else:
            yield f"{pid}\t{text}{own}\n"
        start = end


def _writing(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return io.TextIOWrapper(gzip.GzipFile(path, "wb", 1, mtime=0), encoding="utf-8")  # no time in its header
    return path.open("w", encoding="utf-8")


def main() -> None:
    """Read the arguments and write the collection."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    parser.add_argument("--scale", type=Fraction, default=Fraction(1), help="share of MS MARCO's size, such as 1/100")
    parser.add_argument("--documents", action="store_true", help="documents (id, url, title, body), not passages")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    generate(args.out, args.scale, DOCUMENT if args.documents else PASSAGE, args.seed)


if __name__ == "__main__":
    main()
