"""Types by layer at several thresholds: the paper's Figure 22."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from matplotlib.figure import Figure

from neuroglot.analyses.base import words
from neuroglot.analyses.base.activity import type_counts
from neuroglot.analyses.base.context import Need
from neuroglot.analyses.base.fold import Analysis, Measures
from neuroglot.analyses.base.lines import Panel, type_grid
from neuroglot.analyses.base.mismatched_groups import Mismatched
from neuroglot.analyses.base.shares import Compared
from neuroglot.request.neurons import NeuronType
from neuroglot.results.results import GroupResult


class Thresholds(Analysis):
    """Share of each type among the neurons of a layer, for several thresholds of activity."""

    name = "thresholds"
    title = "Types by threshold"
    paper = "Figure 22"

    needs = frozenset({Need.THRESHOLDS, Need.ACTIVE})

    def measure(self, result: GroupResult) -> Measures:
        """Return the type counts by component, `[thresholds, layers, 4]`."""
        return {
            name: np.stack([types.counts() for types in component.thresholds])
            for name, component in result.components.items()
        }

    def measure_mismatched(self, group: Mismatched) -> Measures:
        """Return the same arrays for a mismatched group."""
        indices = range(len(self.options.thresholds))
        return {
            name: np.stack([type_counts(group.active(name, index)) for index in indices]) for name in group.geometry
        }

    def compared(self, component: str) -> Compared:
        """Return the shares of the types in percent, `[thresholds, layers, 4]`."""
        return Compared.of(self, component, self.geometry[component][1])

    def records(self) -> Iterator[dict[str, object]]:
        """One row a threshold, layer and type.

        Columns component, threshold, layer, type, share_percent (mean over examples), share_low, share_high (its 95 %
        interval), mismatched_share_percent, mismatched_share_low, mismatched_share_high (the same of mismatched
        groups), groups, mismatched_groups.
        """
        for component, (layers, _) in self.geometry.items():
            compared = self.compared(component)
            yield from (
                {
                    "component": component,
                    "threshold": threshold,
                    "layer": layer,
                    "type": kind.label,
                    **compared.columns((index, layer, kind)),
                    "groups": self.groups,
                    "mismatched_groups": len(self.mismatched),
                }
                for index, threshold in enumerate(self.options.thresholds)
                for layer in range(layers)
                for kind in NeuronType
            )

    def definition(self) -> str:
        """Define the types at a threshold, with the position."""
        return (
            f"The four types at several thresholds: a neuron is active if its activation at {self.position} "
            "exceeds the threshold. The higher the threshold, the fewer neurons are active."
        )

    def caption(self) -> str:
        """Caption with the numbers of neurons, groups and prompts."""
        return (
            f"Share of each type among the {words.neurons(self.geometry)} of a layer, one panel a threshold. Mean over "
            f"{words.sample(self)}. {words.band(self)} {words.mismatched(self)} The paper's Figure 22."
        )

    def draw(self) -> Figure:
        """Draw one small panel a threshold and component, one line a type."""
        compared = {name: self.compared(name) for name in self.geometry}
        panels = [
            Panel(name, f"above {threshold:g}", compared[name].at(index))
            for index, threshold in enumerate(self.options.thresholds)
            for name in self.geometry
        ]
        return type_grid(panels, self.geometry, "share of neurons (%)", words.layer(self))
