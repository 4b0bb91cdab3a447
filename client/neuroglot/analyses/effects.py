"""Does losing a type cost more than losing as many random active neurons? A paired test for each type."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from neuroglot.analyses.ablations import ABLATED, Ablations
from neuroglot.analyses.fold import Analysis, Measures
from neuroglot.analyses.statistics import RESAMPLES, clustered_interval, holm, sign_flip_test
from neuroglot.analyses.style import COLUMN_INCHES, CONTROL_MARK, FAINT, TYPE_COLOURS, TYPE_MARKERS, TYPE_TEXT_COLOURS
from neuroglot.results import BASELINE, GroupResult, RowPrediction


class Metric(StrEnum):
    """What is compared of a row's predictions."""

    EXACT = "exact_percent"
    """Whether every gold token is the first choice: 100 or 0, so that means are percentages."""
    LOG_PROBABILITY = "gold_log_probability"
    """Of the gold answer, in nats. It moves where exact match cannot, because nearly all rows are right or wrong."""

    @property
    def axis(self) -> str:
        """What an axis of differences says."""
        return {
            Metric.EXACT: "exact match (percentage points)",
            Metric.LOG_PROBABILITY: "log-probability of the gold answer (nats)",
        }[self]

    def of(self, prediction: RowPrediction) -> float | None:
        """Its value for one row; None where the row has no answer, or no prediction."""
        if self is Metric.EXACT:
            return None if prediction.exact is None else 100.0 * prediction.exact
        return prediction.gold_log_probability


@dataclass(frozen=True)
class Effect:
    """What the loss of one type does to one metric, against the loss of as many random active neurons.

    Attributes:
        metric: what is compared; it gives the unit of all that follows up to `high`.
        type: label of the type.
        baseline: mean with nothing deactivated.
        without: mean without the type.
        control: mean without random neurons, over all draws.
        control_lowest: mean of the lowest draw.
        control_highest: mean of the highest draw.
        difference: without the type - without random neurons.
        low: lower end of its 95 % interval, which respects clusters.
        high: upper end.
        p: of the sign-flip test over clusters, two-sided.
        p_holm: the same, corrected for all types and metrics.
        active_neurons: neurons active in a row that were deactivated, in the type as in its control; mean.
        rows: pairs of a group and a language that have all predictions.
        clusters: of groups that are not independent.
        draws: of the control.
    """

    metric: Metric
    type: str
    baseline: float
    without: float
    control: float
    control_lowest: float
    control_highest: float
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    active_neurons: float
    rows: int
    clusters: int
    draws: int


