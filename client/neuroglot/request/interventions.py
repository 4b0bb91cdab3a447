"""Interventions: declarative changes of FFN activations.

The server applies them row by row. If two interventions of a variant select the same neuron, the later one wins. Each
acts on the activation `a`, by default in every layer and component, at the positions of its scope.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum, auto

import numpy as np
from numpy.typing import ArrayLike, NDArray

from neuroglot import arguments
from neuroglot.errors import InvalidSelectionError
from neuroglot.request.neurons import NeuronSet
from neuroglot.request.selections import Selectable, Selection, Uploaded, as_selection

_LARGEST_FLOAT = float(np.finfo(np.float32).max)

Numbers = float | ArrayLike | Mapping[tuple[int, int], float]
"""A number for all neurons of a selection, or one for each neuron of an explicit set: an array over the set, in the
order of layers and of neurons within a layer; an array `[layers, neurons]` of which the set's are taken; or a mapping
from (layer, neuron)."""


class Scope(StrEnum):
    """Positions at which an intervention acts. The values are the lower-case names, `last_prompt_token`."""

    LAST_PROMPT_TOKEN = auto()
    """The last prompt token: the position from which the first answer token is predicted."""
    ALL_PROMPT_TOKENS = auto()
    """Every token of the prompt."""
    LAST_PROMPT_TOKEN_AND_GENERATED = auto()
    """The last prompt token, and every token of the answer, gold or generated."""
    ALL_TOKENS = auto()
    """Every token of the prompt and of the answer."""

    @property
    def before_last(self) -> bool:
        """Whether it acts at the prompt tokens before the last one."""
        return self in (Scope.ALL_PROMPT_TOKENS, Scope.ALL_TOKENS)

    @property
    def generated(self) -> bool:
        """Whether it acts at the tokens of the answer."""
        return self in (Scope.LAST_PROMPT_TOKEN_AND_GENERATED, Scope.ALL_TOKENS)


@dataclass(frozen=True)
class Deactivate:
    """`a` becomes 0."""


@dataclass(frozen=True)
class Convert:
    """`a` becomes `value` where the neuron is inactive in the row.

    Whether a neuron is inactive is decided at the last prompt token of the baseline, for all positions of the scope.

    Attributes:
        value: the new activation; None for the next float above the threshold.
        mean_of_active: whether to use, instead of `value`, the neuron's mean activation over those rows of the group in
            which it is active; a neuron that is active in no row is left unchanged.
    """

    value: float | None = None
    mean_of_active: bool = False


@dataclass(frozen=True, repr=False)
class Override:
    """`a` becomes `value`; with `values`, one number for each neuron of an explicit set, the neuron's own number."""

    value: float
    values: tuple[float, ...] | None = None

    def __repr__(self) -> str:
        return _action_repr(self, self.value, self.values)


@dataclass(frozen=True, repr=False)
class Scale:
    """`a` is multiplied by `factor`, or by the neuron's own number in `values`, as in `Override`."""

    factor: float
    values: tuple[float, ...] | None = None

    def __repr__(self) -> str:
        return _action_repr(self, self.factor, self.values)


@dataclass(frozen=True, repr=False)
class Add:
    """`value` is added to `a`, or the neuron's own number in `values`, as in `Override`."""

    value: float
    values: tuple[float, ...] | None = None

    def __repr__(self) -> str:
        return _action_repr(self, self.value, self.values)


def _action_repr(action: object, number: float, values: tuple[float, ...] | None) -> str:
    """Show an action with its number, or with the count of its per-neuron numbers."""
    shown = repr(number) if values is None else f"one of {len(values)} values for each neuron"
    return f"{type(action).__name__}({shown})"


Action = Deactivate | Convert | Override | Scale | Add


@dataclass(frozen=True)
class Intervention:
    """An action on a selection of neurons; made by `deactivate`, `convert`, `override`, `scale` and `add`.

    Attributes:
        selection: the neurons.
        action: the change of their activations.
        layers: the layers in which it acts, counted from 0; None for all.
        component: `decoder` or `encoder`; None for all.
        scope: the positions at which it acts.
    """

    selection: Selection
    action: Action
    layers: tuple[int, ...] | None
    component: str | None
    scope: Scope

    def __post_init__(self) -> None:
        """Reject values that the functions of this module do not make."""
        if not isinstance(self.selection, Selection) or not isinstance(self.action, Action):
            raise InvalidSelectionError(
                f"{arguments.shown(self.selection)} and {arguments.shown(self.action)} are not a selection and an "
                "action: make interventions with deactivate, convert, override, scale or add"
            )


