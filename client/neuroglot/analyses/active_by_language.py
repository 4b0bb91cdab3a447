"""Active neurons by language and layer: the right panel of the paper's Figures 2 to 4."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, islice, product

from matplotlib.figure import Figure

from neuroglot.analyses.fold import Analysis, Measures
from neuroglot.analyses.style import COLUMN_INCHES, EndLabel, label_ends, layer_axis, percent_axis
from neuroglot.results import GroupResult

_COLOURS = ("#000000", "#56B4E9", "#D55E00")
"""What Okabe and Ito's palette has left beside the colours of the types."""

_TEXT_COLOURS = {"#000000": "#000000", "#56B4E9": "#1F77A8", "#D55E00": "#B04A00"}
_DASHES = ("-", (0, (4, 1.2)), (0, (1, 1)), (0, (5, 1, 1, 1)))


class ActiveByLanguage(Analysis):
    """Share of a layer's neurons that are active in each language, mean over examples."""

    name = "active_by_language"
    title = "Active neurons by language and layer"

    def measure(self, result: GroupResult) -> Measures:
        """Active counts `[layers, languages]` of each component."""
        order = self.positions(result)
        return {name: one.thresholds[0].active_counts()[:, order] for name, one in result.components.items()}

    def records(self) -> Iterator[dict[str, object]]:
        """One row a layer and language.

        Columns component, layer, language, active_percent (mean over examples), mean_neurons, groups.
        """
        for component, (layers, neurons) in self.geometry.items():
            means = self.sums[component] / self.groups
            yield from (
                {
                    "component": component,
                    "layer": layer,
                    "language": language,
                    "active_percent": 100 * means[layer, column] / neurons,
                    "mean_neurons": means[layer, column],
                    "groups": self.groups,
                }
                for layer in range(layers)
                for column, language in enumerate(self.languages)
            )

    def definition(self) -> str:
        """Says where, too."""
        return (
            f"The share of a layer's neurons whose activation at {self.position} exceeds 0, in each language by "
            "itself. It says how many neurons are active, and nothing of whether they are the same ones."
        )

    def caption(self) -> str:
        """Says the numbers of neurons and prompts."""
        neurons = " and ".join(f"{count:,} {name} neurons" for name, (_, count) in self.geometry.items())
        return (
            f"Share of the {neurons} of a layer that are active, by language. Mean over {self.groups:,} prompts in "
            "each language. The vertical axis does not start at 0. The paper's Figure 4, right."
        )

    def draw(self) -> Figure:
        """One line a language, one panel a component."""
        figure = Figure(figsize=(COLUMN_INCHES, 0.2 + 2.3 * len(self.geometry)), layout="constrained")
        panels = figure.subplots(len(self.geometry), squeeze=False)[:, 0]
        looks = list(islice(cycle((colour, dash) for dash, colour in product(_DASHES, _COLOURS)), len(self.languages)))
        ends = []
        for axes, (component, (layers, neurons)) in zip(panels, self.geometry.items(), strict=True):
            shares = 100 * self.sums[component] / self.groups / neurons
            for column, (colour, dash) in enumerate(looks):
                axes.plot(shares[:, column], color=colour, linestyle=dash, linewidth=1, clip_on=False)
            layer_axis(axes, layers)
            margin = 0.1 * (shares.max() - shares.min())
            percent_axis(axes, shares.max() + margin, max(0, shares.min() - margin))
            axes.set_xlabel("layer")
            axes.set_ylabel(f"active {component} neurons (%)")
            if len(self.geometry) > 1:
                axes.set_title(component)
            labels = [
                EndLabel(shares[-1, column], self.languages[column], _TEXT_COLOURS[colour])
                for column, (colour, _) in enumerate(looks)
            ]
            ends.append((axes, layers - 1, labels))
        label_ends(figure, ends)
        return figure