class Effects(Analysis):
    """Each type against its control, paired by row, clustered, Holm-corrected."""

    name = "effects"
    title = "What a type's loss costs beyond that of random neurons"

    def __init__(self, languages: tuple[str, ...], ablations: Ablations, clusters: Mapping[str, str]) -> None:
        """Start with no result.

        Args:
            languages: the rows of every result.
            ablations: the variants that every result must have.
            clusters: the cluster of a group, by the group's id; a group that is not in it is a cluster by itself.
        """
        super().__init__(languages)
        self.ablations = ablations
        self._clusters = clusters
        self._tested: tuple[Effect, ...] | None = None  # the tests take a second, and many ask for them

    def measure(self, result: GroupResult) -> Measures:
        """Of the group's cluster: rows and active neurons `[types, 2]`, and of each metric `[types, 2 + draws]`.

        The columns of a metric are its sums at the baseline, without the type, and in each draw of its control. Only
        rows that have all of these predictions count.
        """
        counts = np.zeros((len(ABLATED), 2))
        sums = {metric: np.zeros((len(ABLATED), 2 + self.ablations.draws)) for metric in Metric}
        for line, kind in enumerate(ABLATED):
            names = (BASELINE, self.ablations.without(kind), *self.ablations.controls(kind))
            for language in self.languages:
                rows = [result.predictions[name][language] for name in names]
                values = {metric: [metric.of(row) for row in rows] for metric in Metric}
                if None in values[Metric.EXACT]:
                    continue
                counts[line] += 1, rows[1].selected_active_neurons
                for metric in Metric:
                    sums[metric][line] += np.array(values[metric])
        cluster = self._clusters.get(result.group_id, result.group_id)
        return {(cluster, "counts"): counts} | {(cluster, metric): one for metric, one in sums.items()}

    def effects(self) -> tuple[Effect, ...]:
        """What the loss of each type does, exact match first.

        Raises:
            AnalysisError: no result was added yet.
        """
        self.require_results()
        if self._tested is None:
            tests = [(metric, line) for metric in Metric for line in range(len(ABLATED))]
            p_values = [sign_flip_test(self._differences(*test), self.ablations.seed) for test in tests]
            corrected = holm(p_values)
            self._tested = tuple(map(self._effect, *zip(*tests, strict=True), p_values, corrected))
        return self._tested

    def records(self) -> Iterator[dict[str, object]]:
        """One row a metric and type, with the fields of `Effect`."""
        return ({**asdict(effect), "metric": effect.metric.value} for effect in self.effects())

    def definition(self) -> str:
        """Says the test, too."""
        return (
            "A row's score without the type minus its score without as many random active neurons (mean of the draws). "
            "Tested by flipping the signs of whole clusters at random; p-values are Holm-corrected over all tests."
        )

    def caption(self) -> str:
        """Says the tests, and how many rows and clusters they are over."""
        effect = self.effects()[0]
        return (
            f"Without a type minus without as many random active neurons: mean over {effect.rows:,} rows in "
            f"{effect.clusters:,} clusters, with a 95 % interval that respects them. Open circles: each of "
            f"{effect.draws} draws of the control. p: sign-flip permutation test over clusters ({RESAMPLES:,} flips), "
            f"Holm-corrected over all {len(self.effects())} tests.{self.ablations.where(self.geometry)}"
        )

    def draw(self) -> Figure:
        """A panel a metric, a line a type: the difference, its interval, the draws, and the corrected p-value."""
        figure = Figure(figsize=(COLUMN_INCHES, 2.5), layout="constrained")
        for axes, metric in zip(figure.subplots(len(Metric), 1), Metric, strict=True):
            self._panel(axes, metric)
        return figure

    def _panel(self, axes: Axes, metric: Metric) -> None:
        axes.axvline(0, color=FAINT, linewidth=0.8)
        sums, rows = self._sums(metric).sum(axis=1), self._sums("counts").sum(axis=1)[:, 0]
        shown = [effect for effect in self.effects() if effect.metric is metric]
        for height, (kind, effect) in enumerate(zip(ABLATED, shown, strict=True)):
            draws = (sums[height, 1] - sums[height, 2:]) / rows[height]
            axes.plot(draws, np.full(len(draws), height + 0.3), **CONTROL_MARK)
            axes.hlines(height, effect.low, effect.high, color=TYPE_COLOURS[kind], linewidth=1.6)
            axes.plot(effect.difference, height, TYPE_MARKERS[kind], color=TYPE_COLOURS[kind], markersize=4.5)
            axes.text(1.02, height, p_words(effect.p_holm), transform=axes.get_yaxis_transform(), va="center")
        axes.set_yticks(range(len(ABLATED)), [f"w/o {kind.label}" for kind in ABLATED])
        for label, kind in zip(axes.get_yticklabels(), ABLATED, strict=True):
            label.set_color(TYPE_TEXT_COLOURS[kind])
        axes.set_ylim(len(ABLATED) - 0.4, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.margins(x=0.08)
        axes.set_xlabel(metric.axis)

    def _sum(self, measures: Measures) -> None:
        self._tested = None
        super()._sum(measures)

    def _sums(self, what: Metric | str) -> NDArray[np.float64]:
        """Sums `[types, clusters, columns]`, clusters in the order of their names."""
        clusters = sorted(cluster for cluster, other in self.sums if other == what)
        return np.stack([self.sums[cluster, what] for cluster in clusters], axis=1)

    def _differences(self, metric: Metric, line: int) -> NDArray[np.float64]:
        """Without a type - without its control, summed over a cluster's rows and draws (so that it stays whole)."""
        sums = self._sums(metric)[line]
        differences: NDArray[np.float64] = self.ablations.draws * sums[:, 1] - sums[:, 2:].sum(axis=1)
        return differences

    def _effect(self, metric: Metric, line: int, p: float, p_holm: float) -> Effect:
        counts, draws = self._sums("counts")[line], self.ablations.draws
        rows, active = counts.sum(axis=0).tolist()
        means = self._sums(metric)[line].sum(axis=0) / (rows or math.nan)
        baseline, without, *controls = means.tolist()
        interval = clustered_interval(self._differences(metric, line), draws * counts[:, 0])
        return Effect(
            metric=metric,
            type=ABLATED[line].label,
            baseline=baseline,
            without=without,
            control=sum(controls) / draws,
            control_lowest=min(controls),
            control_highest=max(controls),
            difference=without - sum(controls) / draws,
            low=interval.low,
            high=interval.high,
            p=p,
            p_holm=p_holm,
            active_neurons=active / (rows or math.nan),
            rows=int(rows),
            clusters=len(counts),
            draws=draws,
        )


def p_words(p: float) -> str:
    """A p-value as it is printed: `p = 0.04`, or `p < 0.001`."""
    if p < 0.001:
        return "p < 0.001"
    return f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"
