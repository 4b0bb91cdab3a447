"""Effective scores by type: the paper's Figures 10 and 27 to 29, and Tables 1 and 4."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from neuroglot.analyses.base import words
from neuroglot.analyses.base.bootstrap import percentile_interval, ratios
from neuroglot.analyses.base.context import Need
from neuroglot.analyses.base.fold import Analysis, Measures
from neuroglot.analyses.base.lines import component_panels, label_types, type_lines
from neuroglot.analyses.base.shares import Compared, Shares
from neuroglot.request.neurons import NeuronType
from neuroglot.request.options import ScoreTarget
from neuroglot.results.results import GroupResult
from neuroglot.runs.settings import ScoreReduction

DECODER = "decoder"
"""The only component with effective scores: encoder neurons do not write to the decoder's residual stream."""

_MAXIMUM, _MINIMUM, _MEAN = range(3)
_STATISTICS = ("maximum", "minimum", "mean")

_TARGETS: Mapping[ScoreTarget, str] = {
    ScoreTarget.FIRST_GOLD_TOKEN: "the first gold token r",
    ScoreTarget.ALL_GOLD_TOKENS: "the gold tokens, summed",
    ScoreTarget.GOLD_MINUS_DISTRACTOR: "the first gold token r, minus that with the distractor's first token",
}


class Scores(NamedTuple):
    """Largest, smallest and mean score of each type, means over groups, `[..., 4 types, 3]`.

    Attributes:
        mean: means, `[..., 4, 3]`.
        low: lower ends of the 95 % intervals, `[..., 4, 3]`.
        high: upper ends, `[..., 4, 3]`.
    """

    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


