"""Options of an analysis: the keyword arguments of `Model.analyze`, their defaults and their checks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum, auto
from functools import cached_property
from itertools import chain
from typing import TypedDict

import numpy as np

from neuroglot import arguments
from neuroglot.errors import InvalidSelectionError
from neuroglot.request.groups import Group
from neuroglot.request.interventions import Intervention
from neuroglot.request.neurons import NeuronSet
from neuroglot.request.selections import DEFAULT_TOP_FRACTION, Uploaded, parts
from neuroglot.v1 import model_pb2

Variants = Mapping[str, Intervention | Sequence[Intervention]]
"""Mapping from the name of a variant to its interventions, which are applied together."""


@dataclass(frozen=True)
class ContributionOptions:
    """How contributions (Eq. 3) are reduced.

    >>> ContributionOptions(top_count=10, leading=3)
    ContributionOptions(top_fraction=0.05, top_count=10, raw=False, leading=3)

    Attributes:
        top_fraction: share of a layer's neurons that count as its top contributors, rounded up.
        top_count: number of a layer's neurons that count as its top contributors, instead of a share.
        raw: return `|m_i| * ||v_i||` without dividing by the layer's sum.
        leading: number of largest contributors to return individually for each row and layer.

    Raises:
        ValueError: the share is not above 0 and up to 1, `top_count` is below 1, or `leading` is negative.
    """

    top_fraction: float = DEFAULT_TOP_FRACTION
    top_count: int | None = None
    raw: bool = False
    leading: int = 0

    def __post_init__(self) -> None:
        """Reject values that have another meaning in the protobuf message, where 0 is the default."""
        expected = "a share of a layer's neurons, a number above 0 and up to 1"
        share = arguments.number("top_fraction", self.top_fraction, expected=expected)
        if not 0 < share <= 1:
            raise arguments.refuse("top_fraction", self.top_fraction, expected, ValueError)
        object.__setattr__(self, "top_fraction", share)
        if self.top_count is not None:
            object.__setattr__(self, "top_count", arguments.count("top_count", self.top_count, 1))
        object.__setattr__(self, "raw", arguments.flag("raw", self.raw))
        object.__setattr__(self, "leading", arguments.count("leading", self.leading))


class ScoreTarget(StrEnum):
    """Tokens for which effective scores are computed. The values are the lower-case names."""

    FIRST_GOLD_TOKEN = auto()
    """r, the first gold token, as in the paper."""
    ALL_GOLD_TOKENS = auto()
    """The sum over all gold tokens."""
    GOLD_MINUS_DISTRACTOR = auto()
    """The score of r minus that of the first token of the row's distractor."""


@dataclass(frozen=True)
class EffectiveScoreOptions:
    """How effective scores `m_i * (v_i . E_t)` are computed; E_t is the output embedding of token t.

    Attributes:
        target: the tokens t: a `ScoreTarget`, or its lower-case name.
        leading: number of neurons with the highest scores to return individually for each row and layer.

    Raises:
        ValueError: the target is unknown, or `leading` is negative.
    """

    target: ScoreTarget | str = ScoreTarget.FIRST_GOLD_TOKEN
    leading: int = 0

    def __post_init__(self) -> None:
        """Check the fields, and convert the target to a `ScoreTarget`."""
        object.__setattr__(self, "target", arguments.member(ScoreTarget, "target of effective scores", self.target))
        object.__setattr__(self, "leading", arguments.count("leading", self.leading))


class Priority(StrEnum):
    """Priority of a request. Interactive requests are scheduled first, without starving bulk requests."""

    BULK = auto()
    """A request of a batch job."""
    INTERACTIVE = auto()
    """A request whose response a user waits for."""


class AnalysisKeywords(TypedDict, total=False):
    """Keyword options of `Model.analyze` and `Model.analyze_many`, documented at `Model.analyze`."""

    variants: Variants
    thresholds: Iterable[float]
    type_map: bool
    active: bool
    contribution: bool | float | ContributionOptions
    effective_score: bool | EffectiveScoreOptions
    dead: bool
    predict: bool | None
    generate: bool
    max_tokens: int


