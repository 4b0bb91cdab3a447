"""Data errors in the files of a task, collected with file and line and reported together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from neuroglot.errors import DataError

Kind = Literal["broken line", "duplicate", "empty", "missing language", "not parallel"]
"""Kinds of problems: an unreadable line; a repeated item; an empty text, answer or label; an item that is missing in a
language; lines that belong to different examples."""

SHOWN = 100
"""Maximum number of problems listed in an error message."""


@dataclass(frozen=True)
class Problem:
    """One data error.

    Attributes:
        file: path of the file.
        line: line number, from 1.
        what: description of the error, with the expected value.
        kind: kind of the problem.
    """

    file: str
    line: int
    what: str
    kind: Kind

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.what}"


@dataclass(frozen=True)
class Problems:
    """All data errors of a task's files, by file and line; falsy without any.

    Attributes:
        found: the problems.
    """

    found: tuple[Problem, ...] = ()

    def __len__(self) -> int:
        return len(self.found)

    def __iter__(self) -> Iterator[Problem]:
        return iter(self.found)

    def __str__(self) -> str:
        """Return one line a problem: `FILE:LINE: description`."""
        return "\n".join(map(str, self.found))

    @property
    def counts(self) -> Mapping[Kind, int]:
        """Number of problems of each kind, the most frequent first."""
        return dict(Counter(problem.kind for problem in self.found).most_common())

    def summary(self) -> str:
        """Return the counts as text: `3 problems: 2 broken line, 1 duplicate`."""
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.counts.items())
        return f"{len(self):,} problem{'s' if len(self) > 1 else ''}: {kinds}"

    def first(self, shown: int = SHOWN) -> str:
        """Return the first problems, one a line, and the number of further ones."""
        listed = [f"  {problem}" for problem in self.found[:shown]]
        return "\n".join([*listed, f"  and {len(self) - shown:,} more"] if len(self) > shown else listed)


NO_PROBLEMS = Problems()


class Collector:
    """Collects problems while files are read."""

    def __init__(self) -> None:
        """Create an empty collector."""
        self._found: list[Problem] = []

    def add(self, kind: Kind, file: Path, line: int, what: str) -> None:
        """Add a problem; arguments as the attributes of `Problem`."""
        self._found.append(Problem(str(file), line, what, kind))

    def problems(self, *, skip: bool, left: int) -> Problems:
        """Return all problems by file and line, if their entries may be left out.

        Args:
            skip: whether entries with problems may be left out.
            left: number of examples left without them.

        Raises:
            DataError: there are problems and `skip` is False, or no example is left. The message lists the problems.
        """
        problems = Problems(tuple(sorted(self._found, key=lambda one: (one.file, one.line))))
        if problems and not skip:
            raise DataError(
                f"the data have {problems.summary()}. Mend them, or leave out what they concern with --skip-bad-data "
                f"(skip_bad_data=True)\n{problems.first()}"
            )
        if not left:
            why = f": they have {problems.summary()}\n{problems.first()}" if problems else ""
            raise DataError(f"the data have no example{why}")
        return problems
