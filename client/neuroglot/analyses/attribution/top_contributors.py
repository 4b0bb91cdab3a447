"""Types among the top contributors, by layer and language: the paper's Figures 8 and 23 to 26."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from matplotlib.figure import Figure

from neuroglot.analyses.base import words
from neuroglot.analyses.base.activity import type_codes
from neuroglot.analyses.base.context import Need
from neuroglot.analyses.base.fold import Analysis, Measures
from neuroglot.analyses.base.lines import Panel, type_grid
from neuroglot.analyses.base.mismatched_groups import Mismatched
from neuroglot.analyses.base.shares import Compared
from neuroglot.request.neurons import NeuronType
from neuroglot.results.results import GroupResult


class TopContributors(Analysis):
    """Share of each type among the neurons of a layer with the largest contributions, mean over examples."""

    name = "top_contributors"
    title = "Types among the top contributors"
    paper = "Figures 8, 23 to 26"

    needs = frozenset({Need.CONTRIBUTION, Need.ACTIVE})

    def measure(self, result: GroupResult) -> Measures:
        """Return the numbers of top contributors of each type by component, `[languages, layers, 4]`."""
        order = self.positions(result)
        return {name: one.thresholds[0].contribution.top_counts[order] for name, one in result.components.items()}

    def measure_mismatched(self, group: Mismatched) -> Measures:
        """Return the same for a mismatched group: the top contributors of each row, by type over its rows."""
        sums = {}
        for name in group.geometry:
            top, codes = group.top(name), type_codes(group.active(name))
            sums[name] = np.stack([np.count_nonzero(top & (codes == kind), axis=-1) for kind in NeuronType], axis=-1)
        return sums

    def compared(self, component: str) -> Compared:
        """Return the shares of the types in percent, `[languages, layers, 4]`."""
        return Compared.of(self, component, self.top(component))

    def top(self, component: str) -> int:
        """Return the number of top contributors of a layer."""
        return int(self.sums[component][0, 0].sum()) // self.groups

    def records(self) -> Iterator[dict[str, object]]:
        """One row a layer, language and type.

        Columns component, layer, language, type, share_percent (of the top contributors, mean over examples),
        share_low, share_high (its 95 % interval), mismatched_share_percent, mismatched_share_low,
        mismatched_share_high (the same of mismatched groups), mean_neurons (of the top contributors), groups,
        mismatched_groups.
        """
        for component, (layers, _) in self.geometry.items():
            means, compared = self.sums.mean(component), self.compared(component)
            yield from (
                {
                    "component": component,
                    "layer": layer,
                    "language": language,
                    "type": kind.label,
                    **compared.columns((row, layer, kind)),
                    "mean_neurons": means[row, layer, kind],
                    "groups": self.groups,
                    "mismatched_groups": len(self.mismatched),
                }
                for layer in range(layers)
                for row, language in enumerate(self.languages)
                for kind in NeuronType
            )

    def definition(self) -> str:
        """Define contribution and top contributors."""
        return (
            "A neuron's contribution (Eq. 3) is |m| times the norm of its value row, as a share of its layer's sum; m "
            f"is the coefficient of the value row. The top contributors are the {100 * self.options.top_fraction:g} % "
            "of a layer's neurons with the largest contributions in one language."
        )

    def caption(self) -> str:
        """Caption with the number of top contributors, and the sample."""
        top = " and ".join(
            f"{self.top(name)} of {neurons:,} {name} neurons" for name, (_, neurons) in self.geometry.items()
        )
        return (
            f"Types of the top contributors of a layer ({top}), by language; the four shares sum to 100 %. Mean "
            f"over {words.sample(self)}. {words.band(self)} {words.mismatched(self)} The paper's Figure 23."
        )

    def draw(self) -> Figure:
        """Draw one small panel a language and component, one line a type."""
        compared = {name: self.compared(name) for name in self.geometry}
        panels = [
            Panel(name, language, compared[name].at(row))
            for row, language in enumerate(self.languages)
            for name in self.geometry
        ]
        return type_grid(panels, self.geometry, "top contributors (%)", words.layer(self))
