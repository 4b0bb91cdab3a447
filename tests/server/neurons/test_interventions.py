from __future__ import annotations

import math

import numpy as np
import pytest

from neuroglot.definitions.packing import pack_bits
from neuroglot_server.core import (
    Action,
    Add,
    ByNeuron,
    ByType,
    Convert,
    Deactivate,
    Intervention,
    NeuronType,
    Override,
    Scale,
    Scope,
)
from neuroglot_server.engine.steps import Edit
from neuroglot_server.kernels.kernel_thread import completed
from neuroglot_server.neurons.baseline import Baseline
from neuroglot_server.neurons.interventions import RowEdits, above, row_edits

FLOAT = np.dtype(np.float32)
# Two rows, two layers, three neurons.
ACTIVATIONS = np.array(
    [[[1.0, -0.1, 2.0], [-0.2, -0.3, 4.0]], [[3.0, 0.5, -0.1], [-0.2, 0.25, -0.3]]], dtype=np.float32
)


def baseline_of(component: str, activations: np.ndarray, threshold: float = 0.0) -> Baseline:
    norms = np.ones(activations.shape[1:], dtype=np.float32)
    labels = ("en", "es")[: len(activations)]
    return Baseline(component, "g", labels, activations, activations, norms, threshold)


BASELINE = baseline_of("decoder", ACTIVATIONS)


def on(
    action: Action, *neurons: tuple[int, int], scope: Scope = Scope.LAST_PROMPT_TOKEN, **more: object
) -> Intervention:
    mask = np.zeros((2, 3), dtype=np.bool_)
    for layer, neuron in neurons:
        mask[layer, neuron] = True
    return Intervention(ByNeuron("", 2, 3, pack_bits(mask)), action, scope=scope, **more)  # type: ignore[arg-type]


def edits_of(
    interventions: list[Intervention], baselines: list[Baseline], dtype: np.dtype[np.floating]
) -> list[RowEdits]:
    return completed(row_edits(interventions, baselines, dtype))


def applied(edit: Edit | None, activations: np.ndarray) -> np.ndarray:
    """Apply an edit to activations `[layers, neurons]` as the graph does."""
    if edit is None:
        return activations
    changed = activations.copy()
    layers = list(edit.layers)
    changed[layers] = edit.mask * activations[layers] + (0.0 if edit.override is None else edit.override)
    return changed


A = ACTIVATIONS[0]


@pytest.mark.parametrize(
    ("action", "value"),
    [(Deactivate(), 0.0), (Override(7.5), 7.5), (Scale(-3.0), -6.0), (Add(0.5), 2.5), (Convert(9.0), 2.0)],
)
def test_actions_change_only_the_selected_neuron(action: Action, value: float) -> None:
    (edits, _) = edits_of([on(action, (0, 2))], [BASELINE], FLOAT)
    expected = A.copy()
    expected[0, 2] = value
    assert (applied(edits.of("decoder").at, A) == expected).all()


def test_values_per_neuron_are_ordered_by_layer_and_neuron() -> None:
    neurons = [(1, 2), (0, 0), (1, 1)]
    for action, expected in (
        (Override(0, (5.0, 6.0, 7.0)), [[5.0, A[0, 1], 2.0], [A[1, 0], 6.0, 7.0]]),
        (Scale(0, (2.0, 10.0, 0.5)), [[2.0, A[0, 1], 2.0], [A[1, 0], 10 * A[1, 1], 2.0]]),
        (Add(0, (0.5, 0.0, -4.0)), [[1.5, A[0, 1], 2.0], [A[1, 0], A[1, 1], 0.0]]),
    ):
        (edits, other) = edits_of([on(action, *neurons)], [BASELINE], FLOAT)
        assert applied(edits.of("decoder").at, A).tolist() == np.array(expected, dtype=np.float32).tolist()
        assert other.of("decoder").at is edits.of("decoder").at, "rows share an edit that is the same"


def test_values_per_neuron_refer_to_the_set_before_the_restriction_to_layers() -> None:
    (edits, _) = edits_of([on(Override(0, (5.0, 6.0, 7.0)), (0, 0), (1, 1), (1, 2), layers=(1,))], [BASELINE], FLOAT)
    assert applied(edits.of("decoder").at, A).tolist() == [A[0].tolist(), [A[1, 0], 6.0, 7.0]]


