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
"""Interventions by the name of the variant; several are applied together."""


@dataclass(frozen=True)
class ContributionOptions:
    """How contributions (Eq. 3) are reduced.

    >>> ContributionOptions(top_count=10, leading=3)
    ContributionOptions(top_fraction=0.05, top_count=10, raw=False, leading=3)

    Attributes:
        top_fraction: share of a layer's neurons that count as its top contributors, rounded up.
        top_count: how many count as such, in place of a share.
        raw: leaves `|m_i| * ||v_i||` as it is, not divided by the layer's sum.
        leading: how many of the largest contributors of each row and layer to get one by one.

    Raises:
        ValueError: a share that is none, or a number that is negative.
    """

    top_fraction: float = DEFAULT_TOP_FRACTION
    top_count: int | None = None
    raw: bool = False
    leading: int = 0

    def __post_init__(self) -> None:
        """Refuse what the contract would read as something else (0 there is the default)."""
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
    """Tokens of which effective scores are taken; the values are the names in lower case."""

    FIRST_GOLD_TOKEN = auto()
    """r, the first gold token, as in the paper."""
    ALL_GOLD_TOKENS = auto()
    """The sum over all gold tokens."""
    GOLD_MINUS_DISTRACTOR = auto()
    """The score of r less that of the first token of the row's distractor."""


@dataclass(frozen=True)
class EffectiveScoreOptions:
    """How effective scores `m_i * (v_i . E_t)` are taken, E_t being the output embedding of token t.

    Attributes:
        target: of which tokens; its name in lower case will do.
        leading: how many neurons of the highest scores of each row and layer to get one by one.

    Raises:
        ValueError: an unknown target, or a number that is negative.
    """

    target: ScoreTarget | str = ScoreTarget.FIRST_GOLD_TOKEN
    leading: int = 0

    def __post_init__(self) -> None:
        """Bring the target into its type."""
        object.__setattr__(self, "target", arguments.member(ScoreTarget, "target of effective scores", self.target))
        object.__setattr__(self, "leading", arguments.count("leading", self.leading))


class Priority(StrEnum):
    """Priority of a request: interactive ones go first, and do not starve bulk ones."""

    BULK = auto()
    """One of many requests of a batch job."""
    INTERACTIVE = auto()
    """A request that a person waits for."""


class AnalysisKeywords(TypedDict, total=False):
    """The options of `Model.analyze` and `Model.analyze_many`, to pass on with `**`; `Model.analyze` explains them."""

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
    """The options of an analysis, checked; `Model.analyze` explains the fields.

    Raises:
        InvalidSelectionError: a variant without interventions, or with something else.
        TypeError: a value of another kind.
        ValueError: a share of top contributors that is no share, or a negative number.
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
        """Check every field, and keep what can be read only once."""
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
        """All interventions of each variant."""
        variants = arguments.mapping(
            "variants",
            self.variants,
            "a mapping from a name to interventions, {'without': deactivate(ALL_SHARED)}",
            InvalidSelectionError,
        )
        return {name: as_interventions(interventions, f"variant {name!r}") for name, interventions in variants.items()}

    @cached_property
    def contribution_options(self) -> ContributionOptions | None:
        """How contributions are reduced; None where they are not asked for."""
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
        """How effective scores are taken; None where they are not asked for."""
        given = self.effective_score
        if isinstance(given, EffectiveScoreOptions):
            return given
        if isinstance(given, bool | np.bool_):
            return EffectiveScoreOptions() if given else None
        raise arguments.refuse("effective_score", given, "True or EffectiveScoreOptions(...)")

    def predicts(self, group: Group) -> bool:
        """Whether a group is predicted from: by default if it has answers or choices, or there are variants."""
        return bool(group.answers or group.choices or self.variants) if self.predict is None else self.predict

    @property
    def uploads(self) -> tuple[Uploaded, ...]:
        """The uploaded sets that the variants choose neurons by."""
        return uploads(chain.from_iterable(self.interventions.values()))

    def check_fits(self, model: model_pb2.Model) -> None:
        """Refuse neuron sets of another model before they cost a round trip.

        Raises:
            InvalidSelectionError: a set's component, geometry or source is not the model's.
        """
        for name, interventions in self.interventions.items():
            check_fits(interventions, model, f"variant {name!r}")


def as_interventions(
    interventions: Intervention | Sequence[Intervention], whose: str, *, some: bool = True
) -> tuple[Intervention, ...]:
    """The interventions that are meant.

    Args:
        interventions: one, or several that are applied together.
        whose: what has them, for the message.
        some: whether there must be any.

    Raises:
        InvalidSelectionError: there are none and there must be, or something else was given.
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
    """The uploaded sets that interventions choose neurons by, each once."""
    found = (part for intervention in interventions for part in parts(intervention.selection))
    return tuple(dict.fromkeys(part for part in found if isinstance(part, Uploaded)))


def check_fits(interventions: Iterable[Intervention], model: model_pb2.Model, whose: str) -> None:
    """Refuse neuron sets of another model; see `require_fit`."""
    for intervention in interventions:
        for part in parts(intervention.selection):
            if isinstance(part, NeuronSet | Uploaded):
                require_fit(part.neurons if isinstance(part, Uploaded) else part, model, whose)


def require_fit(neurons: NeuronSet, model: model_pb2.Model, whose: str) -> None:
    """Refuse a neuron set of another model.

    Args:
        neurons: the set.
        model: the model that it is for.
        whose: what has the set, for the message.

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
