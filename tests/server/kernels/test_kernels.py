from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from neuroglot.definitions.normalisation import normalised
from neuroglot_server.kernels import contribution, effective, scoring, types
from tests import definitions

SHAPES = st.tuples(st.integers(2, 5), st.integers(1, 3), st.integers(1, 23))
# Coarse, so that neurons land on thresholds and tie with each other.
VALUES = st.sampled_from([-2.0, -0.5, -0.0, 0.0, 0.1, 0.5, 0.75, 3.0])
ACTIVATIONS = SHAPES.flatmap(lambda shape: arrays(np.float32, shape, elements=VALUES.map(np.float32)))


@given(ACTIVATIONS, st.sampled_from([0.0, 0.1, 0.5, -0.5]))
def test_types_and_counts_are_those_of_the_equations(activations: np.ndarray, threshold: float) -> None:
    threshold = float(np.float32(threshold))
    activity = types.active(activations, threshold)
    codes = types.type_codes(activity)
    assert (codes == definitions.type_codes(activations, threshold)).all()
    expected = [[len(sets[name]) for name in definitions.TYPES] for sets in definitions.types(activations, threshold)]
    assert types.type_counts(codes).tolist() == expected
    of_languages = [
        [len(definitions.active_neurons(of_language, threshold)) for of_language in activations[:, layer]]
        for layer in range(activations.shape[1])
    ]
    assert types.active_counts(activity).tolist() == of_languages


def test_two_rows_have_no_partial_shared_neurons() -> None:
    activity = np.array([[[True, True, False]], [[True, False, False]]])
    assert types.type_codes(activity).tolist() == [[3, 1, 0]]


def test_a_single_row_has_no_types_under_optimisation_either() -> None:
    with pytest.raises(ValueError, match="got activity of 1 rows, expected at least two"):
        types.type_codes(np.ones((1, 2, 3), dtype=bool))


def test_a_float16_activation_is_compared_with_the_threshold_itself() -> None:
    # The float16 next to 0.3 is 0.300049. It exceeds 0.3, though not the float16 next to 0.3.
    assert types.active(np.array([0.3], dtype=np.float16), 0.3).all()
    # And the one next to 0.1 is 0.099976.
    assert not types.active(np.array([0.1], dtype=np.float16), 0.1).any()


@pytest.mark.parametrize("threshold", [0.5, -0.1])
@pytest.mark.parametrize(("offset", "near"), [(0.0, 1), (9e-6, 1), (-9e-6, 1), (2e-5, 0), (-2e-5, 0)])
def test_near_the_threshold_is_within_a_hundred_thousandth(threshold: float, offset: float, near: int) -> None:
    activations = np.array([[threshold + offset, 5.0]], dtype=np.float32)
    threshold = float(np.float32(threshold))
    assert types.near_threshold(activations, threshold, types.active(activations, threshold)) == near


@pytest.mark.parametrize(("activation", "near"), [(0.0, 0), (9e-6, 1), (-9e-6, 0), (2e-5, 0)])
def test_near_zero_is_above_it_for_the_tails_of_the_functions_lie_below(activation: float, near: int) -> None:
    activations = np.array([[activation, -5.0]], dtype=np.float32)
    assert types.near_threshold(activations, 0.0, types.active(activations, 0.0)) == near


@given(ACTIVATIONS, st.integers(1, 100))
def test_contributions_by_type_are_those_of_equation_3(activations: np.ndarray, percent: int) -> None:
    rows, layers, neurons = activations.shape
    values = np.random.default_rng(neurons).normal(size=(layers, neurons, 3)).astype(np.float32)
    norms = np.linalg.norm(values, axis=-1)
    shares = contribution.contributions(activations, norms)
    codes = types.type_codes(types.active(activations, 0.0))
    k = contribution.top_k(neurons, percent / 100)
    top_counts = contribution.counts_by_type(contribution.top(shares, k), codes)
    sums = contribution.sums_by_type(shares, codes)
    for row in range(rows):
        for layer in range(layers):
            if not activations[row, layer].any():
                assert not shares[row, layer].any()
                continue
            expected = definitions.contributions(activations[row, layer].tolist(), values[layer])
            np.testing.assert_allclose(shares[row, layer], expected, rtol=1e-5)
            best = definitions.top_neurons(shares[row, layer].tolist(), percent)
            assert k == len(best)
            for code, members in enumerate(definitions.types(activations)[layer].values()):
                assert top_counts[row, layer, code] == len(best & members)
                np.testing.assert_allclose(sums[row, layer, code], sum(expected[i] for i in members), atol=1e-5)


def test_of_equal_contributions_the_lower_index_comes_first() -> None:
    assert contribution.top(np.array([[1, 2, 1, 1, 2]], dtype=np.float32), 3).tolist() == [
        [True, True, False, False, True]
    ]