def test_values_per_neuron_of_one_component_do_not_edit_the_other() -> None:
    selection = ByNeuron("decoder", 2, 3, pack_bits(np.ones((2, 3), dtype=np.bool_)))
    intervention = Intervention(selection, Add(0, (1.0,) * 6))
    (edits, _) = edits_of([intervention], [ENCODER, DECODER], FLOAT)
    assert not edits.of("encoder").anywhere
    assert applied(edits.of("decoder").at, A).tolist() == (A + 1).tolist()


def test_convert_to_the_mean_of_the_rows_in_which_a_neuron_is_active() -> None:
    everything = [(layer, neuron) for layer in range(2) for neuron in range(3)]
    first, second = edits_of([on(Convert(mean_of_active=True), *everything)], [BASELINE], FLOAT)
    # Neuron 0 of layer 1 is active in no row.
    assert applied(first.of("decoder").at, A).tolist() == [[1.0, 0.5, 2.0], [A[1, 0], 0.25, 4.0]]
    other = ACTIVATIONS[1]
    assert applied(second.of("decoder").at, other).tolist() == [[3.0, 0.5, 2.0], [other[1, 0], 0.25, 4.0]]


def test_the_mean_is_of_all_active_rows() -> None:
    activations = np.array([[[1.0, -2.0]], [[4.0, -1.0]], [[-1.0, 8.0]]], dtype=np.float32)
    for dtype in (np.float32, np.float16):
        baseline = Baseline("decoder", "g", ("a", "b", "c"), *[activations.astype(dtype)] * 2, np.ones((1, 2)), 0.0)
        selection = ByNeuron("", 1, 2, b"\x03")
        rows = edits_of([Intervention(selection, Convert(mean_of_active=True))], [baseline], np.dtype(dtype))
        changed = [applied(row.of("decoder").at, of_row) for row, of_row in zip(rows, activations, strict=True)]
        assert np.array(changed).tolist() == [[[1.0, 8.0]], [[4.0, 8.0]], [[2.5, 8.0]]]


def test_convert_follows_the_threshold_of_the_baseline() -> None:
    baseline = baseline_of("decoder", ACTIVATIONS, threshold=0.4)
    first, _ = edits_of([on(Convert(), (0, 0), (0, 1), (1, 1))], [baseline], FLOAT)
    above_it = float(np.nextafter(np.float32(0.4), np.float32(1)))
    assert applied(first.of("decoder").at, A).tolist() == [[1.0, above_it, 2.0], [A[1, 0], above_it, 4.0]]


def test_convert_changes_the_neurons_that_are_inactive_in_the_row() -> None:
    first, second = edits_of([on(Convert(9.0), (0, 0), (0, 1), (0, 2), (1, 1))], [BASELINE], FLOAT)
    assert applied(first.of("decoder").at, A).tolist() == [[1.0, 9.0, 2.0], [A[1, 0], 9.0, 4.0]]
    assert applied(second.of("decoder").at, A).tolist() == [[1.0, A[0, 1], 9.0], [A[1, 0], A[1, 1], 4.0]]
    assert (first.selected, first.selected_active) == (4, 2)
    assert (second.selected, second.selected_active) == (4, 3)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.3, -0.7, 1e-30])
def test_convert_without_a_value_goes_just_above_the_threshold(dtype: type[np.floating], threshold: float) -> None:
    value = dtype(above(threshold, np.dtype(dtype)))
    assert np.float32(value) > np.float32(threshold)
    assert not np.float32(np.nextafter(value, dtype(-math.inf))) > np.float32(threshold)


def test_the_later_of_two_interventions_on_one_neuron_wins() -> None:
    (edits, _) = edits_of([on(Scale(2.0), (0, 0), (0, 1)), on(Add(5.0), (0, 0), (1, 2))], [BASELINE], FLOAT)
    assert applied(edits.of("decoder").at, A).tolist() == [[6.0, 2 * A[0, 1], 2.0], [A[1, 0], A[1, 1], 9.0]]
    assert edits.selected == 3
    assert edits.selected_active == 2


