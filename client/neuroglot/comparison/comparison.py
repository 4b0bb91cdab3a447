"""What every comparison is: a table of several runs, and a figure that overlays them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from neuroglot.analyses.figures.style import STYLE
from neuroglot.comparison.compared_runs import ComparedRun, joined
from neuroglot.errors import AnalysisError


class Comparison(ABC):
    """Something that several runs have, side by side.

    Attributes:
        name: stem of its files.
        title: what it shows, a few words.
        paper: the figures of the paper that it is the form of; empty where there is none.
        needs: name of the analysis that it is made from.
        runs: those that have this analysis, with the names that they have among all.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
    needs: ClassVar[str]

    def __init__(self, runs: Sequence[ComparedRun]) -> None:
        """Take the runs that have what is compared.

        Raises:
            AnalysisError: fewer than two have it.
        """
        self.runs = tuple(one for one in runs if self.needs in one.study.folds)
        if len(self.runs) < 2:
            raise AnalysisError(f"{self.name} compares {self.needs}, and of these runs {len(self.runs)} have it")

    @classmethod
    def possible(cls, runs: Sequence[ComparedRun]) -> bool:
        """Whether two of the runs can be compared in this."""
        return sum(cls.needs in one.study.folds for one in runs) >= 2

    @abstractmethod
    def definition(self) -> str:
        """What is compared, two lines."""

    @abstractmethod
    def caption(self) -> str:
        """What the figure shows, over how many."""

    @abstractmethod
    def records(self, run: ComparedRun) -> Iterator[Mapping[str, object]]:
        """The rows of the table that are about one of the runs."""

    def table(self) -> pd.DataFrame:
        """The tidy table: columns `run` and what differs between the runs, then those of `records`."""
        return joined([(one, pd.DataFrame(list(self.records(one)))) for one in self.runs])

    @abstractmethod
    def draw(self) -> Figure:
        """The figure; `figure` sets the style that it is drawn in."""

    def figure(self) -> Figure:
        """The figure, one column wide."""
        with matplotlib.rc_context(STYLE):
            return self.draw()

    def sizes(self) -> str:
        """How many groups each run has: `mt0 130 groups, bloom 130`."""
        first, *others = self.runs
        counts = [f"{first.name}: {first.study.groups:,} groups"]
        return "; ".join(counts + [f"{one.name}: {one.study.groups:,}" for one in others])