class EffectiveScores(Analysis):
    """Largest, smallest and mean effective score of each type, by layer and by language; decoder only."""

    name = "effective_scores"
    title = "Effective scores of each type"
    paper = "Figures 10, 27 to 29; Tables 1, 4"

    needs = frozenset({Need.EFFECTIVE_SCORE})

    def measure(self, result: GroupResult) -> Measures:
        """Return the largest, smallest and mean score of each type over the rows with a gold answer.

        By layer `[layers, 4, 3]`, summed over languages; by language over all layers `[languages, 4, 3]`, and by
        language and layer `[languages, layers, 4, 3]` for the reduction of means; neurons of each type `[layers, 4]`;
        number of rows with a gold answer `[languages]`.
        """
        types = result.components[DECODER].thresholds[0]
        counts, order = types.counts(), self.positions(result)
        scores = types.effective_score
        scored = ~np.isnan(scores.sums[order]).any(axis=(1, 2))
        by_layer = np.stack([scores.maxima, scores.minima, scores.means(counts)], axis=-1)[order]
        by_layer[~scored] = 0
        over_layers = _over_layers(by_layer, counts)
        over_layers[..., _MEAN] = _mean_over_neurons(scores.sums[order], counts)
        over_layers[~scored] = 0
        measures = {
            "layers": by_layer.sum(axis=0),
            "languages": over_layers,
            "neurons": counts,
            "rows": scored.astype(np.int64),
        }
        if self.options.score_reduction is ScoreReduction.OF_MEANS:
            measures["languages and layers"] = by_layer
        return measures

    def by_layer(self) -> Scores:
        """Return the scores by layer, mean over groups and languages; 0 for a group without neurons of the type."""
        rows = self.sums.replicated("rows").sum(axis=1)
        low, high = percentile_interval(ratios(self.sums.replicated("layers"), rows))
        return Scores(self.sums["layers"] / max(self.sums["rows"].sum(), 1), low, high)

    def by_language(self) -> Scores:
        """Return the scores by language, reduced over layers by the option `score_reduction`."""
        rows = self.sums["rows"]
        estimate = self._reduced({key: self.sums[key][np.newaxis] for key in self.sums}, rows[np.newaxis])
        keys = [key for key in self.sums if key != "rows"]
        replicated = {key: self.sums.replicated(key) for key in keys}
        low, high = percentile_interval(self._reduced(replicated, self.sums.replicated("rows")))
        return Scores(estimate[0], low, high)

    def records(self) -> Iterator[dict[str, object]]:
        """One row a layer and type.

        Columns layer, type; maximum, minimum and mean (over the type's neurons in the layer), each a mean over groups
        and languages with its 95 % interval (`_low`, `_high`), with 0 for a group without neurons of the type;
        mean_neurons (of the type in a group), rows (with a gold answer), groups.
        """
        scores, rows = self.by_layer(), int(self.sums["rows"].sum())
        neurons = self.sums.mean("neurons")
        layers, _ = self.geometry[DECODER]
        for layer in range(layers):
            for kind in NeuronType:
                yield {
                    "layer": layer,
                    "type": kind.label,
                    **_columns(scores, (layer, kind)),
                    "mean_neurons": neurons[layer, kind],
                    "rows": rows,
                    "groups": self.groups,
                }

    def tables(self) -> Mapping[str, pd.DataFrame]:
        """Also `effective_scores_by_language`, the paper's Table 4: one row a language and type.

        Columns language, type; maximum and minimum over layers, reduced by the option `score_reduction`, and mean
        (over the type's neurons in all layers), each a mean over groups with its 95 % interval; reduction;
        mean_neurons (of the type in a group, all layers); rows (with a gold answer), groups.
        """
        return {**super().tables(), f"{self.name}_by_language": pd.DataFrame(list(self._by_language()))}

    def definition(self) -> str:
        """Define the effective score, with its target token."""
        return (
            "A neuron's effective score is m times the product of its value row with the output embedding of "
            f"{_TARGETS[self.options.score_target]}: what it adds to that token's logit, without the final norm. In "
            "each group, the largest score among the neurons of a type; 0 for a type without neurons."
        )

    def caption(self) -> str:
        """Caption with the sample, and the reduction of the table by language."""
        encoder = " The encoder has no effective scores." if len(self.geometry) > 1 else ""
        return (
            f"Largest effective score of each type by layer. Mean over {words.sample(self)}; "
            f"{int(self.sums['rows'].sum()):,} of these prompts have an answer. {words.band(self)}{encoder} The second "
            f"table is by language, {self._reduction()}. The paper's Figure 10 and Table 4."
        )

    def draw(self) -> Figure:
        """Draw one line a type: its largest score by layer."""
        figure, panels = component_panels({DECODER: self.geometry[DECODER]}, inches=2.1)
        maxima = Shares(*(values[..., _MAXIMUM] for values in self.by_layer()))
        type_lines(panels[DECODER], Compared(maxima, Shares.none(maxima.mean.shape)))
        panels[DECODER].set_ylabel("largest effective score")
        panels[DECODER].grid(axis="y")
        panels[DECODER].set_axisbelow(True)
        label_types(figure, panels, {DECODER: maxima.mean})
        return figure

    def _by_language(self) -> Iterator[dict[str, object]]:
        scores = self.by_language()
        neurons = self.sums.mean("neurons").sum(axis=0)
        for row, language in enumerate(self.languages):
            for kind in NeuronType:
                yield {
                    "language": language,
                    "type": kind.label,
                    **_columns(scores, (row, kind)),
                    "reduction": self.options.score_reduction.value,
                    "mean_neurons": neurons[kind],
                    "rows": int(self.sums["rows"][row]),
                    "groups": self.groups,
                }

    def _reduction(self) -> str:
        if self.options.score_reduction is ScoreReduction.OF_MEANS:
            return "with the largest and smallest over layers taken of each layer's mean over groups"
        return "with the largest and smallest over layers taken in each group, before the mean over groups"

    def _reduced(self, sums: Mapping[str, NDArray[np.float64]], rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return means over groups `[n, languages, 4, 3]` of sums `[n, ...]`, given `rows` `[n, languages]`."""
        means = ratios(sums["languages"], rows)
        if self.options.score_reduction is ScoreReduction.OF_MEANS:
            reduced = _over_layers(ratios(sums["languages and layers"], rows), sums["neurons"][:, np.newaxis])
            means[..., :_MEAN] = reduced[..., :_MEAN]
        return means


def _over_layers(scores: NDArray[np.float64], counts: NDArray[np.float64] | NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the largest and smallest score over the layers in which a type has neurons; 0 if it has none.

    Args:
        scores: scores by layer, `[..., layers, 4, 3]`.
        counts: neurons of each type by layer, `[..., layers, 4]`.

    Returns:
        `[..., 4, 3]`; the third column, the mean, is not computed and stays 0.
    """
    some = np.broadcast_to(counts > 0, scores.shape[:-1])
    over = np.zeros((*scores.shape[:-3], *scores.shape[-2:]))
    anywhere = some.any(axis=-2)
    largest = np.where(some, scores[..., _MAXIMUM], -np.inf).max(axis=-2)
    smallest = np.where(some, scores[..., _MINIMUM], np.inf).min(axis=-2)
    over[..., _MAXIMUM] = np.where(anywhere, largest, 0)
    over[..., _MINIMUM] = np.where(anywhere, smallest, 0)
    return over


def _mean_over_neurons(sums: NDArray[np.float64], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the mean score of a type's neurons in all layers, `[languages, 4]`; 0 for a type without neurons."""
    mean: NDArray[np.float64] = sums.sum(axis=1) / np.maximum(counts.sum(axis=0), 1)
    return mean


def _columns(scores: Scores, index: tuple[int, int]) -> dict[str, object]:
    return {
        f"{name}{end}": values[index][column]
        for column, name in enumerate(_STATISTICS)
        for end, values in zip(("", "_low", "_high"), scores, strict=True)
    }
