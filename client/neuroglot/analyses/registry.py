"""Registry of the analyses by name, in the order of the report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from neuroglot.analyses.accuracy.accuracy import Accuracy
from neuroglot.analyses.accuracy.answers import Answers
from neuroglot.analyses.accuracy.conversion_accuracy import ConversionAccuracy
from neuroglot.analyses.accuracy.effects import Effects
from neuroglot.analyses.attribution.contributions import Contributions
from neuroglot.analyses.attribution.effective_scores import EffectiveScores
from neuroglot.analyses.attribution.top_contributors import TopContributors
from neuroglot.analyses.base.context import Need
from neuroglot.analyses.base.fold import Fold
from neuroglot.analyses.types.active_by_language import ActiveByLanguage
from neuroglot.analyses.types.dead import Dead
from neuroglot.analyses.types.language_counts import LanguageCounts
from neuroglot.analyses.types.repeating import Repeating
from neuroglot.analyses.types.thresholds import Thresholds
from neuroglot.analyses.types.types_by_layer import TypesByLayer
from neuroglot.errors import AnalysisError

ANALYSES: Mapping[str, type[Fold]] = {
    fold.name: fold
    for fold in (
        Effects,
        Accuracy,
        ConversionAccuracy,
        TypesByLayer,
        ActiveByLanguage,
        Repeating,
        Dead,
        TopContributors,
        Contributions,
        EffectiveScores,
        Thresholds,
        LanguageCounts,
        Answers,
    )
}
"""Every analysis, by name."""

_NEED_ANSWERS = frozenset({Need.ANSWERS, Need.EFFECTIVE_SCORE})


def choose(names: Iterable[str], *, answers: bool) -> tuple[str, ...]:
    """Select analyses by name, in the order of the report.

    Args:
        names: names of analyses; empty for all that the task allows.
        answers: whether the task's groups have gold answers.

    Raises:
        AnalysisError: a name is unknown, or an analysis needs gold answers and the task has none.
    """
    requested = tuple(names)
    if unknown := [name for name in requested if name not in ANALYSES]:
        raise AnalysisError(f"unknown analysis {unknown[0]!r}; expected one of {', '.join(ANALYSES)}")
    impossible = [name for name, fold in ANALYSES.items() if fold.needs & _NEED_ANSWERS and not answers]
    if refused := [name for name in requested if name in impossible]:
        raise AnalysisError(
            f"analysis {refused[0]!r} needs gold answers and the groups of this task have none: leave it out"
        )
    return tuple(name for name in ANALYSES if name not in impossible and (not requested or name in requested))
