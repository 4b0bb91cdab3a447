"""What is chosen of a run and what it is of: together they decide its answers, its tables and its figures."""

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
"""Those of the paper's Figure 22; all else is of the first."""

DRAWS = 3
"""Draws of each control."""

MEAN = "mean"
"""Converts an inactive neuron to its mean activation over the group's languages in which it is active."""


class ScoreReduction(StrEnum):
    """How effective scores of many layers become one number (Tables 1, 4), where the paper is silent.

    The mean is in both that over the neurons of all layers.
    """

    WITHIN_GROUPS = auto()
    """The largest and smallest over the layers of each group, then the mean over groups: as all else is counted."""
    OF_MEANS = auto()
    """The mean over groups layer by layer, then the largest and smallest over layers: the extremes of Figure 10."""


class Shard(NamedTuple):
    """A part of a run's groups, for one of several machines: whole clusters, every n-th of them.

    Attributes:
        number: which part, from 1.
        parts: how many there are.
    """

    number: int
    parts: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `2/4`.

        Raises:
            AnalysisError: it is something else, or there is no such part.
        """
        number, _, parts = arguments.text("shard", text, AnalysisError, "a part of a run, '1/4'").partition("/")
        if not (number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts)):
            raise AnalysisError(f"{text!r} is no part of a run: give 1/4, 2/4, 3/4 or 4/4 for one of four")
        return cls(int(number), int(parts))

    def __str__(self) -> str:
        return f"{self.number}/{self.parts}"


@dataclass(frozen=True, kw_only=True)
class Options:
    """The form of a run's analyses.

    Attributes:
        analyses: their names; none for all that the task's groups allow.
        draws: draws of each control.
        controls: from which neurons controls are drawn; the first is the one that headlines are about.
        seed: of the controls, of the tests and of the bootstrap.
        thresholds: a neuron is active above them; the first is the one that all but one analysis look at.
        top_fraction: share of a layer's neurons that count as its top contributors.
        score_target: of which tokens effective scores are taken.
        score_reduction: how the largest and smallest of them are taken over layers.
        convert_to: the activation that converted neurons get; None for the next number above the threshold, as the
            paper's text has it, `mean` for the mean over the group's languages in which the neuron is active.
        component: neurons are deactivated and converted in this one alone, `encoder` or `decoder`; None for all.
        subsets: sets of languages to type the neurons among; none for all subsets of 3, 5, 7, ... languages.
        cumulative_dead: whether the figure of dead neurons shows those that are dead in all prompts, as the paper's
            released code counts them; else those that are dead in a prompt, as its text does.
        replicates: of the bootstrap.

    Raises:
        AnalysisError: no thresholds or the same one twice, or a number where it makes no sense.
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
        """Bring what came from a command line or a file into one shape, and refuse what makes no sense."""
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
    """What decides the answers of a run, and what is made of them. To resume is to ask for the same settings again.

    Attributes:
        task: name of the task.
        task_title: what it is, a few words.
        task_kind: which of the paper's tasks it is a form of.
        task_data: where its data come from.
        parameters: what was chosen of the task's options, by name.
        problems: how many problems its data have, by kind; what they concern is left out.
        data_sha256: hash of `examples.jsonl`, hexadecimal.
        groups: number of parallel groups, those of all shards.
        shard: the part of the groups that is asked here, `2/4`; empty for all of them.
        languages: the rows of every group.
        model: the name under which the model was served; may differ when a run is resumed.
        bundle_identity: hash that names the model's bundle.
        family: the model's family, `bloom`.
        source: where the checkpoint came from, `embedded:bloom`; and its revision where it has one.
        dtype: type of weights and activations.
        variants: names of the variants, the baseline not among them.
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
        """The same of the rest."""
        super().__post_init__()
        object.__setattr__(self, "parameters", dict(self.parameters))
        object.__setattr__(self, "problems", dict(self.problems))
        object.__setattr__(self, "languages", tuple(self.languages))
        object.__setattr__(self, "variants", tuple(self.variants))

    def differences(self, other: Settings, *, but: Sequence[str] = ()) -> list[str]:
        """What differs in another run's settings, `seed is 1 and not 0`, in words.

        Args:
            other: those of the other run.
            but: names of what may differ.
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
        case str() if len(value) == 64:  # of a hash, its beginning
            return value[:12]
        case "" | None:
            return "nothing"
        case _:
            return str(value)
