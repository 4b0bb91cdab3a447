"""Accuracy by language with each type deactivated, and with random neurons deactivated: the paper's Table 2."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from neuroglot.analyses.accuracy.predictions import (
    Count,
    accuracy_columns,
    accuracy_measures,
    percent,
    percent_interval,
)
from neuroglot.analyses.base.ablations import ABLATED, RANDOM_NEURONS
from neuroglot.analyses.base.context import Context, Need
from neuroglot.analyses.base.fold import Analysis, Measures
from neuroglot.analyses.figures.style import (
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
from neuroglot.request.interventions import Intervention
from neuroglot.request.neurons import NeuronType
from neuroglot.results.results import BASELINE, GroupResult

_SUMMARISED = ("exact", "matches", "choice")
"""Measures of accuracy in the table by language: teacher-forced, generated, and by likelihood of the choices."""


class Accuracy(Analysis):
    """Accuracy by variant and language."""

    name = "accuracy"
    title = "Accuracy without each type, and without random neurons"
    paper = "Tables 2, 5, 6"

    needs = frozenset({Need.ANSWERS})

    def __init__(self, context: Context) -> None:
        """Create the analysis, without results."""
        super().__init__(context)
        self.ablations = context.ablations

    @classmethod
    def variants(cls, context: Context) -> Mapping[str, Intervention]:
        """Return the ablations: each type deactivated, and its controls."""
        return context.ablations.variants()

    def measure(self, result: GroupResult) -> Measures:
        """Return `accuracy_measures` of all variants."""
        return accuracy_measures(self, result, self.ablations.names)

    def records(self) -> Iterator[dict[str, object]]:
        """One row a variant and language.

        Columns variant, condition (baseline, without, control), type, control (its kind), draw, language, rows,
        errors (rows without a prediction); in percent, each with Wilson's interval (`..._low`, `..._high`),
        exact_percent (every gold token has the largest logit), starts_with_answer_percent and matches_percent (the
        normalised generated text starts with, or equals, a gold answer), choice_percent (the gold answer is the most
        likely of the row's choices) and no_label_percent (the generated text starts with no choice), the last two
        empty for rows without choices; mean_gold_log_probability (nats), with the bootstrap interval over clusters
        gold_log_probability_low and _high; and the mean numbers of changed neurons in a row: selected_neurons, and
        selected_active_neurons, those of them that are active.
        """
        yield from self._records(BASELINE, condition="baseline")
        for kind in ABLATED:
            yield from self._records(self.ablations.without(kind), condition="without", type=kind.label)
            for drawn in self.ablations.kinds:
                for draw, name in enumerate(self.ablations.controls(kind, drawn)):
                    yield from self._records(name, condition="control", type=kind.label, control=drawn.value, draw=draw)

    def table(self) -> pd.DataFrame:
        """Return the table as `Fold.table`; `draw` is an integer, missing for variants that are not controls."""
        return super().table().astype({"draw": "Int64"})

    def tables(self) -> Mapping[str, pd.DataFrame]:
        """Also `accuracy_by_language`, in the form of the paper's Table 2.

        One row a measure (exact, matches, and choice if rows have choices) and variant; columns measure, variant, all
        (all languages pooled) and one a language, in percent. Controls are means over their draws.
        """
        return {**super().tables(), f"{self.name}_by_language": pd.DataFrame(list(self._by_language()))}

    def definition(self) -> str:
        """Define exact match, and the deactivated neurons."""
        return (
            "Exact match: every token of the gold answer has the largest logit, given the tokens before it. "
            f"Deactivating a type sets its neurons to 0 at {self.position}; the control sets "
            f"{RANDOM_NEURONS[self.ablations.kinds[0]]} to 0, layer by layer."
        )

    def caption(self) -> str:
        """Caption with the meaning of the marks, the numbers of rows, and the intervals."""
        rows = int(self.sums["counts", BASELINE][:, Count.SCORED].max())
        cut = " The axis does not start at 0." if self._axis_start() else ""
        where = self.ablations.where(self.geometry)
        more = " Other controls are in the table." if len(self.ablations.kinds) > 1 else ""
        return (
            f"Exact match in each language ({rows:,} prompts each) and in all languages ({self.groups:,} groups in "
            f"{len(self.sums.clusters):,} clusters). Filled marks have 95 % intervals: Wilson's in a language, which "
            "assumes independent prompts; bootstrap over clusters in all. Open circles: "
            f"{RANDOM_NEURONS[self.ablations.kinds[0]]}, {self.ablations.draws} draws.{more}{where}{cut} The table has "
            "the form of the paper's Table 2."
        )

    def draw(self) -> Figure:
        """Draw one panel a type: the baseline, the ablation and its controls, by language."""
        rows = len(self.languages) + 1
        figure = Figure(figsize=(COLUMN_INCHES, 0.9 + 0.19 * rows), layout="constrained")
        panels = figure.subplots(1, len(ABLATED), sharey=True)
        start = self._axis_start()
        for axes, kind in zip(panels, ABLATED, strict=True):
            self._panel(axes, kind, start)
        panels[0].set_yticks(range(rows), ["all", *self.languages])
        panels[0].set_ylim(rows - 0.4, -0.6)
        figure.supxlabel("exact match (%)", fontsize=FONT_SIZE)
        stroke = Line2D([], [], linestyle="none", marker="|", color=INK, markersize=7, markeredgewidth=1.2)
        stroke.set_label("baseline")
        filled = Line2D([], [], linestyle="none", marker="o", color=FAINT, label="without the type")
        key(figure, [stroke, filled, Line2D([], [], label="without random neurons", **CONTROL_MARK)])
        return figure

    def _panel(self, axes: Axes, kind: NeuronType, start: int) -> None:
        heights = np.arange(len(self.languages) + 1)
        axes.hlines(heights, start, 100, color=RULE, linewidth=0.5, zorder=0)
        axes.vlines(percent(self.sums, BASELINE), heights - 0.32, heights + 0.32, color=INK, linewidth=1.2)
        for name in self.ablations.controls(kind):
            axes.plot(percent(self.sums, name), heights, zorder=4, **CONTROL_MARK)
        low, high = percent_interval(self.sums, self.ablations.without(kind))
        axes.hlines(heights, low, high, color=TYPE_COLOURS[kind], linewidth=1.4)
        without = percent(self.sums, self.ablations.without(kind))
        axes.plot(without, heights, TYPE_MARKERS[kind], color=TYPE_COLOURS[kind], markersize=4, zorder=3)
        margin = 0.04 * (100 - start)
        axes.set_xlim(start - margin, 100 + margin)
        axes.set_xticks([start, (start + 100) / 2, 100])
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.axhline(0.5, color=FAINT, linewidth=0.5)
        axes.set_title(kind.label, color=TYPE_TEXT_COLOURS[kind])

    def _axis_start(self) -> int:
        """Return the start of the axis: 0, or the multiple of 20 below all values if that is at least 60."""
        controls = [name for kind in ABLATED for name in self.ablations.controls(kind)]
        types = [self.ablations.without(kind) for kind in ABLATED]
        shown = [percent(self.sums, name) for name in (BASELINE, *types, *controls)]
        shown += [percent_interval(self.sums, name)[0] for name in types]
        start = 20 * int(np.nanmin(np.stack(shown), initial=100) // 20)
        return start if start >= 60 else 0

    def _records(self, variant: str, **what: object) -> Iterator[dict[str, object]]:
        named = {"variant": variant, "condition": None, "type": None, "control": None, "draw": None, **what}
        columns = accuracy_columns(self.sums, variant)
        yield from (
            {**named, "language": language, **of_language}
            for language, of_language in zip(self.languages, columns, strict=True)
        )

    def _by_language(self) -> Iterator[dict[str, object]]:
        variants: dict[str, tuple[str, ...]] = {BASELINE: (BASELINE,)}
        for kind in ABLATED:
            variants[self.ablations.without(kind)] = (self.ablations.without(kind),)
            for drawn in self.ablations.kinds:
                draws = self.ablations.controls(kind, drawn)
                variants[self.ablations.control(kind, drawn)] = draws
        for measure in _SUMMARISED:
            for name, draws in variants.items():
                percents: NDArray[np.float64] = np.mean([percent(self.sums, draw, measure) for draw in draws], axis=0)
                if not np.isnan(percents).all():
                    by_language = zip(("all", *self.languages), percents.tolist(), strict=True)
                    yield {"measure": measure, "variant": name, **dict(by_language)}
