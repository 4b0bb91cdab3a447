"""What kernels take for a request: estimated nanoseconds of one core, and their equivalent in tokens.

A token stands for what the FFN and the attention of a component run for it, about three multiplications for each neuron
and unit of the hidden state:

    token = max(layers * neurons * hidden_size * 0.09 ns, 50 us)

Beside it stand what the kernels do to every neuron of every row, by the tables below: for each threshold, for each
selection inside each variant's interventions, and for each edit. All are about twice what one core of a
processor with AVX-512 took, in float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from neuroglot_server.core import (
    Analysis,
    ByContribution,
    ByNeuron,
    ByType,
    ByUpload,
    ComponentDescription,
    Control,
    ControlKind,
    Difference,
    Intersection,
    Intervention,
    Selection,
    Union,
)

_MULTIPLICATION = 0.03
"""Nanoseconds of a multiplication and an addition in a matrix product."""
_TIMES_FFN = 3
"""A token's multiplications for each neuron and hidden unit: in both matrices of the FFN, and in attention."""
_LEAST_TOKEN = 50_000.0
"""Nanoseconds of a token in a small model, where all that surrounds a pass takes longer than the pass."""

_CALL = 60_000.0
"""Nanoseconds of the calls of one threshold or one intervention in one component, however few its neurons are."""
_SELECTION_CALL = 15_000.0
"""The same of one selection."""
_HASH = 4_000.0
"""Nanoseconds to seed the draw of one row and layer."""

# Nanoseconds for each neuron of each row.
_TYPES = 1.5
_BITMAPS = 0.5
_DEAD = 1.0
_CONTRIBUTION = 12.0
_EFFECTIVE_SCORE = 10.0
_LEADING = 12.0
_LEADING_NEURON = 80.0
"""For each neuron that is named alone."""
_EDIT = 2.5
_SELECTED = 0.4
_TOP_CONTRIBUTION = 6.0
_DRAWN = {ControlKind.RANDOM: 15.0, ControlKind.RANDOM_ACTIVE: 15.0, ControlKind.RANDOM_MASS: 40.0}


def token_nanoseconds(components: Sequence[ComponentDescription]) -> float:
    """What a token takes in the smallest component."""
    units = min(component.layers * component.neurons * component.hidden_size for component in components)
    return max(units * _TIMES_FFN * _MULTIPLICATION, _LEAST_TOKEN)


def baseline_nanoseconds(
    components: Sequence[ComponentDescription], rows: int, tokens: int, analysis: Analysis
) -> float:
    """What the baseline of a group takes: types, contributions, effective scores and dead neurons.

    Args:
        components: of the model.
        rows: of the group.
        tokens: of all of its prompts.
        analysis: what is wanted.
    """
    total = 0.0
    for component in components:
        neurons = component.layers * component.neurons
        of_neuron, of_leading = _TYPES + _BITMAPS * analysis.active_bitmaps, 0
        if analysis.contribution is not None:
            of_neuron += _CONTRIBUTION + _LEADING * (analysis.contribution.neurons > 0)
            of_leading += analysis.contribution.neurons
        if analysis.effective_score is not None:
            of_neuron += _EFFECTIVE_SCORE + _LEADING * (analysis.effective_score.neurons > 0)
            of_leading += analysis.effective_score.neurons
            total += rows * neurons * component.hidden_size * _MULTIPLICATION
        if analysis.dead:
            of_neuron += _DEAD * (1 + tokens / rows)
        of_threshold = rows * (neurons * of_neuron + component.layers * of_leading * _LEADING_NEURON) + _CALL
        total += len(analysis.thresholds) * of_threshold
    return total


def interventions_nanoseconds(
    components: Sequence[ComponentDescription], rows: int, interventions: Iterable[Intervention]
) -> float:
    """What it takes to derive the edits of so many rows from interventions, over all variants."""
    total = 0.0
    for intervention in interventions:
        for component in components:
            if intervention.component in ("", component.name):
                total += _selection(intervention.selection, component, rows)
                total += rows * component.layers * component.neurons * _EDIT + _CALL
    return total


def _selection(selection: Selection, component: ComponentDescription, rows: int) -> float:
    """A selection in a component, with those inside it."""
    neurons = rows * component.layers * component.neurons
    own, parts = neurons * _SELECTED, tuple[Selection, ...]()
    match selection:
        case ByType() | ByNeuron() | ByUpload():
            pass
        case ByContribution():
            own = neurons * _TOP_CONTRIBUTION
        case Control(of, kind):
            own, parts = neurons * _DRAWN[kind] + rows * component.layers * _HASH, (of,)
        case Union(parts) | Intersection(parts) | Difference(parts):
            own *= len(parts)
    return _SELECTION_CALL + own + sum(_selection(part, component, rows) for part in parts)
