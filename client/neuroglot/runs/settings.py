"""Options and settings of a run, which determine its results, its tables and its figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum, auto
from typing import NamedTuple, Self

from neuroglot import arguments
from neuroglot.errors import AnalysisError
from neuroglot.request.options import ScoreTarget
from neuroglot.request.selections import DEFAULT_TOP_FRACTION, ControlKind

REPLICATES = 1000
"""Bootstrap replicates of every interval."""

THRESHOLDS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
"""Activation thresholds of the paper's Figure 22; all other analyses use the first."""

DRAWS = 3
"""Draws of each control."""

MEAN = "mean"
"""Value of `convert_to`: convert an inactive neuron to its mean activation over the languages in which it is active."""


class ScoreReduction(StrEnum):
    """How effective scores of many layers are reduced to one number (Tables 1, 4); the paper does not specify it.

    In both cases the mean is taken over the neurons of all layers.
    """

    WITHIN_GROUPS = auto()
    """Maximum and minimum over the layers of each group, then the mean over groups, as in all other analyses."""
    OF_MEANS = auto()
    """Mean over groups layer by layer, then the maximum and minimum over layers: the extremes of Figure 10."""


class Shard(NamedTuple):
    """A part of a run's groups, to run on one of several machines: every n-th cluster.

    Attributes:
        number: number of the part, counted from 1.
        parts: total number of parts.
    """

    number: int
    parts: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a shard, `2/4`.

        Raises:
            AnalysisError: the text has another form, or the part does not exist.
        """
        number, _, parts = arguments.text("shard", text, AnalysisError, "a part of a run, '1/4'").partition("/")
        if not (number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts)):
            raise AnalysisError(f"{text!r} is no part of a run: give 1/4, 2/4, 3/4 or 4/4 for one of four")
        return cls(int(number), int(parts))

    def __str__(self) -> str:
        return f"{self.number}/{self.parts}"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a run's analyses.

    Attributes:
        analyses: names of the analyses; empty for all that the task's groups allow.
        draws: number of draws of each control.
        controls: kinds of controls; headline numbers use the first.
        seed: seed of the controls, the statistical tests and the bootstrap.
        thresholds: a neuron is active where its activation exceeds the threshold; all analyses but one use the first.
        top_fraction: share of a layer's neurons that count as its top contributors.
        score_target: tokens for which effective scores are computed.
        score_reduction: how maximum and minimum effective scores are taken over layers.
        convert_to: activation of converted neurons; None for the next float above the threshold, as in the paper's
            text; `mean` for the mean over the group's languages in which the neuron is active.
        component: component in which neurons are deactivated and converted, `encoder` or `decoder`; None for all.
        subsets: sets of languages for which neurons are typed; empty for all subsets of 3, 5, 7, ... languages.
        cumulative_dead: whether the figure of dead neurons shows neurons that are dead in all prompts, as in the
            paper's released code, or neurons that are dead in a prompt, as in its text.
        replicates: number of bootstrap replicates.

    Raises:
        AnalysisError: the thresholds are empty or repeat, or a value is out of range.
    """

    analyses: tuple[str, ...] = ()
    draws: int = DRAWS
    controls: tuple[ControlKind, ...] = (ControlKind.RANDOM_ACTIVE,)
    seed: int = 0
    thresholds: tuple[float, ...] = THRESHOLDS
    top_fraction: float = DEFAULT_TOP_FRACTION
    score_target: ScoreTarget = ScoreTarget.FIRST_GOLD_TOKEN
    score_reduction: ScoreReduction = ScoreReduction.WITHIN_GROUPS
    convert_to: float | str | None = None
    component: str | None = None
    subsets: tuple[tuple[str, ...], ...] = ()
    cumulative_dead: bool = False
    replicates: int = REPLICATES

    def __post_init__(self) -> None:
        """Normalise values from a command line or a file, and reject invalid ones."""
        for name, checked in {
            "analyses": arguments.texts("analyses", self.analyses, "a list of names, ['accuracy']", AnalysisError),
            "draws": arguments.integer("draws", self.draws, AnalysisError),
            "controls": _kinds_of_controls(self.controls),
            "seed": arguments.count("seed", self.seed, 0, AnalysisError),
            "thresholds": arguments.numbers("thresholds", self.thresholds, "a list of numbers, [0.0]", AnalysisError),
            "top_fraction": arguments.number("top_fraction", self.top_fraction, AnalysisError),
            "score_target": arguments.member(
                ScoreTarget, "target of effective scores", self.score_target, AnalysisError
            ),
            "score_reduction": arguments.member(
                ScoreReduction, "reduction of effective scores", self.score_reduction, AnalysisError
            ),
            "component": arguments.optional_text("component", self.component, AnalysisError),
            "subsets": _subsets(self.subsets),
            "cumulative_dead": arguments.flag("cumulative_dead", self.cumulative_dead, AnalysisError),
            "replicates": arguments.integer("replicates", self.replicates, AnalysisError),
        }.items():
            object.__setattr__(self, name, checked)
        if not 0 < len(set(self.thresholds)) == len(self.thresholds) or not all(map(math.isfinite, self.thresholds)):
            thresholds = ", ".join(f"{one:g}" for one in self.thresholds)
            raise AnalysisError(f"the thresholds are {thresholds or 'none'}: give one or more numbers, each once")
        if not self.controls or self.draws < 1:
            raise AnalysisError(
                f"{self.draws} draws of {len(self.controls)} controls give nothing to compare with: 1 at least"
            )
        if not 0 < self.top_fraction <= 1:
            raise AnalysisError(
                f"{self.top_fraction:g} is no share of a layer's neurons: give a number above 0 and up to 1"
            )
        if self.replicates < 1:
            raise AnalysisError(f"{self.replicates} replicates of the bootstrap give no interval: give 1 or more")
        if self.convert_to is not None and self.convert_to != MEAN:
            expected = f"a finite number, {MEAN!r} or None"
            value = arguments.number("convert_to", self.convert_to, AnalysisError, expected)
            if not math.isfinite(value):
                raise arguments.refuse("convert_to", value, expected, AnalysisError)
            object.__setattr__(self, "convert_to", value)


