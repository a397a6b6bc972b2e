"""Malformed configuration: dataset files, presets, experiments, the paper's tables, settings of a stage.

More mistakes, one a key, are in test_config.py and test_plan.py.
"""

from __future__ import annotations

from dag.project import empty_project, replace
from malformed.base import Bad, Command, Site

CONFIG, PRESET, EXPERIMENTS, PAPER = "config.yaml", "presets/tiny.yaml", "experiments.yaml", "paper.yaml"
TINY, DOCS = "datasets/tiny.yaml", "datasets/docs.yaml"
TARGET = "all results/tiny/lead_cb.json"
BILLION = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"
DEEP = "[" * 5000 + "]" * 5000


def whole(file: str, content: str | bytes, says: str, note: str = "") -> Bad:
    """`lead show` with a whole file of the configuration replaced, or one more."""

    def command(site: Site) -> Command:
        config = empty_project(site.folder)
        (config / file).write_bytes(content if isinstance(content, bytes) else content.encode())
        return ["show", "tiny/lead_cb", "--config", config / CONFIG]

    return Bad(f"{file}: {note or repr(content[:30])}", command, says)


def edit(file: str, old: str, new: str, says: str, run: str = "tiny/lead_cb", note: str = "") -> Bad:
    """`lead show` of a run with one edit in a file of the configuration."""

    def command(site: Site) -> Command:
        config = empty_project(site.folder)
        replace(config / file, old, new)
        return ["show", run, "--config", config / CONFIG]

    return Bad(f"{file}: {note or new[:40]}", command, says)


def plan(file: str, old: str, new: str, says: str, note: str = "") -> Bad:
    """A result asked of Snakemake with one edit in a file of the configuration."""

    def command(site: Site) -> Command:
        config = empty_project(site.folder)
        replace(config / file, old, new)
        return ["plan", config / CONFIG, TARGET]

    return Bad(f"{file}: {note or new[:40]}", command, says)


def stage(name: str, text: str | bytes, says: str, note: str = "") -> Bad:
    """A stage given these settings in a file, before it reads anything else."""

    def command(site: Site) -> Command:
        file = site.folder / "settings.yaml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        nothing = site.folder / "nothing"
        texts = ["--model", nothing, "--texts", nothing] if name == "encode" else []
        lists = ["--ranked", nothing, "--qrels", nothing, "--per-query", nothing] if name == "evaluate" else []
        return [name, *texts, *lists, "--out", nothing, "--settings", file]

    return Bad(f"{name} --settings: {note or repr(text[:40])}", command, says)


