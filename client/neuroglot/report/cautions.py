"""Caveats on a run's numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from neuroglot.analyses.study import Study
from neuroglot.analyses.types.types_by_layer import TypesByLayer
from neuroglot.report.facts import problems_in_words
from neuroglot.report.words import share
from neuroglot.request.neurons import NeuronType
from neuroglot.runs.run import Run

_MUCH = 0.5
"""If mismatched groups reach this part of a share, the share reflects the template more than the meaning."""


def cautions(run: Run, study: Study, tables: Mapping[str, pd.DataFrame]) -> Iterator[str]:
    """The sentences.

    Args:
        run: what was run.
        study: its analyses, with at least one result.
        tables: theirs, by name.
    """
    settings = run.settings
    if settings.source.startswith("embedded:"):
        yield (
            "The model is the tiny stand-in that comes with neuroglot to try the service on, trained on these very "
            "facts. Its numbers are no evidence about large language models."
        )
    if missing := settings.groups - study.groups:
        failed = f", {len(run.failures):,} of them failed" if run.failures else ""
        yield f"{missing:,} of {settings.groups:,} groups have no answer{failed}: everything here is about the others."
    if settings.problems:
        yield f"The data had problems, and what they concern is left out: {problems_in_words(settings)}."
    if types := study.find(TypesByLayer):
        yield from _template(types, tables[TypesByLayer.name])
        near, activations = types.near_threshold()
        if near:
            yield (
                f"{near:,} of {activations:,} activations lie so close to the threshold that rounding may decide on "
                "which side."
            )
    if "accuracy" in tables:
        yield from _predictions(tables["accuracy"])
    if "answers" in tables:
        yield from _first_tokens(tables["answers"])


def _template(types: TypesByLayer, table: pd.DataFrame) -> Iterator[str]:
    """Which part of the shared neurons prompts of different meanings share, too."""
    tokens, mismatched_tokens = types.distinct_last_tokens()
    languages = len(types.languages)
    ends = f"The prompts of a group end in {tokens:.1f} different tokens, of {languages} languages"
    if not types.mismatched:
        yield (
            f"{ends}. There are too few examples for mismatched groups, which would say how much of what is shared is "
            "the template."
        )
        return
    sentences = []
    for component, rows in table.groupby("component", sort=False):
        shared = rows[rows["type"] == NeuronType.ALL_SHARED.label][["share_percent", "mismatched_share_percent"]].mean()
        matched, mismatched = shared["share_percent"], shared["mismatched_share_percent"]
        place = f" of the {component}" if len(types.geometry) > 1 else ""
        much = "Much" if matched and mismatched >= _MUCH * matched else "Some"
        if not mismatched:
            much = "None"
        sentences.append(
            f"{much} of what is all-shared{place} is the template: {share(matched)} of the neurons are all-shared, and "
            f"{share(mismatched)} where every language has a different example."
        )
    yield f"{' '.join(sentences)} {ends}; of mismatched groups, in {mismatched_tokens:.1f}."


def _predictions(table: pd.DataFrame) -> Iterator[str]:
    if errors := int(table["errors"].sum()):
        yield f"{errors:,} predictions are missing, for an intervention made the numbers overflow; they do not count."
    without = table[table["condition"] == "without"].groupby("type")[["selected_neurons", "selected_active_neurons"]]
    means = without.mean()
    inactive = means["selected_neurons"] - means["selected_active_neurons"]
    if not np.any(inactive > 0):
        return
    listed = ", ".join(
        f"{name} {count:,.0f} of {selected:,.0f}"
        for name, count, selected in zip(means.index, inactive, means["selected_neurons"], strict=True)
    )
    yield (
        "Deactivating a type also sets to 0 those of its neurons that are inactive in the row, which cuts the negative "
        f"lobe of a GELU or SiLU ({listed}, mean over rows); the control touches active neurons only."
    )


def _first_tokens(answers: pd.DataFrame) -> Iterator[str]:
    shared = answers[answers["sharing_first_token"] > 0]
    apart, rows = int(answers["tokenized_apart"].sum()), int(answers["rows"].sum())
    if len(shared):
        listed = ", ".join(
            f"{row.language} {row.sharing_first_token} of {row.answers}" for row in shared.itertuples(index=False)
        )
        yield f"Different answers share their first token r ({listed}): to get r right is not yet to answer."
    if apart:
        yield (
            f"{apart:,} of {rows:,} prompts ({share(100 * apart / rows)}) would merge with their answer in the "
            "tokenizer, so both were tokenized apart."
        )
