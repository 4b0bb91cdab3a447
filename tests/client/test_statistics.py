from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from neuroglot.analyses.statistics import clustered_interval, holm, sign_flip_test, wilson


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (3, 10), (10, 10), (371, 378)])
def test_wilson_is_the_textbook_formula(successes: int, trials: int) -> None:
    z = 1.959963984540054
    p = successes / trials
    middle = (p + z**2 / (2 * trials)) / (1 + z**2 / trials)
    reach = z / (1 + z**2 / trials) * math.sqrt(p * (1 - p) / trials + z**2 / (4 * trials**2))
    assert wilson(successes, trials) == pytest.approx((max(0, middle - reach), min(1, middle + reach)), abs=1e-12)


def test_no_trials_have_no_interval() -> None:
    assert all(map(math.isnan, wilson(0, 0)))


def test_sign_flips_of_few_clusters_are_all_tried() -> None:
    differences = np.array([3.0, -1.0, 4.0, 2.0, 5.0])
    flips = [np.dot(signs, differences) for signs in itertools.product([1, -1], repeat=5)]
    as_extreme = sum(total >= differences.sum() for total in flips) / len(flips)
    assert sign_flip_test(differences, seed=0) == pytest.approx(2 * as_extreme)


def test_sign_flips_of_many_clusters_are_reproducible_and_close_to_the_t_test() -> None:
    differences = np.random.default_rng(0).normal(0.25, 1, size=100)
    p = sign_flip_test(differences, seed=7)
    assert p == sign_flip_test(differences, seed=7)
    from scipy import stats

    assert p == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, rel=0.1)


def test_no_difference_at_all_has_p_1() -> None:
    assert sign_flip_test(np.zeros(50), seed=0) == 1
    assert sign_flip_test(np.array([3.0]), seed=0) == 1


def test_a_symmetric_null_is_rejected_as_often_as_it_should_be() -> None:
    rng = np.random.default_rng(1)
    p_values = [sign_flip_test(rng.normal(size=12), seed=0) for _ in range(100)]  # 4,096 flips each: exact
    assert 0 < np.mean(np.array(p_values) < 0.05) < 0.12


def test_rows_of_a_cluster_count_as_one_observation() -> None:
    # 8 clusters of 30 rows that agree: taken as 240 independent rows the difference would be beyond doubt.
    differences = np.array([30.0, 30.0, -30.0, 30.0, -30.0, 30.0, 30.0, -30.0])
    assert sign_flip_test(differences, seed=0) > 0.5


def test_the_clustered_interval_of_single_rows_is_the_t_interval() -> None:
    values = np.random.default_rng(2).normal(size=40)
    from scipy import stats

    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert clustered_interval(values, np.ones(40)) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_copies_of_rows_in_a_cluster_do_not_narrow_the_interval() -> None:
    values = np.random.default_rng(3).normal(size=20)
    once = clustered_interval(values, np.ones(20))
    assert clustered_interval(10 * values, np.full(20, 10.0)) == pytest.approx(once, abs=1e-12)


def test_clusters_of_unequal_size_give_the_cluster_robust_interval_of_the_mean_row() -> None:
    rng = np.random.default_rng(5)
    clusters = [rng.normal(rng.normal(), 1, size=size) for size in (1, 2, 5, 9, 3, 7)]
    mean = np.concatenate(clusters).mean()
    meat = sum((cluster - mean).sum() ** 2 for cluster in clusters)
    error = math.sqrt(6 / 5 * meat) / 27
    reach = 2.570581835636305 * error  # Student's t, 5 degrees of freedom
    found = clustered_interval(
        np.array([one.sum() for one in clusters]), np.array([float(len(one)) for one in clusters])
    )
    assert found == pytest.approx((mean - reach, mean + reach), abs=1e-9)


def test_one_cluster_has_no_interval() -> None:
    assert all(map(math.isnan, clustered_interval(np.array([1.0]), np.array([3.0]))))


def test_holm_is_the_step_down_procedure() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.6, 0.7]) == [1, 1, 1]
    assert holm([0.02]) == [0.02]
    # The definition: reject the k smallest while p_(k) <= alpha / (m - k + 1); the corrected p is the least such alpha.
    rng = np.random.default_rng(4)
    for _ in range(50):
        p_values = rng.uniform(0, 0.3, size=4).tolist()
        corrected = holm(p_values)
        for alpha in np.linspace(0.01, 0.99, 25):
            rejected = set()
            for rank, index in enumerate(np.argsort(p_values)):
                if p_values[index] > alpha / (4 - rank):
                    break
                rejected.add(int(index))
            assert rejected == {index for index, p in enumerate(corrected) if p <= alpha}
