"""Effects of deactivating each type, against random neurons and against the baseline, with paired tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from neuroglot.analyses.accuracy.paired import Comparison, Difference, Paired, PairedTest
from neuroglot.analyses.accuracy.predictions import Metric
from neuroglot.analyses.base.ablations import ABLATED, RANDOM_NEURONS
from neuroglot.analyses.base.context import Context, Need
from neuroglot.analyses.base.fold import Analysis, Measures
from neuroglot.analyses.base.statistics import RESAMPLES, p_words
from neuroglot.analyses.figures.style import (
    COLUMN_INCHES,
    CONTROL_MARK,
    FAINT,
    FONT_SIZE,
    INK,
    TYPE_COLOURS,
    TYPE_MARKERS,
    TYPE_TEXT_COLOURS,
)
from neuroglot.request.interventions import Intervention
from neuroglot.request.neurons import NeuronType
from neuroglot.request.selections import ControlKind
from neuroglot.results.results import BASELINE, GroupResult

_SMALL = 5.5  # font size of secondary text, in points


@dataclass(frozen=True)
class Effect:
    """Effect of deactivating one type on one metric, relative to a control or to the baseline.

    Attributes:
        metric: the metric, which gives the unit of the fields up to `high`.
        type: label of the type.
        against: `baseline`, or the kind of control: `random`, `random_active` or `random_mass`.
        baseline: mean with nothing deactivated.
        without: mean with the type deactivated.
        reference: mean of the reference; for a control, over all draws.
        reference_lowest: mean of the lowest draw.
        reference_highest: mean of the highest draw.
        difference: without - reference.
        low: lower end of its 95 % bootstrap interval over clusters.
        high: upper end.
        p: two-sided p-value of the sign-flip test over clusters.
        p_holm: p-value after Holm's correction over all tests of the table.
        active_neurons: mean number of neurons of the type that are active in a row; a control deactivates as many.
        rows: number of rows (group and language) that have all predictions.
        clusters: number of clusters of dependent groups.
        draws: number of draws of the control; 1 for the baseline.
    """

    metric: Metric
    type: str
    against: str
    baseline: float
    without: float
    reference: float
    reference_lowest: float
    reference_highest: float
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
    """Each type against its controls and the baseline, paired by row, clustered, Holm-corrected."""

    name = "effects"
    title = "What a type's loss costs beyond that of random neurons"
    paper = "Tables 2, 5, 6"

    needs = frozenset({Need.ANSWERS})

    def __init__(self, context: Context) -> None:
        """Create the analysis, without results."""
        super().__init__(context)
        self.ablations = context.ablations
        self._tests = {
            PairedTest(comparison, metric): (kind, against)
            for against in (*self.ablations.kinds, BASELINE)
            for metric in Metric
            for kind, comparison in ((kind, self._comparison(kind, against)) for kind in ABLATED)
        }
        self._paired = Paired(self, tuple(self._tests))

    @classmethod
    def variants(cls, context: Context) -> Mapping[str, Intervention]:
        """Return the ablations: each type deactivated, and its controls."""
        return context.ablations.variants()

    def measure(self, result: GroupResult) -> Measures:
        """Return `Paired.measure`."""
        return self._paired.measure(result)

    def effects(self) -> tuple[Effect, ...]:
        """Return the effects, those against the first kind of control first, exact match first.

        Raises:
            AnalysisError: no result has been added.
        """
        return tuple(map(self._effect, self._paired.differences()))

    def against_control(self) -> tuple[Effect, ...]:
        """Return the effects against the first kind of control, which figure and headlines show."""
        return tuple(effect for effect in self.effects() if effect.against == self.ablations.kinds[0])

    def records(self) -> Iterator[dict[str, object]]:
        """One row a metric, type and reference.

        Columns metric (exact_percent; gold_log_probability, in nats; choice_percent, if rows have choices), type,
        against (baseline, or a kind of control); the means baseline, without (the type) and reference (over all draws),
        and those of the lowest and highest draw, reference_lowest and reference_highest; difference (without -
        reference) with the ends low and high of its bootstrap interval over clusters; p of the sign-flip test (a row's
        difference up to 0.00001 counts as 0), and p_holm, corrected over all tests of the table; active_neurons (of the
        type, active in a row, mean); rows, clusters and draws.
        """
        return ({**asdict(effect), "metric": effect.metric.value} for effect in self.effects())

    def definition(self) -> str:
        """Define the difference and its test."""
        return (
            "The score of a row without the type minus its score without random neurons (mean over draws), or with all "
            "neurons. Tested by flipping the signs of whole clusters at random; p-values are Holm-corrected over all "
            "tests."
        )

    def caption(self) -> str:
        """Caption with the tests, and the numbers of rows and clusters."""
        effect = self.effects()[0]
        return (
            f"Without a type minus without {RANDOM_NEURONS[self.ablations.kinds[0]]}, and (hollow) minus the baseline: "
            f"mean over {effect.rows:,} rows in {effect.clusters:,} clusters, with a 95 % bootstrap interval over "
            f"clusters. Open circles: each of {effect.draws} draws of the control. p: sign-flip permutation test over "
            f"clusters ({RESAMPLES:,} flips), Holm-corrected over all {len(self.effects())} tests of the table."
            f"{self.ablations.where(self.geometry)}"
        )

    def draw(self) -> Figure:
        """Draw one panel a metric: the difference of each type to its control, with the draws, and to the baseline."""
        metrics = tuple(dict.fromkeys(effect.metric for effect in self.effects()))
        figure = Figure(figsize=(COLUMN_INCHES, 0.2 + 1.3 * len(metrics)), layout="constrained")
        for axes, metric in zip(figure.subplots(len(metrics), 1), metrics, strict=True):
            self._panel(axes, metric)
        return figure

    def _panel(self, axes: Axes, metric: Metric) -> None:
        axes.axvline(0, color=FAINT, linewidth=0.8)
        control = self.ablations.kinds[0]
        for difference in self._paired.differences():
            kind, against = self._tests[difference.test]
            if difference.test.metric is metric and against in (control, BASELINE):
                self._line(axes, ABLATED.index(kind) + 0.4 * (against == BASELINE), kind, difference)
        axes.set_yticks(
            [row + offset for row in range(len(ABLATED)) for offset in (0, 0.4)],
            [words for kind in ABLATED for words in (f"w/o {kind.label}", "against baseline")],
        )
        for index, label in enumerate(axes.get_yticklabels()):
            label.set_color(INK if index % 2 else TYPE_TEXT_COLOURS[ABLATED[index // 2]])
            label.set_fontsize(_SMALL if index % 2 else FONT_SIZE)
        axes.set_ylim(len(ABLATED) - 0.3, -0.45)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.margins(x=0.08)
        axes.set_xlabel(metric.axis)

    def _line(self, axes: Axes, height: float, kind: NeuronType, difference: Difference) -> None:
        """Draw one comparison: difference, interval and p; filled, and with the draws, if against a control."""
        colour = TYPE_COLOURS[kind]
        is_control = self._tests[difference.test][1] != BASELINE
        if is_control:
            draws = difference.variant - np.array(difference.draws)
            axes.plot(draws, np.full(len(draws), height + 0.17), **CONTROL_MARK)
        axes.hlines(height, difference.low, difference.high, color=colour, linewidth=1.6 if is_control else 0.8)
        axes.plot(
            difference.difference,
            height,
            TYPE_MARKERS[kind],
            color=colour,
            markersize=4.5 if is_control else 3.5,
            markerfacecolor=colour if is_control else "white",
        )
        size = FONT_SIZE if is_control else _SMALL
        words = p_words(difference.p_holm)
        axes.text(1.02, height, words, fontsize=size, transform=axes.get_yaxis_transform(), va="center")

    def _comparison(self, kind: NeuronType, against: ControlKind | str) -> Comparison:
        references = self.ablations.controls(kind, against) if isinstance(against, ControlKind) else (against,)
        return Comparison(self.ablations.without(kind), references)

    def _effect(self, difference: Difference) -> Effect:
        kind, against = self._tests[difference.test]
        return Effect(
            metric=difference.test.metric,
            type=kind.label,
            against=str(against),
            baseline=difference.baseline,
            without=difference.variant,
            reference=difference.reference,
            reference_lowest=difference.reference_lowest,
            reference_highest=difference.reference_highest,
            difference=difference.difference,
            low=difference.low,
            high=difference.high,
            p=difference.p,
            p_holm=difference.p_holm,
            active_neurons=difference.active_neurons,
            rows=difference.rows,
            clusters=difference.clusters,
            draws=len(difference.draws),
        )
