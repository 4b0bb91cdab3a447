from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from neuroglot.definitions.packing import pack_bits
from neuroglot_server.core import (
    ByContribution,
    ByNeuron,
    ByType,
    Control,
    ControlKind,
    Difference,
    Intersection,
    NeuronType,
    Selection,
    Union,
)
from neuroglot_server.kernels.kernel_thread import completed
from neuroglot_server.neurons.baseline import Baseline
from neuroglot_server.neurons.selections import Members, counts_of_mass, lowest, members
from tests import definitions

LAYERS, NEURONS = 3, 50
LABELS = ("en", "es", "th", "zh")
NORMS = np.random.default_rng(5).random((LAYERS, NEURONS), dtype=np.float32)
ALL = ByType((NeuronType.ALL_SHARED,))
PARTIAL = ByType((NeuronType.PARTIAL_SHARED,))
SPECIFIC = ByType((NeuronType.SPECIFIC,))


def baseline_of(labels: tuple[str, ...] = LABELS, group_id: str = "g", seed: int = 0) -> Baseline:
    """Random activations, 40 % active. Each row depends on its label alone, so it is the same in every group."""
    drawn = [np.random.default_rng([seed, *label.encode()]).random((LAYERS, NEURONS)) for label in labels]
    activations = (0.4 - np.stack(drawn)).astype(np.float32)
    return Baseline("decoder", group_id, labels, activations, activations * 3, NORMS)


def explicit(*neurons: tuple[int, int]) -> ByNeuron:
    mask = np.zeros((LAYERS, NEURONS), dtype=np.bool_)
    for layer, neuron in neurons:
        mask[layer, neuron] = True
    return ByNeuron("", LAYERS, NEURONS, pack_bits(mask))


def chosen_by(selection: Selection, baseline: Baseline) -> Members:
    return completed(members(selection, baseline))


def chosen(selection: Selection, baseline: Baseline) -> list[set[tuple[int, int]]]:
    """The selected (layer, neuron) pairs of every row."""
    found = np.broadcast_to(chosen_by(selection, baseline), baseline.activity.shape)
    return [set(zip(*map(np.ndarray.tolist, np.nonzero(of_row)), strict=True)) for of_row in found]


def test_by_type_chooses_the_neurons_of_any_of_the_types() -> None:
    baseline = baseline_of()
    codes = baseline.codes
    expected = {
        (layer, neuron) for layer in range(LAYERS) for neuron in range(NEURONS) if codes[layer, neuron] in (1, 3)
    }
    assert chosen(ByType((NeuronType.ALL_SHARED, NeuronType.SPECIFIC)), baseline) == [expected] * len(LABELS)


def test_set_algebra() -> None:
    a, b, c = explicit((0, 1), (0, 2), (2, 49)), explicit((0, 2), (1, 7)), explicit((2, 49), (1, 7))
    baseline = baseline_of()
    assert chosen(Union((a, b)), baseline)[0] == {(0, 1), (0, 2), (2, 49), (1, 7)}
    assert chosen(Intersection((a, b)), baseline)[0] == {(0, 2)}
    assert chosen(Difference((a, b, c)), baseline)[0] == {(0, 1)}
    assert chosen(Difference((a,)), baseline) == chosen(a, baseline)


def test_neurons_of_another_component_select_nothing() -> None:
    elsewhere = dataclasses.replace(explicit((0, 1)), component="encoder")
    assert chosen(elsewhere, baseline_of()) == [set()] * len(LABELS)


@pytest.mark.parametrize("of", [ALL, PARTIAL, Union((ALL, SPECIFIC)), explicit((0, 3), (0, 4), (2, 0))])
def test_controls_have_the_size_of_what_they_control(of: ByType) -> None:
    baseline = baseline_of()
    target = np.broadcast_to(chosen_by(of, baseline), baseline.activity.shape)
    any_neuron = chosen_by(Control(of, ControlKind.RANDOM), baseline)
    assert (any_neuron.sum(axis=-1) == target.sum(axis=-1)).all()
    active = chosen_by(Control(of, ControlKind.RANDOM_ACTIVE), baseline)
    assert (active.sum(axis=-1) == (target & baseline.activity).sum(axis=-1)).all()
    assert not (active & ~baseline.activity).any()


def test_a_control_of_everything_active_is_everything_active() -> None:
    baseline = baseline_of()
    everything = ByType(tuple(NeuronType))
    assert (chosen_by(Control(everything, ControlKind.RANDOM_ACTIVE), baseline) == baseline.activity).all()


def test_controls_depend_only_on_group_row_draw_and_seed() -> None:
    control = Control(explicit((0, 1), (0, 2), (1, 0), (2, 5)), ControlKind.RANDOM)
    once = chosen(control, baseline_of())
    assert chosen(control, baseline_of()) == once
    # With other rows, at another index of the group, with other activations.
    assert chosen(control, baseline_of(("zh", "de", "en"), seed=7))[2] == once[0]
    assert len({frozenset(of_row) for of_row in once}) == len(LABELS)
    for other in (dataclasses.replace(control, draw=1), dataclasses.replace(control, seed=1)):
        assert chosen(other, baseline_of())[0] != once[0]
    assert chosen(control, baseline_of(group_id="h"))[0] != once[0]


