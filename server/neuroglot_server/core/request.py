"""What a request asks."""

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
        label: its name, unique in the group: by convention the language.
        prompt: text, or the prompt's token ids as they are to be run.
        answers: accepted answers, the gold one first; may be empty.
        separator: what stands between prompt and answer; None for the language's default.
        choices: answers among which the most likely one is found; empty for no such comparison.
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
    """One example in L languages, a row each."""

    id: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class ByType:
    """Neurons of these types in the group's own baseline, at the analysis' first threshold."""

    types: tuple[NeuronType, ...]


@dataclass(frozen=True)
class ByNeuron:
    """Neurons of one component, one by one.

    Attributes:
        component: its name; empty for the model's only one.
        layers: number of layers, as the model has.
        neurons: neurons a layer, as the model has.
        bits: one bit a neuron, the lowest first, each layer starting on a byte.
    """

    component: str
    layers: int
    neurons: int
    bits: bytes


@dataclass(frozen=True)
class ByUpload:
    """Neurons that the tenant has uploaded: the name that `Model.upload` gave them."""

    name: str


@dataclass(frozen=True)
class ByContribution:
    """The largest contributors of every layer in the row's own baseline: the first `top_k`, or a share of them."""

    top_fraction: float = 0.05
    top_k: int = 0


@dataclass(frozen=True)
class Control:
    """Random neurons to compare another selection with, drawn anew in every row; see `ControlKind`."""

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
        selection: which neurons.
        action: what happens to them.
        layers: in which layers; empty for all.
        component: in which component; empty for all.
        scope: at which positions.
    """

    selection: Selection
    action: Action
    layers: tuple[int, ...] = ()
    component: str = ""
    scope: Scope = Scope.LAST_PROMPT_TOKEN


@dataclass(frozen=True)
class Variant:
    """One way of running a group: its interventions act together, and of two on one neuron the later holds."""

    name: str
    interventions: tuple[Intervention, ...]


@dataclass(frozen=True)
class Contribution:
    """How contributions are reduced.

    Attributes:
        top_fraction: the `ceil(top_fraction * neurons)` largest of a layer are its top contributors.
        top_k: how many are; 0 for the fraction.
        raw: whether `|m_i| * ||v_i||` is left as it is, and not divided by the layer's sum.
        neurons: how many of the largest contributors of each row and layer are wanted one by one; 0 for none.
    """

    top_fraction: float = 0.05
    top_k: int = 0
    raw: bool = False
    neurons: int = 0


class ScoreTarget(Enum):
    """Of which tokens effective scores are taken."""

    FIRST_GOLD_TOKEN = auto()
    """Of r, the first gold token (the paper's)."""
    ALL_GOLD_TOKENS = auto()
    """Summed over the gold tokens."""
    GOLD_MINUS_DISTRACTOR = auto()
    """Of r less that of the first token of the row's distractor."""


@dataclass(frozen=True)
class EffectiveScore:
    """How effective scores `m_i * (v_i . E_r)` are taken and reduced.

    Attributes:
        target: of which tokens.
        neurons: how many neurons of the highest scores of each row and layer are wanted one by one; 0 for none.
    """

    target: ScoreTarget = ScoreTarget.FIRST_GOLD_TOKEN
    neurons: int = 0


@dataclass(frozen=True)
class Prediction:
    """How predictions are made.

    Attributes:
        generate: also generate greedily; otherwise only the gold answer is scored.
        max_tokens: most tokens to generate for a row without an answer.
    """

    generate: bool = False
    max_tokens: int = 16


@dataclass(frozen=True)
class Analysis:
    """What is wanted of a group; counts of types and of active neurons always come back.

    Attributes:
        thresholds: a neuron is active where its activation exceeds the threshold, at each of these.
        type_map: whether the type of every neuron is wanted.
        active_bitmaps: whether it is wanted which neurons are active in each row.
        contribution: None where contributions are not wanted.
        effective_score: None where effective scores are not wanted.
        dead: whether it is wanted how many neurons are inactive at every position of a row's prompt.
        prediction: None where predictions are not wanted.
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
    """Which raw activations are wanted of a row's prompt.

    Attributes:
        component: its name; empty for the model's only one.
        layers: which; empty for all.
        neurons: which; empty for all.
        positions: which, negative ones counted from the end; empty for all.
        coefficients: whether what multiplies the value rows is wanted in their place.
    """

    component: str = ""
    layers: tuple[int, ...] = ()
    neurons: tuple[int, ...] = ()
    positions: tuple[int, ...] = ()
    coefficients: bool = False