@pytest.mark.parametrize(
    ("neurons", "fraction", "k"),
    [(512, 0.05, 26), (60, 0.05, 3), (30, 0.1, 3), (7, 0.05, 1), (7, 1.0, 7), (96, 1e-12, 1)],
)
def test_the_top_fraction_is_rounded_up_but_not_for_a_float_error(neurons: int, fraction: float, k: int) -> None:
    assert contribution.top_k(neurons, fraction) == k


def test_a_number_of_top_contributors_is_taken_as_it_is() -> None:
    assert contribution.top_k(60, 0.05, 7) == 7


@given(ACTIVATIONS, st.data())
def test_leading_neurons_are_the_largest_in_order(values: np.ndarray, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, values.shape[-1]))
    found = contribution.leading(values, k)
    for row, layer in np.ndindex(values.shape[:2]):
        of_layer = values[row, layer].tolist()
        best_first = sorted(range(len(of_layer)), key=lambda neuron: (-of_layer[neuron], neuron))
        assert found[row, layer].tolist() == best_first[:k]


@given(ACTIVATIONS, st.integers(0, 4))
def test_effective_scores_by_type_are_those_of_the_definition(activations: np.ndarray, empty: int) -> None:
    projections = np.random.default_rng(activations.size).normal(size=activations.shape).astype(np.float32)
    scores = effective.effective_scores(activations, projections)
    scores[empty : empty + 1] = np.nan
    reduced = effective.by_type(scores, types.type_codes(types.active(activations, 0.0)))
    for row, layer in np.ndindex(activations.shape[:2]):
        for code, members in enumerate(definitions.types(activations)[layer].values()):
            found = [float(values[row, layer, code]) for values in reduced]
            if row == empty:
                assert np.isnan(found).all()
                continue
            exact = [float(activations[row, layer, i]) * float(projections[row, layer, i]) for i in members]
            expected = [max(exact), min(exact), sum(exact)] if exact else [0, 0, 0]
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_float16_coefficients_do_not_overflow() -> None:
    shares = contribution.contributions(
        np.full((1, 1, 4), 6e4, dtype=np.float16), np.full((1, 4), 10, dtype=np.float32)
    )
    assert shares.tolist() == [[[0.25] * 4]]


@given(
    arrays(np.float32, (3, 17), elements=st.floats(-80, 80, width=32)),
    st.lists(st.integers(0, 16), min_size=3, max_size=3),
)
def test_log_probabilities_are_those_of_the_softmax(logits: np.ndarray, targets: list[int]) -> None:
    scores = scoring.next_tokens(logits, targets)
    assert scores is not None
    assert scores.greedy == tuple(row.tolist().index(max(row.tolist())) for row in logits)
    expected = [definitions.log_probability(row, token) for row, token in zip(logits, targets, strict=True)]
    np.testing.assert_allclose(scores.log_probabilities, expected, atol=1e-4)
    assert scores.greedy_log_probabilities == ()


@given(arrays(np.float32, (3, 17), elements=st.floats(-80, 80, width=32)), st.booleans())
def test_log_probabilities_of_the_most_likely_tokens_are_given_where_they_are_asked_for(
    logits: np.ndarray, with_targets: bool
) -> None:
    targets = (5, 6, 7) if with_targets else ()
    scores = scoring.next_tokens(logits, targets, greedy_log_probabilities=True)
    assert scores is not None
    expected = [definitions.log_probability(row, int(row.argmax())) for row in logits]
    np.testing.assert_allclose(scores.greedy_log_probabilities, expected, atol=1e-4)
    assert len(scores.log_probabilities) == len(targets)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("targets", [(), (1, 2)])
def test_logits_that_are_not_finite_give_no_scores(bad: float, targets: tuple[int, ...]) -> None:
    logits = np.zeros((2, 5), dtype=np.float32)
    logits[1, 3] = bad
    assert scoring.next_tokens(logits, targets) is None


@given(st.text("aA .;!,?</s>pd\n\u3000\x1c\u0130", max_size=20))
def test_normalised_is_as_defined(text: str) -> None:
    assert normalised(text) == definitions.normalised(text)


@pytest.mark.parametrize("ending", [".", " .", "</s>", "<pad> \n", "?!\u3000"])
def test_normalised_takes_time_in_proportion_to_the_length(ending: str) -> None:
    def seconds(times: int) -> float:
        text = "Paris" + ending * times
        start = time.process_time()
        assert normalised(text) == "paris"
        return time.process_time() - start

    short = min(seconds(10_000) for _ in range(3))
    assert seconds(160_000) < 64 * short  # 256 times as long where it is quadratic


def test_normalised_examples() -> None:
    assert normalised(" Paris.</s><pad> ") == "paris"
    assert normalised("St. John's!?") == "st. john's"
