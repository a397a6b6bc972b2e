"""What each run of the experiments is made of, for each dataset: models, lists, settings, and what makes sense at all.

The workflow asks it for the inputs that depend on a run and for each job's settings; it decides nothing itself.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from lead.config.load import Loaded, merge, source_paths, validate
from lead.config.schema import FilesSource, ModelRef, Row, Settings
from lead.errors import LeadError, Named, nearest
from lead.layers import check_layers

TRAINING = ("contrastive", "rd", "lead")
SHARED = ("prepare", "bm25")  # stages of a dataset, not of a run
RD: Any = {"tau": True, "candidates": True, "weights": {"rep", "stu"}}  # the keys of `distil` that rd reads


class Plan:
    """Answers about runs and datasets."""

    def __init__(self, loaded: Loaded) -> None:
        """`loaded`: all configuration files. The experiments are checked against each other here."""
        self.loaded = loaded
        self.rows: Named[Row] = Named("run", loaded.experiments_path, loaded.experiments.runs)
        self.results = str(Path(loaded.config.results))
        for name, row in self.rows.items():
            self._check_row(name, row)

    # --- which runs there are ----------------------------------------------------------------------------------------
    def runs(self, *methods: str, kind: str | None = None) -> list[str]:
        """Names of the runs with one of these methods (all, if none is given), and of this kind of model."""
        return [
            name for name, row in self.rows.items()
            if (not methods or row.method in methods)
            and (kind is None or (row.method != "bm25" and self.kind(name) == kind))
        ]  # fmt: skip

    def joint(self) -> list[str]:
        """Runs that train the teacher too, and so leave a model `<run>_teacher`, on every dataset."""
        return [
            n for n, r in self.rows.items() if r.method == "lead" and r.settings.get("distil", {}).get("joint", True)
        ]

    def frozen(self) -> list[str]:
        """Runs that distil from a teacher that stays as it is."""
        return [n for n in self.runs("rd", "lead") if n not in self.joint()]

    def check(self, dataset: str, run: str) -> None:
        """Refuse a dataset or run that does not exist, or a pair that does not make sense, with what exists."""
        _ = self.loaded.datasets[dataset], self.rows[run]
        for name in self._ancestors(run):
            only = self.rows[name].datasets
            if only is not None and dataset not in only:
                raise LeadError(
                    f"{self.loaded.experiments_path}: run '{name}' is for {', '.join(only)} only, not for '{dataset}'"
                )
        self._check_run(dataset, run)

    def check_target(self, target: str) -> None:
        """`check` for a target like results/demo/lead_cb.json; other targets pass."""
        path = Path(target)
        if path.suffix == ".json" and len(path.parts) >= 3 and path.parent.parent == Path(self.results):
            self.check(path.parent.name, path.stem)

    def targets(self, dataset: str) -> list[str]:
        """Result files of every run that makes sense on this dataset."""
        return [
            f"{self.results}/{dataset}/{n}.json"
            for n, r in self.rows.items()
            if r.datasets is None or dataset in r.datasets
        ]

    # --- what a run is made of ---------------------------------------------------------------------------------------
    def kind(self, run: str) -> str:
        """`de` or `cb`: the architecture of the model that this run evaluates."""
        row = self.rows[run]
        if row.method == "teacher_of":
            teacher = self.rows[str(row.of)].teacher
            return self.kind(str(teacher))
        if row.init is not None:
            return row.kind
        return self.kind(str(row.start))

    def model(self, dataset: str, run: str) -> str:
        """Model folder of a run: its own, or, for `teacher_of`, the one that the joint run leaves."""
        row = self.rows[run]
        name = f"{row.of}_teacher" if row.method == "teacher_of" else run
        return f"{self.results}/{dataset}/models/{name}"

    def start(self, dataset: str, run: str) -> list[str]:
        """Model folder that training goes on from; none when it starts from a pretrained encoder.

        Every job that trains asks for it: here a run that makes no sense is refused whatever target was given.
        """
        self.check(dataset, run)
        start = self.rows[run].start
        return [] if start is None else [self.model(dataset, start)]

    def teacher(self, dataset: str, run: str) -> str:
        """Model folder of the teacher of an rd or lead run."""
        return self.model(dataset, str(self.rows[run].teacher))

    def negatives(self, dataset: str, run: str) -> str:
        """File of hard negatives that a run trains with."""
        return f"{self.results}/{dataset}/negatives/{self.rows[run].negatives}.parquet"

    def rerank_from(self, dataset: str) -> str:
        """File of the ranked lists that ColBERT reranks."""
        return f"{self.results}/{dataset}/runs/{self.resolve(dataset).retrieval.rerank_from}.parquet"

    def source_files(self, dataset: str) -> list[str]:
        """Files that a dataset of kind `files` is read from."""
        data, path = self.loaded.datasets[dataset]
        if not isinstance(data.source, FilesSource):
            return []
        source = source_paths(data.source, path)
        splits = [s for s in (source.train, source.test, source.dev) if s is not None]
        return [source.corpus, *(f for s in splits for f in (s.queries, s.qrels))]

    # --- settings ----------------------------------------------------------------------------------------------------
    def resolve(self, dataset: str, run: str | None = None) -> Settings:
        """All settings of a run on a dataset: defaults < preset < dataset < config < row.

        Within one of these `phases` wins over `train`; a later one's `train` wins over both of an earlier one.
        """
        row = self.rows[run] if run else None
        tree: dict[str, Any] = {}
        train: dict[str, Any] = {}
        for part in self.loaded.parts(dataset, run):
            tree = merge(tree, part.tree)
            train = merge(train, part.tree.get("train", {}))
            if row:
                train = merge(train, part.tree.get("phases", {}).get(row.phase, {}))
        tree["train"] = train
        path = self.loaded.datasets[dataset][1]
        for name in ("teacher", "student"):
            if name not in tree.get("models", {}):
                raise LeadError(
                    f"{path}: key 'settings.models.{name}' is missing, and preset and config do not give it; add it"
                )
        return validate(Settings, tree, str(path), prefix=("settings",))

    def settings(self, stage: str, dataset: str, run: str | None = None) -> dict[str, Any]:
        """The slice of settings that a stage of this run reads: keys of its class in lead.config.stages."""
        if stage in SHARED:  # of the dataset, whatever the run
            run = "bm25" if stage == "bm25" and "bm25" in self.rows else None
        s = self.resolve(dataset, run)
        relevance = s.evaluation.relevance
        if stage == "prepare":
            data, path = self.loaded.datasets[dataset]
            source = source_paths(data.source, path) if isinstance(data.source, FilesSource) else data.source
            return _json(source=source, dev_share=s.dev_share, relevance=relevance, checks=s.checks)
        if stage == "bm25":
            r = s.retrieval
            return _json(bm25=s.bm25, depth=r.depth, mine_depth=r.mine_depth, relevance=relevance)
        if stage in ("encode", "rerank"):
            r = s.retrieval
            shared = {"batch_tokens": r.batch_tokens, "precision": s.train.precision}
            return _json(**shared, **({"fp16": r.fp16} if stage == "encode" else {"rerank_depth": r.rerank_depth}))
        if stage == "mine":
            return _json(mine_depth=s.retrieval.mine_depth, relevance=relevance)
        if stage == "retrieve":
            return _json(depth=s.retrieval.depth)
        assert run is not None
        row = self.rows[run]
        if stage == "train":
            shared = _json(seed=s.seed, train=s.train, relevance=relevance)
            if row.init is None:  # the model folder says what kind of model it is
                return shared
            scoring = getattr(s.scoring, row.kind)
            return shared | _json(model=s.models[row.init], kind=row.kind, scoring=scoring, lengths=s.lengths)
        if stage == "distil":
            distil = s.distil.model_dump(mode="json", include=None if row.method == "lead" else RD)
            return _json(seed=s.seed, method=row.method, train=s.train, distil=distil, relevance=relevance)
        if stage == "evaluate":
            return _json(evaluation=s.evaluation, seed=s.seed) | {"made_by": self._made_by(dataset, run)}
        raise ValueError(f"no stage {stage}")

    def _made_by(self, dataset: str, run: str) -> dict[str, Any]:
        """What a result tells of its making: the settings of every stage behind it, by `run.stage`."""
        made = {"prepare": self.settings("prepare", dataset)}
        lists = [run]
        if "rerank" in self.stages(dataset, run):
            lists.append(self.resolve(dataset).retrieval.rerank_from)
        for listed in lists:
            for name in self._ancestors(listed):
                # of the runs whose lists are read, all stages; of the others, what made their model or negatives
                stages = [t for t in self.stages(dataset, name) if t != "evaluate"]
                for stage in stages if name in lists else stages[:1]:
                    made[f"{name}.{stage}"] = self.settings(stage, dataset, name)
        facts = {"dataset": dataset, "run": run, "settings": made}
        return facts if len(lists) == 1 else {**facts, "rerank_from": lists[1]}

    def settings_json(self, stage: str, dataset: str, run: str | None = None) -> str:
        """`settings` as JSON with sorted keys, for the command line."""
        return json.dumps(self.settings(stage, dataset, run), sort_keys=True)

    def stages(self, dataset: str, run: str) -> list[str]:
        """The stages that make this run itself, in order."""
        method = self.rows[run].method
        if method == "bm25":
            return ["bm25", "evaluate"]
        train = {"contrastive": ["train"], "teacher_of": []}.get(method, ["distil"])
        return [*train, *(["rerank"] if self.kind(run) == "cb" else ["encode", "retrieve"]), "evaluate"]

    def overview(self) -> str:
        """Datasets and runs with their one-line descriptions."""
        lines = ["datasets:"]
        lines += [f"  {name:<16} {data.about}" for name, (data, _) in self.loaded.datasets.items()]
        lines += ["runs:"] + [f"  {name:<16} {row.about}" for name, row in self.rows.items()]
        lines += ["", f"make one with: snakemake --cores 2 -- {self.results}/DATASET/RUN.json"]
        return "\n".join(lines)

    # --- checks ------------------------------------------------------------------------------------------------------
    def _ancestors(self, run: str) -> list[str]:
        """A run and every run that it is made from, itself first."""
        row = self.rows[run]
        names = [row.start, row.teacher, row.of, row.negatives if row.method in TRAINING else None]
        found = [run]
        for name in names:
            if name in self.rows:
                found += [a for a in self._ancestors(str(name)) if a not in found]
        return found

    def _check_row(self, name: str, row: Row, seen: tuple[str, ...] = ()) -> None:
        where = f"{self.loaded.experiments_path}: run '{name}'"
        if name in seen:
            raise LeadError(f"{where} is made from itself ({' -> '.join([*seen, name])}); break the circle")
        trained = {n for n, r in self.rows.items() if r.method != "bm25"}
        valid = {
            "start": trained,
            "teacher": trained,
            "of": {n for n, r in self.rows.items() if r.method == "lead"},
            "negatives": trained | {"bm25"},
        }
        for key, names in valid.items():
            value = getattr(row, key)
            if value is None or (key == "negatives" and row.method not in TRAINING):
                continue
            if value not in names:
                raise LeadError(f"{where}: key '{key}': no run '{value}' with a model; {nearest(value, names)}")
            if value in self.rows:
                self._check_row(value, self.rows[value], (*seen, name))
        for key, inside in (("checks", None), ("dev_share", None), ("retrieval", "rerank_from")):
            if key in row.settings and (inside is None or inside in row.settings[key]):
                full = f"{key}.{inside}" if inside else key
                raise LeadError(
                    f"{where}: key 'settings.{full}' is of the whole dataset; move it to the dataset's file"
                )
        unread = {"bm25"} if row.method != "bm25" else set()
        unread |= {"models", "lengths", "scoring"} if row.init is None else set()
        unread |= {"distil"} if row.method not in ("rd", "lead") else set()
        for key in sorted(unread & row.settings.keys()):
            raise LeadError(
                f"{where}: key 'settings.{key}' is not read by this run; set it for the run or dataset that reads it"
            )
        trained_by = name.removesuffix("_teacher")
        if row.method in TRAINING and trained_by != name and trained_by in self.joint():
            raise LeadError(f"{where}: '{trained_by}' leaves its teacher under this name; rename the run")
        if (row.method == "bm25") != (name == "bm25"):
            raise LeadError(f"{where}: the run of method bm25, and no other, is called 'bm25'; rename it")
        if row.method in ("rd", "lead") and self.kind(name) != "de":
            raise LeadError(f"{where}: key 'start': the student must be a dual encoder, '{row.start}' is a ColBERT")
        if row.method == "teacher_of" and row.of not in self.joint():
            raise LeadError(f"{where}: key 'of': '{row.of}' does not train its teacher (distil.joint: false)")
        if row.method in TRAINING and row.negatives != "bm25" and self.kind(row.negatives) != "de":
            raise LeadError(
                f"{where}: key 'negatives': '{row.negatives}' is a ColBERT; negatives are mined with a dual encoder"
            )

    def _check_run(self, dataset: str, run: str) -> None:
        """What can be known before any work: K, M and N, the rerank source, source files, precision of combinations."""
        data, path = self.loaded.datasets[dataset]
        for file in self.source_files(dataset):
            if not Path(file).is_file():
                raise LeadError(f"{path}: key 'source': {file} does not exist; mend the path")
        for name in self._ancestors(run):
            s, row = self.resolve(dataset, name), self.rows[name]
            where = f"{self.loaded.experiments_path}: run '{name}' on '{dataset}'"
            source = s.retrieval.rerank_from
            if source not in self.runs(kind="de"):
                raise LeadError(f"{path}: key 'settings.retrieval.rerank_from': '{source}' is no run of a dual encoder")
            try:
                if row.init is not None:
                    _pretrained_layers(s.models[row.init])
            except LeadError as e:
                raise LeadError(f"{where}: {e}") from None
            if row.method == "lead" and s.distil.joint != (name in self.joint()):
                raise LeadError(f"{where}: distil.joint is switched off in the row's settings, not elsewhere; move it")
            if row.method == "lead":
                n, m = self._layers(dataset, str(row.teacher)), self._layers(dataset, str(row.start))
                if n is not None and m is not None:
                    try:
                        check_layers(s.distil.layers, n, m)
                    except LeadError as e:
                        raise LeadError(f"{where}: {e}") from None
        from lead.evaluation.measures import check_measures

        try:
            check_measures(self.resolve(dataset, run).evaluation.measures)
        except LeadError as e:
            raise LeadError(f"{path}: run '{run}': {e}") from None

    def _layers(self, dataset: str, run: str) -> int | None:
        """Number of transformer layers of a run's model, or None where only the hub can tell."""
        row = self.rows[run]
        if row.method == "teacher_of":
            return self._layers(dataset, str(self.rows[str(row.of)].teacher))
        if row.init is not None:
            return _pretrained_layers(self.resolve(dataset, run).models[row.init])
        return self._layers(dataset, str(row.start))


def _pretrained_layers(model: ModelRef) -> int | None:
    n = None if model.reference.startswith("hub:") else _config_layers(model.reference)
    if model.layers is None:
        return n
    if n is not None and max(model.layers, default=1) > n:
        raise LeadError(f"models: layers has {max(model.layers)}, but '{model.reference}' has only layers 1..{n}")
    return len(model.layers)


@cache
def _config_layers(reference: str) -> int:
    # not lead.models.encoder, which imports torch: this runs at every start of the workflow
    from lead.models.reference import resolve

    file = Path(resolve(reference)) / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        return int(next(config[key] for key in ("num_hidden_layers", "n_layers", "n_layer") if key in config))
    except (OSError, ValueError, TypeError, StopIteration):
        raise LeadError(f"models: {file} does not tell the number of layers; is it that of an encoder?") from None


def _json(**parts: Any) -> dict[str, Any]:
    return {k: v.model_dump(mode="json") if hasattr(v, "model_dump") else v for k, v in parts.items()}
