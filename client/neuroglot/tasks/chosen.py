"""Choices that every task with files makes in the same way."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from neuroglot import arguments
from neuroglot.errors import AnalysisError, DataError
from neuroglot.tasks.capital_prompts import LANGUAGES
from neuroglot.tasks.task import numbers


def chosen_languages(asked: Sequence[str], found: Iterable[str], where: object) -> tuple[str, ...]:
    """The languages to read: the paper's in its order, the others behind them by name.

    Args:
        asked: those that were asked for; if there are none, the paper's among those found, or all if it has fewer
            than two of them.
        found: those that the data have.
        where: what to name as the place of the data.

    Raises:
        DataError: the data do not have a language, or fewer than two in all.
    """
    asked = arguments.texts("languages", asked, "a list of languages, ['en', 'de']", AnalysisError)
    there = list(dict.fromkeys(found))
    if missing := [one for one in asked if one not in there]:
        raise DataError(f"{where} has no {', '.join(missing)}: its languages are {', '.join(sorted(there)) or 'none'}")
    wanted = [one for one in LANGUAGES if one in (asked or there)]
    others = sorted(one for one in there if one not in LANGUAGES and (one in asked or (not asked and len(wanted) < 2)))
    if len(there) < 2:
        raise DataError(f"{where} has {len(there)} languages, and parallel prompts need two or more")
    return (*wanted, *others)


def chosen_templates(asked: Sequence[int], available: int, default: Sequence[int], task: str) -> tuple[int, ...]:
    """The wordings to ask in, each once, in their order.

    Raises:
        AnalysisError: there is no such wording.
    """
    asked = arguments.integers("templates", asked, "a list of numbers, [0, 1]", AnalysisError)
    if unknown := [one for one in asked if one not in range(available)]:
        raise AnalysisError(f"task {task!r} has no template {numbers(unknown)}: it has {numbers(range(available))}")
    return tuple(sorted(set(asked or default)))


def chosen_template_language(asked: str, default: str, task: str) -> str:
    """Whose wording is put around the texts: `en` or `own`.

    Raises:
        AnalysisError: it is neither.
    """
    if not isinstance(asked, str) or asked not in ("", "en", "own"):
        raise AnalysisError(f"task {task!r} has no template language {asked!r}: it has en and own (each language's)")
    return asked or default
