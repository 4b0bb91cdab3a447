"""The order of languages in every table and figure."""

from __future__ import annotations

from collections.abc import Iterable

from neuroglot.tasks.capital_prompts import LANGUAGES


def in_order(languages: Iterable[str]) -> tuple[str, ...]:
    """Sort languages: those of the paper in its order, then others by name.

    >>> in_order(["zh", "cs", "en"])
    ('en', 'zh', 'cs')
    """
    return tuple(sorted(languages, key=lambda one: (LANGUAGES.index(one) if one in LANGUAGES else len(LANGUAGES), one)))