@dataclass(frozen=True)
class AnalysisOptions:
    """Validated options of an analysis. The fields are documented at `Model.analyze`.

    Raises:
        InvalidSelectionError: a variant has no interventions, or values that are not interventions.
        TypeError: a value has the wrong type.
        ValueError: the share of top contributors is not above 0 and up to 1, or a number is negative.
    """

    variants: Variants = field(default_factory=dict)
    thresholds: Iterable[float] = (0.0,)
    type_map: bool = True
    active: bool = False
    contribution: bool | float | ContributionOptions = False
    effective_score: bool | EffectiveScoreOptions = False
    dead: bool = False
    predict: bool | None = None
    generate: bool = True
    max_tokens: int = 0

    def __post_init__(self) -> None:
        """Check every field, and materialise iterators."""
        thresholds = arguments.numbers("thresholds", self.thresholds, "a list of numbers, [0.0, 0.1]")
        object.__setattr__(self, "thresholds", thresholds)
        for name in ("type_map", "active", "dead", "generate"):
            object.__setattr__(self, name, arguments.flag(name, getattr(self, name)))
        if self.predict is not None:
            object.__setattr__(self, "predict", arguments.flag("predict", self.predict))
        object.__setattr__(self, "max_tokens", arguments.count("max_tokens", self.max_tokens))
        _ = self.interventions, self.contribution_options, self.effective_score_options

    @cached_property
    def interventions(self) -> Mapping[str, tuple[Intervention, ...]]:
        """The interventions of each variant, by its name."""
        variants = arguments.mapping(
            "variants",
            self.variants,
            "a mapping from a name to interventions, {'without': deactivate(ALL_SHARED)}",
            InvalidSelectionError,
        )
        return {name: as_interventions(interventions, f"variant {name!r}") for name, interventions in variants.items()}

    @cached_property
    def contribution_options(self) -> ContributionOptions | None:
        """Options of contributions; None if contributions are not requested."""
        given = self.contribution
        if isinstance(given, ContributionOptions):
            return given
        if isinstance(given, bool | np.bool_):
            return ContributionOptions() if given else None
        expected = "True, a share of a layer's neurons above 0 and up to 1, or ContributionOptions(...)"
        share = arguments.number("contribution", given, expected=expected)
        if not 0 < share <= 1:
            raise arguments.refuse("contribution", given, expected, ValueError)
        return ContributionOptions(top_fraction=share)

    @cached_property
    def effective_score_options(self) -> EffectiveScoreOptions | None:
        """Options of effective scores; None if effective scores are not requested."""
        given = self.effective_score
        if isinstance(given, EffectiveScoreOptions):
            return given
        if isinstance(given, bool | np.bool_):
            return EffectiveScoreOptions() if given else None
        raise arguments.refuse("effective_score", given, "True or EffectiveScoreOptions(...)")

    def predicts(self, group: Group) -> bool:
        """Return whether a group needs predictions: by default if it has answers or choices, or there are variants."""
        return bool(group.answers or group.choices or self.variants) if self.predict is None else self.predict

    @property
    def uploads(self) -> tuple[Uploaded, ...]:
        """The uploaded sets that the variants select, each once."""
        return uploads(chain.from_iterable(self.interventions.values()))

    def check_fits(self, model: model_pb2.Model) -> None:
        """Reject neuron sets of another model before the request is sent.

        Raises:
            InvalidSelectionError: a set's component, geometry or source is not the model's.
        """
        for name, interventions in self.interventions.items():
            check_fits(interventions, model, f"variant {name!r}")


def as_interventions(
    interventions: Intervention | Sequence[Intervention], whose: str, *, some: bool = True
) -> tuple[Intervention, ...]:
    """Convert an argument to a tuple of interventions.

    Args:
        interventions: one intervention, or several that are applied together.
        whose: name of their owner, for the error message.
        some: whether at least one is required.

    Raises:
        InvalidSelectionError: a required intervention is missing, or a value is not an intervention.
    """
    if isinstance(interventions, Intervention):
        return (interventions,)
    if (
        not isinstance(interventions, Sequence)
        or (some and not interventions)
        or not all(isinstance(intervention, Intervention) for intervention in interventions)
    ):
        raise arguments.refuse(
            whose, interventions, "an intervention, `deactivate(ALL_SHARED)`, or a list of them", InvalidSelectionError
        )
    return tuple(interventions)


def uploads(interventions: Iterable[Intervention]) -> tuple[Uploaded, ...]:
    """Return the uploaded sets that interventions select, each once."""
    found = (part for intervention in interventions for part in parts(intervention.selection))
    return tuple(dict.fromkeys(part for part in found if isinstance(part, Uploaded)))


def check_fits(interventions: Iterable[Intervention], model: model_pb2.Model, whose: str) -> None:
    """Reject neuron sets of another model; see `require_fit`."""
    for intervention in interventions:
        for part in parts(intervention.selection):
            if isinstance(part, NeuronSet | Uploaded):
                require_fit(part.neurons if isinstance(part, Uploaded) else part, model, whose)


def require_fit(neurons: NeuronSet, model: model_pb2.Model, whose: str) -> None:
    """Reject a neuron set of another model.

    Args:
        neurons: the set.
        model: the model of the request.
        whose: name of the set's owner, for the error message.

    Raises:
        InvalidSelectionError: the set's component, geometry or source is not the model's.
    """
    geometries = {component.name: (component.layers, component.neurons) for component in model.components}
    geometry = geometries.get(neurons.component)
    if geometry != (neurons.layers, neurons.neurons) or neurons.source not in ("", model.source):
        components = ", ".join(f"{name} ({layers} x {width})" for name, (layers, width) in geometries.items())
        raise InvalidSelectionError(
            f"{whose} has {neurons!r}, and {model.name!r} is {model.source} with {components}: component, "
            "layers, neurons and source must be the same (`bound_to` moves a set to a model of the same geometry)"
        )
