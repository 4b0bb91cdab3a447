"""The four types by layer in several runs, as in the paper's Figures 7, 14, 15 and 20."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from neuroglot.analyses.figures.style import (
    COLUMN_INCHES,
    FONT_SIZE,
    TYPE_TEXT_COLOURS,
    TYPES,
    layer_axis,
    percent_axis,
)
from neuroglot.analyses.types.types_by_layer import TypesByLayer
from neuroglot.comparison.compared_runs import ComparedRun
from neuroglot.comparison.comparison import Comparison
from neuroglot.comparison.series import Series, look_key, series_of
from neuroglot.request.neurons import NeuronType

_BAND_OPACITY = 0.15


class TypesAcrossRuns(Comparison):
    """Share of each type by layer, one line a run and component."""

    name = "types_across_runs"
    title = "Types of neurons by layer, runs compared"
    paper = "Figures 7, 14, 15, 20"
    needs = TypesByLayer.name

    def records(self, run: ComparedRun) -> Iterator[dict[str, object]]:
        """One row a component, layer and type.

        Columns component, layer, relative_depth (0 the first layer, 1 the last), type, share_percent, share_low,
        share_high (its 95 % interval), mismatched_share_percent, groups.
        """
        fold = types_of(run)
        for component, (layers, _) in fold.geometry.items():
            matched, mismatched = fold.compared(component)
            yield from (
                {
                    "component": component,
                    "layer": layer,
                    "relative_depth": layer / max(layers - 1, 1),
                    "type": kind.label,
                    "share_percent": matched.mean[layer, kind],
                    "share_low": matched.low[layer, kind],
                    "share_high": matched.high[layer, kind],
                    "mismatched_share_percent": mismatched.mean[layer, kind],
                    "groups": fold.groups,
                }
                for layer in range(layers)
                for kind in NeuronType
            )

    def definition(self) -> str:
        """Define the share."""
        return (
            "The share of each type among the neurons of a layer, mean over the groups of a run, for several runs, "
            "one panel a type. Definitions as in the section on types of neurons by layer."
        )

    def caption(self) -> str:
        """Caption with the sizes, and the alignment of layers."""
        aligned = (
            "Layers are aligned by index."
            if self._same_depth()
            else "The numbers of layers differ, so layers are aligned by relative depth: 0 is the first, 1 the last."
        )
        return (
            f"{self.sizes()}. {aligned} Bands: 95 % intervals, bootstrap over clusters; a line without band has too "
            f"few clusters. Corresponds to the paper's {self.paper}."
        )

    def draw(self) -> Figure:
        """Draw one panel a type."""
        figure = Figure(figsize=(COLUMN_INCHES, 2.9), layout="constrained")
        panels = figure.subplots(2, 2, sharex=True)
        series = series_of(self.runs, self.needs)
        for axes, kind in zip(panels.flat, TYPES, strict=True):
            highest = 0.0
            for one in series:
                shares = types_of(one.run).compared(one.component).matched
                depths = self._depths(one)
                line, low, high = (values[:, kind] for values in shares)
                axes.plot(depths, line, color=one.look.colour, linestyle=one.look.dash, clip_on=False)
                axes.fill_between(depths, low, high, color=one.look.colour, alpha=_BAND_OPACITY, linewidth=0)
                highest = max(highest, float(line.max()), float(np.nan_to_num(high).max()))
            percent_axis(axes, 1.06 * highest or 1.0, intervals=4)
            axes.set_title(kind.label, color=TYPE_TEXT_COLOURS[kind])
            if self._same_depth():
                layer_axis(axes, self._layers(series[0]))
        figure.supxlabel("layer" if self._same_depth() else "relative depth", fontsize=FONT_SIZE)
        figure.supylabel("share of a layer's neurons (%)", fontsize=FONT_SIZE)
        look_key(figure, [one.look for one in series])
        return figure

    def _same_depth(self) -> bool:
        return len({self._layers(one) for one in series_of(self.runs, self.needs)}) == 1

    def _layers(self, series: Series) -> int:
        return types_of(series.run).geometry[series.component][0]

    def _depths(self, series: Series) -> NDArray[np.float64]:
        layers = self._layers(series)
        return np.arange(layers) / (1 if self._same_depth() else max(layers - 1, 1))


def types_of(run: ComparedRun) -> TypesByLayer:
    """Return the types by layer of a run that includes them."""
    fold = run.study.find(TypesByLayer)
    assert fold is not None
    return fold
