"""Accuracy by language without each type, and without as many random neurons: the form of the paper's Table 2."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from neuroglot.analyses.ablations import ABLATED, Ablations
from neuroglot.analyses.fold import Analysis, Measures
from neuroglot.analyses.statistics import wilson
from neuroglot.analyses.style import (
    COLUMN_INCHES,
    CONTROL_MARK,
    FAINT,
    FONT_SIZE,
    INK,
    RULE,
    TYPE_COLOURS,
    TYPE_MARKERS,
    TYPE_TEXT_COLOURS,
    key,
)
from neuroglot.neurons import NeuronType
from neuroglot.results import BASELINE, GroupResult, RowPrediction

_ERRORS, _SCORED, _EXACT, _GENERATED, _STARTS, _SELECTED, _SELECTED_ACTIVE, _ROWS = range(8)


def _counts(prediction: RowPrediction) -> list[int]:
    """What one row adds, in the columns named above."""
    return [
        bool(prediction.error),
        prediction.exact is not None,
        prediction.exact is True,
        prediction.starts_with_answer is not None,
        prediction.starts_with_answer is True,
        prediction.selected_neurons,
        prediction.selected_active_neurons,
        1,
    ]


class Accuracy(Analysis):
    """Accuracy of every variant in every language."""

    name = "accuracy"
    title = "Accuracy without each type, and without as many random neurons"

    def __init__(self, languages: tuple[str, ...], ablations: Ablations) -> None:
        """Start with no result.

        Args:
            languages: the rows of every result.
            ablations: the variants that every result must have.
        """
        super().__init__(languages)
        self.ablations = ablations

    def measure(self, result: GroupResult) -> Measures:
        """Counts `[languages, 8]` and log-probabilities `[languages]` of each variant."""
        sums: dict[object, NDArray[np.int64] | NDArray[np.float64]] = {}
        for name in self.ablations.names:
            rows = [result.predictions[name][language] for language in self.languages]
            sums["counts", name] = np.array([_counts(row) for row in rows], dtype=np.int64)
            sums["log_probability", name] = np.array([row.gold_log_probability or 0.0 for row in rows])
        return sums

    def records(self) -> Iterator[dict[str, object]]:
        """One row a variant and language.

        Columns variant, condition (baseline, without, control), type, draw, language, rows, errors (rows without a
        prediction), exact_percent with Wilson's interval exact_low and exact_high, starts_with_answer_percent (of what
        was generated) with its interval, mean_gold_log_probability (nats), and the mean numbers of neurons that were
        deactivated in a row: selected_neurons, and selected_active_neurons of them.
        """
        yield from self._records(BASELINE, "baseline", None, None)
        for kind in ABLATED:
            yield from self._records(self.ablations.without(kind), "without", kind, None)
            for draw, name in enumerate(self.ablations.controls(kind)):
                yield from self._records(name, "control", kind, draw)

    def table(self) -> pd.DataFrame:
        """As `Fold.table`; `draw` is an integer, missing where the variant is no control."""
        return super().table().astype({"draw": "Int64"})

    def exact_percent(self, variant: str) -> NDArray[np.float64]:
        """Exact matches of a variant in percent, `[languages + 1]`: all languages first; NaN where no row is scored."""
        counts = self.sums["counts", variant]
        exact, scored = (np.concatenate([[one.sum()], one]) for one in (counts[:, _EXACT], counts[:, _SCORED]))
        percent = np.full(len(exact), np.nan)
        np.divide(100.0 * exact, scored, out=percent, where=scored > 0)
        return percent

    def definition(self) -> str:
        """Says what is deactivated, too."""
        return (
            "Exact: every token of the gold answer is the model's first choice, given those before it. Deactivating a "
            f"type sets its neurons to 0 at {self.position}; the control does so to as many random neurons that are "
            "active in that row, layer by layer."
        )

    def caption(self) -> str:
        """Says how the marks read, the number of rows and the intervals."""
        rows = int(self.sums["counts", BASELINE][:, _SCORED].max())
        cut = " The axis does not start at 0." if self._axis_start() else ""
        where = self.ablations.where(self.geometry)
        return (
            f"Exact match in each language, {rows:,} prompts each, and in all of them. Filled marks carry Wilson's "
            "95 % interval, which takes prompts as independent. Open circles: as many random neurons that are active "
            f"in the row, {self.ablations.draws} draws.{where}{cut} The table has the form of the paper's Table 2."
        )

    def draw(self) -> Figure:
        """A panel a type: in each language the baseline, the ablation, and its controls."""
        lines = len(self.languages) + 1
        figure = Figure(figsize=(COLUMN_INCHES, 0.9 + 0.19 * lines), layout="constrained")
        panels = figure.subplots(1, len(ABLATED), sharey=True)
        start = self._axis_start()
        for axes, kind in zip(panels, ABLATED, strict=True):
            self._panel(axes, kind, start)
        panels[0].set_yticks(range(lines), ["all", *self.languages])
        panels[0].set_ylim(lines - 0.4, -0.6)
        figure.supxlabel("exact match (%)", fontsize=FONT_SIZE)
        stroke = Line2D([], [], linestyle="none", marker="|", color=INK, markersize=7, markeredgewidth=1.2)
        stroke.set_label("baseline")
        filled = Line2D([], [], linestyle="none", marker="o", color=FAINT, label="without the type")
        key(figure, [stroke, filled, Line2D([], [], label="without random neurons", **CONTROL_MARK)])
        return figure

    def _panel(self, axes: Axes, kind: NeuronType, start: int) -> None:
        heights = np.arange(len(self.languages) + 1)
        without = self.exact_percent(self.ablations.without(kind))
        baseline = self.exact_percent(BASELINE)
        axes.hlines(heights, start, 100, color=RULE, linewidth=0.5, zorder=0)
        axes.vlines(baseline, heights - 0.32, heights + 0.32, color=INK, linewidth=1.2)
        for name in self.ablations.controls(kind):
            axes.plot(self.exact_percent(name), heights, zorder=4, **CONTROL_MARK)
        low, high = self._intervals(self.ablations.without(kind))
        axes.hlines(heights, low, high, color=TYPE_COLOURS[kind], linewidth=1.4)
        axes.plot(without, heights, TYPE_MARKERS[kind], color=TYPE_COLOURS[kind], markersize=4, zorder=3)
        margin = 0.04 * (100 - start)
        axes.set_xlim(start - margin, 100 + margin)
        axes.set_xticks([start, (start + 100) / 2, 100])
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.axhline(0.5, color=FAINT, linewidth=0.5)
        axes.set_title(kind.label, color=TYPE_TEXT_COLOURS[kind])

    def _axis_start(self) -> int:
        """Where the axis starts: at 0, or just below everything where that leaves nearly all of it empty."""
        shown = [self.exact_percent(name) for name in self.ablations.names]
        lowest = min(float(np.nanmin(one, initial=100)) for one in shown)
        low, _ = zip(*(self._intervals(self.ablations.without(kind)) for kind in ABLATED), strict=True)
        start = 20 * int(min(lowest, np.nanmin(low)) // 20)
        return start if start >= 60 else 0

    def _intervals(self, variant: str) -> tuple[list[float], list[float]]:
        counts = self.sums["counts", variant]
        both = [wilson(int(row[_EXACT]), int(row[_SCORED])) for row in (counts.sum(axis=0), *counts)]
        return [100 * one.low for one in both], [100 * one.high for one in both]

    def _records(
        self, variant: str, condition: str, kind: NeuronType | None, draw: int | None
    ) -> Iterator[dict[str, object]]:
        counts, log_probabilities = self.sums["counts", variant], self.sums["log_probability", variant]
        for language, count, log_probability in zip(self.languages, counts, log_probabilities, strict=True):
            yield {
                "variant": variant,
                "condition": condition,
                "type": kind.label if kind is not None else None,
                "draw": draw,
                "language": language,
                "rows": int(count[_ROWS]),
                "errors": int(count[_ERRORS]),
                **_proportion("exact", int(count[_EXACT]), int(count[_SCORED])),
                **_proportion("starts_with_answer", int(count[_STARTS]), int(count[_GENERATED])),
                "mean_gold_log_probability": log_probability / count[_SCORED] if count[_SCORED] else np.nan,
                "selected_neurons": count[_SELECTED] / count[_ROWS],
                "selected_active_neurons": count[_SELECTED_ACTIVE] / count[_ROWS],
            }


def _proportion(name: str, successes: int, trials: int) -> dict[str, float]:
    low, high = wilson(successes, trials)
    return {
        f"{name}_percent": 100 * successes / trials if trials else np.nan,
        f"{name}_low": 100 * low,
        f"{name}_high": 100 * high,
    }
