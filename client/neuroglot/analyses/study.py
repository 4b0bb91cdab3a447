"""Several analyses of the same results: their joint request, and adding results to all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Self, TypeVar

from neuroglot.analyses.base.context import Context, Need
from neuroglot.analyses.base.fold import Analysis, Fold
from neuroglot.analyses.base.mismatched_groups import Mismatched, Mismatching
from neuroglot.analyses.registry import ANALYSES
from neuroglot.request.options import (
    AnalysisKeywords,
    ContributionOptions,
    EffectiveScoreOptions,
)
from neuroglot.results.results import GroupResult

AnyFold = TypeVar("AnyFold", bound=Fold)


class Study:
    """A set of analyses of one run.

    Attributes:
        context: the settings that they share.
        folds: the analyses by name, in the order of the report.
    """

    def __init__(self, context: Context, names: Iterable[str] = tuple(ANALYSES)) -> None:
        """Create the analyses, without results.

        Args:
            context: the settings that the analyses share.
            names: names of the analyses.
        """
        self.context = context
        self.folds: dict[str, Fold] = {name: ANALYSES[name](context) for name in names}
        self._mismatching = Mismatching(context.rotation)
        self._groups: set[str] = set()

    def __repr__(self) -> str:
        return f"<Study: {', '.join(self.folds)} of {self.groups} groups>"

    def find(self, kind: type[AnyFold]) -> AnyFold | None:
        """Return the analysis of a class; None if the study does not include it."""
        return next((fold for fold in self.folds.values() if isinstance(fold, kind)), None)

    @property
    def groups(self) -> int:
        """Number of groups added."""
        return len(self._groups)

    @property
    def needs(self) -> frozenset[Need]:
        """Union of the needs of all analyses."""
        return frozenset().union(*(fold.needs for fold in self.folds.values()))

    def analyses(self) -> Iterator[Analysis]:
        """Iterate over the analyses that have a figure."""
        return (fold for fold in self.folds.values() if isinstance(fold, Analysis))

    def keywords(self) -> AnalysisKeywords:
        """Return the keywords of `Model.analyze_many` that cover all analyses in one request a group."""
        context, options, needs = self.context, self.context.options, self.needs
        variants = {name: variant for fold in self.folds.values() for name, variant in fold.variants(context).items()}
        return AnalysisKeywords(
            variants=variants,
            thresholds=options.thresholds if Need.THRESHOLDS in needs else options.thresholds[:1],
            type_map=Need.TYPE_MAP in needs,
            active=Need.ACTIVE in needs,
            contribution=ContributionOptions(options.top_fraction) if Need.CONTRIBUTION in needs else False,
            effective_score=EffectiveScoreOptions(options.score_target) if Need.EFFECTIVE_SCORE in needs else False,
            dead=Need.DEAD in needs,
            predict=Need.ANSWERS in needs,
        )

    def add(self, result: GroupResult) -> None:
        """Add a result to all analyses; raises as `Fold.add`."""
        for fold in self.folds.values():
            fold.add(result)
        self._groups.add(result.group_id)
        if Need.ACTIVE in self.needs:
            for group in self._mismatching.add(result):
                self._add_mismatched(group)

    def merge(self, other: Self) -> None:
        """Add the results of another study of the same analyses; raises as `Fold.merge`."""
        for name, fold in self.folds.items():
            fold.merge(other.folds[name])
        self._groups |= other._groups
        for group in self._mismatching.merge(other._mismatching):
            self._add_mismatched(group)

    def _add_mismatched(self, group: Mismatched) -> None:
        for fold in self.folds.values():
            fold.add_mismatched(group)
