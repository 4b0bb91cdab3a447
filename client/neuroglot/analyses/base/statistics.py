"""Statistics of the tables: Wilson intervals, clustered sign-flip tests, Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

CONFIDENCE = 0.95

RESAMPLES = 99_999
"""Number of random sign flips of a test. If all possible flips are fewer, all are evaluated and the test is exact."""

_BATCH = 4_000  # flips evaluated at once, which bounds memory


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


@cache
def wilson(successes: int, trials: int) -> Interval:
    """Return Wilson's 95 % interval of a proportion, which assumes independent trials; NaN without trials.

    >>> [round(bound, 3) for bound in wilson(9, 10)]
    [0.596, 0.982]
    """
    if trials == 0:
        return Interval(math.nan, math.nan)
    interval = stats.binomtest(successes, trials).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(float(interval.low), float(interval.high))


def sign_flip_tests(differences: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Return two-sided p-values of paired comparisons by permutation tests that flip the signs of whole clusters.

    Under the null hypothesis the difference of a cluster is symmetric about 0. Rows of a cluster may depend on each
    other in any way, because they are flipped together. All tests share the same flips, which is faster and leaves each
    test valid.

    Args:
        differences: sum of (first condition - second condition) over the rows, `[clusters, tests]`.
        seed: seed of the random flips.

    Returns:
        p-values, `[tests]`; 1 if no cluster has a difference.
    """
    observed = differences.sum(axis=0)
    rounding = 1e-9 * np.abs(differences).sum(axis=0)  # sums in another order count as ties
    above, below, flips = np.zeros(len(observed)), np.zeros(len(observed)), 0
    for signs in _signs(len(differences), seed):
        totals = signs @ differences
        above += np.count_nonzero(totals >= observed - rounding, axis=0)
        below += np.count_nonzero(totals <= observed + rounding, axis=0)
        flips += len(signs)
    p_values: NDArray[np.float64] = np.minimum(1, 2 * np.minimum(above, below) / flips)
    return p_values


def _signs(clusters: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Yield signs of the clusters `[flips, clusters]`: all combinations if few, else all + and random signs."""
    if 2**clusters <= RESAMPLES:
        bits = np.arange(2**clusters)[:, np.newaxis] >> np.arange(clusters) & 1
        yield 1 - 2 * bits.astype(np.float64)
        return
    yield np.ones((1, clusters))
    rng = np.random.default_rng(seed)
    for start in range(0, RESAMPLES, _BATCH):
        flipped = rng.integers(0, 2, size=(min(_BATCH, RESAMPLES - start), clusters), dtype=np.int8)
        yield 1 - 2 * flipped.astype(np.float64)


def holm(p_values: Sequence[float]) -> list[float]:
    """Apply Holm's correction to p-values; returns them in the given order.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def p_words(p: float) -> str:
    """Format a p-value: `p = 0.04`, or `p < 0.001`."""
    if p < 0.001:
        return "p < 0.001"
    return f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"
