from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import stats

from neuroglot.packing import pack_bits
from neuroglot_server.core import ByNeuron, ByType, Control, ControlKind, Difference, Intersection, NeuronType, Union
from neuroglot_server.kernels import types
from neuroglot_server.selections import Baseline, members

LAYERS, NEURONS = 3, 50
LABELS = ("en", "es", "th", "zh")
ALL = ByType((NeuronType.ALL_SHARED,))
PARTIAL = ByType((NeuronType.PARTIAL_SHARED,))
SPECIFIC = ByType((NeuronType.SPECIFIC,))


def baseline_of(labels: tuple[str, ...] = LABELS, group_id: str = "g", seed: int = 0) -> Baseline:
    """Random activity, of each row by its label, so that a row can stand in another group."""
    activity = np.stack(
        [np.random.default_rng([seed, *label.encode()]).random((LAYERS, NEURONS)) < 0.4 for label in labels]
    )
    return Baseline("decoder", group_id, labels, activity, types.type_codes(activity))


def explicit(*neurons: tuple[int, int]) -> ByNeuron:
    mask = np.zeros((LAYERS, NEURONS), dtype=np.bool_)
    for layer, neuron in neurons:
        mask[layer, neuron] = True
    return ByNeuron("", LAYERS, NEURONS, pack_bits(mask))


def chosen(selection: object, baseline: Baseline) -> list[set[tuple[int, int]]]:
    """The chosen (layer, neuron) of every row."""
    found = np.broadcast_to(members(selection, baseline), baseline.activity.shape)  # type: ignore[arg-type]
    return [set(zip(*map(np.ndarray.tolist, np.nonzero(of_row)), strict=True)) for of_row in found]


def test_by_type_chooses_the_neurons_of_any_of_the_types() -> None:
    baseline = baseline_of()
    assert baseline.codes is not None
    codes = baseline.codes
    wanted = {(layer, neuron) for layer in range(LAYERS) for neuron in range(NEURONS) if codes[layer, neuron] in (1, 3)}
    assert chosen(ByType((NeuronType.ALL_SHARED, NeuronType.SPECIFIC)), baseline) == [wanted] * len(LABELS)


def test_set_algebra() -> None:
    a, b, c = explicit((0, 1), (0, 2), (2, 49)), explicit((0, 2), (1, 7)), explicit((2, 49), (1, 7))
    baseline = baseline_of()
    assert chosen(Union((a, b)), baseline)[0] == {(0, 1), (0, 2), (2, 49), (1, 7)}
    assert chosen(Intersection((a, b)), baseline)[0] == {(0, 2)}
    assert chosen(Difference((a, b, c)), baseline)[0] == {(0, 1)}
    assert chosen(Difference((a,)), baseline) == chosen(a, baseline)


def test_neurons_of_another_component_are_none() -> None:
    elsewhere = dataclasses.replace(explicit((0, 1)), component="encoder")
    assert chosen(elsewhere, baseline_of()) == [set()] * len(LABELS)


@pytest.mark.parametrize("of", [ALL, PARTIAL, Union((ALL, SPECIFIC)), explicit((0, 3), (0, 4), (2, 0))])
def test_controls_have_the_size_of_what_they_control(of: ByType) -> None:
    baseline = baseline_of()
    target = np.broadcast_to(members(of, baseline), baseline.activity.shape)
    any_neuron = members(Control(of, ControlKind.RANDOM), baseline)
    assert (any_neuron.sum(axis=-1) == target.sum(axis=-1)).all()
    active = members(Control(of, ControlKind.RANDOM_ACTIVE), baseline)
    assert (active.sum(axis=-1) == (target & baseline.activity).sum(axis=-1)).all()
    assert not (active & ~baseline.activity).any()


def test_a_control_of_everything_active_is_everything_active() -> None:
    baseline = baseline_of()
    everything = ByType(tuple(NeuronType))
    assert (members(Control(everything, ControlKind.RANDOM_ACTIVE), baseline) == baseline.activity).all()


def test_controls_depend_on_the_group_the_row_the_draw_and_the_seed_and_on_nothing_else() -> None:
    control = Control(explicit((0, 1), (0, 2), (1, 0), (2, 5)), ControlKind.RANDOM)
    once = chosen(control, baseline_of())
    assert chosen(control, baseline_of()) == once
    # In other company, in another place of the group, with other activity.
    assert chosen(control, baseline_of(("zh", "de", "en"), seed=7))[2] == once[0]
    assert len({frozenset(of_row) for of_row in once}) == len(LABELS)
    for other in (dataclasses.replace(control, draw=1), dataclasses.replace(control, seed=1)):
        assert chosen(other, baseline_of())[0] != once[0]
    assert chosen(control, baseline_of(group_id="h"))[0] != once[0]


def test_the_ids_of_seed_draw_group_and_row_do_not_run_into_each_other() -> None:
    control = Control(explicit((0, 1), (0, 2), (0, 3)), ControlKind.RANDOM)
    assert chosen(control, baseline_of(("n", "x"), group_id="ge"))[0] != chosen(control, baseline_of(("en", "x")))[0]


def test_a_draw_is_the_same_for_ever() -> None:
    """Resumed and repeated analyses must find the controls of the first run, in any version of numpy."""
    control = Control(explicit((0, 1), (0, 2), (2, 5)), ControlKind.RANDOM, draw=3, seed=2**64 - 1)
    assert chosen(control, baseline_of())[0] == {(0, 28), (0, 40), (2, 7)}


def test_draws_are_uniform() -> None:
    hits = np.zeros(NEURONS)
    for draw in range(2000):
        drawn = members(Control(explicit((0, 0), (0, 1), (0, 2)), ControlKind.RANDOM, draw), baseline_of())
        hits += drawn[:, 0].sum(axis=0)
    assert hits.sum() == 2000 * 3 * len(LABELS)
    assert stats.chisquare(hits).pvalue > 1e-4
