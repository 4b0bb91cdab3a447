"""Interventions: changes of FFN activations, said as data.

The server applies them row by row; where two of one variant choose the same neuron, the later one holds. Each acts on
the activation `a`, in every layer and component unless some are named, at the positions that its scope names.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum, auto

import numpy as np

from neuroglot.errors import InvalidSelectionError
from neuroglot.selections import Selectable, Selection, as_selection

_LARGEST_FLOAT = float(np.finfo(np.float32).max)


class Scope(StrEnum):
    """Positions at which an intervention acts; the values are the names in lower case, `last_prompt_token`."""

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
    """`a` becomes `value` where it is inactive in the row; with None, the next float above the threshold.

    Inactive is meant at the last prompt token of the baseline, at whichever positions the intervention acts.
    """

    value: float | None = None


@dataclass(frozen=True)
class Override:
    """`a` becomes `value`."""

    value: float


@dataclass(frozen=True)
class Scale:
    """`a` is multiplied by `factor`."""

    factor: float


@dataclass(frozen=True)
class Add:
    """`value` is added to `a`."""

    value: float


Action = Deactivate | Convert | Override | Scale | Add


@dataclass(frozen=True)
class Intervention:
    """What happens to which neurons, where; the functions of this module make one.

    Attributes:
        selection: which neurons.
        action: what happens to their activations.
        layers: the layers in which it acts, counted from 0; None for all.
        component: `decoder` or `encoder`; None for all.
        scope: the positions at which it acts.
    """

    selection: Selection
    action: Action
    layers: tuple[int, ...] | None
    component: str | None
    scope: Scope


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
        selection: which neurons (see `neuroglot.selections`).
        layers: the layers in which it acts, counted from 0; None for all.
        component: `decoder` or `encoder`; None for all.
        scope: the positions at which it acts.

    Raises:
        InvalidSelectionError: no selection, an empty list of layers, a negative layer, or an unknown scope.
    """
    return _intervention(selection, Deactivate(), layers, component, scope)


def convert(
    selection: Selectable,
    value: float | None = None,
    *,
    layers: Iterable[int] | None = None,
    component: str | None = None,
    scope: Scope | str = Scope.LAST_PROMPT_TOKEN,
) -> Intervention:
    """Make neurons active in the rows in which they are not.

    Args:
        selection: as in `deactivate`.
        value: the activation that they get. None is the paper's text: the next float above the threshold in the
            model's type. At threshold 0 that is the same as setting them to 0: it cuts the negative lobe of GELU or
            SiLU and does nothing on ReLU.
        layers: as in `deactivate`.
        component: as in `deactivate`.
        scope: as in `deactivate`.

    Raises:
        InvalidSelectionError: as in `deactivate`, or a value that is not a finite 32-bit float.
    """
    checked = None if value is None else _finite("value", value)
    return _intervention(selection, Convert(checked), layers, component, scope)


def override(
    selection: Selectable,
    value: float,
    *,
    layers: Iterable[int] | None = None,
    component: str | None = None,
    scope: Scope | str = Scope.LAST_PROMPT_TOKEN,
) -> Intervention:
    """Set the activations of neurons to a value; arguments and errors as in `convert`."""
    return _intervention(selection, Override(_finite("value", value)), layers, component, scope)


def scale(
    selection: Selectable,
    factor: float,
    *,
    layers: Iterable[int] | None = None,
    component: str | None = None,
    scope: Scope | str = Scope.LAST_PROMPT_TOKEN,
) -> Intervention:
    """Multiply the activations of neurons by a factor; arguments and errors as in `convert`."""
    return _intervention(selection, Scale(_finite("factor", factor)), layers, component, scope)


def add(
    selection: Selectable,
    value: float,
    *,
    layers: Iterable[int] | None = None,
    component: str | None = None,
    scope: Scope | str = Scope.LAST_PROMPT_TOKEN,
) -> Intervention:
    """Add a value to the activations of neurons; arguments and errors as in `convert`."""
    return _intervention(selection, Add(_finite("value", value)), layers, component, scope)


def _intervention(
    selection: Selectable, action: Action, layers: Iterable[int] | None, component: str | None, scope: Scope | str
) -> Intervention:
    chosen = None if layers is None else tuple(layers)
    if chosen is not None and (not chosen or min(chosen) < 0):
        raise InvalidSelectionError(
            f"layers={list(chosen)} names no layers to act in: count them from 0, or leave the argument out for all"
        )
    if component == "":
        raise InvalidSelectionError("component='' names none: give 'decoder' or 'encoder', or None for all")
    if scope not in set(Scope):
        raise InvalidSelectionError(f"{scope!r} is no scope: the scopes are {', '.join(Scope)}")
    return Intervention(as_selection(selection), action, chosen, component, Scope(scope))


def _finite(what: str, value: float) -> float:
    if not (math.isfinite(value) and abs(value) <= _LARGEST_FLOAT):
        raise InvalidSelectionError(f"the {what} of an intervention is a finite 32-bit float, not {value!r}")
    return float(value)
