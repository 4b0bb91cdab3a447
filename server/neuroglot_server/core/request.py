"""Requests: groups, analyses, selections, interventions and captures."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

from neuroglot.request.interventions import Action, Scope
from neuroglot.request.neurons import NeuronType
from neuroglot.request.selections import ControlKind


class Row(NamedTuple):
    """One prompt and its answers.

    Attributes:
        label: name of the row, unique in the group; by convention the language.
        prompt: text, or token ids that are run as given.
        answers: accepted answers, the gold one first; may be empty.
        separator: text between prompt and answer; None for the language's default.
        choices: answers whose likelihoods are compared; empty for no comparison.
        distractor: a wrong answer, for effective scores relative to it; empty for none.
    """

    label: str
    prompt: str | tuple[int, ...]
    answers: tuple[str, ...] = ()
    separator: str | None = None
    choices: tuple[str, ...] = ()
    distractor: str = ""


@dataclass(frozen=True)
class Group:
    """One example in L languages, one row per language."""

    id: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class ByType:
    """Neurons of these types in the group's own baseline, at the analysis' first threshold."""

    types: tuple[NeuronType, ...]


@dataclass(frozen=True)
class ByNeuron:
    """An explicit set of neurons of one component.

    Attributes:
        component: name of the component; empty for the only one of a causal model.
        layers: number of layers; must be the model's.
        neurons: neurons per layer; must be the model's.
        bits: one bit per neuron, the lowest bit first, each layer starting on a byte.
    """

    component: str
    layers: int
    neurons: int
    bits: bytes


@dataclass(frozen=True)
class ByUpload:
    """A set of neurons that the tenant has uploaded, by the name that `Model.upload` returned."""

    name: str


@dataclass(frozen=True)
class ByContribution:
    """The top contributors of every layer in the row's own baseline: `top_k` of them, or `top_fraction` if it is 0."""

    top_fraction: float = 0.05
    top_k: int = 0


@dataclass(frozen=True)
class Control:
    """Random neurons as a control of another selection, drawn independently in every row; see `ControlKind`."""

    of: Selection
    kind: ControlKind
    draw: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Union:
    """Neurons that are in any of the selections."""

    selections: tuple[Selection, ...]


@dataclass(frozen=True)
class Intersection:
    """Neurons that are in all of the selections."""

    selections: tuple[Selection, ...]


@dataclass(frozen=True)
class Difference:
    """Neurons that are in the first selection and in none of the others."""

    selections: tuple[Selection, ...]


Selection = ByType | ByNeuron | ByUpload | ByContribution | Control | Union | Intersection | Difference


@dataclass(frozen=True)
class Intervention:
    """A change of FFN activations.

    Attributes:
        selection: the neurons that are changed.
        action: how their activations are changed.
        layers: layers to change; empty for all.
        component: component to change; empty for all.
        scope: positions to change.
    """

    selection: Selection
    action: Action
    layers: tuple[int, ...] = ()
    component: str = ""
    scope: Scope = Scope.LAST_PROMPT_TOKEN


@dataclass(frozen=True)
class Variant:
    """A set of interventions that act together. If two change the same neuron, the later one applies."""

    name: str
    interventions: tuple[Intervention, ...]


@dataclass(frozen=True)
class Contribution:
    """Options of contributions.

    Attributes:
        top_fraction: the `ceil(top_fraction * neurons)` largest of a layer are its top contributors.
        top_k: number of top contributors per layer, instead of the fraction; 0 for the fraction.
        raw: whether to return `|m_i| * ||v_i||` without dividing by the layer's sum.
        neurons: number of largest contributors of each row and layer to list individually; 0 for none.
    """

    top_fraction: float = 0.05
    top_k: int = 0
    raw: bool = False
    neurons: int = 0


class ScoreTarget(Enum):
    """Tokens whose embedding `E_r` effective scores refer to."""

    FIRST_GOLD_TOKEN = auto()
    """r, the first gold token, as in the paper."""
    ALL_GOLD_TOKENS = auto()
    """The sum over all gold tokens."""
    GOLD_MINUS_DISTRACTOR = auto()
    """The score of r minus that of the first token of the row's distractor."""


@dataclass(frozen=True)
class EffectiveScore:
    """Options of effective scores, `m_i * (v_i . E_r)`.

    Attributes:
        target: tokens that the scores refer to.
        neurons: number of neurons with the highest scores of each row and layer to list individually; 0 for none.
    """

    target: ScoreTarget = ScoreTarget.FIRST_GOLD_TOKEN
    neurons: int = 0


@dataclass(frozen=True)
class Prediction:
    """Options of predictions.

    Attributes:
        generate: whether to also generate greedily; otherwise only the gold answer is scored.
        max_tokens: maximum tokens to generate for a row without an answer.
    """

    generate: bool = False
    max_tokens: int = 16


@dataclass(frozen=True)
class Analysis:
    """Options of the analysis of a group. Counts of types and of active neurons are always returned.

    Attributes:
        thresholds: a neuron is active if its activation exceeds the threshold; counted for each of these.
        type_map: whether to return the type of every neuron.
        active_bitmaps: whether to return which neurons are active in each row.
        contribution: options of contributions; None for no contributions.
        effective_score: options of effective scores; None for no scores.
        dead: whether to count the neurons that are inactive at every position of a row's prompt.
        prediction: options of predictions; None for no predictions.
        variants: interventions to compare with the baseline.
    """

    thresholds: tuple[float, ...] = (0.0,)
    type_map: bool = False
    active_bitmaps: bool = False
    contribution: Contribution | None = None
    effective_score: EffectiveScore | None = None
    dead: bool = False
    prediction: Prediction | None = None
    variants: tuple[Variant, ...] = ()


@dataclass(frozen=True)
class Capture:
    """Raw activations of a row's prompt to return.

    Attributes:
        component: name of the component; empty for the only one of a causal model.
        layers: layer indices; empty for all.
        neurons: neuron indices; empty for all.
        positions: prompt positions, negative ones counted from the end; empty for all.
        coefficients: whether to return the coefficients that multiply the value vectors instead of the activations.
    """

    component: str = ""
    layers: tuple[int, ...] = ()
    neurons: tuple[int, ...] = ()
    positions: tuple[int, ...] = ()
    coefficients: bool = False
