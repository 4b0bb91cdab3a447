"""Base classes of the analyses: mergeable folds over group results with tables and figures.

The state of a fold is sums of arrays by cluster and key, and the ids of the groups added. Sums are independent of the
order and the sharding of results: integers exactly, floats up to rounding. Clusters are kept apart because the
bootstrap intervals draw whole clusters.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, ClassVar, Self

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from neuroglot.analyses.base.bootstrap import percentile_interval, ratios, weights
from neuroglot.analyses.base.context import Context, Need
from neuroglot.analyses.base.mismatched_groups import Mismatched
from neuroglot.analyses.figures import notebook
from neuroglot.analyses.figures.style import STYLE
from neuroglot.errors import AnalysisError
from neuroglot.request.interventions import Intervention
from neuroglot.results.results import GroupResult

Measures = Mapping[Any, NDArray[Any]]


class Sums:
    """Sums of arrays by key, kept apart by cluster.

    Attributes:
        ids: ids of the groups that were added.
    """

    def __init__(self, context: Context, *, by_cluster: bool = True) -> None:
        """Create empty sums.

        Args:
            context: clusters of the groups, and seed and replicates of the bootstrap.
            by_cluster: keep clusters apart; False saves memory for large arrays, which then have no intervals.
        """
        self._context = context
        self._by_cluster = by_cluster
        self._sums: dict[str, dict[Any, NDArray[Any]]] = {}
        self._sizes: dict[str, int] = {}
        self.ids: set[str] = set()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, key: Any) -> NDArray[Any]:
        """Return the sum over all groups."""
        if key not in self._totals:
            self._totals[key] = np.sum(
                [self._sums[one][key] for one in self.clusters if key in self._sums[one]], axis=0
            )
        return self._totals[key]

    def __contains__(self, key: object) -> bool:
        return any(key in sums for sums in self._sums.values())

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the distinct keys."""
        return iter(dict.fromkeys(key for one in self.clusters for key in self._sums[one]))

    @cached_property
    def _totals(self) -> dict[Any, NDArray[Any]]:
        return {}

    @cached_property
    def clusters(self) -> tuple[str, ...]:
        """Names of the clusters, sorted."""
        return tuple(sorted(self._sums))

    def add(self, group_id: str, measures: Measures) -> None:
        """Add the measures of one group."""
        cluster = self._context.clusters.get(group_id, group_id) if self._by_cluster else ""
        self._add(cluster, 1, measures)
        self.ids.add(group_id)

    def merge(self, other: Sums) -> None:
        """Add all sums of `other`."""
        for cluster, measures in other._sums.items():
            self._add(cluster, other._sizes[cluster], measures)
        self.ids |= other.ids

    def stacked(self, key: Any) -> NDArray[np.float64]:
        """Return the sum of each cluster, `[clusters, ...]`, in the order of `clusters`; 0 where the key is missing."""
        nothing = np.zeros_like(self[key])
        return np.stack([self._sums[one].get(key, nothing) for one in self.clusters]).astype(np.float64)

    def sizes(self) -> NDArray[np.float64]:
        """Return the number of groups of each cluster, `[clusters]`."""
        return np.array([self._sizes[one] for one in self.clusters], dtype=np.float64)

    def mean(self, key: Any) -> NDArray[np.float64]:
        """Return the mean over groups."""
        mean: NDArray[np.float64] = self[key] / len(self)
        return mean

    def mean_interval(self, key: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the 95 % bootstrap interval of the mean over groups, as `percentile_interval`."""
        return percentile_interval(ratios(self.replicated(key), self.replicated_sizes()))

    def replicated(self, key: Any) -> NDArray[np.float64]:
        """Return the sum over all groups in each bootstrap replicate, `[replicates, ...]`."""
        return self._replicated(self.stacked(key))

    def replicated_sizes(self) -> NDArray[np.float64]:
        """Return the number of groups in each bootstrap replicate, `[replicates]`."""
        return self._replicated(self.sizes())

    def _replicated(self, stacked: NDArray[np.float64]) -> NDArray[np.float64]:
        replicated: NDArray[np.float64] = np.tensordot(self._weights, stacked, axes=1)
        return replicated

    @cached_property
    def _weights(self) -> NDArray[np.float64]:
        return weights(self._context.options.seed, self.clusters, self._context.options.replicates)

    def _add(self, cluster: str, groups: int, measures: Measures) -> None:
        self._sizes[cluster] = self._sizes.get(cluster, 0) + groups
        sums = self._sums.setdefault(cluster, {})
        for key, array in measures.items():
            sums[key] = sums[key] + array if key in sums else np.array(array)
        for derived in ("_totals", "clusters", "_weights"):
            self.__dict__.pop(derived, None)


class Fold(ABC):
    """A mergeable fold over group results that produces tables.

    Attributes:
        name: stem of its files, `types_by_layer`.
        title: short title.
        needs: data that results must have beside counts.
        context: settings shared by the analyses of the run.
        options: options of the analyses.
        languages: the languages of every result, in the order of all tables and figures.
        geometry: (layers, neurons) by component; empty before the first result.
        sums: sums of `measure`, by key.
        whole: sums of `measure_whole`, by key, over all clusters.
        mismatched: sums of `measure_mismatched`, by key.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    needs: ClassVar[frozenset[Need]] = frozenset()

    def __init__(self, context: Context) -> None:
        """Create the fold, without results."""
        self.context = context
        self.options = context.options
        self.languages = context.languages
        self.geometry: dict[str, tuple[int, int]] = {}
        self.sums = Sums(context)
        self.whole = Sums(context, by_cluster=False)
        self.mismatched = Sums(context)

    @classmethod
    def variants(cls, context: Context) -> Mapping[str, Intervention]:
        """Return the interventions whose predictions the analysis reads, by variant, without the baseline."""
        del context
        return {}

    @property
    def groups(self) -> int:
        """Number of groups added."""
        return len(self.sums)

    @abstractmethod
    def measure(self, result: GroupResult) -> Measures:
        """Return the arrays that one result adds to `sums`, by key, with languages in the order of `self.languages`."""

    def measure_whole(self, result: GroupResult) -> Measures:
        """Return the arrays that one result adds to `whole`: too large to keep by cluster, and so without intervals."""
        del result
        return {}

    def measure_mismatched(self, group: Mismatched) -> Measures:
        """Return the arrays that one mismatched group adds to `mismatched`; empty unless the analysis is of types."""
        del group
        return {}

    @abstractmethod
    def records(self) -> Iterable[Mapping[str, object]]:
        """Return the rows of the table; needs at least one result."""

    @abstractmethod
    def definition(self) -> str:
        """Return the definition of the measured quantity, in about two lines."""

    def table(self) -> pd.DataFrame:
        """Return the tidy table: one row an observation, one column a variable (see `records`).

        Raises:
            AnalysisError: no result has been added.
        """
        self.require_results()
        return pd.DataFrame(list(self.records()))

    def tables(self) -> Mapping[str, pd.DataFrame]:
        """Return all tables by name: `table()` under the name of the analysis, and any further tables.

        Raises:
            AnalysisError: no result has been added.
        """
        return {self.name: self.table()}

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.groups} groups in {', '.join(self.languages)}>"

    def _repr_html_(self) -> str:
        """Return HTML for notebooks."""
        return notebook.html(self.title, self.definition(), self.tables())

    def add(self, result: GroupResult) -> None:
        """Add a result.

        Raises:
            AnalysisError: its languages or geometry differ from those of earlier results, or it was added before.
        """
        if sorted(result.labels) != sorted(self.languages):
            raise AnalysisError(
                f"group {result.group_id!r} has the languages {', '.join(result.labels)}; expected "
                f"{', '.join(self.languages)}: types over different sets of languages are not comparable"
            )
        geometry = {name: (one.layers, one.neurons) for name, one in result.components.items()}
        self._admit({result.group_id}, geometry)
        self.sums.add(result.group_id, self.measure(result))
        self.whole.add(result.group_id, self.measure_whole(result))

    def add_mismatched(self, group: Mismatched) -> None:
        """Add a mismatched group."""
        if measures := self.measure_mismatched(group):
            self.mismatched.add(group.group_id, measures)

    def merge(self, other: Self) -> None:
        """Add the sums of another fold of the same analysis.

        Raises:
            AnalysisError: `other` has other languages, another geometry, or some of the same groups.
        """
        if other.languages != self.languages:
            raise AnalysisError(
                f"cannot merge {self.name}: languages are {', '.join(other.languages)}; "
                f"expected {', '.join(self.languages)}"
            )
        if other.groups:
            self._admit(other.sums.ids, other.geometry)
            self.sums.merge(other.sums)
            self.whole.merge(other.whole)
            self.mismatched.merge(other.mismatched)

    def positions(self, result: GroupResult) -> list[int]:
        """Return the row indices of `self.languages` in a result."""
        return [result.labels.index(language) for language in self.languages]

    @property
    def position(self) -> str:
        """The token position at which activations are read and changed, as text."""
        if "encoder" in self.geometry:
            return "the last prompt token (in the decoder: the start token)"
        return "the last prompt token"

    def _admit(self, groups: set[str], geometry: Mapping[str, tuple[int, int]]) -> None:
        if duplicates := self.sums.ids & groups:
            raise AnalysisError(f"group {min(duplicates)!r} was added before: the shards of a run must not overlap")
        if self.geometry and geometry != self.geometry:
            raise AnalysisError(
                f"results of different models: layers and neurons are {geometry}; expected {self.geometry}"
            )
        self.geometry = dict(geometry)

    def require_results(self) -> None:
        """Check that there is at least one result.

        Raises:
            AnalysisError: there is none.
        """
        if not self.groups:
            raise AnalysisError(f"{self.name} has no results: add a group result first")


class Analysis(Fold):
    """A fold with a figure.

    Attributes:
        paper: the figures or tables of the paper that it reproduces, `Figures 2 to 4`.
    """

    paper: ClassVar[str]

    @abstractmethod
    def caption(self) -> str:
        """Return the caption: what the figure shows and the sample size."""

    @abstractmethod
    def draw(self) -> Figure:
        """Draw the figure in the current style; `figure` sets the style."""

    def figure(self) -> Figure:
        """Return the figure, one column wide.

        Raises:
            AnalysisError: no result has been added.
        """
        self.require_results()
        with matplotlib.rc_context(STYLE):
            return self.draw()

    def _repr_html_(self) -> str:
        """Return HTML for notebooks, with the figure."""
        picture = notebook.pictured(self.figure(), self.name, self.caption())
        return notebook.html(self.title, self.definition(), self.tables(), picture)
