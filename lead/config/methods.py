"""The methods and the layer strategies: a record for each value of `method` and of `distil.layers.strategy`.

Configuration, checks, stages and tables read the record. A new response loss needs one file in lead/methods/ and one
row here, a new layer strategy one function in lead/methods/layers.py and one row here (docs/extending.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from lead.config.types import OneOf
from lead.errors import Named

# keys of `distil` that a method reads: True, or the set of inner keys
RESPONSE: Mapping[str, Any] = {"candidates": True, "contrastive_candidates": True, "weights": {"rep", "stu"}}
LEAD: Mapping[str, Any] = {
    "tau": True,
    "layers": True,
    "layer_weights": True,
    "layer_weights_tau": True,
    "joint": True,
    "detach_target": True,
    "layer_normalise": True,
    "candidates": True,
    "contrastive_candidates": True,
    "weights": {"lyr", "rep", "tch", "stu"},
}


@dataclass(frozen=True)
class Method:
    """A method.

    stage: the command that makes its model or its list; None where another run's job makes the model.
    sees: what its loss is a function of: the final `scores` of both models, scores of aligned `layers` too, `maps`
    over tokens, for which both models must have the same tokenizer, or the `vectors` of single texts.
    loss: "module:function" of the loss; of a method that sees scores or layers, it takes a
    `lead.methods.losses.Scored` and returns a `lead.methods.losses.Loss`. reads: the keys of `distil` that it reads.
    joint: whether the teacher is trained too, unless `distil.joint` is false. passages: what a row's `passages` is for:
    its vectors are `fixed` while queries are learnt, or `searched` by queries of the model in `start`.
    """

    name: str
    about: str
    stage: Literal["bm25", "external", "pretrained", "train", "align", "distil"] | None
    sees: Literal["scores", "layers", "maps", "vectors"] = "scores"
    loss: str = ""
    reads: Mapping[str, Any] = field(default_factory=dict)
    joint: bool = False
    passages: Literal["fixed", "searched"] | None = None

    @property
    def needs(self) -> tuple[str, ...]:
        """The keys of a row that it must be given. One that `warms_up` needs one of `init` and `start` too."""
        if self.passages == "searched":
            return ("start", "passages")
        by_stage = {"pretrained": ("init",), "distil": ("start", "teacher"), "align": ("teacher",), None: ("of",)}
        return by_stage.get(self.stage, ())

    @property
    def warms_up(self) -> bool:
        """Whether it may start from a pretrained encoder (`init`), not only from a run's model (`start`)."""
        return self.stage in ("train", "align")

    @property
    def trains(self) -> bool:
        """Whether its job trains a model."""
        return self.stage in ("train", "align", "distil")

    @property
    def judged(self) -> bool:
        """Whether it trains on judged queries and their hard negatives."""
        return self.stage in ("train", "distil")

    @property
    def distils(self) -> bool:
        """Whether a teacher is distilled into a student."""
        return self.stage == "distil"

    @property
    def has_model(self) -> bool:
        """Whether its run has a model: its own, or the teacher of a joint run. Other runs are lists of a dataset."""
        return self.stage not in ("bm25", "external")

    @property
    def has_seeds(self) -> bool:
        """Whether another seed makes another model."""
        return self.has_model and self.stage != "pretrained"

    def moves_teacher(self, distil: Any) -> bool:
        """Whether the teacher is trained too, given the settings `distil` (`lead.config.schema.Distil`)."""
        return bool(self.joint and distil.joint)


METHODS: Named[Method] = Named(
    "method",
    "lead.config.methods",
    {
        method.name: method
        for method in (
            Method("bm25", "BM25", "bm25"),
            Method("external", "ranked lists that come with the dataset", "external"),
            Method("pretrained", "a ready retriever as it is, without training", "pretrained"),
            Method(
                "contrastive",
                "contrastive loss only, no teacher",
                "train",
                loss="lead.methods.contrastive:contrastive",
                passages="fixed",
            ),
            Method(
                "align",
                "the student learns the teacher's vectors of unlabelled texts (LEAF, Vujanic and Rueckstiess 2025)",
                "align",
                "vectors",
                "lead.methods.align:align",
            ),
            Method("teacher_of", "the teacher that a joint run leaves", None),
            Method(
                "asymmetric",
                "queries by an aligned student (`start`), passages by its teacher",
                None,
                passages="searched",
            ),
            Method(
                "rd",
                "response-based distillation (section 4.2)",
                "distil",
                loss="lead.methods.rd:rd",
                reads={"tau": True, **RESPONSE},
            ),
            Method(
                "margin_mse",
                "Margin-MSE (Hofstaetter et al. 2020)",
                "distil",
                loss="lead.methods.margin_mse:margin_mse",
                reads=RESPONSE,
            ),
            Method(
                "fd",
                "feature-based distillation (VIRT)",
                "distil",
                "maps",
                "lead.methods.fd:fd",
                reads={"contrastive_candidates": True, "map_layers": True, "maps": True, "weights": {"map", "stu"}},
            ),
            Method("lead", "LEAD (eqs. 4 to 12)", "distil", "layers", "lead.methods.lead:lead", LEAD, joint=True),
        )
    },
)

RENAMED = {"given": "external"}  # old and new name of methods, and of the runs and commands with these names
MethodName = Annotated[str, OneOf("method", tuple(METHODS), RENAMED)]
DistilMethodName = Annotated[str, OneOf("method", tuple(n for n, method in METHODS.items() if method.distils))]


@dataclass(frozen=True)
class Strategy:
    """A layer strategy: how K pairs of teacher and student layers are chosen.

    select: "module:function" from (Layers, `lead.methods.layers.Situation`) to the pairs. check: "module:function" that
    refuses a selection that N and M do not allow. scores: whether it reads the teacher's scores of the batch. Then all
    teacher layers are scored, and the student's layers must not depend on the scores.
    """

    name: str
    about: str
    select: str
    check: str = "lead.methods.layers:check_k"
    scores: bool = False


STRATEGIES: Named[Strategy] = Named(
    "layer strategy",
    "lead.config.methods",
    {
        strategy.name: strategy
        for strategy in (
            Strategy("random", "K ordered layers of each, drawn anew every step", "lead.methods.layers:random"),
            Strategy("last", "the last K", "lead.methods.layers:last"),
            Strategy(
                "skip",
                "teacher {1, 1+s, ..}, student the last K",
                "lead.methods.layers:skip",
                "lead.methods.layers:check_skip",
            ),
            Strategy(
                "informative",
                "(ours) the K teacher layers that assign the highest probability to the batch's positives, student the "
                "last K",
                "lead.methods.layers:informative",
                scores=True,
            ),
            Strategy("pairs", "those given", "lead.methods.layers:pairs", "lead.methods.layers:check_pairs"),
        )
    },
)
StrategyName = Annotated[str, OneOf("layer strategy", tuple(STRATEGIES))]
