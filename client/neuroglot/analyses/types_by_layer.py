"""The four types by layer: the left panel of the paper's Figures 2 to 4."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from matplotlib.figure import Figure

from neuroglot.analyses.fold import Analysis, Measures
from neuroglot.analyses.style import (
    COLUMN_INCHES,
    TYPE_COLOURS,
    TYPE_MARKERS,
    TYPE_TEXT_COLOURS,
    TYPES,
    EndLabel,
    label_ends,
    layer_axis,
    marks,
    percent_axis,
)
from neuroglot.neurons import NeuronType
from neuroglot.results import GroupResult


class TypesByLayer(Analysis):
    """Share of each type among the neurons of a layer, mean over examples."""

    name = "types_by_layer"
    title = "Types of neurons by layer"

    def measure(self, result: GroupResult) -> Measures:
        """Counts `[layers, 4]` of each component, their squares, and activations near the threshold."""
        sums = {}
        for name, component in result.components.items():
            types = component.thresholds[0]
            counts = types.counts()
            sums["counts", name] = counts
            sums["squares", name] = counts**2
            sums["near_threshold", name] = np.array(types.near_threshold, dtype=np.int64)
        return sums

    def near_threshold(self) -> tuple[int, int]:
        """How many activations lie so close to the threshold that rounding may decide their side, and of how many."""
        near = sum(int(self.sums["near_threshold", name]) for name in self.geometry)
        every = sum(layers * neurons for layers, neurons in self.geometry.values())
        return near, every * self.groups * len(self.languages)

    def records(self) -> Iterator[dict[str, object]]:
        """One row a layer and type.

        Columns component, layer, type, share_percent (mean over examples), sd_percent (between examples), mean_neurons,
        groups.
        """
        for component, (layers, neurons) in self.geometry.items():
            means = self.sums["counts", component] / self.groups
            deviations = np.sqrt(np.maximum(self.sums["squares", component] / self.groups - means**2, 0))
            yield from (
                {
                    "component": component,
                    "layer": layer,
                    "type": kind.label,
                    "share_percent": 100 * means[layer, kind] / neurons,
                    "sd_percent": 100 * deviations[layer, kind] / neurons,
                    "mean_neurons": means[layer, kind],
                    "groups": self.groups,
                }
                for layer in range(layers)
                for kind in NeuronType
            )

    def definition(self) -> str:
        """Says where, too."""
        return (
            f"A neuron is active where its activation at {self.position} exceeds 0. Over the languages of one example "
            "it is all-shared (active in all), partial-shared (in two or more, not all), specific (in one) or "
            "non-activated (in none)."
        )

    def caption(self) -> str:
        """Says the numbers of neurons, groups and languages."""
        neurons = " and ".join(f"{count:,} {name} neurons" for name, (_, count) in self.geometry.items())
        return (
            f"Share of each type among the {neurons} of a layer. Mean over {self.groups:,} parallel groups of "
            f"{len(self.languages)} prompts ({', '.join(self.languages)}); a layer's four shares add up to 100 %. "
            "The paper's Figure 4, left."
        )

    def draw(self) -> Figure:
        """One line a type, one panel a component."""
        figure = Figure(figsize=(COLUMN_INCHES, 0.2 + 2.1 * len(self.geometry)), layout="constrained")
        panels = figure.subplots(len(self.geometry), squeeze=False)[:, 0]
        ends = []
        for axes, (component, (layers, neurons)) in zip(panels, self.geometry.items(), strict=True):
            shares = 100 * self.sums["counts", component] / self.groups / neurons
            for kind in TYPES:
                axes.plot(
                    shares[:, kind],
                    color=TYPE_COLOURS[kind],
                    marker=TYPE_MARKERS[kind] if marks(layers) else None,
                    clip_on=False,
                )
            layer_axis(axes, layers)
            percent_axis(axes, 1.04 * shares.max())
            axes.set_xlabel("layer")
            axes.set_ylabel(f"share of {component} neurons (%)")
            if len(self.geometry) > 1:
                axes.set_title(component)
            labels = [EndLabel(shares[-1, kind], kind.label, TYPE_TEXT_COLOURS[kind]) for kind in TYPES]
            ends.append((axes, layers - 1, labels))
        label_ends(figure, ends)
        return figure
