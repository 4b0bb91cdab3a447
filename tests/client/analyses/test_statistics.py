from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from neuroglot.analyses.base.statistics import holm, p_words, sign_flip_tests, wilson


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (3, 10), (10, 10), (371, 378)])
def test_wilson_is_the_textbook_formula(successes: int, trials: int) -> None:
    z = 1.959963984540054
    p = successes / trials
    middle = (p + z**2 / (2 * trials)) / (1 + z**2 / trials)
    reach = z / (1 + z**2 / trials) * math.sqrt(p * (1 - p) / trials + z**2 / (4 * trials**2))
    assert wilson(successes, trials) == pytest.approx((max(0, middle - reach), min(1, middle + reach)), abs=1e-12)


def test_no_trials_have_no_interval() -> None:
    assert all(map(math.isnan, wilson(0, 0)))


def sign_flip_test(differences: np.ndarray, seed: int = 0) -> float:
    (p,) = sign_flip_tests(differences[:, np.newaxis], seed)
    return float(p)


def test_sign_flips_of_few_clusters_are_all_tried() -> None:
    differences = np.array([3.0, -1.0, 4.0, 2.0, 5.0])
    flips = [np.dot(signs, differences) for signs in itertools.product([1, -1], repeat=5)]
    as_extreme = sum(total >= differences.sum() for total in flips) / len(flips)
    assert sign_flip_test(differences) == pytest.approx(2 * as_extreme)


@pytest.mark.parametrize("clusters", [3, 12, 17, 40])
def test_sign_flips_give_the_p_values_of_scipy(clusters: int) -> None:
    differences = np.random.default_rng(clusters).normal(0.3, 1, size=(clusters, 3))
    p_values = sign_flip_tests(differences, seed=0)
    for p, column in zip(p_values, differences.T, strict=True):
        expected = stats.permutation_test(
            (column,),
            lambda sample, axis: sample.sum(axis=axis),
            permutation_type="samples",
            vectorized=True,
            n_resamples=99_999,
            batch=5_000,
            rng=np.random.default_rng(1),
        ).pvalue
        assert p == pytest.approx(expected, rel=1e-9 if clusters <= 16 else 0.1)


def test_sign_flips_of_many_clusters_are_reproducible_and_close_to_the_t_test() -> None:
    differences = np.random.default_rng(0).normal(0.1, 1, size=100)
    p = sign_flip_test(differences, seed=7)
    assert p == sign_flip_test(differences, seed=7)
    assert p == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, rel=0.1)


def test_a_test_does_not_depend_on_those_beside_it() -> None:
    differences = np.random.default_rng(0).normal(0.25, 1, size=(30, 4))
    together = sign_flip_tests(differences, seed=7)
    assert together.tolist() == [sign_flip_test(column, seed=7) for column in differences.T]


def test_the_least_p_value_of_random_flips_counts_what_was_seen() -> None:
    assert sign_flip_test(np.ones(40)) == pytest.approx(2 / 100_000)


def test_no_difference_at_all_has_p_1() -> None:
    assert sign_flip_test(np.zeros(50)) == 1
    assert sign_flip_test(np.array([3.0])) == 1
    assert sign_flip_tests(np.zeros((0, 2)), 0).tolist() == [1, 1]


def test_sums_that_tie_but_for_rounding_count_as_ties() -> None:
    differences = np.array([0.1, 0.2, 0.3, -0.6])
    whole = np.array([1.0, 2, 3, -6])
    assert sign_flip_test(differences) == sign_flip_test(whole)
    assert sign_flip_test(differences[::-1]) == sign_flip_test(whole)


def test_a_symmetric_null_is_rejected_as_often_as_it_should_be() -> None:
    p_values = sign_flip_tests(np.random.default_rng(1).normal(size=(12, 200)), seed=0)  # 4,096 flips each: exact
    assert 0.01 < np.mean(p_values < 0.05) < 0.1


def test_rows_of_a_cluster_count_as_one_observation() -> None:
    # 8 clusters of 30 rows that agree: taken as 240 independent rows the difference would be beyond doubt.
    assert sign_flip_test(np.array([30.0, 30.0, -30.0, 30.0, -30.0, 30.0, 30.0, -30.0])) > 0.5


@pytest.mark.parametrize(
    ("p", "words"), [(0.0004, "p < 0.001"), (0.0456, "p = 0.046"), (0.456, "p = 0.46"), (1, "p = 1.00")]
)
def test_p_values_in_words(p: float, words: str) -> None:
    assert p_words(p) == words


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
