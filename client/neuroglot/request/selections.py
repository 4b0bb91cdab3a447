"""Selections: declarative descriptions of the neurons that an intervention acts on.

The server resolves a selection for each group, and a control for each row. A selection is one of

    NeuronType             all neurons of a type, relative to the group's own baseline
    several NeuronTypes    all neurons of any of the types
    NeuronSet              an explicit set of neurons
    top_contribution()     the top contributors of every layer, in each row's own baseline
    Uploaded               a NeuronSet stored on the server, made by `Model.upload`
    control(of)            random neurons, as a control for another selection
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
    """The neurons of a layer from which a control is drawn."""

    RANDOM = "random"
    """All neurons; draws as many as the selection has. A weak control: the majority of neurons is inactive anyway."""
    RANDOM_ACTIVE = "random_active"
    """Neurons active in the row; draws as many as the selection has active neurons in that row."""
    RANDOM_MASS = "random_mass"
    """All neurons; draws until their contributions in the row add up to those of the selection."""


@dataclass(frozen=True)
class ByType:
    """Neurons of any of the types, relative to the group's own baseline."""

    types: tuple[NeuronType, ...]


@dataclass(frozen=True)
class TopContribution:
    """Top contributors (Eq. 3) of every layer, in each row's own baseline; made by `top_contribution`.

    Attributes:
        fraction: share of a layer's neurons, rounded up; None if `count` is given.
        count: number of neurons of a layer; None if `fraction` is given.
    """

    fraction: float | None
    count: int | None


@dataclass(frozen=True)
class Uploaded:
    """A set of neurons stored on the server, made by `Model.upload`.

    Requests refer to it by name. If the server has dropped it (a restart, an eviction), the client uploads it again.

    Attributes:
        name: name of the set on the server.
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
    """Random neurons as a control for another selection, drawn layer by layer; made by `control`.

    Attributes:
        of: the selection to compare with.
        kind: the neurons from which the control is drawn.
        draw: index of the draw.
        seed: seed of the draws. The neurons depend on seed, draw, group id, row label, component and layer only.
    """

    of: Selection
    kind: ControlKind
    draw: int
    seed: int


@dataclass(frozen=True)
class Combination:
    """A combination of selections; made by `union`, `intersection` and `difference`.

    Attributes:
        operation: `union` (neurons in any), `intersection` (in all), or `difference` (in the first and in none of the
            others).
        selections: the combined selections, at least one.
    """

    operation: Literal["union", "intersection", "difference"]
    selections: tuple[Selection, ...]


Selection = ByType | NeuronSet | Uploaded | TopContribution | Control | Combination
Selectable = Selection | NeuronType | str | Iterable[NeuronType | str]
"""Argument type of functions that take a selection: a selection, or one or several types or their labels."""


def as_selection(chosen: Selectable) -> Selection:
    """Convert an argument to a selection.

    Raises:
        InvalidSelectionError: the list of types is empty, a type is unknown, or the value is not a selection.
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
    """Select random neurons as a control for a selection, drawn layer by layer for each row.

    >>> control("all-shared", draw=2).kind.value
    'random_active'

    Args:
        of: the selection to compare with.
        kind: `random_active` draws as many neurons as the selection has active ones, among those active in the row;
            `random` draws as many as the selection has, among all; `random_mass` draws among all until their
            contributions add up to those of the selection.
        draw: index of the draw: use 0, 1, 2, ... to measure the variation between draws.
        seed: seed of all draws.

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
    """Select the top contributors (Eq. 3) of every layer, in each row's own baseline.

    >>> top_contribution().fraction, top_contribution(count=10).count
    (0.05, 10)

    Args:
        fraction: share of a layer's neurons, rounded up; 0.05, as in the paper, if neither argument is given.
        count: number of neurons of a layer, instead of a share.

    Raises:
        InvalidSelectionError: the share is not above 0 and up to 1, the count is out of range, or both are given.
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
    """Select the neurons in any of the selections."""
    return _combined("union", selections)


def intersection(*selections: Selectable) -> Combination:
    """Select the neurons in all of the selections."""
    return _combined("intersection", selections)


def difference(*selections: Selectable) -> Combination:
    """Select the neurons in the first selection and in none of the others."""
    return _combined("difference", selections)


def _combined(
    operation: Literal["union", "intersection", "difference"], selections: tuple[Selectable, ...]
) -> Combination:
    if not selections:
        raise InvalidSelectionError(f"a {operation} of nothing selects no neurons: give at least one selection")
    return Combination(operation, tuple(as_selection(selection) for selection in selections))


def parts(selection: Selection) -> Iterator[ByType | NeuronSet | Uploaded | TopContribution]:
    """Yield the leaves of a nested selection, left to right."""
    if isinstance(selection, Control):
        yield from parts(selection.of)
    elif isinstance(selection, Combination):
        for part in selection.selections:
            yield from parts(part)
    else:
        yield selection
