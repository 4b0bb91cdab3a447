"""Contributions by type and layer, mean of a neuron and sum of a type: the paper's Figure 9."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from neuroglot.analyses.base import words
from neuroglot.analyses.base.bootstrap import percentile_interval, ratios
from neuroglot.analyses.base.context import Need
from neuroglot.analyses.base.fold import Analysis, Measures
from neuroglot.analyses.base.lines import type_lines
from neuroglot.analyses.base.shares import Compared, Shares
from neuroglot.analyses.figures.style import COLUMN_INCHES, layer_axis, percent_axis, type_key
from neuroglot.request.neurons import NeuronType
from neuroglot.results.results import GroupResult


class Contributions(Analysis):
    """Mean contribution of a neuron of each type, and sum over the neurons of a type, over languages and groups.

    The mean is over neurons: the sum of the contributions of a type over all groups and languages, divided by the
    number of its neurons there. A group is thus weighted by its number of neurons of the type.
    """

    name = "contributions"
    title = "Contribution of each type"
    paper = "Figure 9"

    needs = frozenset({Need.CONTRIBUTION})

    def measure(self, result: GroupResult) -> Measures:
        """Return contributions and neuron counts by component and type, summed over languages, `[layers, 4]` each."""
        measures = {}
        for name, component in result.components.items():
            types = component.thresholds[0]
            measures["contributions", name] = types.contribution.sums.sum(axis=0)
            measures["neurons", name] = types.counts() * len(self.languages)
        return measures

    def means(self, component: str) -> Shares:
        """Return the mean contribution of a neuron in percent of its layer, `[layers, 4]`; NaN without neurons."""
        return self._shares(
            self.sums["contributions", component],
            self.sums["neurons", component],
            self.sums.replicated(("contributions", component)),
            self.sums.replicated(("neurons", component)),
        )

    def totals(self, component: str) -> Shares:
        """Return the summed contribution of the neurons of each type in percent of their layer, `[layers, 4]`."""
        return self._shares(
            self.sums["contributions", component],
            np.array(self.groups * len(self.languages)),
            self.sums.replicated(("contributions", component)),
            self.sums.replicated_sizes() * len(self.languages),
        )

    def records(self) -> Iterator[dict[str, object]]:
        """One row a layer and type.

        Columns component, layer, type; mean_percent (contribution of a neuron, in percent of its layer; empty if no
        group has neurons of the type) and sum_percent (of all neurons of the type; the four of a layer sum to 100),
        each with its 95 % interval (`_low`, `_high`); mean_neurons (of the type in a group), groups.
        """
        for component, (layers, _) in self.geometry.items():
            means, totals = self.means(component), self.totals(component)
            neurons = self.sums.mean(("neurons", component)) / len(self.languages)
            yield from (
                {
                    "component": component,
                    "layer": layer,
                    "type": kind.label,
                    "mean_percent": means.mean[layer, kind],
                    "mean_low": means.low[layer, kind],
                    "mean_high": means.high[layer, kind],
                    "sum_percent": totals.mean[layer, kind],
                    "sum_low": totals.low[layer, kind],
                    "sum_high": totals.high[layer, kind],
                    "mean_neurons": neurons[layer, kind],
                    "groups": self.groups,
                }
                for layer in range(layers)
                for kind in NeuronType
            )

    def definition(self) -> str:
        """Define contribution, mean and sum."""
        return (
            "A neuron's contribution (Eq. 3) is |m| times the norm of its value row, as a share of its layer's sum. "
            "Sum: over all neurons of a type, mean over groups and languages. Mean: over all neurons of the type in "
            "all groups; groups without neurons of the type do not enter it."
        )

    def caption(self) -> str:
        """Caption with the contribution of the average neuron, and the sample."""
        average = " and ".join(f"{100 / count:.2g} % ({name})" for name, (_, count) in self.geometry.items())
        return (
            f"Contribution of one neuron of each type (left) and of all its neurons (right), in percent of the layer. "
            f"The average neuron contributes {average}. Mean over {words.sample(self)}. {words.band(self)} The paper's "
            "Figure 9."
        )

    def draw(self) -> Figure:
        """Draw the mean on the left, the sum on the right, one line a type, one row of panels a component."""
        figure = Figure(figsize=(COLUMN_INCHES, 0.4 + 1.7 * len(self.geometry)), layout="constrained")
        panels = figure.subplots(len(self.geometry), 2, squeeze=False)
        for (left, right), (component, (layers, _)) in zip(panels, self.geometry.items(), strict=True):
            means, totals = self.means(component), self.totals(component)
            for axes, shares in ((left, means), (right, totals)):
                compared = Compared(shares, Shares.none(shares.mean.shape))
                type_lines(axes, compared)
                layer_axis(axes, layers)
                percent_axis(axes, 1.04 * compared.highest())
                axes.set_xlabel("layer")
            name = f"{component}, " if len(self.geometry) > 1 else ""
            left.set_title(f"{name}one neuron (%)")
            right.set_title(f"{name}all together (%)")
        type_key(figure)
        return figure

    @staticmethod
    def _shares(
        sums: NDArray[np.float64],
        sizes: NDArray[np.float64],
        replicated: NDArray[np.float64],
        replicated_sizes: NDArray[np.float64],
    ) -> Shares:
        low, high = percentile_interval(ratios(replicated, replicated_sizes))
        mean = np.divide(sums, sizes, out=np.full(sums.shape, np.nan), where=sizes > 0)
        return Shares(*(100 * values for values in (mean, low, high)))
