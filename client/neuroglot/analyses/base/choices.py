"""The answers among which the most likely one is found: which of them is right, and what is none of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from neuroglot.definitions.normalisation import normalised
from neuroglot.request.groups import Group


@dataclass(frozen=True)
class Choices:
    """The choices of one row.

    Attributes:
        labels: their normalised texts, in the order of the row's log-probabilities.
        gold: the place of the gold answer among them; None where it is not one of them, or there is no answer.
    """

    labels: tuple[str, ...]
    gold: int | None

    @classmethod
    def of(cls, group: Group, language: str) -> Self:
        """Those of one row of a group."""
        labels = tuple(map(normalised, group.choices[language]))
        gold = normalised(group.answers[language][0]) if language in group.answers else None
        return cls(labels, labels.index(gold) if gold in labels else None)

    def has_label(self, text: str) -> bool:
        """Whether a generated text, normalised, starts with one of them."""
        return normalised(text).startswith(self.labels)


ChoicesOfRows = Mapping[tuple[str, str], Choices]
"""By a group's id and a language; only of rows that have choices."""


def choices_of(examples: Sequence[Group]) -> ChoicesOfRows:
    """The choices of all rows that have any."""
    return {(group.id, language): Choices.of(group, language) for group in examples for language in group.choices}
