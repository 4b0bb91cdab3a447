"""What each analysis found, in a sentence made from one of its tables, and what the paper says of it.

A table may have one component or two; where there are two, each is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import pandas as pd

from neuroglot.analyses.accuracy.predictions import Metric
from neuroglot.analyses.base.statistics import p_words
from neuroglot.report.words import capitalised, points, share
from neuroglot.request.neurons import NeuronType
from neuroglot.results.results import BASELINE

ALL_SHARED = NeuronType.ALL_SHARED.label


def _types(table: pd.DataFrame) -> str:
    parts = []
    for place, rows in _places(table):
        shares = rows.groupby("type")["share_percent"].mean().sort_values(ascending=False)
        listed = ", ".join(f"{share(percent)} {name}" for name, percent in shares.items())
        parts.append(f"{place}over all layers, the neurons are {listed}")
    return capitalised("; ".join(parts)) + "."


def _languages(table: pd.DataFrame) -> str:
    by_layer = table.groupby(["component", "layer"], as_index=False)["active_percent"].agg(["min", "max"])
    widest = by_layer.iloc[int((by_layer["max"] - by_layer["min"]).argmax())]
    component = f" of the {widest['component']}" if table["component"].nunique() > 1 else ""
    return (
        f"In one layer, the languages' shares of active neurons differ by at most {widest['max'] - widest['min']:.1f} "
        f"points (layer {widest['layer']}{component}: {widest['min']:.1f} to {widest['max']:.1f} %). The paper finds "
        "that the number of active neurons is not influenced by the language."
    )


def _repeating(table: pd.DataFrame) -> str:
    parts = []
    for place, rows in _places(table):
        means = rows.groupby("type")[["overlap_percent", "average_percent"]].mean()
        listed = ", ".join(
            f"{name} {share(overlap)} (of {share(average)})"
            for name, overlap, average in means.sort_values("average_percent", ascending=False).itertuples()
        )
        parts.append(f"{place}{listed}")
    return (
        f"So many of a layer's neurons keep their type in all {table['groups'].iloc[0]:,} groups (of so many that have "
        f"it in one): {'; '.join(parts)}. In the paper, less than 10 % of the inactive neurons stay so over the test "
        "set (Figure 5)."
    )


def _dead(table: pd.DataFrame) -> str:
    parts = []
    for place, rows in _places(table):
        by_language = rows.groupby("language")["dead_percent"].mean()
        least, most = str(by_language.idxmin()), str(by_language.idxmax())
        parts.append(
            f"{place}{share(by_language.mean())} of a layer's neurons are inactive at every token of a prompt "
            f"({least} {share(by_language[least])} to {most} {share(by_language[most])}, mean over layers)"
        )
    return capitalised("; ".join(parts)) + "."


def _contributors(top: pd.DataFrame) -> str:
    sentences = []
    for place, rows in _places(top):
        shares = rows.groupby("type")["share_percent"].mean()
        leader = str(shares.idxmax())
        sentences.append(
            f"{place}{leader} neurons lead among the top contributors with {share(shares[leader])}; "
            f"all-shared ones are {share(shares[ALL_SHARED])} of them."
        )
    return " ".join(map(capitalised, sentences))


def _contributions(table: pd.DataFrame) -> str:
    parts = []
    for place, rows in _places(table):
        means = rows.groupby("type")[["sum_percent", "mean_percent"]].mean()
        together, alone = str(means["sum_percent"].idxmax()), str(means["mean_percent"].idxmax())
        parts.append(
            f"{place}all {together} neurons of a layer together contribute most "
            f"({share(means['sum_percent'][together])}); one by itself contributes most if it is {alone} "
            f"({means['mean_percent'][alone]:.2g} %)"
        )
    return capitalised("; ".join(parts)) + "."


def _effective_scores(table: pd.DataFrame) -> str:
    highest = table.groupby("type")["maximum"].mean().sort_values(ascending=False)
    listed = ", ".join(f"{name} {score:.2g}" for name, score in highest.items())
    return f"The highest effective score in a layer, by type: {listed} (mean over layers)."


def _choices(table: pd.DataFrame) -> str:
    baseline = table[table["condition"] == "baseline"]
    if baseline["choice_percent"].isna().all():
        return ""
    return (
        f"With all neurons, the likeliest label is the right one in {share(baseline['choice_percent'].mean())} of the "
        f"prompts, and {share(baseline['no_label_percent'].mean())} of what is generated is no label at all (which is "
        "broken output, not a wrong answer)."
    )


def _conversions(table: pd.DataFrame) -> str:
    shown = table[
        (table["metric"] == Metric.EXACT.value) & (table["against"] == BASELINE) & (table["language"] == "all")
    ]
    if shown.empty:
        return ""
    listed = ", ".join(
        f"{converted} {points(difference)} ({p_words(p)})"
        for converted, difference, p in zip(shown["converted"], shown["difference"], shown["p_holm"], strict=True)
    )
    return (
        f"Converted to all-shared, exact match changes: {listed}. In the paper, converting improves accuracy in most "
        "cases (Table 3)."
    )


def _thresholds(table: pd.DataFrame) -> str:
    lowest, highest = table["threshold"].min(), table["threshold"].max()
    if lowest == highest:
        return ""
    parts = []
    for place, rows in _places(table):
        means = rows.groupby(["threshold", "type"])["share_percent"].mean()
        changes = ", ".join(
            f"{kind.label} {share(means[lowest, kind.label])} to {share(means[highest, kind.label])}"
            for kind in (NeuronType.ALL_SHARED, NeuronType.PARTIAL_SHARED, NeuronType.SPECIFIC)
        )
        parts.append(f"{place}from threshold {lowest:g} to {highest:g}, shares go: {changes}")
    return capitalised("; ".join(parts)) + "."


def _language_counts(table: pd.DataFrame) -> str:
    fewest, most = table["languages"].min(), table["languages"].max()
    if fewest == most:
        return ""
    parts = []
    for place, rows in _places(table):
        means = rows.groupby(["languages", "type"])["share_percent"].mean()
        changes = ", ".join(
            f"{kind.label} {share(means[fewest, kind.label])} to {share(means[most, kind.label])}"
            for kind in (NeuronType.ALL_SHARED, NeuronType.PARTIAL_SHARED)
        )
        parts.append(f"{place}from {fewest} to {most} languages, shares go: {changes}")
    return (
        f"{capitalised('; '.join(parts))}. In the paper, partial-shared neurons become more and all-shared ones "
        "slightly fewer (Figure 19)."
    )


SENTENCES: Mapping[str, tuple[str, Callable[[pd.DataFrame], str]]] = {
    "accuracy": ("Choices", _choices),
    "conversion_effects": ("Conversions", _conversions),
    "types_by_layer": ("Types", _types),
    "active_by_language": ("Languages", _languages),
    "repeating": ("Repeating", _repeating),
    "dead": ("Dead", _dead),
    "contributions": ("Contribution", _contributions),
    "top_contributors": ("Top contributors", _contributors),
    "effective_scores": ("Effective scores", _effective_scores),
    "thresholds": ("Thresholds", _thresholds),
    "language_counts": ("Number of languages", _language_counts),
}
"""By the name of a table: the topic, and what makes the sentence of its table."""

OF_FACT_PROBING: Mapping[str, str] = {
    "types_by_layer": (
        "The paper's fact probing (BLOOMZ, Figure 4) has more than 50 % non-activated, more than 20 % partial-shared "
        "and less than 1 % all-shared neurons."
    ),
    "contributions": (
        "In the paper's fact probing, partial-shared neurons contribute most in sum and all-shared ones least, for "
        "there are so few of them, though each contributes most (Figure 9)."
    ),
}
"""What the paper says of fact probing, by the name of the table."""


def _places(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The table by component: named `in the encoder, ` where there are several."""
    for component, rows in table.groupby("component", sort=False):
        yield f"in the {component}, " if table["component"].nunique() > 1 else "", rows
