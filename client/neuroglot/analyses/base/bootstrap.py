"""Bootstrap intervals over clusters that do not depend on how a run was split.

A cluster's weight in a replicate is a Poisson number of mean 1, hashed from the seed, the cluster and the replicate:
parts of a run that were made on different machines agree on it, and merging them gives the interval of the whole.
"""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from neuroglot.analyses.base.statistics import CONFIDENCE

_POISSON = np.cumsum([math.exp(-1) / math.factorial(count) for count in range(20)])
"""Probability that a Poisson number of mean 1 is at most 0, 1, 2, ..."""

_TAIL = (1 - CONFIDENCE) / 2


@lru_cache(maxsize=2)  # the analyses of a run share its clusters, and those of its mismatched groups
def weights(seed: int, clusters: tuple[str, ...], replicates: int) -> NDArray[np.float64]:
    """How often each cluster is drawn in each replicate, `[replicates, clusters]`; not to be written to."""
    drawn = np.empty((replicates, len(clusters)))
    for column, cluster in enumerate(clusters):
        key = hashlib.sha256(f"{seed}/{cluster}".encode()).digest()
        raw = np.random.Philox(key=int.from_bytes(key[:16], "little")).random_raw(replicates)
        drawn[:, column] = np.searchsorted(_POISSON, (raw >> np.uint64(11)) * 2.0**-53, side="right")
    drawn.flags.writeable = False
    return drawn


def ratios(numerators: NDArray[np.float64], denominators: NDArray[np.float64]) -> NDArray[np.float64]:
    """Estimates of the replicates: sums by sizes; NaN where a replicate drew nothing to divide by.

    Args:
        numerators: `[replicates, ...]`.
        denominators: as many axes or fewer, the same from the first on.
    """
    denominators = denominators.reshape(denominators.shape + (1,) * (numerators.ndim - denominators.ndim))
    estimates = np.full(np.broadcast_shapes(numerators.shape, denominators.shape), np.nan)
    np.divide(numerators, denominators, out=estimates, where=denominators != 0)
    return estimates


def percentile_interval(estimates: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The middle 95 % of the replicates' estimates `[replicates, ...]`: lower and upper ends, `[...]`.

    Replicates without an estimate (NaN) are left out. Where they are more than a tail of the interval, both ends are
    NaN: with up to three clusters, so many replicates draw no cluster at all.
    """
    ordered = np.sort(estimates, axis=0)  # NaN comes last
    found = np.count_nonzero(~np.isnan(estimates), axis=0)
    enough = found >= (1 - _TAIL) * len(estimates)
    low, high = (_quantile(ordered, np.where(enough, found, 1), share) for share in (_TAIL, 1 - _TAIL))
    return np.where(enough, low, np.nan), np.where(enough, high, np.nan)


def _quantile(ordered: NDArray[np.float64], found: NDArray[np.int64], share: float) -> NDArray[np.float64]:
    """A quantile of the first `found` values along the first axis, interpolated between the two beside it."""
    place = share * (found - 1)
    below = np.floor(place).astype(np.int64)
    above = np.minimum(below + 1, found - 1)
    left, right = (np.take_along_axis(ordered, at[np.newaxis], axis=0)[0] for at in (below, above))
    quantile: NDArray[np.float64] = left + (place - below) * (right - left)
    return quantile
