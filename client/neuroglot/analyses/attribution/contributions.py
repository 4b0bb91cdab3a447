"""Contributions of all neurons by type and layer, a neuron's mean and their sum: the paper's Figure 9."""

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
    """Mean contribution of a neuron of each type, and their sum, over languages and groups.

    The mean is over neurons: the sum of all contributions of the type, over all groups and languages, by the number of
    its neurons in them. So a group with few neurons of a type has little say in it, and one with none has none.
    """

    name = "contributions"
    title = "Contribution of each type"
    paper = "Figure 9"

    needs = frozenset({Need.CONTRIBUTION})

    def measure(self, result: GroupResult) -> Measures:
        """Of each component, summed over languages: contributions and neurons of each type, both `[layers, 4]`."""
        measures = {}
        for name, component in result.components.items():
            types = component.thresholds[0]
            measures["contributions", name] = types.contribution.sums.sum(axis=0)
            measures["neurons", name] = types.counts() * len(self.languages)
        return measures

    def means(self, component: str) -> Shares:
        """Contribution of a neuron of each type, percent of its layer's, `[layers, 4]`; NaN of a type without any."""
        return self._shares(
            self.sums["contributions", component],
            self.sums["neurons", component],
            self.sums.replicated(("contributions", component)),
            self.sums.replicated(("neurons", component)),
        )

    def totals(self, component: str) -> Shares:
        """Contribution of all neurons of each type together, percent of their layer's, `[layers, 4]`."""
        return self._shares(
            self.sums["contributions", component],
            np.array(self.groups * len(self.languages)),
            self.sums.replicated(("contributions", component)),
            self.sums.replicated_sizes() * len(self.languages),
        )

    def records(self) -> Iterator[dict[str, object]]:
        """One row a layer and type.

        Columns component, layer, type; mean_percent (a neuron's contribution, in percent of its layer's; empty where no
        group has neurons of the type) and sum_percent (that of all neurons of the type; a layer's four add up to 100),
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
        """Says what a contribution is, and how the mean is taken."""
        return (
            "A neuron's contribution (Eq. 3) is |m| times the norm of its value row, as a share of its layer's sum. "
            "Sum: of all neurons of a type, mean over groups and languages. Mean: of one neuron, over all neurons that "
            "are of the type in any group; a group without such neurons has no part in it."
        )

    def caption(self) -> str:
        """Says what the average neuron contributes, over how many groups."""
        average = " and ".join(f"{100 / count:.2g} % ({name})" for name, (_, count) in self.geometry.items())
        return (
            f"Contribution of a neuron of each type (left) and of all of them together (right), percent of a layer's. "
            f"The average neuron contributes {average}. Mean over {words.sample(self)}. {words.band(self)} The paper's "
            "Figure 9."
        )

    def draw(self) -> Figure:
        """The mean left, the sum right, one line a type; a component below the other."""
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
