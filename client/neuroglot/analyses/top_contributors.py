"""Types among the top contributors, by layer and language: the paper's Figures 8 and 23 to 26."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from neuroglot.analyses.fold import Analysis, Measures
from neuroglot.analyses.style import (
    COLUMN_INCHES,
    TYPE_COLOURS,
    TYPE_MARKERS,
    TYPES,
    layer_axis,
    marks,
    percent_axis,
    type_key,
)
from neuroglot.neurons import NeuronType
from neuroglot.results import GroupResult

_COLUMNS = 2  # of small panels, side by side


class TopContributors(Analysis):
    """Share of each type among the neurons of a layer that contribute most, mean over examples."""

    name = "top_contributors"
    title = "Types among the top 5 % of contribution"

    def measure(self, result: GroupResult) -> Measures:
        """Top contributors of each type `[languages, layers, 4]` of each component."""
        order = self.positions(result)
        return {name: one.thresholds[0].contribution.top_counts[order] for name, one in result.components.items()}

    def records(self) -> Iterator[dict[str, object]]:
        """One row a layer, language and type.

        Columns component, layer, language, type, share_percent (of the top contributors, mean over examples),
        mean_neurons (of them), groups.
        """
        for component, (layers, _) in self.geometry.items():
            means = self.sums[component] / self.groups
            shares = self._shares(component)
            yield from (
                {
                    "component": component,
                    "layer": layer,
                    "language": language,
                    "type": kind.label,
                    "share_percent": shares[row, layer, kind],
                    "mean_neurons": means[row, layer, kind],
                    "groups": self.groups,
                }
                for layer in range(layers)
                for row, language in enumerate(self.languages)
                for kind in NeuronType
            )

    def definition(self) -> str:
        """Says what a contribution is, too."""
        return (
            "A neuron's contribution (Eq. 3) is |m| times the norm of its value row, as a share of its layer's sum; m "
            "is what multiplies the value row. The top are the 5 % of a layer's neurons that contribute most, in one "
            "language."
        )

    def caption(self) -> str:
        """Says how many neurons are the top, of how many, over how many prompts."""
        top = " and ".join(
            f"{self._top(name)} of {neurons:,} {name} neurons" for name, (_, neurons) in self.geometry.items()
        )
        return (
            f"Types of the top 5 % contributors of a layer ({top}), by language. Mean over {self.groups:,} prompts in "
            "each language; every four shares add up to 100 %. The paper's Figure 23."
        )

    def draw(self) -> Figure:
        """One small panel a language and component, one line a type; the key stands once, above.

        The encoder's panels stand left, the decoder's right of them.
        """
        panels = [(component, row) for row in range(len(self.languages)) for component in self.geometry]
        lines = math.ceil(len(panels) / _COLUMNS)
        figure = Figure(figsize=(COLUMN_INCHES, 0.75 + 0.82 * lines), layout="constrained")
        grid = figure.subplots(lines, _COLUMNS, sharex="col", sharey=True, squeeze=False)
        for axes, (component, row) in zip(grid.flat, panels, strict=False):
            self._panel(axes, component, row)
        for axes in grid.flat[len(panels) :]:
            axes.remove()
        figure.supxlabel("layer", fontsize=7)
        figure.supylabel("top contributors (%)", fontsize=7)
        type_key(figure)
        return figure

    def _panel(self, axes: Axes, component: str, row: int) -> None:
        layers, _ = self.geometry[component]
        shares = self._shares(component)[row]
        for kind in TYPES:
            axes.plot(
                shares[:, kind],
                color=TYPE_COLOURS[kind],
                marker=TYPE_MARKERS[kind] if marks(layers) else None,
                markersize=2.4,
                clip_on=False,
            )
        layer_axis(axes, layers)
        percent_axis(axes, 100, intervals=2)
        axes.set_title(self.languages[row] if len(self.geometry) == 1 else f"{self.languages[row]}, {component}", pad=2)

    def _shares(self, component: str) -> NDArray[np.float64]:
        """Shares in percent, `[languages, layers, 4]`."""
        counts = self.sums[component]
        shares: NDArray[np.float64] = 100 * counts / counts.sum(axis=-1, keepdims=True)
        return shares

    def _top(self, component: str) -> int:
        return int(self.sums[component][0, 0].sum()) // self.groups
