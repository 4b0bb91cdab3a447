"""Paired comparisons of a variant with a reference on the same rows, tested by cluster."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from neuroglot.analyses.accuracy.predictions import Metric
from neuroglot.analyses.base.bootstrap import percentile_interval, ratios
from neuroglot.analyses.base.fold import Fold, Measures
from neuroglot.analyses.base.statistics import holm, sign_flip_tests
from neuroglot.results.results import BASELINE, GroupResult

METRICS = tuple(Metric)

NO_DIFFERENCE = 1e-5
"""A row's difference up to this, in nats or percentage points, counts as 0: float32 logits carry no more digits, and
the same row in another batch differs by rounding."""

_ROWS, _ACTIVE, _BASELINE, _VARIANT, _REFERENCES = range(5)  # columns; those of the references are from the last on


class Comparison(NamedTuple):
    """A variant and its reference.

    Attributes:
        variant: name of the variant.
        references: name of one other variant, or names of all draws of a control, of which the mean is taken.
    """

    variant: str
    references: tuple[str, ...]


class PairedTest(NamedTuple):
    """One of several tests.

    Attributes:
        comparison: the variant and its reference.
        metric: the metric.
        language: the only language tested; None for all languages pooled.
    """

    comparison: Comparison
    metric: Metric
    language: str | None = None


@dataclass(frozen=True)
class Difference:
    """Result of a test.

    Attributes:
        test: the test; its metric gives the unit of the fields up to `high`.
        baseline: mean over the rows under the baseline.
        variant: mean under the variant.
        reference: mean of the reference, over all draws.
        reference_lowest: mean of the lowest draw.
        reference_highest: mean of the highest draw.
        draws: mean of each draw.
        difference: variant - reference.
        low: lower end of its 95 % bootstrap interval over clusters.
        high: upper end.
        p: two-sided p-value of the sign-flip test over clusters.
        p_holm: p-value after Holm's correction over the table's tests, separately for tests of single languages.
        active_neurons: mean number of active neurons in a row that the variant changed.
        rows: number of rows (group and language) that have all predictions.
        clusters: number of clusters of dependent groups that have at least one of these rows.
    """

    test: PairedTest
    baseline: float
    variant: float
    reference: float
    reference_lowest: float
    reference_highest: float
    draws: tuple[float, ...]
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    active_neurons: float
    rows: int
    clusters: int


class Paired:
    """The paired tests of one analysis over its current sums."""

    def __init__(self, fold: Fold, tests: Sequence[PairedTest]) -> None:
        """Define the tests.

        Args:
            fold: the analysis, which adds `measure(...)` to its sums.
            tests: the tests, in the order of the table.
        """
        self._fold = fold
        self._tests = tests
        self._comparisons = tuple(dict.fromkeys(test.comparison for test in tests))
        # Cached by number of groups: the tests are slow, and table, figure and caption all read them.
        self._tested: tuple[int, tuple[Difference, ...]] = 0, ()

    def measure(self, result: GroupResult) -> Measures:
        """Return `[languages, metrics, 4 + references]` by comparison, under the key `("pairs", comparison)`.

        The columns are rows, active neurons that the variant changed, and the sums of the metric under the baseline,
        the variant and each reference. Only rows that have the metric under all of these are counted. A reference that
        differs from the variant by no more than `NO_DIFFERENCE` counts as equal to it.
        """
        return {("pairs", comparison): self._pairs(result, comparison) for comparison in self._comparisons}

    def differences(self) -> tuple[Difference, ...]:
        """Return the results of the tests in their order, without tests of a metric that no row has.

        Raises:
            AnalysisError: no result has been added.
        """
        self._fold.require_results()
        if self._tested[0] != self._fold.groups:
            self._tested = self._fold.groups, self._differences()
        return self._tested[1]

    def _pairs(self, result: GroupResult, comparison: Comparison) -> NDArray[np.float64]:
        names = (BASELINE, comparison.variant, *comparison.references)
        pairs = np.zeros((len(self._fold.languages), len(METRICS), 2 + len(names)))
        for row, language in enumerate(self._fold.languages):
            predictions = [result.predictions[name][language] for name in names]
            choices = self._fold.context.choices.get((result.group_id, language))
            for column, metric in enumerate(METRICS):
                values = [metric.of(prediction, choices) for prediction in predictions]
                if not any(map(math.isnan, values)):
                    baseline, variant, *references = values
                    compared = [variant if abs(variant - value) <= NO_DIFFERENCE else value for value in references]
                    active = predictions[1].selected_active_neurons
                    pairs[row, column] = 1, active, baseline, variant, *compared
        return pairs

    def _differences(self) -> tuple[Difference, ...]:
        sums = self._fold.sums
        has_rows = sum(sums["pairs", comparison][..., _ROWS].sum(axis=0) for comparison in self._comparisons)
        tests = [
            test for test in self._tests if test.metric is not Metric.CHOICE or has_rows[METRICS.index(test.metric)]
        ]
        stacked = {one: sums.stacked(("pairs", one)) for one in self._comparisons}
        by_cluster = [self._of(test, stacked[test.comparison]) for test in tests]
        sizes = [len(test.comparison.references) for test in tests]
        differences = [_difference(one) for one in by_cluster]
        p_values = sign_flip_tests(np.stack(differences, axis=1), self._fold.options.seed).tolist()
        replicated = {one: sums.replicated(("pairs", one)) for one in self._comparisons}
        intervals = [
            percentile_interval(ratios(_difference(pairs), size * pairs[:, _ROWS]))
            for size, pairs in zip(sizes, (self._of(test, replicated[test.comparison]) for test in tests), strict=True)
        ]
        return tuple(map(_summary, tests, by_cluster, intervals, p_values, _corrected(tests, p_values)))

    def _of(self, test: PairedTest, pairs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Select the data of one test: `[..., 4 + references]` from `[..., languages, metrics, 4 + references]`."""
        of_metric = pairs[..., METRICS.index(test.metric), :]
        if test.language is None:
            total: NDArray[np.float64] = of_metric.sum(axis=-2)
            return total
        return of_metric[..., self._fold.languages.index(test.language), :]


