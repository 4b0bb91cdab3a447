"""Base class of comparisons: a table of several runs, and a figure that overlays them."""

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
    """Comparison of one analysis over several runs.

    Attributes:
        name: stem of its files.
        title: short title.
        paper: the figures of the paper that it corresponds to; empty for none.
        needs: name of the analysis that it compares.
        runs: the runs that have this analysis, named by their differences among all runs.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
    needs: ClassVar[str]

    def __init__(self, runs: Sequence[ComparedRun]) -> None:
        """Select the runs that have the analysis.

        Raises:
            AnalysisError: fewer than two runs have it.
        """
        self.runs = tuple(one for one in runs if self.needs in one.study.folds)
        if len(self.runs) < 2:
            raise AnalysisError(
                f"{self.name} needs two or more runs with the analysis {self.needs}; got {len(self.runs)}"
            )

    @classmethod
    def possible(cls, runs: Sequence[ComparedRun]) -> bool:
        """Return whether at least two of the runs can be compared."""
        return sum(cls.needs in one.study.folds for one in runs) >= 2

    @abstractmethod
    def definition(self) -> str:
        """Return the definition of the compared quantity, in about two lines."""

    @abstractmethod
    def caption(self) -> str:
        """Return the caption: what the figure shows and the sample sizes."""

    @abstractmethod
    def records(self, run: ComparedRun) -> Iterator[Mapping[str, object]]:
        """Return the table rows of one run."""

    def table(self) -> pd.DataFrame:
        """Return the tidy table: columns `run` and the differing settings, then those of `records`."""
        return joined([(one, pd.DataFrame(list(self.records(one)))) for one in self.runs])

    @abstractmethod
    def draw(self) -> Figure:
        """Draw the figure in the current style; `figure` sets the style."""

    def figure(self) -> Figure:
        """Return the figure, one column wide."""
        with matplotlib.rc_context(STYLE):
            return self.draw()

    def sizes(self) -> str:
        """Return the number of groups of each run: `mt0: 130 groups; bloom: 130`."""
        first, *others = self.runs
        counts = [f"{first.name}: {first.study.groups:,} groups"]
        return "; ".join(counts + [f"{one.name}: {one.study.groups:,}" for one in others])