def test_seed_draw_group_and_row_are_hashed_unambiguously() -> None:
    control = Control(explicit((0, 1), (0, 2), (0, 3)), ControlKind.RANDOM)
    assert chosen(control, baseline_of(("n", "x"), group_id="ge"))[0] != chosen(control, baseline_of(("en", "x")))[0]


def test_a_draw_never_changes() -> None:
    """Resumed and repeated analyses must find the controls of the first run, in any version of numpy."""
    control = Control(explicit((0, 1), (0, 2), (2, 5)), ControlKind.RANDOM, draw=3, seed=2**64 - 1)
    assert chosen(control, baseline_of())[0] == {(0, 28), (0, 40), (2, 7)}


def test_draws_are_uniform() -> None:
    hits = np.zeros(NEURONS)
    for draw in range(2000):
        drawn = chosen_by(Control(explicit((0, 0), (0, 1), (0, 2)), ControlKind.RANDOM, draw), baseline_of())
        hits += drawn[:, 0].sum(axis=0)
    assert hits.sum() == 2000 * 3 * len(LABELS)
    assert stats.chisquare(hits).pvalue > 1e-4


@pytest.mark.parametrize(
    ("by", "percent"), [(ByContribution(), 5), (ByContribution(0.3), 30), (ByContribution(1.0), 100)]
)
def test_top_contributors_are_those_of_the_definition_row_by_row(by: ByContribution, percent: int) -> None:
    baseline = baseline_of()
    for row, found in enumerate(chosen(by, baseline)):
        for layer in range(LAYERS):
            values = NORMS[layer, :, np.newaxis]
            shares = definitions.contributions(baseline.coefficients[row, layer].tolist(), values)
            top = definitions.top_neurons(shares, percent)
            assert {neuron for at, neuron in found if at == layer} == top


def test_top_k_takes_precedence_over_top_fraction() -> None:
    found = chosen_by(ByContribution(0.5, top_k=2), baseline_of())
    assert (found.sum(axis=-1) == 2).all()
    assert found[:, :, :].tolist() == chosen_by(ByContribution(2 / NEURONS), baseline_of()).tolist()


def masses(found: np.ndarray, baseline: Baseline) -> np.ndarray:
    return np.where(found, baseline.contributions, 0).sum(axis=-1, dtype=np.float64)


@pytest.mark.parametrize("of", [ALL, PARTIAL, Union((ALL, SPECIFIC)), explicit((0, 3), (0, 4), (2, 0))])
@pytest.mark.parametrize("draw", range(3))
def test_a_control_of_mass_draws_neurons_until_their_contributions_add_up(of: ByType, draw: int) -> None:
    baseline = baseline_of()
    found = chosen_by(Control(of, ControlKind.RANDOM_MASS, draw), baseline)
    target = masses(chosen_by(of, baseline), baseline)
    # The random order is that of the controls by size: each is a subset of the next larger one.
    order = [
        chosen_by(Control(explicit(*((0, n) for n in range(k))), ControlKind.RANDOM, draw), baseline) for k in range(51)
    ]
    for row in range(len(LABELS)):
        sums = [masses(drawn, baseline)[row, 0] for drawn in order]
        k = found[row, 0].sum()
        assert (found[row, 0] == order[k][row, 0]).all()
        assert abs(sums[k] - target[row, 0]) == min(abs(mass - target[row, 0]) for mass in sums)


def test_a_mass_control_of_nothing_is_empty_and_of_everything_has_all_contributors() -> None:
    baseline = baseline_of()
    assert not chosen_by(Control(explicit(), ControlKind.RANDOM_MASS), baseline).any()
    everything = chosen_by(Control(ByType(tuple(NeuronType)), ControlKind.RANDOM_MASS), baseline)
    np.testing.assert_allclose(masses(everything, baseline), 1, atol=1e-6)


SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(1, 20))


@given(arrays(np.float32, SHAPES, elements=st.floats(0, 1, width=32)), st.floats(0, 1), st.integers(0, 2**32))
def test_the_mass_that_is_drawn_is_within_half_of_one_contribution(
    contributions: np.ndarray, share: float, seed: int
) -> None:
    places = np.broadcast_to(np.arange(contributions.shape[-1], dtype=np.uint64), contributions.shape)
    priorities = np.random.default_rng(seed).permuted(places, axis=-1)
    target = share * contributions.sum(axis=-1, dtype=np.float64)
    counts = counts_of_mass(priorities, contributions, target)
    drawn = lowest(priorities, np.ones_like(contributions, dtype=np.bool_), counts)
    assert (drawn.sum(axis=-1) == counts).all()
    gap = np.abs(np.where(drawn, contributions, 0).sum(axis=-1, dtype=np.float64) - target)
    assert (gap <= contributions.max(axis=-1) / 2 + 1e-9).all()
