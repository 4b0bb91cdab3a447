"""Active neurons by language and layer: the right panel of the paper's Figures 2 to 4."""

from __future__ import annotations

from collections.abc import Iterator

from matplotlib.figure import Figure

from neuroglot.analyses.base import words
from neuroglot.analyses.base.fold import Analysis, Measures
from neuroglot.analyses.base.lines import component_panels, language_lines
from neuroglot.analyses.base.shares import Shares
from neuroglot.analyses.figures.style import percent_axis
from neuroglot.results.results import GroupResult


class ActiveByLanguage(Analysis):
    """Share of a layer's neurons that are active in each language, mean over examples."""

    name = "active_by_language"
    title = "Active neurons by language and layer"
    paper = "Figures 2 to 4"

    def measure(self, result: GroupResult) -> Measures:
        """Return the numbers of active neurons by component, `[layers, languages]`."""
        order = self.positions(result)
        return {name: one.thresholds[0].active_counts()[:, order] for name, one in result.components.items()}

    def records(self) -> Iterator[dict[str, object]]:
        """One row a layer and language.

        Columns component, layer, language, active_percent (mean over examples), active_low, active_high (its 95 %
        interval), mean_neurons, groups.
        """
        for component, (layers, neurons) in self.geometry.items():
            means = self.sums.mean(component)
            active = Shares.of(self.sums, component, neurons)
            yield from (
                {
                    "component": component,
                    "layer": layer,
                    "language": language,
                    "active_percent": active.mean[layer, column],
                    "active_low": active.low[layer, column],
                    "active_high": active.high[layer, column],
                    "mean_neurons": means[layer, column],
                    "groups": self.groups,
                }
                for layer in range(layers)
                for column, language in enumerate(self.languages)
            )

    def definition(self) -> str:
        """Define active neurons, with the position and the threshold."""
        return (
            f"The share of a layer's neurons whose activation at {self.position} exceeds "
            f"{self.options.thresholds[0]:g}, in each language separately. It does not show whether the same "
            "neurons are active in different languages."
        )

    def caption(self) -> str:
        """Caption with the numbers of neurons and prompts."""
        return (
            f"Share of the {words.neurons(self.geometry)} of a layer that are active, by language. Mean over "
            f"{words.sample(self)}; 95 % intervals are in the table. The vertical axis does not start at 0. The "
            "paper's Figure 4, right."
        )

    def draw(self) -> Figure:
        """Draw one line a language, one panel a component."""
        figure, panels = component_panels(self.geometry, inches=2.3)
        shares = {name: 100 * self.sums.mean(name) / neurons for name, (_, neurons) in self.geometry.items()}
        for component, axes in panels.items():
            lowest, highest = shares[component].min(), shares[component].max()
            margin = 0.1 * (highest - lowest) or 1
            percent_axis(axes, highest + margin, max(0, lowest - margin))
            axes.set_ylabel(f"active {component} neurons (%)")
        language_lines(figure, panels, shares, self.languages)
        return figure
