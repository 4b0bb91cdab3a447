"""Interventions: from actions on chosen neurons to the mask and the override of every row.

Every action is two numbers a neuron, for the graph computes `mask * activation + override`:

    deactivate (0, 0)    override (0, value)    convert (0, value) where inactive    scale (factor, 0)    add (1, value)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from neuroglot_server.core import Action, Add, Convert, Deactivate, Intervention, Override, Scale
from neuroglot_server.selections import Baseline, Members, members
from neuroglot_server.steps import Edit


@dataclass(frozen=True, eq=False)
class RowEdits:
    """What a variant does to one row; None where it does nothing.

    Attributes:
        before_last: the edit at the prompt tokens before the last one.
        last: at the last prompt token.
        generated: at the tokens of the answer.
        selected: how many neurons the interventions chose.
        selected_active: how many of them are active in the baseline.
    """

    before_last: Edit | None
    last: Edit | None
    generated: Edit | None
    selected: int
    selected_active: int

    @property
    def changes(self) -> bool:
        """Whether it does anything at all."""
        return any(edit is not None for edit in (self.before_last, self.last, self.generated))


NO_EDITS = RowEdits(None, None, None, 0, 0)


def above(threshold: float, dtype: np.dtype[np.floating]) -> float:
    """The smallest number of a type that exceeds a threshold."""
    nearest = dtype.type(threshold)
    if np.float32(nearest) > np.float32(threshold):
        return float(nearest)
    return float(np.nextafter(nearest, dtype.type(np.inf)))


def row_edits(
    interventions: Sequence[Intervention], baseline: Baseline, threshold: float, dtype: np.dtype[np.floating]
) -> list[RowEdits]:
    """What a variant's interventions do to each row of a group.

    Args:
        interventions: at least one; of two that choose the same neuron at the same position, the later one holds.
        baseline: the group's baseline in the component.
        threshold: above which a neuron is active; what `Convert` without a value goes just above.
        dtype: of the edits: the model's.
    """
    rows = len(baseline.labels)
    chosen = [_chosen(intervention, baseline) for intervention in interventions]
    anywhere = reduce(np.logical_or, chosen)
    selected = np.broadcast_to(np.count_nonzero(anywhere, axis=(1, 2)), rows)
    selected_active = np.count_nonzero(anywhere & baseline.activity, axis=(1, 2))
    made: dict[tuple[int, ...], list[Edit | None]] = {}

    def edits(acting: list[bool]) -> list[Edit | None]:
        places = tuple(np.flatnonzero(acting).tolist())
        if places not in made:
            actions = [(interventions[place].action, chosen[place]) for place in places]
            made[places] = _edits(actions, baseline, threshold, dtype)
        return made[places]

    before_last = edits([intervention.scope.before_last for intervention in interventions])
    last = edits([True] * len(interventions))
    generated = edits([intervention.scope.generated for intervention in interventions])
    return [
        RowEdits(before_last[row], last[row], generated[row], int(selected[row]), int(selected_active[row]))
        for row in range(rows)
    ]


def _chosen(intervention: Intervention, baseline: Baseline) -> Members:
    """The neurons that an intervention's selection chooses in its layers of the component."""
    _, layers, neurons = baseline.activity.shape
    if intervention.component not in ("", baseline.component):
        return np.zeros((1, layers, neurons), dtype=np.bool_)
    chosen = members(intervention.selection, baseline)
    if not intervention.layers:
        return chosen
    in_layers = np.isin(np.arange(layers), intervention.layers)
    return chosen & in_layers[:, np.newaxis]


def _edits(
    actions: Sequence[tuple[Action, Members]], baseline: Baseline, threshold: float, dtype: np.dtype[np.floating]
) -> list[Edit | None]:
    """The edit of each row; rows share one where all do the same."""
    rows = len(baseline.labels)
    changed = [
        (action, chosen & ~baseline.activity if isinstance(action, Convert) else chosen) for action, chosen in actions
    ]
    distinct = max((chosen.shape[0] for _, chosen in changed), default=1)
    shape = (distinct, *baseline.activity.shape[1:])
    mask, override = np.ones(shape, dtype), np.zeros(shape, dtype)
    touched = np.zeros(shape[:2], dtype=np.bool_)
    for action, chosen in changed:
        factor, summand = _numbers(action, threshold, dtype)
        np.copyto(mask, factor, where=chosen)
        np.copyto(override, summand, where=chosen)
        touched |= chosen.any(axis=-1)
    edits = [_compact(mask[row], override[row], touched[row]) for row in range(distinct)]
    return edits if distinct == rows else edits * rows


def _numbers(action: Action, threshold: float, dtype: np.dtype[np.floating]) -> tuple[float, float]:
    """Mask and override of an action."""
    match action:
        case Deactivate():
            return 0.0, 0.0
        case Convert(value):
            return 0.0, above(threshold, dtype) if value is None else value
        case Override(value):
            return 0.0, value
        case Scale(factor):
            return factor, 0.0
        case Add(value):
            return 1.0, value


def _compact(mask: NDArray[np.floating], override: NDArray[np.floating], touched: NDArray[np.bool_]) -> Edit | None:
    """An edit of the touched layers alone."""
    layers = tuple(np.flatnonzero(touched).tolist())
    if not layers:
        return None
    if len(layers) == len(touched):
        return Edit(layers, mask, override)
    return Edit(layers, mask[touched], override[touched])
