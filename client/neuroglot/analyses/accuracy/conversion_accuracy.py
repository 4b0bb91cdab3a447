"""Accuracy when types are converted to all-shared, and when the same activations are zeroed: the paper's Table 3."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from neuroglot.analyses.accuracy.paired import Comparison, Difference, Paired, PairedTest
from neuroglot.analyses.accuracy.predictions import Metric, accuracy_columns, accuracy_measures
from neuroglot.analyses.base.context import Context, Need
from neuroglot.analyses.base.conversions import CONVERTED
from neuroglot.analyses.base.fold import Analysis, Measures
from neuroglot.analyses.base.statistics import RESAMPLES, p_words
from neuroglot.analyses.base.words import sample
from neuroglot.analyses.figures.style import (
    COLUMN_INCHES,
    CONTROL_MARK,
    FAINT,
    FONT_SIZE,
    INK,
    RULE,
    TYPE_COLOURS,
    key,
)
from neuroglot.request.interventions import Intervention
from neuroglot.request.neurons import NeuronType
from neuroglot.results.results import BASELINE, GroupResult

_COLOUR = TYPE_COLOURS[NeuronType.ALL_SHARED]  # the type that neurons are converted to
_TWIN_MARK: Any = CONTROL_MARK | {"markersize": 5.4, "markeredgecolor": INK}  # around the mark of the conversion


class ConversionAccuracy(Analysis):
    """Accuracy of every conversion and its zeroing twin by language, and their paired differences."""

    name = "conversions"
    title = "Accuracy when types are converted to all-shared"
    paper = "Table 3"

    needs = frozenset({Need.ANSWERS})

    def __init__(self, context: Context) -> None:
        """Create the analysis, without results."""
        super().__init__(context)
        self.conversions = context.conversions
        comparisons = {
            Comparison(self.conversions.converted(name), (reference,)): (name, against)
            for name in CONVERTED
            for against, reference in (("baseline", BASELINE), ("zeroed", self.conversions.zeroed(name)))
        }
        self._labels = comparisons
        self._paired = Paired(
            self,
            [
                PairedTest(comparison, metric, language)
                for metric in Metric
                for comparison in comparisons
                for language in (None, *self.languages)
            ],
        )

    @classmethod
    def variants(cls, context: Context) -> Mapping[str, Intervention]:
        """Return the conversions and their twins."""
        return context.conversions.variants()

    def measure(self, result: GroupResult) -> Measures:
        """Return `accuracy_measures` and `Paired.measure`."""
        variants = (BASELINE, *self.conversions.variants())
        return {**accuracy_measures(self, result, variants), **self._paired.measure(result)}

    def records(self) -> Iterator[dict[str, object]]:
        """One row a variant and language.

        Columns variant, condition (baseline; converted; zeroed: the inactive neurons of the same types set to 0),
        converted (the types), language, and the columns of `accuracy` from `rows` on.
        """
        yield from self._records(BASELINE, "baseline", None)
        for name in CONVERTED:
            yield from self._records(self.conversions.converted(name), "converted", name)
            yield from self._records(self.conversions.zeroed(name), "zeroed", name)

    def tables(self) -> Mapping[str, pd.DataFrame]:
        """Also `conversion_effects`: paired differences, one row a metric, conversion and language.

        Columns metric, converted, against (baseline, or the zeroed twin), language (or all), the means baseline,
        converted_mean and reference; difference with the ends low and high of its bootstrap interval over clusters; p
        of the sign-flip test (a row's difference up to 0.00001 counts as 0), and p_holm, corrected over the tests of
        all languages pooled, or over those of single languages; rows and clusters.
        """
        effects = pd.DataFrame([self._effect(one) for one in self._paired.differences()])
        return {**super().tables(), "conversion_effects": effects}

    def definition(self) -> str:
        """Define the conversion and its twin."""
        return (
            "Converting a type makes its neurons active in the languages in which they are inactive: at "
            f"{self.position}, their activation becomes {self._converted_to()}. The twin sets the same activations to "
            "0. Changes are differences in exact match, paired by row."
        )

    def caption(self) -> str:
        """Caption with the meaning of the marks, the tests, and the equality of default conversion and twin."""
        same = (
            " The next float above a threshold of 0 is numerically 0, so conversion and twin are equivalent: both set "
            "the negative activations of a GELU or SiLU to 0, and do not change a ReLU."
            if self._converts_to_zero()
            else ""
        )
        return (
            f"Change of exact match when types are converted; {sample(self)}. Filled: conversion against the baseline, "
            f"with a 95 % bootstrap interval over clusters ({self.options.replicates:,} replicates). Open circles: "
            f"zeroing twin against the baseline. p: all languages pooled, sign-flip test over clusters "
            f"({RESAMPLES:,} flips), Holm-corrected.{same} The paper's Table 3."
        )

    def draw(self) -> Figure:
        """Draw one panel a conversion: its change against the baseline and that of its twin, by language."""
        rows = len(self.languages) + 1
        figure = Figure(figsize=(COLUMN_INCHES, 1.0 + 0.19 * rows), layout="constrained")
        panels = figure.subplots(1, len(CONVERTED), sharey=True, sharex=True)
        for axes, name in zip(panels, CONVERTED, strict=True):
            self._panel(axes, name)
        panels[0].set_yticks(range(rows), ["all", *self.languages])
        panels[0].set_ylim(rows - 0.4, -0.6)
        reach = 1.05 * max(1.0, *(max(map(abs, axes.get_xlim())) for axes in panels))
        panels[0].set_xlim(-reach, reach)
        figure.supxlabel("change of exact match (percentage points)", fontsize=FONT_SIZE)
        filled = Line2D([], [], linestyle="none", marker="o", color=_COLOUR, label="converted")
        key(figure, [filled, Line2D([], [], label="zeroed in place of converted", **_TWIN_MARK)])
        return figure

    def _panel(self, axes: Axes, name: str) -> None:
        to_baseline, to_twin = (
            [
                one
                for one in self._paired.differences()
                if self._labels[one.test.comparison] == (name, against) and one.test.metric is Metric.EXACT
            ]
            for against in ("baseline", "zeroed")
        )
        heights = np.arange(len(self.languages) + 1)
        axes.axvline(0, color=FAINT, linewidth=0.8, zorder=0)
        axes.hlines(heights, *np.transpose([(one.low, one.high) for one in to_baseline]), color=_COLOUR, linewidth=1.4)
        axes.plot([one.difference for one in to_baseline], heights, "o", color=_COLOUR, markersize=4, zorder=3)
        twins = [one.reference - one.baseline for one in to_twin]
        axes.plot(twins, heights, zorder=4, **_TWIN_MARK)
        axes.axhline(0.5, color=RULE, linewidth=0.5)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_title(f"{name}\n{p_words(to_baseline[0].p_holm)}")

    def _records(self, variant: str, condition: str, converted: str | None) -> Iterator[dict[str, object]]:
        columns = accuracy_columns(self.sums, variant)
        yield from (
            {"variant": variant, "condition": condition, "converted": converted, "language": language, **of_language}
            for language, of_language in zip(self.languages, columns, strict=True)
        )

    def _effect(self, difference: Difference) -> dict[str, object]:
        name, against = self._labels[difference.test.comparison]
        return {
            "metric": difference.test.metric.value,
            "converted": name,
            "against": against,
            "language": difference.test.language or "all",
            "baseline": difference.baseline,
            "converted_mean": difference.variant,
            "reference": difference.reference,
            "difference": difference.difference,
            "low": difference.low,
            "high": difference.high,
            "p": difference.p,
            "p_holm": difference.p_holm,
            "rows": difference.rows,
            "clusters": difference.clusters,
        }

    def _converts_to_zero(self) -> bool:
        conversions = self.conversions
        return conversions.value is None and not conversions.mean_of_active and self.options.thresholds[0] == 0

    def _converted_to(self) -> str:
        if self.conversions.mean_of_active:
            return "the mean over the languages in which the neuron is active"
        if self.conversions.value is not None:
            return f"{self.conversions.value:g}"
        return f"the next float above the threshold {self.options.thresholds[0]:g}"
