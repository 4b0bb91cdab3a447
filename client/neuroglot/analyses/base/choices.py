"""Choices of a row: the candidate answers that are ranked by likelihood, and which of them is gold."""

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
        gold: index of the gold answer among the labels; None if it is not a label or the row has no answer.
    """

    labels: tuple[str, ...]
    gold: int | None

    @classmethod
    def of(cls, group: Group, language: str) -> Self:
        """Return the choices of one row of a group."""
        labels = tuple(map(normalised, group.choices[language]))
        gold = normalised(group.answers[language][0]) if language in group.answers else None
        return cls(labels, labels.index(gold) if gold in labels else None)

    def has_label(self, text: str) -> bool:
        """Return whether a generated text, normalised, starts with a label."""
        return normalised(text).startswith(self.labels)


ChoicesOfRows = Mapping[tuple[str, str], Choices]
"""Choices by (group id, language); rows without choices are absent."""


def choices_of(examples: Sequence[Group]) -> ChoicesOfRows:
    """Return the choices of all rows that have them."""
    return {(group.id, language): Choices.of(group, language) for group in examples for language in group.choices}
