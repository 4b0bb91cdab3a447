"""What a run is of: a task, and the options that choose its form."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from neuroglot import arguments
from neuroglot.errors import AnalysisError
from neuroglot.request.groups import Group
from neuroglot.tasks.problems import NO_PROBLEMS, Problems

Groups = Callable[[Sequence[str], int | None], Iterator[Group]]
"""Makes the groups of a task in the languages given, at most so many; None: all."""


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
        parameters: what was chosen of its options, by name: with the data, it tells runs of one task apart.
        problems: what was wrong with its files and is left out.
    """

    name: str
    title: str
    kind: str
    data: str
    languages: tuple[str, ...]
    groups: Groups
    parameters: Mapping[str, str | int | bool] = field(default_factory=dict)
    problems: Problems = NO_PROBLEMS

    def choose(self, languages: Sequence[str]) -> tuple[str, ...]:
        """The languages that are asked for, in the task's order; all of them if none is named.

        Raises:
            AnalysisError: one that the task does not have, or fewer than two.
        """
        languages = arguments.texts("languages", languages, "a list of languages, ['en', 'de']", AnalysisError)
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


@dataclass(frozen=True)
class TaskOptions:
    """How a task is wanted; what is empty is left to the task. No task takes all of them.

    Attributes:
        data: the file or folder with its data.
        languages: those that will be asked in; what the data lack in others is then no problem.
        template_language: `en`, an English template around the texts of every language, or `own`, each language's.
        templates: which wordings to ask in, by number.
        shots: solved examples in front of every prompt.
        seed: of the choice of those examples.
        direction: of an edit, `en-all` (told in English, asked in all languages) or `all-en`, or of another language.
        relations: of facts, `("P36",)`.
        skip_bad_data: leave out what is wrong in the files, instead of refusing them.
    """

    data: Path | None = None
    languages: tuple[str, ...] = ()
    template_language: str = ""
    templates: tuple[int, ...] = ()
    shots: int = 0
    seed: int = 0
    direction: str = ""
    relations: tuple[str, ...] = ()
    skip_bad_data: bool = False


def numbers(chosen: Iterable[int]) -> str:
    """Numbers in words: `0, 2`."""
    return ", ".join(map(str, chosen))


def shots_chosen(shots: int, seed: int) -> Mapping[str, str | int | bool]:
    """What a task's parameters say of its in-context examples; nothing where there are none, or of the seed 0."""
    return {"shots": shots, **({"shots_seed": seed} if seed else {})} if shots else {}
