"""What a request asks."""

from __future__ import annotations

from dataclasses import dataclass

from neuroglot.interventions import Action, Scope
from neuroglot.neurons import NeuronType
from neuroglot.selections import ControlKind


@dataclass(frozen=True)
class Row:
    """One prompt and its answers.

    Attributes:
        label: its name, unique in the group: by convention the language.
        prompt: text, or the prompt's token ids as they are to be run.
        answers: accepted answers, the gold one first; may be empty.
        separator: what stands between prompt and answer; None for the language's default.
    """

    label: str
    prompt: str | tuple[int, ...]
    answers: tuple[str, ...] = ()
    separator: str | None = None


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
class Control:
    """Random neurons, as many a layer as another selection has, drawn anew in every row."""

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


Selection = ByType | ByNeuron | Control | Union | Intersection | Difference


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
    """How contributions are reduced: the `ceil(top_fraction * neurons)` largest of a layer are its top."""

    top_fraction: float = 0.05


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
    """What is wanted of a group; counts of types and of active neurons always come back."""

    thresholds: tuple[float, ...] = (0.0,)
    type_map: bool = False
    active_bitmaps: bool = False
    contribution: Contribution | None = None
    prediction: Prediction | None = None
    variants: tuple[Variant, ...] = ()
