"""Selections: which neurons an intervention acts on, said as data.

The server turns a selection into neurons anew in every group, and a control anew in every row. A selection is

    NeuronType             all neurons of a type, relative to the group's own baseline
    several NeuronTypes    those of any of the types
    NeuronSet              these neurons
    top_contribution()     the largest contributors of every layer, in each row's own baseline
    Uploaded               a NeuronSet that the server keeps: `Model.upload` gives one
    control(of)            random neurons, to compare another selection with
    union(a, b, ...), intersection(a, b, ...), difference(a, b, ...)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from neuroglot import arguments
from neuroglot.errors import InvalidSelectionError
from neuroglot.request.neurons import NeuronSet, NeuronType

DEFAULT_TOP_FRACTION = 0.05
"""Share of a layer's neurons that count as its top contributors, as in the paper."""

_LARGEST_COUNT = 2**32 - 1
_LARGEST_DRAW = 2**32 - 1
_LARGEST_SEED = 2**64 - 1


class ControlKind(StrEnum):
    """From which neurons of a layer a control is drawn."""

    RANDOM = "random"
    """From all of them, as many as the selection has. A weak control: most neurons are inactive anyway."""
    RANDOM_ACTIVE = "random_active"
    """From those that are active in the row, as many as the selection has active ones in that row."""
    RANDOM_MASS = "random_mass"
    """From all of them, one after the other, until their contributions in the row add up to the selection's."""


@dataclass(frozen=True)
class ByType:
    """Neurons of any of these types."""

    types: tuple[NeuronType, ...]


@dataclass(frozen=True)
class TopContribution:
    """The largest contributors (Eq. 3) of every layer, in each row's own baseline; `top_contribution` makes one.

    Attributes:
        fraction: which share of a layer's neurons, rounded up; None for a number.
        count: how many of a layer; None for a share.
    """

    fraction: float | None
    count: int | None


@dataclass(frozen=True)
class Uploaded:
    """A set of neurons that the server keeps under a name; `Model.upload` gives one.

    It is sent as its name alone. Where the server has lost it, restarted or out of room, the client uploads it again.

    Attributes:
        name: what the server calls it.
        neurons: the set.
    """

    name: str
    neurons: NeuronSet

    def __post_init__(self) -> None:
        """Refuse what `Model.upload` does not give."""
        arguments.text("the name of an uploaded set", self.name, InvalidSelectionError)
        if not isinstance(self.neurons, NeuronSet):
            raise arguments.refuse("the uploaded set", self.neurons, "a NeuronSet", InvalidSelectionError)


@dataclass(frozen=True)
class Control:
    """Random neurons to compare another selection with, layer by layer; `control` makes one.

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


Selection = ByType | NeuronSet | Uploaded | TopContribution | Control | Combination
Selectable = Selection | NeuronType | str | Iterable[NeuronType | str]
"""What the functions that take a selection accept: types may come bare, several at once, and by their labels."""


def as_selection(chosen: Selectable) -> Selection:
    """The selection that is meant.

    Raises:
        InvalidSelectionError: no type at all, an unknown type, or something that is no selection.
    """
    if isinstance(chosen, Selection):
        return chosen
    if isinstance(chosen, NeuronType | str):
        chosen = (chosen,)
    if not isinstance(chosen, Iterable):
        raise InvalidSelectionError(
            f"{arguments.shown(chosen)} selects no neurons: give a type (neuroglot.ALL_SHARED), several, a NeuronSet, "
            "the top_contribution, or a control, union, intersection or difference of these"
        )
    chosen = tuple(chosen)
    if any(isinstance(one, Selection) for one in chosen):
        raise InvalidSelectionError("a list selects neurons by type only: combine selections with union(a, b)")
    types = tuple(dict.fromkeys(one if isinstance(one, NeuronType) else NeuronType.from_label(one) for one in chosen))
    if not types:
        raise InvalidSelectionError("an empty list of types selects no neurons: give at least one type")
    return ByType(types)


def control(
    of: Selectable, kind: ControlKind | str = ControlKind.RANDOM_ACTIVE, draw: int = 0, seed: int = 0
) -> Control:
    """Random neurons to compare a selection with, layer by layer, drawn anew in every row.

    >>> control("all-shared", draw=2).kind.value
    'random_active'

    Args:
        of: the selection to compare with.
        kind: `random_active` draws as many among the neurons that are active in the row, `random` as many among all;
            `random_mass` draws among all until their contributions add up to those of the selection.
        draw: which of several draws: give 0, 1, 2, ... to see how far they differ.
        seed: another seed, other draws.

    Raises:
        InvalidSelectionError: an unknown kind, or a draw or a seed that is negative or too large.
    """
    drawn_from = arguments.member(ControlKind, "kind of control", kind, InvalidSelectionError)
    return Control(
        as_selection(of),
        drawn_from,
        _within("draw of a control", draw, 0, _LARGEST_DRAW),
        _within("seed of a control", seed, 0, _LARGEST_SEED),
    )


def top_contribution(fraction: float | None = None, *, count: int | None = None) -> TopContribution:
    """The largest contributors (Eq. 3) of every layer, in each row's own baseline.

    >>> top_contribution().fraction, top_contribution(count=10).count
    (0.05, 10)

    Args:
        fraction: which share of a layer's neurons, rounded up; 0.05, as in the paper, where neither is given.
        count: how many of a layer, in place of a share.

    Raises:
        InvalidSelectionError: a share that is none, a number below 1 or above any layer's, or both.
    """
    if fraction is not None and count is not None:
        raise InvalidSelectionError(
            f"top contributors are chosen by a share ({fraction!r}) or by a number ({count!r}): give one of them"
        )
    if count is not None:
        return TopContribution(None, _within("count of top contributors", count, 1, _LARGEST_COUNT))
    name = "the share of top contributors"
    expected = "a number above 0 and up to 1, or count=10 for ten neurons of a layer"
    share = DEFAULT_TOP_FRACTION
    if fraction is not None:
        share = arguments.number(name, fraction, InvalidSelectionError, expected)
    if not 0 < share <= 1:
        raise arguments.refuse(name, fraction, expected, InvalidSelectionError)
    return TopContribution(share, None)


def _within(what: str, value: object, smallest: int, largest: int) -> int:
    expected = f"an integer from {smallest} to {largest}"
    number = arguments.integer(f"the {what}", value, InvalidSelectionError, expected)
    if not smallest <= number <= largest:
        raise arguments.refuse(f"the {what}", number, expected, InvalidSelectionError)
    return number


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


def parts(selection: Selection) -> Iterator[ByType | NeuronSet | Uploaded | TopContribution]:
    """What a selection is made of, however deep, left to right."""
    if isinstance(selection, Control):
        yield from parts(selection.of)
    elif isinstance(selection, Combination):
        for part in selection.selections:
            yield from parts(part)
    else:
        yield selection
