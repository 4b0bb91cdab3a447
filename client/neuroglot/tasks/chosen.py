"""Validation of options that are common to tasks: languages, templates, template language."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from neuroglot import arguments
from neuroglot.errors import AnalysisError, DataError
from neuroglot.tasks.capital_prompts import LANGUAGES
from neuroglot.tasks.task import numbers


def chosen_languages(asked: Sequence[str], found: Iterable[str], where: object) -> tuple[str, ...]:
    """Return the languages to read: those of the paper in its order, then others by name.

    Args:
        asked: requested languages; if empty, the paper's languages in the data, or all if there are fewer than two.
        found: languages in the data.
        where: description of the data for error messages.

    Raises:
        DataError: the data lack a requested language, or have fewer than two languages.
    """
    asked = arguments.texts("languages", asked, "a list of languages, ['en', 'de']", AnalysisError)
    there = list(dict.fromkeys(found))
    if missing := [one for one in asked if one not in there]:
        raise DataError(f"{where} has no {', '.join(missing)}: its languages are {', '.join(sorted(there)) or 'none'}")
    chosen = [one for one in LANGUAGES if one in (asked or there)]
    others = sorted(one for one in there if one not in LANGUAGES and (one in asked or (not asked and len(chosen) < 2)))
    if len(there) < 2:
        raise DataError(f"{where} has {len(there)} languages, and parallel prompts need two or more")
    return (*chosen, *others)


def chosen_templates(asked: Sequence[int], available: int, default: Sequence[int], task: str) -> tuple[int, ...]:
    """Return the indices of the wordings, sorted and without duplicates.

    Raises:
        AnalysisError: a wording does not exist.
    """
    asked = arguments.integers("templates", asked, "a list of numbers, [0, 1]", AnalysisError)
    if unknown := [one for one in asked if one not in range(available)]:
        raise AnalysisError(f"task {task!r} has no template {numbers(unknown)}: it has {numbers(range(available))}")
    return tuple(sorted(set(asked or default)))


def chosen_template_language(asked: str, default: str, task: str) -> str:
    """Return the template language: `en` or `own`.

    Raises:
        AnalysisError: `asked` is neither.
    """
    if not isinstance(asked, str) or asked not in ("", "en", "own"):
        raise AnalysisError(f"task {task!r} has no template language {asked!r}: it has en and own (each language's)")
    return asked or default
