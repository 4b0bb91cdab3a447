"""Metrics and counts of the predictions of rows under a variant, for ablations and conversions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from enum import IntEnum, StrEnum, auto

import numpy as np
from numpy.typing import NDArray

from neuroglot.analyses.base.bootstrap import percentile_interval, ratios
from neuroglot.analyses.base.choices import Choices
from neuroglot.analyses.base.fold import Fold, Measures, Sums
from neuroglot.analyses.base.statistics import wilson
from neuroglot.results.results import GroupResult, RowPrediction


class Metric(StrEnum):
    """Metrics of a row's prediction."""

    EXACT = "exact_percent"
    """Whether every gold token has the largest logit: 100 or 0, so that means are percentages."""
    LOG_PROBABILITY = "gold_log_probability"
    """Log-probability of the gold answer, in nats. Sensitive even where nearly all rows are right or wrong."""
    CHOICE = "choice_percent"
    """Whether the gold answer is the most likely of the row's choices: 100 or 0; only for rows with choices."""

    @property
    def axis(self) -> str:
        """Label of an axis of differences."""
        return {
            Metric.EXACT: "exact match (percentage points)",
            Metric.LOG_PROBABILITY: "log-probability of the gold answer (nats)",
            Metric.CHOICE: "likeliest choice is right (percentage points)",
        }[self]

    def of(self, prediction: RowPrediction, choices: Choices | None) -> float:
        """Return the value for one row; NaN if the row has no gold answer, no choices, or no prediction."""
        match self:
            case Metric.EXACT:
                return math.nan if prediction.exact is None else 100.0 * prediction.exact
            case Metric.LOG_PROBABILITY:
                return math.nan if prediction.gold_log_probability is None else prediction.gold_log_probability
            case Metric.CHOICE:
                right = _choice_is_right(prediction, choices)
                return math.nan if right is None else 100.0 * right


class Count(IntEnum):
    """Counts over rows; the columns of a variant's counts."""

    ROWS = 0
    ERRORS = auto()
    SCORED = auto()
    EXACT = auto()
    GENERATED = auto()
    STARTS = auto()
    MATCHES = auto()
    CHOSEN = auto()
    RIGHTLY_CHOSEN = auto()
    LABELLED = auto()
    NO_LABEL = auto()
    SELECTED = auto()
    SELECTED_ACTIVE = auto()


PROPORTIONS: Mapping[str, tuple[Count, Count]] = {
    "exact": (Count.EXACT, Count.SCORED),
    "starts_with_answer": (Count.STARTS, Count.GENERATED),
    "matches": (Count.MATCHES, Count.GENERATED),
    "choice": (Count.RIGHTLY_CHOSEN, Count.CHOSEN),
    "no_label": (Count.NO_LABEL, Count.LABELLED),
}
"""Proportions reported in percent: (successes, trials) by name."""


def accuracy_measures(fold: Fold, result: GroupResult, variants: Iterable[str]) -> Measures:
    """Return what one result adds to a fold: counts `[languages, len(Count)]`, log-probabilities `[languages]`.

    Keys are `("counts", variant)` and `("log_probability", variant)`.
    """
    measures: dict[tuple[str, str], NDArray[np.int64] | NDArray[np.float64]] = {}
    for variant in variants:
        rows = [result.predictions[variant][language] for language in fold.languages]
        choices = [fold.context.choices.get((result.group_id, language)) for language in fold.languages]
        measures["counts", variant] = np.array([*map(_counts, rows, choices)], dtype=np.int64)
        measures["log_probability", variant] = np.array([row.gold_log_probability or 0.0 for row in rows])
    return measures


def accuracy_columns(sums: Sums, variant: str) -> list[dict[str, object]]:
    """Return the table columns of a variant by language; `Accuracy.records` documents them."""
    counts = sums["counts", variant]
    log_probabilities, low, high = mean_log_probability(sums, variant)
    return [
        {
            "rows": int(count[Count.ROWS]),
            "errors": int(count[Count.ERRORS]),
            **{key: value for name in PROPORTIONS for key, value in _proportion(name, count).items()},
            "mean_gold_log_probability": log_probabilities[row],
            "gold_log_probability_low": low[row],
            "gold_log_probability_high": high[row],
            "selected_neurons": count[Count.SELECTED] / count[Count.ROWS],
            "selected_active_neurons": count[Count.SELECTED_ACTIVE] / count[Count.ROWS],
        }
        for row, count in enumerate(counts)
    ]


def percent(sums: Sums, variant: str, proportion: str = "exact") -> NDArray[np.float64]:
    """Return a proportion in percent, `[1 + languages]`, all languages pooled first; NaN without trials."""
    return 100 * _ratio(with_all(sums["counts", variant]), proportion)


def percent_interval(sums: Sums, variant: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return 95 % intervals of `percent` for exact match, `[1 + languages]` each: Wilson's for single languages.

    The rows of a group are not independent, so the interval of all languages pooled is the bootstrap's over clusters.
    """
    replicates = _ratio(sums.replicated(("counts", variant)).sum(axis=1), "exact")
    low, high = percentile_interval(replicates)
    languages = [wilson(int(row[Count.EXACT]), int(row[Count.SCORED])) for row in sums["counts", variant]]
    return (
        100 * np.array([float(low), *(one.low for one in languages)]),
        100 * np.array([float(high), *(one.high for one in languages)]),
    )


def mean_log_probability(
    sums: Sums, variant: str
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean log-probability of the gold answers by language, and the ends of its bootstrap interval."""
    scored = np.s_[..., Count.SCORED]
    mean = ratios(sums["log_probability", variant], sums["counts", variant][scored])
    replicates = ratios(sums.replicated(("log_probability", variant)), sums.replicated(("counts", variant))[scored])
    return mean, *percentile_interval(replicates)


def with_all(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Prepend the sum over all languages to counts `[languages, ...]`."""
    return np.concatenate([counts.sum(axis=0, keepdims=True), counts])


def _counts(prediction: RowPrediction, choices: Choices | None) -> list[int]:
    """Return what one row adds, in the order of `Count`."""
    right = _choice_is_right(prediction, choices)
    generated = prediction.starts_with_answer is not None
    labelled = generated and choices is not None
    return [
        1,
        bool(prediction.error),
        prediction.exact is not None,
        prediction.exact is True,
        generated,
        prediction.starts_with_answer is True,
        prediction.matches is True,
        right is not None,
        right is True,
        labelled,
        labelled and choices is not None and not choices.has_label(prediction.text),
        prediction.selected_neurons,
        prediction.selected_active_neurons,
    ]


def _choice_is_right(prediction: RowPrediction, choices: Choices | None) -> bool | None:
    if choices is None or choices.gold is None or prediction.choice is None:
        return None
    return prediction.choice == choices.gold


def _ratio(counts: NDArray[np.generic], proportion: str) -> NDArray[np.float64]:
    """Return a proportion of counts `[..., len(Count)]`; NaN without trials."""
    successes, trials = PROPORTIONS[proportion]
    return ratios(counts[..., successes].astype(np.float64), counts[..., trials].astype(np.float64))


def _proportion(name: str, count: NDArray[np.int64]) -> dict[str, float]:
    successes, trials = (int(count[column]) for column in PROPORTIONS[name])
    low, high = wilson(successes, trials)
    return {
        f"{name}_percent": 100 * successes / trials if trials else math.nan,
        f"{name}_low": 100 * low,
        f"{name}_high": 100 * high,
    }