def test_interventions_act_at_the_positions_of_their_scope() -> None:
    interventions = [
        on(Add(1.0), (0, 0)),
        on(Add(2.0), (0, 1), scope=Scope.ALL_PROMPT_TOKENS),
        on(Add(3.0), (0, 2), scope=Scope.LAST_PROMPT_TOKEN_AND_GENERATED),
        on(Add(4.0), (1, 0), scope=Scope.ALL_TOKENS),
    ]
    (edits, _) = edits_of(interventions, [BASELINE], FLOAT)
    zero = np.zeros((2, 3), dtype=np.float32)
    assert applied(edits.of("decoder").before, zero).tolist() == [[0, 2, 0], [4, 0, 0]]
    assert applied(edits.of("decoder").at, zero).tolist() == [[1, 2, 3], [4, 0, 0]]
    assert applied(edits.of("decoder").after, zero).tolist() == [[0, 0, 3], [4, 0, 0]]


def test_a_later_intervention_elsewhere_in_the_row_does_not_undo_an_earlier_one() -> None:
    interventions = [on(Add(1.0), (0, 0), scope=Scope.ALL_TOKENS), on(Deactivate(), (0, 0))]
    (edits, _) = edits_of(interventions, [BASELINE], FLOAT)
    assert applied(edits.of("decoder").before, A)[0, 0] == 2.0
    assert applied(edits.of("decoder").at, A)[0, 0] == 0.0
    assert applied(edits.of("decoder").after, A)[0, 0] == 2.0


def test_layers_and_component_narrow_the_selection() -> None:
    (edits, _) = edits_of([on(Add(1.0), (0, 0), (1, 0), layers=(1,))], [BASELINE], FLOAT)
    assert edits.of("decoder").at is not None
    assert edits.of("decoder").at.layers == (1,)
    assert edits.selected == 1
    (edits, _) = edits_of([on(Add(1.0), (0, 0), component="encoder")], [BASELINE], FLOAT)
    assert not edits.anywhere
    assert edits.selected == 0


# Types: specific, all-shared, specific, non-activated; and those of the decoder below are
# all-shared, specific, specific and non-activated, specific, specific.
ENCODER = baseline_of("encoder", np.array([[[-1, 1, 1, -1]], [[1, 1, -1, -1]]], dtype=np.float32))
DECODER = BASELINE


def test_each_component_is_changed_by_its_own_baseline() -> None:
    shared = ByType((NeuronType.ALL_SHARED, NeuronType.SPECIFIC))
    (edits, _) = edits_of([Intervention(shared, Convert(9.0))], [ENCODER, DECODER], FLOAT)
    zero = np.zeros((1, 4), dtype=np.float32)
    assert applied(edits.of("encoder").at, zero).tolist() == [[9, 0, 0, 0]]
    assert applied(edits.of("decoder").at, A).tolist() == [[1.0, 9.0, 2.0], [A[1, 0], 9.0, 4.0]]
    assert (edits.selected, edits.selected_active) == (3 + 5, 2 + 3)


@pytest.mark.parametrize(("component", "selected"), [("encoder", 3), ("decoder", 5)])
def test_only_a_named_component_is_edited(component: str, selected: int) -> None:
    shared = ByType((NeuronType.ALL_SHARED, NeuronType.SPECIFIC))
    (edits, _) = edits_of([Intervention(shared, Deactivate(), component=component)], [ENCODER, DECODER], FLOAT)
    for baseline in (ENCODER, DECODER):
        assert edits.of(baseline.component).anywhere == (baseline.component == component)
    assert edits.selected == selected


def test_a_row_without_selected_neurons_is_not_edited() -> None:
    first, second = edits_of([on(Convert(1.0), (0, 1))], [BASELINE], FLOAT)
    assert first.anywhere
    assert not second.anywhere
    assert (second.selected, second.selected_active) == (1, 1)


def test_edits_have_the_models_dtype() -> None:
    (edits, _) = edits_of([on(Add(1.0), (0, 0)), on(Scale(0.5), (0, 1))], [BASELINE], np.dtype(np.float16))
    assert edits.of("decoder").at is not None
    assert edits.of("decoder").at.mask.dtype == edits.of("decoder").at.override.dtype == np.float16


@pytest.mark.parametrize(
    ("action", "adds"), [(Deactivate(), False), (Convert(1.0), True), (Override(0.0), False), (Add(1.0), True)]
)
def test_masks_of_0_and_1_are_boolean(action: Action, adds: bool) -> None:
    (edits, _) = edits_of([on(action, (0, 1))], [BASELINE], FLOAT)
    edit = edits.of("decoder").at
    assert edit is not None
    assert edit.mask.dtype == np.bool_
    assert edit.adds == adds
