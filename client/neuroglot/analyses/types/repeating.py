"""Neurons that keep their type in all examples: the paper's Figure 5."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from neuroglot.analyses.base import words
from neuroglot.analyses.base.context import Need
from neuroglot.analyses.base.fold import Analysis, Measures
from neuroglot.analyses.base.lines import component_panels, label_types
from neuroglot.analyses.base.shares import Shares
from neuroglot.analyses.figures.style import TYPE_COLOURS, TYPE_MARKERS, TYPES, marks, percent_axis
from neuroglot.request.neurons import NeuronType
from neuroglot.results.results import GroupResult

_DASHES: Any = (0, (2, 1))


class Repeating(Analysis):
    """Share of neurons that are of a type in every example, beside the mean share of the type."""

    name = "repeating"
    title = "Neurons that keep their type"
    paper = "Figure 5"

    needs = frozenset({Need.TYPE_MAP})

    def measure(self, result: GroupResult) -> Measures:
        """Return the type counts by component, `[layers, 4]`."""
        return {name: component.thresholds[0].counts() for name, component in result.components.items()}

    def measure_whole(self, result: GroupResult) -> Measures:
        """Return masks of the neurons of each type by component, `[4, layers, neurons]`."""
        kinds = np.array(list(NeuronType), dtype=np.uint8)[:, np.newaxis, np.newaxis]
        return {
            name: (component.thresholds[0].codes() == kinds).astype(np.int32)
            for name, component in result.components.items()
        }

    def always(self, component: str) -> NDArray[np.int64]:
        """Count the neurons that are of a type in all examples, `[layers, 4]`."""
        always: NDArray[np.int64] = np.count_nonzero(self.whole[component] == self.groups, axis=-1).T
        return always

    def records(self) -> Iterator[dict[str, object]]:
        """One row a layer and type.

        Columns component, layer, type, overlap_percent (neurons of the type in all examples, of the layer's neurons),
        overlap_neurons (their number), average_percent (neurons of the type in an example, mean over examples),
        average_low, average_high (its 95 % interval), kept_percent (overlap divided by average; NaN if no example has
        neurons of the type), groups.
        """
        for component, (layers, neurons) in self.geometry.items():
            always, average = self.always(component), Shares.of(self.sums, component, neurons)
            overlap = 100 * always / neurons
            kept = np.full(overlap.shape, np.nan)
            np.divide(100 * overlap, average.mean, out=kept, where=average.mean > 0)
            yield from (
                {
                    "component": component,
                    "layer": layer,
                    "type": kind.label,
                    "overlap_percent": overlap[layer, kind],
                    "overlap_neurons": always[layer, kind],
                    "average_percent": average.mean[layer, kind],
                    "average_low": average.low[layer, kind],
                    "average_high": average.high[layer, kind],
                    "kept_percent": kept[layer, kind],
                    "groups": self.groups,
                }
                for layer in range(layers)
                for kind in NeuronType
            )

    def definition(self) -> str:
        """Define overlap and average."""
        return (
            "Overlap: the share of a layer's neurons that are of one type in every example. Average: the share that is "
            "of the type in one example, mean over examples. The overlap can only decrease with more examples."
        )

    def kept(self) -> float:
        """Return the percentage of an example's non-activated neurons that are so in all examples; NaN without any."""
        always = sum(int(self.always(name)[:, NeuronType.NON_ACTIVATED].sum()) for name in self.geometry)
        average = sum(float(self.sums.mean(name)[:, NeuronType.NON_ACTIVATED].sum()) for name in self.geometry)
        return 100 * always / average if average else np.nan

    def caption(self) -> str:
        """Caption with the percentage of neurons that stay non-activated, and the sample."""
        return (
            f"Solid: share of each type among the {words.neurons(self.geometry)} of a layer, mean. Dashed: share that "
            f"keeps the type in all {self.groups:,} groups. Over {words.sample(self)}. Of the neurons that are "
            f"non-activated in a group, {self.kept():.1f} % are non-activated in all. The paper's Figure 5."
        )

    def draw(self) -> Figure:
        """Draw two lines a type, average and overlap; one panel a component."""
        figure, panels = component_panels(self.geometry, inches=2.1)
        averages = {name: 100 * self.sums.mean(name) / neurons for name, (_, neurons) in self.geometry.items()}
        for component, axes in panels.items():
            layers, neurons = self.geometry[component]
            overlaps = 100 * self.always(component) / neurons
            for kind in TYPES:
                look: Any = {
                    "color": TYPE_COLOURS[kind],
                    "marker": TYPE_MARKERS[kind] if marks(layers) else None,
                    "markersize": 2.6,
                    "clip_on": False,
                }
                axes.plot(averages[component][:, kind], **look)
                axes.plot(overlaps[:, kind], linestyle=_DASHES, markerfacecolor="white", **look)
            percent_axis(axes, 1.04 * averages[component].max())
            axes.set_xlabel("layer (dashed: the same type in all examples)")
            axes.set_ylabel(f"share of {component} neurons (%)")
        label_types(figure, panels, averages)
        return figure
