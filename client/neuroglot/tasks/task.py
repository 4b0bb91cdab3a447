"""Tasks and their options."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from neuroglot import arguments
from neuroglot.errors import AnalysisError
from neuroglot.request.groups import Group
from neuroglot.tasks.problems import NO_PROBLEMS, Problems

Groups = Callable[[Sequence[str], int | None], Iterator[Group]]
"""Returns the groups of a task, given languages and a maximum number (None for all)."""


@dataclass(frozen=True)
class Task:
    """A source of parallel groups.

    Attributes:
        name: name of the task.
        title: short title.
        kind: the corresponding task of the paper: `fact probing`.
        data: source and licence of its data, one sentence.
        languages: its languages, in its order.
        groups: returns the groups, given languages and a maximum number (None for all).
        parameters: values of its options by name; with the data they distinguish runs of a task.
        problems: data errors in its files; the entries concerned are left out.
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
        """Return the requested languages in the task's order; all of them for an empty request.

        Raises:
            AnalysisError: the task does not have a language, or fewer than two are requested.
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
    """Options of a task; empty values select the task's default. No task takes all options.

    Attributes:
        data: file or folder with the data.
        languages: languages to read; other languages may be incomplete in the data.
        template_language: `en` for the English template around the texts of every language, or `own` for each
            language's template.
        templates: indices of the wordings.
        shots: number of in-context examples before every prompt.
        seed: seed of the choice of those examples.
        direction: direction of an edit: `en-all` (stated in English, questioned in all languages), `all-en`, or
            likewise for another language.
        relations: relations of facts, `("P36",)`.
        skip_bad_data: leave out erroneous entries of the files instead of raising an error.
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
    """Format numbers: `0, 2`."""
    return ", ".join(map(str, chosen))


def shots_chosen(shots: int, seed: int) -> Mapping[str, str | int | bool]:
    """Return the parameters `shots` and `shots_seed`; without those that are 0."""
    return {"shots": shots, **({"shots_seed": seed} if seed else {})} if shots else {}