def deactivate(
    selection: Selectable,
    *,
    layers: Iterable[int] | None = None,
    component: str | None = None,
    scope: Scope | str = Scope.LAST_PROMPT_TOKEN,
) -> Intervention:
    """Set the activations of neurons to 0.

    >>> deactivate("all-shared", layers=range(2)).layers
    (0, 1)

    Args:
        selection: the neurons (see `neuroglot.request.selections`).
        layers: the layers in which it acts, counted from 0; None for all.
        component: `decoder` or `encoder`; None for all.
        scope: the positions at which it acts.

    Raises:
        InvalidSelectionError: the selection is invalid, the list of layers is empty, a layer is negative, or the scope
            is unknown.
    """
    return _intervention(selection, Deactivate(), layers, component, scope)


def convert(
    selection: Selectable,
    value: float | None = None,
    *,
    mean_of_active: bool = False,
    layers: Iterable[int] | None = None,
    component: str | None = None,
    scope: Scope | str = Scope.LAST_PROMPT_TOKEN,
) -> Intervention:
    """Activate neurons in the rows in which they are inactive.

    Args:
        selection: as in `deactivate`.
        value: the new activation. None follows the paper's text: the next float above the threshold in the model's
            data type. At threshold 0 that has the effect of setting the neurons to 0: it cuts the negative lobe of GELU
            or SiLU and does nothing on ReLU.
        mean_of_active: use, instead of `value`, each neuron's mean activation over those rows of the group in which it
            is active; a neuron that is active in no row is left unchanged.
        layers: as in `deactivate`.
        component: as in `deactivate`.
        scope: as in `deactivate`.

    Raises:
        InvalidSelectionError: as in `deactivate`; the value is not a finite 32-bit float; or both `value` and
            `mean_of_active` are given.
    """
    if mean_of_active and value is not None:
        raise InvalidSelectionError(
            f"neurons are converted to a value ({value!r}) or to the mean of the active rows: give one of them"
        )
    arguments.flag("mean_of_active", mean_of_active, InvalidSelectionError)
    checked = None if value is None else _finite("value", value)
    return _intervention(selection, Convert(checked, bool(mean_of_active)), layers, component, scope)


def override(
    selection: Selectable,
    value: Numbers,
    *,
    layers: Iterable[int] | None = None,
    component: str | None = None,
    scope: Scope | str = Scope.LAST_PROMPT_TOKEN,
) -> Intervention:
    """Set the activations of neurons to one value, or each neuron's to its own value.

    >>> neurons = NeuronSet.from_indices([(0, 3), (1, 0)], component="decoder", layers=2, neurons=5)
    >>> override(neurons, {(1, 0): 0.5, (0, 3): 2.0}).action.values
    (2.0, 0.5)

    Args:
        selection: as in `deactivate`; per-neuron numbers need a NeuronSet or an `Uploaded` set.
        value: a number, or one for each neuron: an array `[len(set)]` in the set's order, an array `[layers, neurons]`,
            or a mapping from (layer, neuron) to a number.
        layers: as in `deactivate`.
        component: as in `deactivate`.
        scope: as in `deactivate`.

    Raises:
        InvalidSelectionError: as in `deactivate`; a number is not a finite 32-bit float; or the numbers do not
            correspond to the neurons of the set.
    """
    chosen = as_selection(selection)
    return _intervention(chosen, Override(*_numbers("value", value, chosen)), layers, component, scope)


def scale(
    selection: Selectable,
    factor: Numbers,
    *,
    layers: Iterable[int] | None = None,
    component: str | None = None,
    scope: Scope | str = Scope.LAST_PROMPT_TOKEN,
) -> Intervention:
    """Multiply the activations of neurons by one factor, or each by its own; arguments and errors as in `override`."""
    chosen = as_selection(selection)
    return _intervention(chosen, Scale(*_numbers("factor", factor, chosen)), layers, component, scope)


