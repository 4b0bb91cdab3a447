"""Interventions: from actions on chosen neurons to the mask and the override of every row.

Every action is two numbers a neuron, for the graph computes `mask * activation + override`:

    deactivate (0, 0)    override (0, value)    convert (0, value) where inactive    scale (factor, 0)    add (1, value)

Values and factors are one for all neurons or, of a set that was given neuron by neuron, one each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from neuroglot.definitions.packing import unpack_bits
from neuroglot_server.core import Action, Add, ByNeuron, Convert, Deactivate, Intervention, Override, Scale
from neuroglot_server.engine.steps import NO_EDITS, Edit, Edits
from neuroglot_server.kernels.kernel_thread import Pieces
from neuroglot_server.neurons.baseline import Baseline
from neuroglot_server.neurons.selections import Members, members

Numbers = float | NDArray[np.floating]
"""One for all neurons, or `[layers, neurons]`."""


@dataclass(frozen=True, eq=False)
class RowEdits:
    """What a variant does to one row.

    Attributes:
        components: the edits in each component, by its name; one that is missing is left alone.
        selected: how many neurons the interventions chose, in all components.
        selected_active: how many of them are active in the baseline.
    """

    components: Mapping[str, Edits] = field(default_factory=dict)
    selected: int = 0
    selected_active: int = 0

    def of(self, component: str) -> Edits:
        """The edits in a component."""
        return self.components.get(component, NO_EDITS)

    @cached_property
    def anywhere(self) -> bool:
        """Whether anything is done at all."""
        return any(edits.anywhere for edits in self.components.values())


NO_ROW_EDITS = RowEdits()


def above(threshold: float, dtype: np.dtype[np.floating]) -> float:
    """The smallest number of a type that exceeds a threshold."""
    nearest = dtype.type(threshold)
    if np.float32(nearest) > np.float32(threshold):
        return float(nearest)
    return float(np.nextafter(nearest, dtype.type(np.inf)))


def row_edits(
    interventions: Sequence[Intervention], baselines: Sequence[Baseline], dtype: np.dtype[np.floating]
) -> Pieces[list[RowEdits]]:
    """What a variant's interventions do to each row of a group; it yields after each intervention, and more often.

    Args:
        interventions: at least one; of two that choose the same neuron at the same position, the later one holds.
        baselines: the group's baseline in each component; `Convert` without a value goes just above its threshold.
        dtype: of the edits: the model's.
    """
    parts = {}
    for baseline in baselines:
        parts[baseline.component] = yield from _in_component(interventions, baseline, dtype)
    return [
        RowEdits(
            components={name: part.edits[row] for name, part in parts.items()},
            selected=sum(int(part.selected[row]) for part in parts.values()),
            selected_active=sum(int(part.selected_active[row]) for part in parts.values()),
        )
        for row in range(len(baselines[0].labels))
    ]


class _InComponent(NamedTuple):
    """What a variant does in one component: the edits of each row, and how many neurons it chose there."""

    edits: list[Edits]
    selected: NDArray[np.int64]
    selected_active: NDArray[np.int64]


class _Act(NamedTuple):
    """An action on the neurons of one component.

    Attributes:
        chosen: neurons that the selection chooses.
        changed: those of them that the action changes.
        mask: of all changed neurons, or `[layers, neurons]`.
        override: likewise.
    """

    chosen: Members
    changed: Members
    mask: Numbers
    override: Numbers


def _in_component(
    interventions: Sequence[Intervention], baseline: Baseline, dtype: np.dtype[np.floating]
) -> Pieces[_InComponent]:
    """Each intervention is applied and dropped before the next one is looked at: many would not fit into memory."""
    acting = {
        "before": tuple(intervention.scope.before_last for intervention in interventions),
        "at": (True,) * len(interventions),
        "after": tuple(intervention.scope.generated for intervention in interventions),
    }
    edits = {acts: _Editing(interventions, acts, baseline, dtype) for acts in acting.values()}
    anywhere = np.zeros((1, *baseline.activity.shape[1:]), dtype=np.bool_)
    for place, intervention in enumerate(interventions):
        act = yield from _act(intervention, baseline, dtype)
        anywhere = anywhere | act.chosen
        for acts, editing in edits.items():
            if acts[place]:
                editing.apply(act)
                yield
    made = {acts: editing.rows() for acts, editing in edits.items()}
    return _InComponent(
        edits=[Edits(*of_row) for of_row in zip(*(made[acts] for acts in acting.values()), strict=True)],
        selected=np.broadcast_to(np.count_nonzero(anywhere, axis=(1, 2)), len(baseline.labels)),
        selected_active=np.count_nonzero(anywhere & baseline.activity, axis=(1, 2)),
    )


def _act(intervention: Intervention, baseline: Baseline, dtype: np.dtype[np.floating]) -> Pieces[_Act]:
    """What an intervention does, to which neurons of the component."""
    chosen = yield from _chosen(intervention, baseline)
    match intervention.action:
        case Deactivate():
            return _Act(chosen, chosen, 0.0, 0.0)
        case Convert(_, mean_of_active=True):
            changed = chosen & ~baseline.activity & np.isfinite(baseline.mean_of_active)
            return _Act(chosen, changed, 0.0, baseline.mean_of_active)
        case Convert(value):
            to = above(baseline.threshold, dtype) if value is None else value
            return _Act(chosen, chosen & ~baseline.activity, 0.0, to)
        case Override(value, values):
            return _Act(chosen, chosen, 0.0, value if values is None else _of_each(intervention, values, baseline))
        case Scale(factor, values):
            return _Act(chosen, chosen, factor if values is None else _of_each(intervention, values, baseline), 0.0)
        case Add(value, values):
            return _Act(chosen, chosen, 1.0, value if values is None else _of_each(intervention, values, baseline))


def _chosen(intervention: Intervention, baseline: Baseline) -> Pieces[Members]:
    """The neurons that an intervention's selection chooses in its layers of the component."""
    _, layers, neurons = baseline.activity.shape
    if intervention.component not in ("", baseline.component):
        return np.zeros((1, layers, neurons), dtype=np.bool_)
    chosen = yield from members(intervention.selection, baseline)
    if not intervention.layers:
        return chosen
    in_layers = np.isin(np.arange(layers), intervention.layers)
    return chosen & in_layers[:, np.newaxis]


