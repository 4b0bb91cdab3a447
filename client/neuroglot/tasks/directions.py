"""Directions of a cross-lingual edit: which language is fixed, that of the statement or of the question."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Self

from neuroglot import arguments
from neuroglot.errors import AnalysisError

DEFAULT = "en-all"


class Direction(NamedTuple):
    """Direction of an edit.

    Attributes:
        fixed: the language that is the same in every row.
        told: True if the edit is stated in it (EN -> ALL), False if the question is asked in it (ALL -> EN).
    """

    fixed: str
    told: bool

    @classmethod
    def parse(cls, text: str, languages: Sequence[str] = ()) -> Self:
        """Parse `en-all` or `all-en`; an empty text is `en-all`.

        >>> Direction.parse("all-zh", ("en", "zh"))
        Direction(fixed='zh', told=False)

        Args:
            text: the direction.
            languages: languages that may be fixed; any if empty.

        Raises:
            AnalysisError: the text is not a direction, or its language is not in `languages`.
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
