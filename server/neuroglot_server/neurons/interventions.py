"""Interventions: from actions on chosen neurons to the mask and the override of every row.

The graph computes `mask * activation + override`, so every action is a pair (mask, override) for each neuron:

    deactivate (0, 0)    override (0, value)    convert (0, value) where inactive    scale (factor, 0)    add (1, value)

Values and factors are one number for all neurons or, for an explicit set of neurons, one number for each of them.
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
"""One number for all neurons, or `[layers, neurons]`."""


@dataclass(frozen=True, eq=False)
class RowEdits:
    """The edits of a variant in one row.

    Attributes:
        components: the edits by component; a component without an entry is not edited.
        selected: number of neurons that the interventions select, in all components.
        selected_active: number of these that are active in the baseline.
    """

    components: Mapping[str, Edits] = field(default_factory=dict)
    selected: int = 0
    selected_active: int = 0

    def of(self, component: str) -> Edits:
        """The edits of a component."""
        return self.components.get(component, NO_EDITS)

    @cached_property
    def anywhere(self) -> bool:
        """Whether there is any edit."""
        return any(edits.anywhere for edits in self.components.values())


NO_ROW_EDITS = RowEdits()


def above(threshold: float, dtype: np.dtype[np.floating]) -> float:
    """The smallest number of a dtype that exceeds a threshold."""
    nearest = dtype.type(threshold)
    if np.float32(nearest) > np.float32(threshold):
        return float(nearest)
    return float(np.nextafter(nearest, dtype.type(np.inf)))


def row_edits(
    interventions: Sequence[Intervention], baselines: Sequence[Baseline], dtype: np.dtype[np.floating]
) -> Pieces[list[RowEdits]]:
    """Compute a variant's edits of each row of a group. Yields at least after each intervention.

    Args:
        interventions: at least one. If two select the same neuron at the same position, the later one wins.
        baselines: the group's baseline in each component. `Convert` without a value sets the smallest activation above
            the baseline's threshold.
        dtype: dtype of the edits, that of the model.
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
    """A variant's edits of each row in one component, and the numbers of selected neurons, int64 `[R]`."""

    edits: list[Edits]
    selected: NDArray[np.int64]
    selected_active: NDArray[np.int64]


class _Act(NamedTuple):
    """An action on the neurons of one component.

    Attributes:
        chosen: the selected neurons.
        changed: the selected neurons that the action changes.
        mask: for all changed neurons, or `[layers, neurons]`.
        override: for all changed neurons, or `[layers, neurons]`.
    """

    chosen: Members
    changed: Members
    mask: Numbers
    override: Numbers


def _in_component(
    interventions: Sequence[Intervention], baseline: Baseline, dtype: np.dtype[np.floating]
) -> Pieces[_InComponent]:
    """Compute the edits of one component, one intervention at a time: all of them might not fit into memory."""
    acting = {
        "before": tuple(intervention.scope.before_last for intervention in interventions),
        "at": (True,) * len(interventions),
        "after": tuple(intervention.scope.generated for intervention in interventions),
    }
    edits = {acts: _Editing(interventions, acts, baseline, dtype) for acts in acting.values()}
    anywhere = np.zeros((1, *baseline.activity.shape[1:]), dtype=np.bool_)
    for index, intervention in enumerate(interventions):
        act = yield from _act(intervention, baseline, dtype)
        anywhere = anywhere | act.chosen
        for acts, editing in edits.items():
            if acts[index]:
                editing.apply(act)
                yield
    rows = {acts: editing.rows() for acts, editing in edits.items()}
    return _InComponent(
        edits=[Edits(*of_row) for of_row in zip(*(rows[acts] for acts in acting.values()), strict=True)],
        selected=np.broadcast_to(np.count_nonzero(anywhere, axis=(1, 2)), len(baseline.labels)),
        selected_active=np.count_nonzero(anywhere & baseline.activity, axis=(1, 2)),
    )


def _act(intervention: Intervention, baseline: Baseline, dtype: np.dtype[np.floating]) -> Pieces[_Act]:
    """The action of an intervention on the component's neurons."""
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
    """The neurons that an intervention selects in the component, within its layers."""
    _, layers, neurons = baseline.activity.shape
    if intervention.component not in ("", baseline.component):
        return np.zeros((1, layers, neurons), dtype=np.bool_)
    chosen = yield from members(intervention.selection, baseline)
    if not intervention.layers:
        return chosen
    in_layers = np.isin(np.arange(layers), intervention.layers)
    return chosen & in_layers[:, np.newaxis]


def _of_each(intervention: Intervention, values: Sequence[float], baseline: Baseline) -> Numbers:
    """The values of an explicit set of neurons as `[layers, neurons]`, 0 outside the set and in other components."""
    selection = intervention.selection
    assert isinstance(selection, ByNeuron), "values for each neuron passed validation without a set of neurons"
    numbers = np.zeros(baseline.activity.shape[1:])
    if selection.component in ("", baseline.component):
        numbers[unpack_bits(selection.bits, numbers.shape)] = values
    return numbers


class _Editing:
    """Builds the edit of each row at one set of positions. Rows share one edit while all actions are the same."""

    def __init__(
        self,
        interventions: Sequence[Intervention],
        acting: Sequence[bool],
        baseline: Baseline,
        dtype: np.dtype[np.floating],
    ) -> None:
        """Start with an edit that changes nothing.

        Args:
            interventions: the variant's interventions.
            acting: which of them are applied.
            baseline: the component's baseline.
            dtype: dtype of the edits.
        """
        actions = [intervention.action for intervention, acts in zip(interventions, acting, strict=True) if acts]
        shape = (1, *baseline.activity.shape[1:])
        self._count = len(baseline.labels)
        self._mask = np.ones(shape, dtype if any(map(_scales, actions)) else np.bool_)
        self._override = np.zeros(shape, dtype) if any(map(_adds, actions)) else None
        self._touched = np.zeros(shape[:2], dtype=np.bool_)

    def apply(self, act: _Act) -> None:
        """Apply an action on top of the earlier ones."""
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
    """Whether an action's mask has values other than 0 and 1."""
    return isinstance(action, Scale) and (action.values is not None or action.factor not in (0, 1))


def _adds(action: Action) -> bool:
    """Whether an action's override may be nonzero."""
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
    """Build an edit of the touched layers only; None if there are none."""
    layers = tuple(np.flatnonzero(touched).tolist())
    if not layers:
        return None
    if len(layers) == len(touched):
        return Edit(layers, mask, override)
    return Edit(layers, mask[touched], None if override is None else override[touched])
