"""What is wrong with the files of a task: collected with file and line, and told all at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from neuroglot.errors import DataError

Kind = Literal["broken line", "duplicate", "empty", "missing language", "not parallel"]
"""Of a problem: a line that cannot be read; the same item again; a text, answer or label that is empty; an item that a
language lacks; lines that should be of the same example and are not."""

SHOWN = 100
"""Most problems that an error's message shows one by one."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        file: the file's path.
        line: the line in it, from 1.
        what: what is wrong, with what was expected.
        kind: which kind of problem it is.
    """

    file: str
    line: int
    what: str
    kind: Kind

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.what}"


@dataclass(frozen=True)
class Problems:
    """Everything that is wrong with a task's files, by file and line; falsy where nothing is.

    Attributes:
        found: the problems.
    """

    found: tuple[Problem, ...] = ()

    def __len__(self) -> int:
        return len(self.found)

    def __iter__(self) -> Iterator[Problem]:
        return iter(self.found)

    def __str__(self) -> str:
        """A line for each: `FILE:LINE: what is wrong`."""
        return "\n".join(map(str, self.found))

    @property
    def counts(self) -> Mapping[Kind, int]:
        """How many there are of each kind, the most frequent first."""
        return dict(Counter(problem.kind for problem in self.found).most_common())

    def summary(self) -> str:
        """The counts in words: `3 problems: 2 broken line, 1 duplicate`."""
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.counts.items())
        return f"{len(self):,} problem{'s' if len(self) > 1 else ''}: {kinds}"

    def first(self, shown: int = SHOWN) -> str:
        """The first of them, a line for each, and how many more there are."""
        told = [f"  {problem}" for problem in self.found[:shown]]
        return "\n".join([*told, f"  and {len(self) - shown:,} more"] if len(self) > shown else told)


NO_PROBLEMS = Problems()


class Collector:
    """Takes problems as the files are read."""

    def __init__(self) -> None:
        """With none yet."""
        self._found: list[Problem] = []

    def add(self, kind: Kind, file: Path, line: int, what: str) -> None:
        """Note a problem; for the arguments see `Problem`."""
        self._found.append(Problem(str(file), line, what, kind))

    def problems(self, *, skip: bool, left: int) -> Problems:
        """All of them, by file and line, if whatever they concern may be left out.

        Args:
            skip: whether it may.
            left: how many examples there are without it.

        Raises:
            DataError: there are some and it may not, or nothing is left. The message names them.
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
