"""Directions of a cross-lingual edit: which side's language is fixed, and which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Self

from neuroglot import arguments
from neuroglot.errors import AnalysisError

DEFAULT = "en-all"


class Direction(NamedTuple):
    """Where an edit goes.

    Attributes:
        fixed: the language that is the same in every row.
        told: whether it is the one in which the edit is told (EN -> ALL), and not the one asked in (ALL -> EN).
    """

    fixed: str
    told: bool

    @classmethod
    def parse(cls, text: str, languages: Sequence[str] = ()) -> Self:
        """Read `en-all` or `all-en`; nothing is `en-all`.

        >>> Direction.parse("all-zh", ("en", "zh"))
        Direction(fixed='zh', told=False)

        Args:
            text: the direction.
            languages: those that may be fixed; any if there are none.

        Raises:
            AnalysisError: it is no direction, or of a language that is not among these.
        """
        arguments.text("direction", text, AnalysisError, "a direction, 'en-all'")
        told, _, asked = (text or DEFAULT).rpartition("-")
        fixed = told if asked == "all" else asked
        if "all" not in (told, asked) or fixed in ("", "all") or (languages and fixed not in languages):
            raise AnalysisError(
                f"there is no direction {text!r}: give LANGUAGE-all (told in it) or all-LANGUAGE (asked in it)"
                + (f", LANGUAGE one of {', '.join(languages)}" if languages else "")
            )
        return cls(fixed, asked == "all")

    def __str__(self) -> str:
        return f"{self.fixed}-all" if self.told else f"all-{self.fixed}"
