"""Validates the options of an analysis, and the fields of rows that they require."""

from __future__ import annotations

from collections.abc import Iterator

from neuroglot.errors import Violation
from neuroglot_server.core import BASELINE, Analysis, EffectiveScore, Group, ModelDescription, ScoreTarget, Variant
from neuroglot_server.core.limits import THRESHOLDS
from neuroglot_server.intake.validation.interventions import check_count, check_intervention
from neuroglot_server.intake.validation.violations import at_most_neurons, finite, top


def check_analysis(analysis: Analysis, group: Group, model: ModelDescription) -> Iterator[Violation]:
    """Yield the violations of an analysis of a group."""
    if not 1 <= len(analysis.thresholds) <= THRESHOLDS:
        yield Violation("analysis.thresholds", f"has {len(analysis.thresholds)} thresholds, expected 1 to {THRESHOLDS}")
    for index, threshold in enumerate(analysis.thresholds):
        yield from finite(f"analysis.thresholds[{index}]", threshold, model)
    if analysis.contribution is not None:
        options, path = analysis.contribution, "analysis.contribution"
        yield from top(path, "top_fraction", options.top_fraction, options.top_k, model)
        yield from at_most_neurons(f"{path}.neurons", options.neurons, model)
    if analysis.effective_score is not None:
        yield from _effective_score(analysis.effective_score, group, model)
    if analysis.prediction is not None and analysis.prediction.max_tokens < 1:
        yield Violation("analysis.prediction.max_tokens", "is less than 1, expected at least one token to generate")
    yield from _variants(analysis, model, len(group.rows))


def _effective_score(options: EffectiveScore, group: Group, model: ModelDescription) -> Iterator[Violation]:
    yield from at_most_neurons("analysis.effective_score.neurons", options.neurons, model)
    if not any(row.answers for row in group.rows):
        yield Violation(
            "analysis.effective_score", "is requested, but no row has an answer: give answers, or leave it out"
        )
    if options.target is ScoreTarget.GOLD_MINUS_DISTRACTOR:
        for index, row in enumerate(group.rows):
            if row.answers and not row.distractor:
                yield Violation(
                    f"group.rows[{index}].distractor",
                    "is empty, but scores relative to it are requested: give a wrong answer, or another target",
                )


def _variants(analysis: Analysis, model: ModelDescription, rows: int) -> Iterator[Violation]:
    variants = analysis.variants
    limit = model.limits.variants_per_group
    if len(variants) > limit:
        yield Violation("analysis.variants", f"has {len(variants)} variants, expected at most {limit}: send fewer")
        return
    if variants and analysis.prediction is None:
        yield Violation(
            "analysis.prediction", "is missing, and variants are compared by their predictions: request predictions"
        )
    too_many = list(check_count([part for variant in variants for part in variant.interventions], "analysis.variants"))
    if too_many:
        yield from too_many
        return
    first_of: dict[str, int] = {}
    for index, variant in enumerate(variants):
        path = f"analysis.variants[{index}]"
        if not variant.name:
            yield Violation(f"{path}.name", "is empty, expected a name for the results of this variant")
        elif variant.name == BASELINE:
            yield Violation(f"{path}.name", f"is {BASELINE!r}, which is the run without interventions: choose another")
        elif variant.name in first_of:
            yield Violation(
                f"{path}.name",
                f"is {variant.name!r}, which is the name of variants[{first_of[variant.name]}] too: choose another",
            )
        first_of.setdefault(variant.name, index)
        yield from _variant(variant, path, model, rows)


def _variant(variant: Variant, path: str, model: ModelDescription, rows: int) -> Iterator[Violation]:
    if not variant.interventions:
        yield Violation(
            f"{path}.interventions", "is empty, which is the baseline, and that always runs: leave this variant out"
        )
    for index, intervention in enumerate(variant.interventions):
        yield from check_intervention(intervention, f"{path}.interventions[{index}]", model, rows)
