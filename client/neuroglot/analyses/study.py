"""All analyses of one run at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Self

from neuroglot.analyses.ablations import Ablations
from neuroglot.analyses.accuracy import Accuracy
from neuroglot.analyses.active_by_language import ActiveByLanguage
from neuroglot.analyses.answers import Answers
from neuroglot.analyses.effects import Effects
from neuroglot.analyses.fold import Analysis, Fold
from neuroglot.analyses.top_contributors import TopContributors
from neuroglot.analyses.types_by_layer import TypesByLayer
from neuroglot.results import GroupResult


@dataclass(frozen=True)
class Study:
    """The analyses of fact probing, in the order in which a report shows them; `Study.of` makes one.

    Attributes:
        effects: the paired test of each type against its control.
        accuracy: by language, without each type and without its controls.
        types: the four types by layer.
        active: active neurons by language and layer.
        top: types among the top contributors.
        answers: how the gold answers are tokenized.
    """

    effects: Effects
    accuracy: Accuracy
    types: TypesByLayer
    active: ActiveByLanguage
    top: TopContributors
    answers: Answers

    @classmethod
    def of(cls, languages: Iterable[str], ablations: Ablations, clusters: Mapping[str, str]) -> Self:
        """A study with no result yet; for the arguments see `Effects`."""
        languages = tuple(languages)
        return cls(
            effects=Effects(languages, ablations, clusters),
            accuracy=Accuracy(languages, ablations),
            types=TypesByLayer(languages),
            active=ActiveByLanguage(languages),
            top=TopContributors(languages),
            answers=Answers(languages),
        )

    @property
    def groups(self) -> int:
        """Number of groups so far."""
        return self.types.groups

    def folds(self) -> Iterator[Fold]:
        """All of them."""
        return (getattr(self, field.name) for field in fields(self))

    def analyses(self) -> Iterator[Analysis]:
        """Those that have a figure."""
        return (fold for fold in self.folds() if isinstance(fold, Analysis))

    def add(self, result: GroupResult) -> None:
        """Count a result in; errors as in `Fold.add`."""
        for fold in self.folds():
            fold.add(result)

    def merge(self, other: Self) -> None:
        """Count in what another study has counted; errors as in `Fold.merge`."""
        for ours, theirs in zip(self.folds(), other.folds(), strict=True):
            ours.merge(theirs)