def _difference(pairs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return variant - reference, summed over rows and references: exact for counts, 0 if all are equal."""
    difference: NDArray[np.float64] = (pairs[..., _VARIANT, np.newaxis] - pairs[..., _REFERENCES:]).sum(axis=-1)
    return difference


def _corrected(tests: Sequence[PairedTest], p_values: Sequence[float]) -> list[float]:
    """Apply Holm's correction separately to the tests of all languages pooled and to those of single languages."""
    families: dict[bool, list[int]] = defaultdict(list)
    for index, test in enumerate(tests):
        families[test.language is None].append(index)
    corrected = [math.nan] * len(tests)
    for family in families.values():
        for index, p in zip(family, holm([p_values[index] for index in family]), strict=True):
            corrected[index] = p
    return corrected


def _summary(
    test: PairedTest,
    by_cluster: NDArray[np.float64],
    interval: tuple[NDArray[np.float64], NDArray[np.float64]],
    p: float,
    p_holm: float,
) -> Difference:
    sums = by_cluster.sum(axis=0)
    active, baseline, variant, *draws = (sums[1:] / (sums[_ROWS] or math.nan)).tolist()
    low, high = map(float, interval)
    reference = sum(draws) / len(draws)
    return Difference(
        test=test,
        baseline=baseline,
        variant=variant,
        reference=reference,
        reference_lowest=min(draws),
        reference_highest=max(draws),
        draws=tuple(draws),
        difference=sum(variant - draw for draw in draws) / len(draws),
        low=low,
        high=high,
        p=p,
        p_holm=p_holm,
        active_neurons=active,
        rows=int(sums[_ROWS]),
        clusters=int(np.count_nonzero(by_cluster[:, _ROWS])),
    )
