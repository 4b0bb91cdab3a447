"""Shares in percent with bootstrap intervals, for groups and for mismatched groups."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from neuroglot.analyses.base.bootstrap import percentile_interval, ratios
from neuroglot.analyses.base.fold import Fold, Sums


class Shares(NamedTuple):
    """Shares in percent, means over groups.

    Attributes:
        mean: means, `[...]`.
        low: lower ends of the 95 % intervals, `[...]`.
        high: upper ends, `[...]`.
    """

    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @classmethod
    def of(cls, sums: Sums, key: Any, whole: float, weights: NDArray[np.float64] | None = None) -> Self:
        """Compute shares from sums of counts.

        Args:
            sums: sums of at least one group.
            key: key of the counts.
            whole: the count of one group that is 100 %.
            weights: matrix by which the last axis of the counts is multiplied first; None for no product.
        """
        mean, replicated = sums.mean(key), sums.replicated(key)
        if weights is not None:
            mean, replicated = mean @ weights, replicated @ weights
        low, high = percentile_interval(ratios(replicated, sums.replicated_sizes()))
        return cls(*(100 / whole * values for values in (mean, low, high)))

    @classmethod
    def none(cls, shape: tuple[int, ...]) -> Self:
        """Return NaN of the given shape, where there are no groups."""
        nothing = np.full(shape, np.nan)
        return cls(nothing, nothing, nothing)

    def at(self, index: Any) -> Self:
        """Return the shares at an index."""
        return type(self)(*(values[index] for values in self))


class Compared(NamedTuple):
    """Shares in the groups and in the mismatched groups."""

    matched: Shares
    mismatched: Shares

    @classmethod
    def of(cls, fold: Fold, key: Any, whole: float, weights: NDArray[np.float64] | None = None) -> Self:
        """Compute both from the sums of a fold; arguments as in `Shares.of`."""
        matched = Shares.of(fold.sums, key, whole, weights)
        if not fold.mismatched:
            return cls(matched, Shares.none(matched.mean.shape))
        return cls(matched, Shares.of(fold.mismatched, key, whole, weights))

    def at(self, index: Any) -> Self:
        """Return the shares at an index."""
        return type(self)(*(shares.at(index) for shares in self))

    def highest(self) -> float:
        """Return the largest share or upper end of an interval."""
        return float(np.max([np.nan_to_num(values) for shares in self for values in (shares.mean, shares.high)]))

    def columns(self, index: Any) -> dict[str, object]:
        """Return the table columns of the share at an index."""
        return dict(self._columns(index))

    def _columns(self, index: Any) -> Iterator[tuple[str, object]]:
        for prefix, shares in (("", self.matched), ("mismatched_", self.mismatched)):
            yield f"{prefix}share_percent", shares.mean[index]
            yield f"{prefix}share_low", shares.low[index]
            yield f"{prefix}share_high", shares.high[index]
