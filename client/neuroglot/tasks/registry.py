"""The tasks that can be analysed by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from neuroglot.errors import AnalysisError
from neuroglot.groups import Group
from neuroglot.tasks import capitals


@dataclass(frozen=True)
class Task:
    """A source of parallel groups.

    Attributes:
        name: what to ask for it by.
        title: what it is, a few words.
        kind: which of the paper's tasks it is a form of: `fact probing`.
        data: where its data come from and under which licence, one sentence.
        languages: those that it has, in its order.
        groups: makes the groups, of the languages given, at most so many (None: all).
    """

    name: str
    title: str
    kind: str
    data: str
    languages: tuple[str, ...]
    groups: Callable[[Sequence[str], int | None], Iterator[Group]]

    def choose(self, languages: Sequence[str]) -> tuple[str, ...]:
        """The languages that are asked for, in the task's order; all of them if none is named.

        Raises:
            AnalysisError: one that the task does not have, or fewer than two.
        """
        if unknown := [one for one in languages if one not in self.languages]:
            raise AnalysisError(
                f"task {self.name!r} has no language {', '.join(map(repr, unknown))}: it has "
                f"{', '.join(self.languages)}"
            )
        chosen = tuple(one for one in self.languages if one in languages) or self.languages
        if len(chosen) < 2:
            raise AnalysisError(
                f"one language, {chosen[0]!r}, has no parallel prompts: name two or more, or none for all"
            )
        return chosen


_CAPITALS = (
    "Names of states and their capitals from Unicode CLDR by way of Babel (Unicode License v3); wordings in each "
    "language written for neuroglot and not reviewed by native speakers."
)

TASKS = {
    task.name: task
    for task in (
        Task("capitals", "Capitals", "fact probing", _CAPITALS, capitals.LANGUAGES, capitals.groups),
        Task(
            name="capitals-inference",
            title="Inferences about capitals",
            kind="natural language inference",
            data=f"{_CAPITALS} Premises are counterfactual pairs of a state and a city that training left out.",
            languages=capitals.LANGUAGES,
            groups=capitals.inferences,
        ),
    )
}
"""Every task, by name."""


def find_task(name: str) -> Task:
    """A task by its name.

    Raises:
        AnalysisError: there is none of that name.
    """
    if name not in TASKS:
        raise AnalysisError(f"there is no task {name!r}: the tasks are {', '.join(TASKS)}")
    return TASKS[name]