def add(
    selection: Selectable,
    value: Numbers,
    *,
    layers: Iterable[int] | None = None,
    component: str | None = None,
    scope: Scope | str = Scope.LAST_PROMPT_TOKEN,
) -> Intervention:
    """Add one value to the activations of neurons, or to each its own; arguments and errors as in `override`."""
    chosen = as_selection(selection)
    return _intervention(chosen, Add(*_numbers("value", value, chosen)), layers, component, scope)


def _intervention(
    selection: Selectable, action: Action, layers: Iterable[int] | None, component: str | None, scope: Scope | str
) -> Intervention:
    expected = "a list of layers counted from 0, [0, 1], or None for all"
    chosen = None if layers is None else arguments.integers("layers", layers, expected, InvalidSelectionError)
    if chosen is not None and (not chosen or min(chosen) < 0):
        raise InvalidSelectionError(
            f"layers={list(chosen)} names no layers to act in: count them from 0, or leave the argument out for all"
        )
    arguments.optional_text("component", component, InvalidSelectionError, "'decoder' or 'encoder'")
    if component == "":
        raise InvalidSelectionError("component='' names none: give 'decoder' or 'encoder', or None for all")
    where = arguments.member(Scope, "scope", scope, InvalidSelectionError)
    return Intervention(as_selection(selection), action, chosen, component, where)


def _finite(what: str, value: object) -> float:
    name, expected = f"the {what} of an intervention", "a finite 32-bit float"
    number = arguments.number(name, value, InvalidSelectionError, expected)
    if not (math.isfinite(number) and abs(number) <= _LARGEST_FLOAT):
        raise arguments.refuse(name, number, expected, InvalidSelectionError)
    return number


def _numbers(what: str, given: Numbers, selection: Selection) -> tuple[float, tuple[float, ...] | None]:
    """Return (number, None) for one number, or (0, numbers) for one number per neuron of a set."""
    numbers = given if isinstance(given, Mapping) else _array(what, given)
    if not isinstance(numbers, Mapping) and numbers.ndim == 0:
        return _finite(what, numbers.item()), None
    neurons = selection.neurons if isinstance(selection, Uploaded) else selection
    if not isinstance(neurons, NeuronSet):
        raise InvalidSelectionError(
            f"one {what} a neuron needs neurons that are known one by one: give a NeuronSet, not {selection!r}"
        )
    values = _of_mapping(what, numbers, neurons) if isinstance(numbers, Mapping) else _of_array(what, numbers, neurons)
    return 0.0, tuple(_finite(what, value) for value in values)


def _array(what: str, given: float | ArrayLike) -> NDArray[np.float64]:
    try:
        array = np.asarray(given)
    except ValueError:  # rows of different lengths
        array = np.asarray(None)
    if array.dtype.kind not in "iuf":
        raise arguments.refuse(
            f"the {what} of an intervention",
            given,
            "a number, an array of numbers, or a mapping from (layer, neuron) to a number",
            InvalidSelectionError,
        )
    return array.astype(np.float64)


def _of_mapping(what: str, given: Mapping[tuple[int, int], float], neurons: NeuronSet) -> list[float]:
    """Return the numbers of a mapping in the set's order."""
    indices = list(neurons)
    lacking, foreign = set(indices) - given.keys(), given.keys() - set(indices)
    if lacking or foreign:
        extra = next((key for key in given if key in foreign), None)
        wrong = f"has none for {min(lacking)}" if lacking else f"has one for {extra!r}, which is not in the set"
        raise InvalidSelectionError(
            f"a mapping with one {what} for each neuron of {neurons!r} {wrong}: its keys are (layer, neuron)"
        )
    return [given[index] for index in indices]


def _of_array(what: str, values: NDArray[np.float64], neurons: NeuronSet) -> list[float]:
    """Return the numbers of an array in the set's order, selecting the set's neurons from `[layers, neurons]`."""
    if values.shape == (neurons.layers, neurons.neurons):
        values = values[neurons.to_mask()]
    if values.shape != (len(neurons),):
        raise InvalidSelectionError(
            f"an array of shape {list(values.shape)} is not one {what} for each neuron of {neurons!r}: give "
            f"[{len(neurons)}], in the order of layers and neurons, or [{neurons.layers}, {neurons.neurons}]"
        )
    return [float(value) for value in values]