def _kinds_of_controls(given: object) -> tuple[ControlKind, ...]:
    kinds = arguments.items("controls", given, f"a list of {', '.join(ControlKind)}", AnalysisError)
    return tuple(arguments.member(ControlKind, "kind of control", one, AnalysisError) for one in kinds)


def _subsets(given: object) -> tuple[tuple[str, ...], ...]:
    expected = "a list of lists of languages, [['en', 'de'], ['en', 'zh']]"
    subsets = arguments.items("subsets", given, expected, AnalysisError)
    return tuple(
        arguments.texts(f"subsets[{i}]", one, "a list of languages", AnalysisError) for i, one in enumerate(subsets)
    )


@dataclass(frozen=True, kw_only=True)
class Settings(Options):
    """Settings that determine the results of a run and their analyses. A run is resumed with equal settings only.

    Attributes:
        task: name of the task.
        task_title: short title of the task.
        task_kind: the paper's task that it is a form of.
        task_data: origin of its data.
        parameters: the task's options, by name.
        problems: number of problems in its data, by kind; the examples concerned are left out.
        data_sha256: hash of `examples.jsonl`, hexadecimal.
        groups: number of parallel groups in all shards.
        shard: the part of the groups in this run, `2/4`; empty for all groups.
        languages: languages of the rows of every group.
        model: name under which the model was served; may differ when a run is resumed.
        bundle_identity: hash that identifies the model's bundle.
        family: model family, `bloom`.
        source: origin of the checkpoint, `embedded:bloom`.
        source_revision: revision of the checkpoint; empty if it has none.
        dtype: data type of weights and activations.
        variants: names of the variants, without the baseline.
    """

    task: str
    task_title: str = field(compare=False)
    task_kind: str = field(compare=False)
    task_data: str = field(compare=False)
    parameters: Mapping[str, str | int | bool] = field(default_factory=dict)
    problems: Mapping[str, int] = field(default_factory=dict, compare=False)
    data_sha256: str
    groups: int
    shard: str = ""
    languages: tuple[str, ...]
    model: str = field(compare=False)
    bundle_identity: str
    family: str
    source: str
    source_revision: str
    dtype: str
    variants: tuple[str, ...]

    def __post_init__(self) -> None:
        """Normalise the remaining fields."""
        super().__post_init__()
        object.__setattr__(self, "parameters", dict(self.parameters))
        object.__setattr__(self, "problems", dict(self.problems))
        object.__setattr__(self, "languages", tuple(self.languages))
        object.__setattr__(self, "variants", tuple(self.variants))

    def differences(self, other: Settings, *, but: Sequence[str] = ()) -> list[str]:
        """Describe how another run's settings differ, `seed is 1 and not 0`.

        Args:
            other: settings of the other run.
            but: names of settings that may differ.
        """
        return [
            f"{one.name} is {_words(getattr(other, one.name))} and not {_words(getattr(self, one.name))}"
            for one in fields(self)
            if one.compare and one.name not in but and getattr(self, one.name) != getattr(other, one.name)
        ]


def _words(value: object) -> str:
    match value:
        case Mapping():
            return ", ".join(f"{name}={one}" for name, one in value.items()) or "nothing"
        case tuple():
            return ", ".join(map(_words, value)) or "nothing"
        case str() if len(value) == 64:  # abbreviate a hash
            return value[:12]
        case "" | None:
            return "nothing"
        case _:
            return str(value)
