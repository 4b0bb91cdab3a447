"""The four types by layer: the left panel of the paper's Figures 2 to 4."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from neuroglot.analyses.base import words
from neuroglot.analyses.base.activity import type_counts
from neuroglot.analyses.base.context import Need
from neuroglot.analyses.base.fold import Analysis, Measures
from neuroglot.analyses.base.lines import component_panels, label_types, type_lines
from neuroglot.analyses.base.mismatched_groups import Mismatched
from neuroglot.analyses.base.shares import Compared
from neuroglot.analyses.figures.style import percent_axis
from neuroglot.request.neurons import NeuronType
from neuroglot.results.results import GroupResult


class TypesByLayer(Analysis):
    """Share of each type among the neurons of a layer, mean over examples."""

    name = "types_by_layer"
    title = "Types of neurons by layer"
    paper = "Figures 2 to 4, 7, 11 to 18"

    needs = frozenset({Need.ACTIVE})

    def measure(self, result: GroupResult) -> Measures:
        """Return type counts `[layers, 4]`, their squares, activations near the threshold, and distinct last tokens."""
        sums: dict[Any, NDArray[np.int64]] = {"last_tokens": np.array(len({row.last_token_id for row in result.rows}))}
        for name, component in result.components.items():
            types = component.thresholds[0]
            counts = types.counts()
            sums["counts", name] = counts
            sums["squares", name] = counts**2
            sums["near_threshold", name] = np.array(types.near_threshold, dtype=np.int64)
        return sums

    def measure_mismatched(self, group: Mismatched) -> Measures:
        """Return the type counts by component, `[layers, 4]`, and the number of distinct last tokens."""
        counts = {("counts", name): type_counts(group.active(name)) for name in group.geometry}
        return {"last_tokens": np.array(group.distinct_last_tokens()), **counts}

    def near_threshold(self) -> tuple[int, int]:
        """Return the number of activations within rounding error of the threshold, and the number of activations."""
        near = sum(int(self.sums["near_threshold", name]) for name in self.geometry)
        every = sum(layers * neurons for layers, neurons in self.geometry.values())
        return near, every * self.groups * len(self.languages)

    def distinct_last_tokens(self) -> tuple[float, float]:
        """Return the mean number of distinct last tokens in a group, and in a mismatched group (NaN without any)."""
        mismatched = float(self.mismatched.mean("last_tokens")) if self.mismatched else np.nan
        return float(self.sums.mean("last_tokens")), mismatched

    def compared(self, component: str) -> Compared:
        """Return the shares of the types in percent, `[layers, 4]`."""
        return Compared.of(self, ("counts", component), self.geometry[component][1])

    def records(self) -> Iterator[dict[str, object]]:
        """One row a layer and type.

        Columns component, layer, type, share_percent (mean over examples), share_low, share_high (its 95 % interval),
        mismatched_share_percent, mismatched_share_low, mismatched_share_high (the same of mismatched groups),
        sd_percent (between examples), mean_neurons, distinct_last_tokens (of a group, mean),
        mismatched_distinct_last_tokens, groups, mismatched_groups.
        """
        tokens, mismatched_tokens = self.distinct_last_tokens()
        for component, (layers, neurons) in self.geometry.items():
            means = self.sums.mean(("counts", component))
            deviations = np.sqrt(np.maximum(self.sums.mean(("squares", component)) - means**2, 0))
            compared = self.compared(component)
            yield from (
                {
                    "component": component,
                    "layer": layer,
                    "type": kind.label,
                    **compared.columns((layer, kind)),
                    "sd_percent": 100 * deviations[layer, kind] / neurons,
                    "mean_neurons": means[layer, kind],
                    "distinct_last_tokens": tokens,
                    "mismatched_distinct_last_tokens": mismatched_tokens,
                    "groups": self.groups,
                    "mismatched_groups": len(self.mismatched),
                }
                for layer in range(layers)
                for kind in NeuronType
            )

    def definition(self) -> str:
        """Define active neurons and the four types, with the position and the threshold."""
        return (
            f"A neuron is active where its activation at {self.position} exceeds {self.options.thresholds[0]:g}. Over "
            "the languages of one example it is all-shared (active in all), partial-shared (in two or more, not all), "
            "specific (in one) or non-activated (in none)."
        )

    def caption(self) -> str:
        """Caption with the numbers of neurons, groups, prompts and last tokens."""
        tokens, mismatched_tokens = self.distinct_last_tokens()
        beside = f" (mismatched: {mismatched_tokens:.1f})" if self.mismatched else ""
        return (
            f"Share of each type among the {words.neurons(self.geometry)} of a layer; the four shares sum to 100 %. "
            f"Mean over {words.sample(self)}. {words.band(self)} {words.mismatched(self)} The prompts of a group end "
            f"in {tokens:.1f} different tokens{beside}. The paper's Figure 4, left."
        )

    def draw(self) -> Figure:
        """Draw one line a type, one panel a component."""
        figure, panels = component_panels(self.geometry, inches=2.1)
        shares = {}
        for component, axes in panels.items():
            compared = self.compared(component)
            shares[component] = compared.matched.mean
            type_lines(axes, compared)
            percent_axis(axes, 1.04 * compared.highest())
            axes.set_xlabel(words.layer(self))
            axes.set_ylabel(f"share of {component} neurons (%)")
        label_types(figure, panels, shares)
        return figure
