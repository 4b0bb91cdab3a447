"""Selections: which neurons an intervention acts on, said as data.

The server turns a selection into neurons anew in every group, and a control anew in every row. A selection is

    NeuronType             all neurons of a type, relative to the group's own baseline
    several NeuronTypes    those of any of the types
    NeuronSet              these neurons
    control(of)            random neurons, as many as another selection has
    union(a, b, ...), intersection(a, b, ...), difference(a, b, ...)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from neuroglot.errors import InvalidSelectionError
from neuroglot.neurons import NeuronSet, NeuronType

_LARGEST_DRAW = 2**32 - 1
_LARGEST_SEED = 2**64 - 1


class ControlKind(StrEnum):
    """From which neurons of a layer a control is drawn."""

    RANDOM = "random"
    """From all of them, as many as the selection has. A weak control: most neurons are inactive anyway."""
    RANDOM_ACTIVE = "random_active"
    """From those that are active in the row, as many as the selection has active ones in that row."""


@dataclass(frozen=True)
class ByType:
    """Neurons of any of these types."""

    types: tuple[NeuronType, ...]


@dataclass(frozen=True)
class Control:
    """Random neurons, as many a layer as another selection has; `control` makes one.

    Attributes:
        of: the selection to compare with.
        kind: from which neurons they are drawn.
        draw: which of several draws this is.
        seed: draws depend on it, the draw, the group's id, the row's label, the component and the layer, and on
            nothing else.
    """

    of: Selection
    kind: ControlKind
    draw: int
    seed: int


@dataclass(frozen=True)
class Combination:
    """Selections combined; `union`, `intersection` and `difference` make one.

    Attributes:
        operation: neurons in any, in all, or in the first and none of the others.
        selections: what is combined, at least one.
    """

    operation: Literal["union", "intersection", "difference"]
    selections: tuple[Selection, ...]


Selection = ByType | NeuronSet | Control | Combination
Selectable = Selection | NeuronType | str | Iterable[NeuronType | str]
"""What the functions that take a selection accept: types may come bare, several at once, and by their labels."""


def as_selection(chosen: Selectable) -> Selection:
    """The selection that is meant.

    Raises:
        InvalidSelectionError: no type at all, an unknown type, or something that is no selection.
    """
    if isinstance(chosen, ByType | NeuronSet | Control | Combination):
        return chosen
    if isinstance(chosen, NeuronType | str):
        chosen = (chosen,)
    if not isinstance(chosen, Iterable):
        raise InvalidSelectionError(
            f"{chosen!r} selects no neurons: give a type (neuroglot.ALL_SHARED), several, a NeuronSet, or a control, "
            "union, intersection or difference of these"
        )
    types = tuple(dict.fromkeys(one if isinstance(one, NeuronType) else NeuronType.from_label(one) for one in chosen))
    if not types:
        raise InvalidSelectionError("an empty list of types selects no neurons: give at least one type")
    return ByType(types)


def control(
    of: Selectable, kind: ControlKind | str = ControlKind.RANDOM_ACTIVE, draw: int = 0, seed: int = 0
) -> Control:
    """Random neurons to compare a selection with, as many in every layer, drawn anew in every row.

    >>> control("all-shared", draw=2).kind.value
    'random_active'

    Args:
        of: the selection to compare with.
        kind: `random_active` draws among the neurons that are active in the row, `random` among all.
        draw: which of several draws: give 0, 1, 2, ... to see how far they differ.
        seed: another seed, other draws.

    Raises:
        InvalidSelectionError: an unknown kind, or a draw or a seed that is negative or too large.
    """
    if kind not in set(ControlKind):
        raise InvalidSelectionError(f"{kind!r} is no kind of control: the kinds are {', '.join(ControlKind)}")
    for what, value, largest in (("draw", draw, _LARGEST_DRAW), ("seed", seed, _LARGEST_SEED)):
        if not 0 <= value <= largest:
            raise InvalidSelectionError(f"the {what} of a control is 0 to {largest}, not {value}")
    return Control(as_selection(of), ControlKind(kind), draw, seed)


def union(*selections: Selectable) -> Combination:
    """Neurons in any of the selections."""
    return _combined("union", selections)


def intersection(*selections: Selectable) -> Combination:
    """Neurons in all of the selections."""
    return _combined("intersection", selections)


def difference(*selections: Selectable) -> Combination:
    """Neurons in the first selection and in none of the others."""
    return _combined("difference", selections)


def _combined(
    operation: Literal["union", "intersection", "difference"], selections: tuple[Selectable, ...]
) -> Combination:
    if not selections:
        raise InvalidSelectionError(f"a {operation} of nothing selects no neurons: give at least one selection")
    return Combination(operation, tuple(as_selection(selection) for selection in selections))


def neuron_sets(selection: Selection) -> tuple[NeuronSet, ...]:
    """Every neuron set in a selection, however deep."""
    if isinstance(selection, NeuronSet):
        return (selection,)
    if isinstance(selection, Control):
        return neuron_sets(selection.of)
    if isinstance(selection, Combination):
        return tuple(found for part in selection.selections for found in neuron_sets(part))
    return ()
