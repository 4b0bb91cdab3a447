"""What every analysis is: a fold over group results that can be merged, made a table of, and drawn.

The state of a fold is sums of arrays by key, and the ids of the groups in them. Sums do not care in which order or in
which parts the results came: integers are exact, floats equal to rounding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from neuroglot.analyses.languages import in_order
from neuroglot.analyses.style import STYLE
from neuroglot.errors import AnalysisError
from neuroglot.results import GroupResult

Measures = Mapping[Any, NDArray[Any]]


class Fold(ABC):
    """A fold over group results that ends in a table.

    Attributes:
        name: stem of its files, `types_by_layer`.
        languages: the rows that every result must have, in the order of all tables and figures.
        geometry: layers and neurons of each component; empty before the first result.
        sums: sums of what `measure` gave, by key.
    """

    name: ClassVar[str]

    def __init__(self, languages: Iterable[str]) -> None:
        """Start with no result; `languages` are the rows that every result must have, in any order."""
        self.languages = in_order(languages)
        self.geometry: dict[str, tuple[int, int]] = {}
        self.sums: dict[Any, NDArray[Any]] = {}
        self._groups: set[str] = set()

    @property
    def groups(self) -> int:
        """Number of groups so far."""
        return len(self._groups)

    @abstractmethod
    def measure(self, result: GroupResult) -> Measures:
        """What one result adds to the sums: arrays by key, with languages in the order of `self.languages`."""

    @abstractmethod
    def records(self) -> Iterable[Mapping[str, object]]:
        """The rows of the table, given at least one result."""

    def table(self) -> pd.DataFrame:
        """The tidy table: one row for each thing measured, one column for each variable (see `records`).

        Raises:
            AnalysisError: no result was added yet.
        """
        self.require_results()
        return pd.DataFrame(list(self.records()))

    def add(self, result: GroupResult) -> None:
        """Count a result in.

        Raises:
            AnalysisError: its languages or its model's geometry differ from the others', or it is counted already.
        """
        if sorted(result.labels) != sorted(self.languages):
            raise AnalysisError(
                f"group {result.group_id!r} has the languages {', '.join(result.labels)}, and this analysis is of "
                f"{', '.join(self.languages)}: types of different sets of languages do not compare"
            )
        geometry = {name: (one.layers, one.neurons) for name, one in result.components.items()}
        self._admit({result.group_id}, geometry)
        self._sum(self.measure(result))

    def merge(self, other: Self) -> None:
        """Count in what another fold of the same analysis has counted.

        Raises:
            AnalysisError: the other is of other languages, of another geometry, or has some of the same groups.
        """
        if other.languages != self.languages:
            raise AnalysisError(
                f"{self.name} of {', '.join(other.languages)} does not merge with one of {', '.join(self.languages)}"
            )
        if other.groups:
            self._admit(other._groups, other.geometry)
            self._sum(other.sums)

    def positions(self, result: GroupResult) -> list[int]:
        """Where in a result the rows of `self.languages` are."""
        return [result.labels.index(language) for language in self.languages]

    @property
    def position(self) -> str:
        """Where in a row activations are read and changed, in words."""
        if "encoder" in self.geometry:
            return "the last prompt token (in the decoder: the start token)"
        return "the last prompt token"

    def _admit(self, groups: set[str], geometry: Mapping[str, tuple[int, int]]) -> None:
        if twice := self._groups & groups:
            raise AnalysisError(f"group {min(twice)!r} is counted already: the parts of a run must not overlap")
        if self.geometry and geometry != self.geometry:
            raise AnalysisError(
                f"results of two models: layers and neurons are {geometry} here, {self.geometry} before"
            )
        self.geometry = dict(geometry)
        self._groups |= groups

    def _sum(self, measures: Measures) -> None:
        for key, array in measures.items():
            self.sums[key] = self.sums[key] + array if key in self.sums else np.array(array)

    def require_results(self) -> None:
        """Refuse to go on without results.

        Raises:
            AnalysisError: there is none.
        """
        if not self._groups:
            raise AnalysisError(f"{self.name} has nothing to show: no group result was added")


class Analysis(Fold):
    """A fold that draws its figure, too.

    Attributes:
        title: what it shows, a few words.
    """

    title: ClassVar[str]

    @abstractmethod
    def definition(self) -> str:
        """What is counted, two lines."""

    @abstractmethod
    def caption(self) -> str:
        """What the figure shows, of what, over how many."""

    @abstractmethod
    def draw(self) -> Figure:
        """The figure; `figure` sets the style that it is drawn in."""

    def figure(self) -> Figure:
        """The figure, one column wide.

        Raises:
            AnalysisError: no result was added yet.
        """
        self.require_results()
        with matplotlib.rc_context(STYLE):
            return self.draw()
