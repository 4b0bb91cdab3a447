"""The statistics of the tables: intervals, a paired test that respects clusters, a correction for several tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

CONFIDENCE = 0.95

RESAMPLES = 99_999
"""Random sign flips of a test. Where all flips are fewer, all are tried and the test is exact."""

_BATCH = 5_000


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


@cache
def wilson(successes: int, trials: int) -> Interval:
    """Wilson's 95 % interval of a proportion, which takes the trials as independent; NaN without trials.

    >>> [round(bound, 3) for bound in wilson(9, 10)]
    [0.596, 0.982]
    """
    if trials == 0:
        return Interval(math.nan, math.nan)
    interval = stats.binomtest(successes, trials).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(float(interval.low), float(interval.high))


def clustered_interval(sums: NDArray[np.float64], sizes: NDArray[np.float64]) -> Interval:
    """95 % interval of a mean over rows that come in clusters: Student's t on the clusters.

    Args:
        sums: sum of the rows' values, a cluster each.
        sizes: number of rows, a cluster each.

    Returns:
        The interval around `sums.sum() / sizes.sum()`; NaN with fewer than two clusters.
    """
    clusters = len(sums)
    if clusters < 2:
        return Interval(math.nan, math.nan)
    mean = sums.sum() / sizes.sum()
    residuals = sums - mean * sizes  # the ratio estimator's linearisation
    error = math.sqrt(clusters / (clusters - 1) * float(residuals @ residuals)) / sizes.sum()
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, clusters - 1)) * error
    return Interval(float(mean - reach), float(mean + reach))


def sign_flip_test(differences: NDArray[np.float64], seed: int) -> float:
    """Two-sided p-value of a paired comparison: a permutation test that flips the signs of whole clusters.

    If it makes no difference which of two conditions a cluster was run under, its difference is as likely to have the
    other sign. Rows of a cluster may depend on each other in any way: they are only ever flipped together.

    Args:
        differences: sum of (first condition - second) over the rows, a cluster each.
        seed: of the random flips.
    """
    if len(differences) < 2 or not differences.any():
        return 1.0
    test = stats.permutation_test(
        (differences,),
        lambda sample, axis: sample.sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=_BATCH,
        rng=np.random.default_rng(seed),
    )
    return float(test.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction of the p-values of several tests, in their order.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected
