"""Types by number of languages considered: the paper's Figure 19."""

from __future__ import annotations

from collections.abc import Iterator
from math import comb
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from neuroglot.analyses.base import words
from neuroglot.analyses.base.activity import active_in, histogram, subset_weights, type_counts
from neuroglot.analyses.base.context import Need
from neuroglot.analyses.base.fold import Analysis, Measures
from neuroglot.analyses.base.lines import Panel, type_grid
from neuroglot.analyses.base.mismatched_groups import Mismatched
from neuroglot.analyses.base.shares import Compared
from neuroglot.request.neurons import NeuronType
from neuroglot.results.results import GroupResult


class _Choice(NamedTuple):
    """Languages over which types are computed: one subset, or if it is empty, the mean over all subsets of a size."""

    size: int
    subset: tuple[str, ...] = ()


class LanguageCounts(Analysis):
    """Share of each type among the neurons of a layer, over subsets of the languages and over all of them."""

    name = "language_counts"
    title = "Types by number of languages"
    paper = "Figure 19"

    needs = frozenset({Need.ACTIVE})

    def measure(self, result: GroupResult) -> Measures:
        """Return, by component, the histogram over languages, and the type counts of each chosen subset."""
        sums: dict[Any, NDArray[np.int64]] = {}
        for name, component in result.components.items():
            types = component.thresholds[0]
            sums[name] = histogram(active_in(types, self.languages))
            for subset in self.context.subsets:
                sums[name, subset] = type_counts(active_in(types, subset))
        return sums

    def measure_mismatched(self, group: Mismatched) -> Measures:
        """Return the same arrays for a mismatched group."""
        sums: dict[Any, NDArray[np.int64]] = {}
        for name in group.geometry:
            active = group.active(name)
            sums[name] = histogram(active)
            for subset in self.context.subsets:
                sums[name, subset] = type_counts(active[[self.languages.index(language) for language in subset]])
        return sums

    def choices(self) -> list[_Choice]:
        """Return the chosen subsets, or the sizes 3, 5, 7, ...; and all languages."""
        every = len(self.languages)
        some = [_Choice(len(subset), subset) for subset in self.context.subsets]
        return [*(some or map(_Choice, range(3, every, 2))), _Choice(every)]

    def compared(self, component: str, choice: _Choice) -> Compared:
        """Return the shares of the types in percent, `[layers, 4]`."""
        neurons = self.geometry[component][1]
        if choice.subset:
            return Compared.of(self, (component, choice.subset), neurons)
        return Compared.of(self, component, neurons, subset_weights(len(self.languages), choice.size))

    def records(self) -> Iterator[dict[str, object]]:
        """One row a choice of languages, layer and type.

        Columns component, languages (number of languages), subset (chosen languages; empty for a mean over subsets),
        subsets (number of subsets in the mean), layer, type, share_percent (mean over examples), share_low,
        share_high (its 95 % interval), mismatched_share_percent, mismatched_share_low, mismatched_share_high (the same
        of mismatched groups), groups, mismatched_groups.
        """
        for component, (layers, _) in self.geometry.items():
            for choice in self.choices():
                compared = self.compared(component, choice)
                yield from (
                    {
                        "component": component,
                        "languages": choice.size,
                        "subset": " ".join(choice.subset),
                        "subsets": 1 if choice.subset else comb(len(self.languages), choice.size),
                        "layer": layer,
                        "type": kind.label,
                        **compared.columns((layer, kind)),
                        "groups": self.groups,
                        "mismatched_groups": len(self.mismatched),
                    }
                    for layer in range(layers)
                    for kind in NeuronType
                )

    def definition(self) -> str:
        """Define the types over a subset, and state which subsets."""
        which = (
            "The subsets of languages are chosen by the user."
            if self.context.subsets
            else "A share is the exact mean over all subsets of that size."
        )
        return (
            "The four types over subsets of the languages, from the same activations: a neuron is all-shared if it is "
            f"active in all languages of the subset, and so on. {which}"
        )

    def caption(self) -> str:
        """Caption with the numbers of neurons, groups and prompts."""
        return (
            f"Share of each type among the {words.neurons(self.geometry)} of a layer, by the languages considered. "
            f"Mean over {words.sample(self)}. {words.band(self)} {words.mismatched(self)} The paper's Figure 19."
        )

    def draw(self) -> Figure:
        """Draw one small panel a choice of languages and component, one line a type."""
        panels = [
            Panel(name, self._title(choice), self.compared(name, choice))
            for choice in self.choices()
            for name in self.geometry
        ]
        return type_grid(panels, self.geometry, "share of neurons (%)", words.layer(self))

    def _title(self, choice: _Choice) -> str:
        """Return the title of a panel: the number of languages, the subset, or the languages left out."""
        left_out = [language for language in self.languages if language not in choice.subset]
        if not choice.subset or not left_out:
            return f"{choice.size} languages"
        return " ".join(choice.subset) if len(choice.subset) <= len(left_out) else f"without {' '.join(left_out)}"
