from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuroglot.analyses.base.bootstrap import percentile_interval, ratios, weights

MANY = tuple(f"cluster {number}" for number in range(200))


def test_weights_are_poisson_numbers_of_mean_1() -> None:
    drawn = weights(0, MANY, 1000)
    assert drawn.shape == (1000, 200)
    assert drawn.mean() == pytest.approx(1, abs=0.01)
    assert drawn.var() == pytest.approx(1, abs=0.02)
    for count in range(6):
        expected = math.exp(-1) / math.factorial(count)
        assert np.mean(drawn == count) == pytest.approx(expected, abs=0.005)


def test_clusters_and_replicates_are_drawn_apart() -> None:
    drawn = weights(0, MANY[:20], 1000)
    for pairs in (np.corrcoef(drawn.T), np.corrcoef(drawn[:100])):
        assert np.abs(pairs - np.eye(len(pairs))).mean() < 0.2
    assert len({tuple(column) for column in drawn.T}) == 20


def test_a_weight_depends_on_nothing_but_seed_cluster_and_replicate() -> None:
    drawn = weights(3, MANY[:5], 50)
    backwards = weights(3, MANY[4::-1], 50)
    assert np.array_equal(drawn, backwards[:, ::-1])
    assert np.array_equal(drawn[:, 2:3], weights(3, MANY[2:3], 50))
    assert np.array_equal(drawn, weights(3, MANY[:5], 80)[:50])
    assert not np.array_equal(drawn, weights(4, MANY[:5], 50))


def test_the_interval_of_a_mean_is_about_the_textbooks() -> None:
    values = np.random.default_rng(0).normal(3, 1, size=200)
    drawn = weights(0, MANY, 2000)
    low, high = percentile_interval(ratios(drawn @ values, drawn.sum(axis=1)))
    reach = 1.96 * values.std() / math.sqrt(200)
    assert (low, high) == pytest.approx((values.mean() - reach, values.mean() + reach), abs=0.02)


@given(st.integers(0, 2**32 - 1), st.integers(0, 25))
def test_percentiles_are_of_the_replicates_that_have_an_estimate(seed: int, missing: int) -> None:
    estimates = np.random.default_rng(seed).normal(size=(1000, 2, 3))
    estimates[:missing, 1, 2] = np.nan
    low, high = percentile_interval(estimates)
    np.testing.assert_allclose(low, np.nanpercentile(estimates, 2.5, axis=0), atol=1e-12)
    np.testing.assert_allclose(high, np.nanpercentile(estimates, 97.5, axis=0), atol=1e-12)


@pytest.mark.parametrize("clusters", [1, 2, 3])
def test_few_clusters_have_no_interval(clusters: int) -> None:
    drawn = weights(0, MANY[:clusters], 1000)
    low, high = percentile_interval(ratios(drawn @ np.arange(1.0, clusters + 1), drawn.sum(axis=1)))
    assert math.isnan(low)
    assert math.isnan(high)


def test_nothing_to_divide_by_is_no_estimate_and_no_warning() -> None:
    sums, sizes = np.array([[1.0, 2.0], [0.0, 0.0]]), np.array([4.0, 0.0])
    assert ratios(sums, sizes).tolist() == [[0.25, 0.5], pytest.approx([math.nan] * 2, nan_ok=True)]
    by_type = np.array([[2.0, 0.0], [0.0, 0.0]])
    assert ratios(sums, by_type)[0].tolist() == [0.5, pytest.approx(math.nan, nan_ok=True)]