def _of_each(intervention: Intervention, values: Sequence[float], baseline: Baseline) -> Numbers:
    """The number of each neuron of the set, `[layers, neurons]`; the others have 0, and so have other components."""
    given = intervention.selection
    assert isinstance(given, ByNeuron), "a number a neuron was let through without a set of neurons"
    numbers = np.zeros(baseline.activity.shape[1:])
    if given.component in ("", baseline.component):
        numbers[unpack_bits(given.bits, numbers.shape)] = values
    return numbers


class _Editing:
    """The edit of each row, to which acts are applied one after the other; rows share one where all do the same."""

    def __init__(
        self,
        interventions: Sequence[Intervention],
        acting: Sequence[bool],
        baseline: Baseline,
        dtype: np.dtype[np.floating],
    ) -> None:
        """Begin with an edit that changes nothing.

        Args:
            interventions: of the variant.
            acting: which of them are applied.
            baseline: of the component.
            dtype: of the edits.
        """
        actions = [one.action for one, acts in zip(interventions, acting, strict=True) if acts]
        shape = (1, *baseline.activity.shape[1:])
        self._count = len(baseline.labels)
        self._mask = np.ones(shape, dtype if any(map(_scales, actions)) else np.bool_)
        self._override = np.zeros(shape, dtype) if any(map(_adds, actions)) else None
        self._touched = np.zeros(shape[:2], dtype=np.bool_)

    def apply(self, act: _Act) -> None:
        """Have an action hold over those before it."""
        if len(act.changed) > len(self._mask):  # from here on rows differ
            self._mask = np.repeat(self._mask, self._count, axis=0)
            self._touched = np.repeat(self._touched, self._count, axis=0)
            if self._override is not None:
                self._override = np.repeat(self._override, self._count, axis=0)
        np.copyto(self._mask, act.mask, where=act.changed, casting="unsafe")
        if self._override is not None:
            np.copyto(self._override, act.override, where=act.changed)
        self._touched |= act.changed.any(axis=-1)

    def rows(self) -> list[Edit | None]:
        """The edit of each row."""
        overrides = [None] * len(self._mask) if self._override is None else self._override
        edits = [_compact(*of_row) for of_row in zip(self._mask, overrides, self._touched, strict=True)]
        return edits if len(edits) == self._count else edits * self._count


def _scales(action: Action) -> bool:
    """Whether an action's mask is another number than 0 or 1."""
    return isinstance(action, Scale) and (action.values is not None or action.factor not in (0, 1))


def _adds(action: Action) -> bool:
    """Whether an action's override may be another number than 0."""
    match action:
        case Override(value, values) | Add(value, values):
            return values is not None or value != 0
        case Convert(value, mean_of_active):
            return mean_of_active or value != 0
        case _:
            return False


def _compact(
    mask: NDArray[np.floating] | NDArray[np.bool_], override: NDArray[np.floating] | None, touched: NDArray[np.bool_]
) -> Edit | None:
    """An edit of the touched layers alone."""
    layers = tuple(np.flatnonzero(touched).tolist())
    if not layers:
        return None
    if len(layers) == len(touched):
        return Edit(layers, mask, override)
    return Edit(layers, mask[touched], None if override is None else override[touched])
