"""What each run of the experiments is made of, for each dataset: models, lists, settings, and what makes sense at all.

The workflow asks it for the inputs that depend on a run and for each job's settings; it decides nothing itself.
"""

from __future__ import annotations

import functools
import json
import os
import re
from pathlib import Path
from typing import Any

from lead.config.experiments import UNTRAINED
from lead.config.load import Loaded, merge, seen_path, source_files, source_paths, validate
from lead.config.paper import Paper, load_paper
from lead.config.schema import ModelRef, Settings, Train
from lead.config.sources import IR_DATASETS, EvaluationSource, OnDisk
from lead.errors import LeadError, nearest
from lead.plan.checks import check_grant, check_models, check_run
from lead.plan.runs import Rows, seeded, split_seed
from lead.plan.settings import stage_settings, tokens_name


class Plan(Rows):
    """Answers about runs and datasets."""

    def __init__(self, loaded: Loaded) -> None:
        """`loaded`: all configuration files. The experiments are checked against each other here."""
        self.loaded = loaded
        super().__init__(loaded.experiments_path, loaded.experiments.runs, loaded.config.seeds)
        self.results = os.path.normpath(loaded.config.results)  # as Snakemake does it to targets
        self.paper_path = loaded.path.parent / "paper.yaml"
        self._resolved: dict[tuple[str, str | None], Settings] = {}

    def path(self) -> str:
        """The file that everything was read from."""
        return str(self.loaded.path)

    @functools.cached_property
    def paper(self) -> Paper:
        """The paper's tables. Raises LeadError for one that names a run which does not exist."""
        return load_paper(self.paper_path, list(self.rows))

    def overrides(self) -> str:
        """The keys that were given elsewhere than in the files, as JSON."""
        return json.dumps(self.loaded.overrides, sort_keys=True)

    def checked_paper(self) -> str:
        """The file of the paper's tables, once it has been checked."""
        _ = self.paper
        return str(self.paper_path)

    # --- which runs there are ----------------------------------------------------------------------------------------
    def check(self, dataset: str, run: str) -> None:
        """Refuse a dataset or run that does not exist, or a pair that does not make sense, with what exists."""
        _ = self.loaded.datasets[dataset], self.rows[run]
        for name in self.ancestors(run):
            only = self.rows[name].datasets
            if only is not None and dataset not in only:
                raise LeadError(
                    f"{self.loaded.experiments_path}: run '{name}' is for {', '.join(only)} only, not for '{dataset}'"
                )
        check_run(self, dataset, run)

    def check_target(self, target: str, gpus: int | None = None) -> None:
        """`check` for a target like results/demo/lead_cb.json, the dataset of any other file there; the rest passes.

        `gpus`: how many are granted, if that is known.
        """
        path = Path(os.path.normpath(target))
        if not path.is_relative_to(self.results) or len(below := path.relative_to(self.results).parts) < 2:
            return
        _ = self.loaded.datasets[below[0]]
        if path.suffix == ".json" and len(below) == 2:
            self.check(below[0], path.stem)
            if gpus is not None:
                check_grant(self, below[0], path.stem, gpus)

    def targets(self, dataset: str) -> list[str]:
        """Result files of the dataset's `runs`, or of every run that makes sense on it, with their further seeds.

        These are as many as `repeats` wants, and those that are there. Of runs that are the same here (`twin`) the
        first is enough, unless `runs` names them.
        """
        data, path = self.loaded.datasets[dataset]
        for name in data.runs or []:
            if name not in self.rows:
                raise LeadError(f"{path}: key 'runs': no run '{name}'; {nearest(name, self.rows)}")
        chosen = data.runs
        if chosen is None:
            chosen = [n for n in self.sensible(dataset) if n in data.repeats or self.twin(dataset, n) == n]
        for name in data.repeats:
            if name not in chosen or f"{name}-s2" not in self.rows:
                seeded = [n for n in chosen if f"{n}-s2" in self.rows]
                raise LeadError(f"{path}: key 'repeats': '{name}' is no run of it with seeds; {nearest(name, seeded)}")
        seeds = [f"{n}-s{seed}" for n in chosen for seed in range(2, data.repeats.get(n, 1) + 1)]
        folder = Path(self.results) / dataset
        found = (path.stem for path in sorted(folder.glob("*-s*.json")))
        there = [n for n in found if split_seed(n)[1] != 1 and split_seed(n)[0] in chosen and n in self.rows]
        return [f"{self.results}/{dataset}/{n}.json" for n in dict.fromkeys([*chosen, *seeds, *there])]

    def sensible(self, dataset: str) -> list[str]:
        """Rows that make sense on a dataset: meant for it, with layers that its models have, and lists that it has."""
        found = []
        listed = self.loaded.datasets[dataset][0].given is not None
        for name in self.rows:
            if not listed and "given" in (self.rows[name].method, self._lists_of(dataset, name)):
                continue
            try:
                for ancestor in self.ancestors(name):
                    only = self.rows[ancestor].datasets
                    if only is not None and dataset not in only:
                        break
                    check_models(self, dataset, ancestor)
                else:
                    found.append(name)
            except LeadError:
                continue
        return found

    def twin(self, dataset: str, run: str) -> str:
        """The first row that does exactly what this one does on a dataset (`lead_cb` for its own K), or itself."""
        row, settings = self._what(run), self.resolve(dataset, run)
        same = (n for n in self.rows if self._what(n) == row and self.resolve(dataset, n) == settings)
        return next(same, run)

    def _what(self, run: str) -> dict[str, Any]:
        return self.rows[run].model_dump(exclude={"about", "settings"})

    # --- what a run is made of ---------------------------------------------------------------------------------------
    def whole(self, dataset: str) -> str:
        """The dataset whose corpus, models and embeddings this one uses: itself, but for more evaluation queries."""
        source = self.loaded.datasets[dataset][0].source
        return source.of if isinstance(source, EvaluationSource) else dataset

    def collections(self) -> list[str]:
        """Datasets with a corpus of their own."""
        return [name for name in self.loaded.datasets if self.whole(name) == name]

    def evaluations(self) -> list[str]:
        """Datasets that are more evaluation queries of another one."""
        return [name for name in self.loaded.datasets if self.whole(name) != name]

    def corpus(self, dataset: str) -> str:
        """File of the passages that a dataset's queries are asked of."""
        return f"{self.results}/{self.whole(dataset)}/data/corpus.parquet"

    def shards(self, dataset: str) -> list[str]:
        """Endings of the files of the shards that a corpus is encoded and searched in: .1of2, .2of2; or one, empty."""
        n = self.loaded.datasets[self.whole(dataset)][0].shards
        return [f".{i}of{n}" for i in range(1, n + 1)] if n > 1 else [""]

    def scattered(self, yes: bool) -> list[str]:
        """Datasets whose shards are searched by jobs of their own, or the others.

        More evaluation queries of a collection are few: one job goes from shard to shard.
        """
        found = [name for name in self.collections() if len(self.shards(name)) > 1]
        return [name for name in self.loaded.datasets if (name in found) == yes]

    def vectors(self, dataset: str, run: str, shard: str | None = None) -> list[str]:
        """Files of the vectors that a run searches, one a shard, or that of `shard`; evaluation sets share them."""
        folder = f"{self.results}/{self.whole(dataset)}/embeddings/{self.rows[run].passages or run}"
        return [f"{folder}/passages{s}.parquet" for s in (self.shards(dataset) if shard is None else [shard])]

    def fixed(self, dataset: str, run: str) -> list[str]:
        """Files of passages' vectors that a run trains against; none, but for runs that learn queries only."""
        return self.vectors(dataset, run) if self.rows[run].passages else []

    def indexes(self, dataset: str, run: str, shard: str | None = None) -> list[str]:
        """Folders of approximate indexes of these vectors, one for each file; none when search is exact."""
        if self.resolve(self.whole(dataset), run).retrieval.index is None:
            return []
        return [re.sub(r"/passages([^/]*)\.parquet$", r"/index\1", f) for f in self.vectors(dataset, run, shard)]

    def parts(self, dataset: str, kind: str, run: str) -> list[str]:
        """Files of a run's lists over each shard, gathered into one; kind: runs or negatives."""
        return [f"{self.results}/{dataset}/{kind}/{run}/part{shard}.parquet" for shard in self.shards(dataset)]

    def encode_threads(self, dataset: str) -> int:
        """Threads of a job that encodes: one for a part of a corpus, whose tokens are stored: parts go together."""
        return 1 if len(self.shards(dataset)) > 1 else 8

    def gpus(self, dataset: str) -> int:
        """GPUs that a training job asks for."""
        return self.loaded.datasets[self.whole(dataset)][0].gpus

    def model(self, dataset: str, run: str) -> str:
        """Model folder of a run: its own, or, for `teacher_of`, the one that the joint run leaves."""
        row = self.rows[run]
        name = f"{row.of}_teacher" if row.method == "teacher_of" else run
        return f"{self.results}/{self.whole(dataset)}/models/{name}"

    def encoder(self, dataset: str, run: str) -> ModelRef:
        """The pretrained encoder that a run's model grew from."""
        models: dict[Any, ModelRef] = self.resolve(dataset, self.origin(run)).models
        return models[self.root(run)]

    def tokens(self, dataset: str, run: str, shard: str) -> list[str]:
        """Folder of a shard's token ids for a run's model; none for a corpus in one part, which is tokenized anew."""
        if not shard:
            return []
        length = self.resolve(dataset, self.origin(run)).lengths.passage
        name = tokens_name(self.encoder(dataset, run).reference, length)
        return [f"{self.results}/{dataset}/tokens/{name}/passages{shard}"]

    def start(self, dataset: str, run: str) -> list[str]:
        """Model folder that training goes on from; none when it starts from a pretrained encoder.

        Every job that trains asks for it: here a run that makes no sense is refused whatever target was given.
        """
        self.check(dataset, run)
        start = self.rows[run].start
        return [] if start is None else [self.model(dataset, start)]

    def teacher(self, dataset: str, run: str) -> str:
        """Model folder of the teacher of a run that distils."""
        return self.model(dataset, str(self.rows[run].teacher))

    def negatives(self, dataset: str, run: str) -> str:
        """File of hard negatives that a run trains with."""
        row = self.rows[run]
        name = row.negatives if row.denoise is None else f"{row.negatives}.{row.denoise}"
        return f"{self.results}/{dataset}/negatives/{name}.parquet"

    def rerank_from(self, dataset: str, run: str) -> str:
        """File of the ranked lists that a ColBERT or cross encoder reranks."""
        return f"{self.results}/{dataset}/runs/{self.reranked(dataset, run)}.parquet"

    def reranked(self, dataset: str, run: str) -> str:
        """The run whose list a cross encoder or ColBERT reranks."""
        return str(self.rows.reference(self.resolve(dataset).retrieval.rerank_from, split_seed(run)[1]))

    def source_files(self, dataset: str) -> list[str]:
        """Files that a dataset of kind `files` is read from."""
        data, path = self.loaded.datasets[dataset]
        on_disk = isinstance(data.source, OnDisk | EvaluationSource)
        return source_files(source_paths(data.source, path)) if on_disk else []

    def _lists_of(self, dataset: str, run: str) -> str | None:
        """The run whose list a run reranks, if it does."""
        return self.reranked(dataset, run) if "rerank" in self.stages(dataset, run) else None

    def given(self, dataset: str) -> str:
        """Where the ranked lists are that come with a dataset's test queries: a file, or ir_datasets:ID."""
        data, path = self.loaded.datasets[dataset]
        if data.given is None:
            raise LeadError(f"{path}: key 'given' is missing; name the ranked lists that come with the test queries")
        return data.given if data.given.startswith(IR_DATASETS) else seen_path(data.given, path, "given")

    def given_files(self, dataset: str) -> list[str]:
        """Files of the ranked lists that come with a dataset's test queries."""
        given = self.given(dataset)
        return [] if given.startswith(IR_DATASETS) else [given]

    # --- settings ----------------------------------------------------------------------------------------------------
    def resolve(self, dataset: str, run: str | None = None) -> Settings:
        """All settings of a run on a dataset: defaults < preset < dataset < config < row.

        Within one of these `phases` wins over `train`, and its later ones over its earlier; a later one's `train` wins
        over all of an earlier one. A teacher that goes on training alone has the rate of a jointly trained one.
        """
        if (found := self._resolved.get((dataset, run))) is not None:
            return found
        row = self.rows[run] if run else None
        tree: dict[str, Any] = {}
        train: dict[str, Any] = {}
        for part in self.loaded.parts(dataset, split_seed(run)[0] if run else None):
            tree = merge(tree, part.tree)
            train = merge(train, part.tree.get("train", {}))
            phases = part.tree.get("phases", {})
            for phase in self.phases(run) if run else []:
                train = merge(train, phases.get(phase, {}))
        if row and run:
            tree = seeded(tree, run)
            own = row.settings.get("train", {}).get("lr")
            if row.phase == "distil" and row.method == "contrastive" and self.root(run) == "teacher" and own is None:
                # the control of a jointly trained teacher: its own rate, hard labels only
                train["lr"] = train.get("teacher_lr") or train.get("lr", Train().lr)
        tree["train"] = train
        path = self.loaded.datasets[dataset][1]
        for name in ("teacher", "student"):
            if name not in tree.get("models", {}):
                raise LeadError(
                    f"{path}: key 'settings.models.{name}' is missing, and preset and config do not give it; add it"
                )
        found = self._resolved[dataset, run] = validate(Settings, tree, str(path), prefix=("settings",))
        return found

    def settings(self, stage: str, dataset: str, run: str | None = None) -> dict[str, Any]:
        """The slice of settings that a stage of this run reads: keys of its class in lead.config.stages."""
        return stage_settings(self, stage, dataset, run)

    def settings_json(self, stage: str, dataset: str, run: str | None = None, shard: str = "") -> str:
        """`settings` as JSON with sorted keys, for the command line; `shard`: such as `.3of8`."""
        part = {"shard": shard[1:]} if shard and stage in ("tokenize", "encode") else {}
        return json.dumps(self.settings(stage, dataset, run) | part, sort_keys=True)

    def stages(self, dataset: str, run: str) -> list[str]:
        """The stages that make this run itself, in order."""
        method = self.rows[run].method
        if method in UNTRAINED:
            return [method, "evaluate"]
        train = {"contrastive": ["train"], "teacher_of": []}.get(method, ["distil"])
        if self.kind(run) != "de":
            return [*train, "rerank", "evaluate"]
        return [*train, *self.vector_stages(dataset, run), "retrieve", "evaluate"]

    def vector_stages(self, dataset: str, run: str) -> list[str]:
        """The stages that make a dual encoder's vectors of passages ready for search."""
        return ["encode", "index"] if self.indexes(dataset, run) else ["encode"]

    def overview(self) -> str:
        """Datasets and runs with their one-line descriptions."""
        lines = ["datasets:"]
        lines += [f"  {name:<16} {data.about}" for name, (data, _) in self.loaded.datasets.items()]
        lines += ["runs:"] + [f"  {name:<16} {row.about}" for name, row in self.rows.items()]
        lines += ["", f"make one with: snakemake --cores 2 -- {self.results}/DATASET/RUN.json"]
        return "\n".join(lines)
