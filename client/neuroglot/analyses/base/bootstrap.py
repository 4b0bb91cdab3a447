"""Bootstrap intervals over clusters, independent of how a run was sharded.

The weight of a cluster in a replicate is Poisson(1), hashed from the seed, the cluster and the replicate: shards
computed on different machines use the same weights, and merging them gives the interval of the whole run.
"""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from neuroglot.analyses.base.statistics import CONFIDENCE

_POISSON = np.cumsum([math.exp(-1) / math.factorial(count) for count in range(20)])
"""Cumulative distribution of Poisson(1) at 0, 1, 2, ..."""

_TAIL = (1 - CONFIDENCE) / 2


@lru_cache(maxsize=2)  # one entry for the clusters of a run's groups, one for those of its mismatched groups
def weights(seed: int, clusters: tuple[str, ...], replicates: int) -> NDArray[np.float64]:
    """Return how often each cluster is drawn in each replicate, `[replicates, clusters]`, read-only."""
    drawn = np.empty((replicates, len(clusters)))
    for column, cluster in enumerate(clusters):
        key = hashlib.sha256(f"{seed}/{cluster}".encode()).digest()
        raw = np.random.Philox(key=int.from_bytes(key[:16], "little")).random_raw(replicates)
        drawn[:, column] = np.searchsorted(_POISSON, (raw >> np.uint64(11)) * 2.0**-53, side="right")
    drawn.flags.writeable = False
    return drawn


def ratios(numerators: NDArray[np.float64], denominators: NDArray[np.float64]) -> NDArray[np.float64]:
    """Divide the sums of each replicate by its sizes; NaN where a size is 0.

    Args:
        numerators: `[replicates, ...]`.
        denominators: `[replicates, ...]`, the leading axes of the numerators.
    """
    denominators = denominators.reshape(denominators.shape + (1,) * (numerators.ndim - denominators.ndim))
    estimates = np.full(np.broadcast_shapes(numerators.shape, denominators.shape), np.nan)
    np.divide(numerators, denominators, out=estimates, where=denominators != 0)
    return estimates


def percentile_interval(estimates: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the ends of the central 95 % interval of the estimates `[replicates, ...]`: low and high, `[...]` each.

    Replicates without an estimate (NaN) are left out. Where their share exceeds one tail (2.5 %), both ends are NaN:
    with up to three clusters, more replicates than that draw no cluster.
    """
    ordered = np.sort(estimates, axis=0)  # NaN comes last
    found = np.count_nonzero(~np.isnan(estimates), axis=0)
    enough = found >= (1 - _TAIL) * len(estimates)
    low, high = (_quantile(ordered, np.where(enough, found, 1), share) for share in (_TAIL, 1 - _TAIL))
    return np.where(enough, low, np.nan), np.where(enough, high, np.nan)


def _quantile(ordered: NDArray[np.float64], found: NDArray[np.int64], share: float) -> NDArray[np.float64]:
    """Return a quantile of the first `found` values along the first axis, linearly interpolated."""
    position = share * (found - 1)
    below = np.floor(position).astype(np.int64)
    above = np.minimum(below + 1, found - 1)
    left, right = (np.take_along_axis(ordered, index[np.newaxis], axis=0)[0] for index in (below, above))
    quantile: NDArray[np.float64] = left + (position - below) * (right - left)
    return quantile
