"""Shares in percent, with their intervals, and the same for mismatched groups beside them."""

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
        mean: `[...]`.
        low: lower ends of the 95 % intervals, of the same shape.
        high: upper ends.
    """

    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @classmethod
    def of(cls, sums: Sums, key: Any, whole: float, weights: NDArray[np.float64] | None = None) -> Self:
        """From the sums of counts.

        Args:
            sums: of at least one group.
            key: of the counts.
            whole: what counts 100 % in one group.
            weights: a matrix that the counts' last axis is multiplied with first.
        """
        mean, replicated = sums.mean(key), sums.replicated(key)
        if weights is not None:
            mean, replicated = mean @ weights, replicated @ weights
        low, high = percentile_interval(ratios(replicated, sums.replicated_sizes()))
        return cls(*(100 / whole * values for values in (mean, low, high)))

    @classmethod
    def none(cls, shape: tuple[int, ...]) -> Self:
        """Shares of nothing: NaN."""
        nothing = np.full(shape, np.nan)
        return cls(nothing, nothing, nothing)

    def at(self, place: Any) -> Self:
        """Those at an index."""
        return type(self)(*(values[place] for values in self))


class Compared(NamedTuple):
    """Shares in the groups, and in mismatched groups."""

    matched: Shares
    mismatched: Shares

    @classmethod
    def of(cls, fold: Fold, key: Any, whole: float, weights: NDArray[np.float64] | None = None) -> Self:
        """From the sums of a fold; arguments as of `Shares.of`."""
        matched = Shares.of(fold.sums, key, whole, weights)
        if not fold.mismatched:
            return cls(matched, Shares.none(matched.mean.shape))
        return cls(matched, Shares.of(fold.mismatched, key, whole, weights))

    def at(self, place: Any) -> Self:
        """Those at an index."""
        return type(self)(*(shares.at(place) for shares in self))

    def highest(self) -> float:
        """The largest share or end of an interval."""
        return float(np.max([np.nan_to_num(values) for shares in self for values in (shares.mean, shares.high)]))

    def columns(self, place: Any) -> dict[str, object]:
        """The columns of a table about one number."""
        return dict(self._columns(place))

    def _columns(self, place: Any) -> Iterator[tuple[str, object]]:
        for prefix, shares in (("", self.matched), ("mismatched_", self.mismatched)):
            yield f"{prefix}share_percent", shares.mean[place]
            yield f"{prefix}share_low", shares.low[place]
            yield f"{prefix}share_high", shares.high[place]
