"""Neurons that are dead at every token of a prompt: the paper's Figure 6."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from neuroglot.analyses.base import words
from neuroglot.analyses.base.context import Need
from neuroglot.analyses.base.fold import Analysis, Measures
from neuroglot.analyses.base.lines import component_panels, language_lines
from neuroglot.analyses.base.shares import Shares
from neuroglot.analyses.figures.style import percent_axis
from neuroglot.results.results import GroupResult


class Dead(Analysis):
    """Share of a layer's neurons that are inactive at all tokens of a prompt, mean over prompts of a language."""

    name = "dead"
    title = "Neurons dead across all tokens"
    paper = "Figure 6"

    needs = frozenset({Need.DEAD, Need.ACTIVE})

    def measure(self, result: GroupResult) -> Measures:
        """Return the numbers of dead neurons and of neurons inactive at the last token, `[layers, languages]` each."""
        order = self.positions(result)
        sums = {}
        for name, component in result.components.items():
            types = component.thresholds[0]
            sums["dead", name] = types.dead_counts()[:, order]
            sums["inactive", name] = component.neurons - types.active_counts()[:, order]
        return sums

    def measure_whole(self, result: GroupResult) -> Measures:
        """Return masks of the dead neurons by component, `[languages, layers, neurons]`."""
        return {
            name: np.stack([component.thresholds[0].dead(label).to_mask() for label in self.languages]).astype(np.int32)
            for name, component in result.components.items()
        }

    def always(self, component: str) -> NDArray[np.int64]:
        """Count the neurons that are dead in every prompt of a language, `[layers, languages]`."""
        always: NDArray[np.int64] = np.count_nonzero(self.whole[component] == self.groups, axis=-1).T
        return always

    def records(self) -> Iterator[dict[str, object]]:
        """One row a layer and language.

        Columns component, layer, language, dead_percent (of the layer's neurons, mean over prompts), dead_low,
        dead_high (its 95 % interval), mean_neurons (dead neurons), of_inactive_percent (dead neurons divided by those
        inactive at the last token; NaN if none is inactive), cumulative_percent (neurons dead in every prompt, of the
        layer's neurons), cumulative_neurons, groups.
        """
        for component, (layers, neurons) in self.geometry.items():
            dead, means = Shares.of(self.sums, ("dead", component), neurons), self.sums.mean(("dead", component))
            inactive = self.sums.mean(("inactive", component))
            of_inactive = np.full(means.shape, np.nan)
            np.divide(100 * means, inactive, out=of_inactive, where=inactive > 0)
            always = self.always(component)
            yield from (
                {
                    "component": component,
                    "layer": layer,
                    "language": language,
                    "dead_percent": dead.mean[layer, column],
                    "dead_low": dead.low[layer, column],
                    "dead_high": dead.high[layer, column],
                    "mean_neurons": means[layer, column],
                    "of_inactive_percent": of_inactive[layer, column],
                    "cumulative_percent": 100 * always[layer, column] / neurons,
                    "cumulative_neurons": always[layer, column],
                    "groups": self.groups,
                }
                for layer in range(layers)
                for column, language in enumerate(self.languages)
            )

    def definition(self) -> str:
        """Define dead neurons, and state which of the two shares the figure shows."""
        form = (
            "The figure shows the neurons dead in all prompts of a language, as in the paper's released code."
            if self.options.cumulative_dead
            else "The figure is the mean over prompts; the table adds the neurons dead in all prompts of a language."
        )
        return (
            f"A neuron is dead in a prompt if its activation does not exceed {self.options.thresholds[0]:g} at any of "
            f"its tokens, special tokens included. {form}"
        )

    def caption(self) -> str:
        """Caption with the number of prompts; for an encoder-decoder it notes that the decoder has one token."""
        what = f"dead in all {self.groups:,} prompts" if self.options.cumulative_dead else "dead in a prompt"
        start = " In the decoder, a prompt consists of the start token only." if "encoder" in self.geometry else ""
        return (
            f"Share of the {words.neurons(self.geometry)} of a layer that are {what} of a language. Over "
            f"{words.sample(self)}; 95 % intervals are in the table.{start} The paper's Figure 6."
        )

    def draw(self) -> Figure:
        """Draw one line a language, one panel a component."""
        figure, panels = component_panels(self.geometry, inches=2.3)
        shares = {}
        for component, axes in panels.items():
            neurons = self.geometry[component][1]
            dead = self.always(component) if self.options.cumulative_dead else self.sums.mean(("dead", component))
            shares[component] = 100 * dead / neurons
            percent_axis(axes, 1.04 * shares[component].max() or 1)
            axes.set_ylabel(f"dead {component} neurons (%)")
        language_lines(figure, panels, shares, self.languages)
        return figure