ROWS = [
    # --- YAML itself
    whole(TINY, "a: !!python/object/apply:os.system [echo]\n", "tiny.yaml:1: not valid YAML: tags"),
    whole(PRESET, "a: !!python/tuple [1]\n", "presets/tiny.yaml:1: not valid YAML: tags"),
    whole(CONFIG, "!!python/object/new:os.system [echo]\n", "config.yaml:1: not valid YAML: tags"),
    whole(DOCS, BILLION, r"docs.yaml:2: not valid YAML: aliases \(\*a\) are not supported", "billion laughs"),
    whole(DOCS, "a: &a [*a]\n", "docs.yaml:1: not valid YAML: aliases", "a list of itself"),
    whole(DOCS, f"a: {DEEP}\n", "docs.yaml: not valid YAML", "5000 brackets"),
    whole(DOCS, "a: 1\n---\nb: 2\n", "docs.yaml:2: not valid YAML: but found another document", "two documents"),
    whole(DOCS, "a:\tb\n- c", "docs.yaml:2?1?: not valid YAML", "a tab"),
    whole(DOCS, "\ta: b\n", "docs.yaml:1: not valid YAML: found character '.t'", "a tab in front"),
    whole(DOCS, "a: !!binary x\n", "docs.yaml:1: not valid YAML: tags", "base64"),
    whole(DOCS, "a: 2026-13-45\n", "docs.yaml: not valid YAML: month must be", "no date"),
    whole(DOCS, "a: \x00\n", "docs.yaml:?1?: not valid YAML", "NUL"),
    whole(DOCS, "a: " + "9" * 5000, "docs.yaml: not valid YAML: .*4300 digits", "a huge number"),
    whole(DOCS, "a: 0x" + "f" * 5000, "docs.yaml:1: not valid YAML: number of more than 64 bits"),
    whole(DOCS, "a: b\n" * 400_000, "docs.yaml: more than 256 KiB", "too long"),
    whole(DOCS, "".join(f"k{i}: 1\n" for i in range(3_000)), "docs.yaml:1: unknown key 'k0'", "3,000 keys"),
    whole(DOCS, "{a: 1}: b\n", "docs.yaml:1: not valid YAML: found unhashable key"),
    whole(DOCS, "<<: {about: x}\n", "docs.yaml:1: not valid YAML"),
    whole(EXPERIMENTS, "runs:\n  on: {method: bm25}\n", r"experiments.yaml:?\d?: key 'runs", "a name that is true"),
    whole(EXPERIMENTS, "runs:\n  bm25: {method: bm25}\n  bm25: {method: bm25}\n", "experiments.yaml:3: .*given twice"),
    whole(EXPERIMENTS, b"runs:\n  \xff: {}\n", "cannot read .*experiments.yaml"),
    # --- numbers
    plan(PRESET, "k: 2", "k: 3", "run 'lead_cb' on 'tiny': distil.layers.k: 3 is more than the student's 2 layers"),
    plan(PRESET, "strategy: random", "strategy: skip, skip: 9", "distil.layers.skip: 9 with k 2 needs teacher layer"),
    plan(PRESET, "k: 2", "k: 2, pairs: [[1, 1], [1, 2]]", "distil.layers.pairs is read with strategy: pairs only"),
    plan(PRESET, "strategy: random", "strategy: pairs, pairs: [[4, 1], [2, 2]]", "do not ascend on both sides"),
    edit(PRESET, "query: 12", "query: -12", "tiny.yaml:4: key 'lengths.query': should be greater than or equal to 3"),
    edit(PRESET, "query: 12", "query: 1e99", "tiny.yaml:4: key 'lengths.query': should be a valid integer"),
    edit(PRESET, "lr: 1e-3", "lr: .nan", "tiny.yaml:8: key 'train.lr': should be a finite number, not nan"),
    edit(PRESET, "lr: 1e-3", "lr: .inf", "tiny.yaml:8: key 'train.lr': should be a finite number, not inf"),
    edit(PRESET, "lr: 1e-3", "lr: 1e999", "tiny.yaml:8: key 'train.lr': should be a finite number, not inf"),
    edit(PRESET, "steps: 3", "steps: 99999999999999999999", "tiny.yaml:8: not valid YAML: number of more than 64 bits"),
    edit(PRESET, "steps: 3", "steps: 9999999999", "tiny.yaml:8: key 'train.steps': should be less than or equal to"),
    edit(CONFIG, "seed: 1", "seed: 18446744073709551615", "key 'settings.seed': should be less than or equal to 4294"),
    edit(TINY, "preset: tiny", "preset: tiny\nshards: 1000000000", "tiny.yaml:9: key 'shards': should be less than or"),
    edit(PRESET, "resamples: 20", "resamples: 0", "key 'evaluation.resamples': should be greater than or equal to 1"),
    # --- types and names
    edit(PRESET, "lengths:", "train: 5\nlengths:", "not valid YAML: key 'train' is given twice"),
    edit(PRESET, "{steps: 4}", "[steps]", "key 'phases.distil': should be a valid dictionary, not a list"),
    edit(PRESET, "{steps: 4}", "", "key 'phases.distil': should be a valid dictionary, not None", note="no value"),
    edit(CONFIG, "{seed: 1}", "x" * 5000, "config.yaml:4: key 'settings': .{,999}$", note="a long text"),
    edit(CONFIG, "settings:", "? " + "x" * 5000 + "\n:", "config.yaml:4: unknown key 'x.{,999}$", note="a long key"),
    edit(CONFIG, "settings:", r'"a\nb\e[2J":', r"unknown key 'a\\nb\\x1b\[2J'", note="a key of control characters"),
    plan(PRESET, '["RR@10"', '["RR@"', "evaluation.measures: 'RR@' is not a measure"),
    plan(PRESET, '["RR@10"', '["RR@99999999999999999999"', "evaluation.measures: 'RR@9999"),
    plan(PRESET, '["RR@10"', '["RR@10", "__import__(1)"', "evaluation.measures: '__import__.* is not a measure"),
    plan(PRESET, '["RR@10"', '["' + "(" * 300 + '"', "evaluation.measures: .* is not a measure", note="300 brackets"),
    plan(PRESET, '["RR@10"', '["RR@10", "RR@10"', "evaluation.measures: 'RR@10' is listed twice"),
    plan(EXPERIMENTS, "start: student, teacher: teacher_de", "start: lead_de, teacher: teacher_de", "on itself"),
    plan(EXPERIMENTS, "bm25: {", "bm25-s2: {", "experiments.yaml: run 'bm25-s2'.*rename it"),
    edit(EXPERIMENTS, "  bm25:", "  ../x: {method: bm25}\n  bm25:", "experiments.yaml:?.*'runs"),
    whole("datasets/my data.yaml", "a: 1\n", "my data.yaml: .* name"),
    whole("datasets/a$(x).yaml", "a: 1\n", r"a\$\(x\).yaml: .* name"),
    whole("datasets/größe.yaml", "a: 1\n", "größe.yaml: .* name"),
    whole("presets/-x.yaml", "a: 1\n", "-x.yaml: .* name"),
    # --- files that are not there, or not what they seem
    plan(TINY, "../../data/corpus.jsonl", "../../data/nope.jsonl", "key 'source': .*nope.jsonl does not exist"),
    plan(TINY, "../../data/corpus.jsonl", "../../data", "key 'source': .*data does not exist", note="a folder"),
    plan(TINY, "../../data/corpus.jsonl", "x" * 5000, "key 'source': .*does not exist", note="a name too long"),
    plan(TINY, "../../data/corpus.jsonl", r'"a\0b"', r"key 'source': .*a\\x00b: ", note="NUL"),
    edit(CONFIG, "results: all results", 'results: ""', "config.yaml:3: key 'results'"),
    edit(CONFIG, "results: all results", "results: ./..", "config.yaml:3: key 'results'"),
    plan(TINY, "../../data/corpus.jsonl", '"../../{a}.tsv"', "tiny.yaml: key 'source': .*a}.tsv: .* holds no braces"),
    edit(CONFIG, "results: all results", "results: -x", "config.yaml:3: key 'results'"),
    edit(CONFIG, "results: all results", "results: a{b}", "config.yaml:3: key 'results'"),
    edit(CONFIG, "results: all results", r'results: "a\nb"', "config.yaml:3: key 'results'"),
    edit(CONFIG, "results: all results", "results: x\npresets: config.yaml", "key 'presets': .* is not a folder"),
    # --- runs
    edit(CONFIG, "seed: 1", "seed: 1", "no run 'lead_cb-s9{,999}", "tiny/lead_cb-s" + "9" * 5000, "a long seed"),
    edit(CONFIG, "seed: 1", "seed: 1", "no run 'lead_cb-s٣'", "tiny/lead_cb-s٣", "a digit that is not ours"),
    edit(CONFIG, "seed: 1", "seed: 1", r"no dataset '\.\.'", "../lead_cb", "a path for a dataset"),
    # --- settings of a stage
    stage("encode", "shard: 0of3\n", "settings.yaml:?1?: key 'shard': String should match"),
    stage("encode", "batch_tokens: -1\n", "key 'batch_tokens': should be greater than or equal to 1"),
    stage("encode", "batch_tokens: .inf\n", "key 'batch_tokens': should be"),
    stage("encode", "fp16: maybe\n", "key 'fp16': should be a valid boolean, not 'maybe'"),
    stage("encode", "a: !!python/name:os.system\n", "settings.yaml:1: not valid YAML"),
    stage("encode", BILLION, "settings.yaml:2: not valid YAML: aliases", "billion laughs"),
    stage("encode", b'{"_id": "1", "text": "x"}\n' * 200_000, "settings.yaml: more than 256 KiB", "a corpus"),
    stage("encode", b"PAR1\x00\x01\xff", "settings.yaml: .*decode|settings.yaml: .*UTF-8", "a Parquet file"),
    stage("evaluate", "evaluation: {measures: RR@10}\n", "key 'evaluation.measures': should be a valid list"),
    stage("evaluate", "evaluation: {confidence: 1}\n", "key 'evaluation.confidence': should be"),
    stage("evaluate", "seed: 1e3\n", "key 'seed': should be a valid integer"),
]  # fmt: skip
