"""The four types over all layers by run; the paper's Figure 21 for runs that differ in their number of shots."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from neuroglot.analyses.base.bootstrap import percentile_interval, ratios
from neuroglot.analyses.base.shares import Shares
from neuroglot.analyses.figures.style import (
    COLUMN_INCHES,
    TYPE_COLOURS,
    TYPE_MARKERS,
    TYPE_TEXT_COLOURS,
    TYPES,
    EndLabel,
    label_ends,
    percent_axis,
)
from neuroglot.analyses.types.types_by_layer import TypesByLayer
from neuroglot.comparison.compared_runs import ComparedRun
from neuroglot.comparison.comparison import Comparison
from neuroglot.comparison.series import Series, broken, numbers_of, series_of
from neuroglot.comparison.types import types_of
from neuroglot.request.neurons import NeuronType

_AXES = {"shots": "in-context examples"}
"""Axis labels of settings, where they differ from the name of the setting."""


class SharesAcrossRuns(Comparison):
    """Share of each type among all neurons of a component, mean over its layers, by run."""

    name = "shares_across_runs"
    title = "Types of neurons over all layers, runs compared"
    paper = "Figure 21"
    needs = TypesByLayer.name

    def records(self, run: ComparedRun) -> Iterator[dict[str, object]]:
        """One row a component and type.

        Columns component, type, share_percent (mean over layers and examples), share_low, share_high (its 95 %
        interval), groups.
        """
        fold = types_of(run)
        for component in fold.geometry:
            shares = over_layers(fold, component)
            yield from (
                {
                    "component": component,
                    "type": kind.label,
                    "share_percent": shares.mean[kind],
                    "share_low": shares.low[kind],
                    "share_high": shares.high[kind],
                    "groups": fold.groups,
                }
                for kind in NeuronType
            )

    def definition(self) -> str:
        """Define the share."""
        return (
            "The share of each type among all neurons of a component, mean over its layers and over the groups of a "
            "run. For its distribution over layers see the figure by layer."
        )

    def caption(self) -> str:
        """Caption with the sizes."""
        return (
            f"{self.sizes()}. Bars: 95 % intervals, bootstrap over clusters. For runs that differ in their number of "
            f"in-context examples, this corresponds to the paper's {self.paper}."
        )

    def draw(self) -> Figure:
        """Draw one panel a component if the runs are ordered by a number, else one panel with all components."""
        series = series_of(self.runs, self.needs)
        numbers = numbers_of(self.runs)
        panels = [
            [one for one in series if one.component == component]
            for component in dict.fromkeys(one.component for one in series)
        ]
        if numbers is None:
            panels = [series]
        figure = Figure(figsize=(COLUMN_INCHES, 0.3 + 1.9 * len(panels)), layout="constrained")
        ends = []
        for axes, shown in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
            positions = [float(index) for index in range(len(shown))]
            axes.set_ylabel("share of neurons (%)")
            if numbers is None:
                axes.set_xticks(positions, broken([one.look.label for one in shown]))
            else:
                positions = [numbers.values[self.runs.index(one.run)] for one in shown]
                axes.set_xticks(positions)
                axes.set_xlabel(_AXES.get(numbers.setting, numbers.setting.replace("_", " ")))
                axes.set_title(shown[0].component if len(panels) > 1 else "")
            ends.append((axes, max(positions), _type_marks(axes, positions, shown, joined=numbers is not None)))
        label_ends(figure, ends)
        return figure


def _type_marks(axes: Axes, positions: Sequence[float], series: Sequence[Series], *, joined: bool) -> list[EndLabel]:
    """Draw one mark a type with its interval at every position; return the labels of the right end."""
    shares = [over_layers(types_of(one.run), one.component) for one in series]
    means, low, high = (np.array(values) for values in zip(*shares, strict=True))
    for kind in TYPES:
        axes.vlines(positions, low[:, kind], high[:, kind], color=TYPE_COLOURS[kind], linewidth=2, alpha=0.4)
        axes.plot(
            positions,
            means[:, kind],
            color=TYPE_COLOURS[kind],
            marker=TYPE_MARKERS[kind],
            linestyle="-" if joined else (0, (1, 2)),
            linewidth=1.2 if joined else 0.6,
            clip_on=False,
        )
    percent_axis(axes, 1.06 * float(np.nan_to_num(np.fmax(means, high)).max()))
    axes.margins(x=0.06)
    last = int(np.argmax(positions))
    return [EndLabel(means[last, kind], kind.label, TYPE_TEXT_COLOURS[kind]) for kind in TYPES]


def over_layers(fold: TypesByLayer, component: str) -> Shares:
    """Return the shares of the types in percent, `[4]`, mean over a component's layers."""
    replicated = replicated_over_layers(fold, component)
    mean = 100 * fold.sums.mean(("counts", component)).mean(axis=0) / fold.geometry[component][1]
    return Shares(mean, *percentile_interval(replicated))


def replicated_over_layers(fold: TypesByLayer, component: str) -> NDArray[np.float64]:
    """Return the shares in percent in each bootstrap replicate, `[replicates, 4]`."""
    counts = ratios(fold.sums.replicated(("counts", component)), fold.sums.replicated_sizes()).mean(axis=1)
    shares: NDArray[np.float64] = 100 * counts / fold.geometry[component][1]
    return shares
