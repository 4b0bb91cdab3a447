"""What every analysis is: a fold over group results that can be merged, made a table of, and drawn.

The state of a fold is sums of arrays by key, a cluster each, and the ids of the groups in them. Sums do not care in
which order or in which parts the results came: integers are exact, floats equal to rounding. Clusters stay apart for
the intervals, which draw whole clusters.
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
        """Start with nothing.

        Args:
            context: says the clusters, and how the bootstrap draws them.
            by_cluster: whether clusters are kept apart; without, there are no intervals, and large arrays fit.
        """
        self._context = context
        self._by_cluster = by_cluster
        self._sums: dict[str, dict[Any, NDArray[Any]]] = {}
        self._sizes: dict[str, int] = {}
        self.ids: set[str] = set()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, key: Any) -> NDArray[Any]:
        """The sum over all groups."""
        if key not in self._totals:
            self._totals[key] = np.sum(
                [self._sums[one][key] for one in self.clusters if key in self._sums[one]], axis=0
            )
        return self._totals[key]

    def __contains__(self, key: object) -> bool:
        return any(key in sums for sums in self._sums.values())

    def __iter__(self) -> Iterator[Any]:
        """The keys, each once."""
        return iter(dict.fromkeys(key for one in self.clusters for key in self._sums[one]))

    @cached_property
    def _totals(self) -> dict[Any, NDArray[Any]]:
        return {}

    @cached_property
    def clusters(self) -> tuple[str, ...]:
        """The clusters, in a fixed order."""
        return tuple(sorted(self._sums))

    def add(self, group_id: str, measures: Measures) -> None:
        """Add what one group measures."""
        cluster = self._context.clusters.get(group_id, group_id) if self._by_cluster else ""
        self._add(cluster, 1, measures)
        self.ids.add(group_id)

    def merge(self, other: Sums) -> None:
        """Add all of another's sums."""
        for cluster, measures in other._sums.items():
            self._add(cluster, other._sizes[cluster], measures)
        self.ids |= other.ids

    def stacked(self, key: Any) -> NDArray[np.float64]:
        """The sum of each cluster, `[clusters, ...]`, in the order of `clusters`; 0 where a cluster has none."""
        nothing = np.zeros_like(self[key])
        return np.stack([self._sums[one].get(key, nothing) for one in self.clusters]).astype(np.float64)

    def sizes(self) -> NDArray[np.float64]:
        """Number of groups of each cluster."""
        return np.array([self._sizes[one] for one in self.clusters], dtype=np.float64)

    def mean(self, key: Any) -> NDArray[np.float64]:
        """The mean over groups."""
        mean: NDArray[np.float64] = self[key] / len(self)
        return mean

    def mean_interval(self, key: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The 95 % interval of the mean over groups: lower and upper ends, as `percentile_interval` gives them."""
        return percentile_interval(ratios(self.replicated(key), self.replicated_sizes()))

    def replicated(self, key: Any) -> NDArray[np.float64]:
        """The sum over all groups in each bootstrap replicate, `[replicates, ...]`."""
        return self._replicated(self.stacked(key))

    def replicated_sizes(self) -> NDArray[np.float64]:
        """Number of groups in each bootstrap replicate."""
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
    """A fold over group results that ends in a table.

    Attributes:
        name: stem of its files, `types_by_layer`.
        title: what it shows, a few words.
        needs: what answers must have beside counts.
        context: what the analyses of the run share.
        options: the form of the analyses.
        languages: the rows that every result must have, in the order of all tables and figures.
        geometry: layers and neurons of each component; empty before the first result.
        sums: sums of what `measure` gave, by key.
        whole: sums of what `measure_whole` gave, by key, all clusters together.
        mismatched: sums of what `measure_mismatched` gave, by key.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    needs: ClassVar[frozenset[Need]] = frozenset()

    def __init__(self, context: Context) -> None:
        """Start with no result."""
        self.context = context
        self.options = context.options
        self.languages = context.languages
        self.geometry: dict[str, tuple[int, int]] = {}
        self.sums = Sums(context)
        self.whole = Sums(context, by_cluster=False)
        self.mismatched = Sums(context)

    @classmethod
    def variants(cls, context: Context) -> Mapping[str, Intervention]:
        """The variants whose predictions it looks at, beside the baseline."""
        del context
        return {}

    @property
    def groups(self) -> int:
        """Number of groups so far."""
        return len(self.sums)

    @abstractmethod
    def measure(self, result: GroupResult) -> Measures:
        """What one result adds to the sums: arrays by key, with languages in the order of `self.languages`."""

    def measure_whole(self, result: GroupResult) -> Measures:
        """What one result adds to `whole`: arrays too large for one a cluster, which then have no intervals."""
        del result
        return {}

    def measure_mismatched(self, group: Mismatched) -> Measures:
        """What one mismatched group adds to `mismatched`; nothing, unless the analysis is of types."""
        del group
        return {}

    @abstractmethod
    def records(self) -> Iterable[Mapping[str, object]]:
        """The rows of the table, given at least one result."""

    @abstractmethod
    def definition(self) -> str:
        """What is counted, two lines."""

    def table(self) -> pd.DataFrame:
        """The tidy table: one row for each thing measured, one column for each variable (see `records`).

        Raises:
            AnalysisError: no result was added yet.
        """
        self.require_results()
        return pd.DataFrame(list(self.records()))

    def tables(self) -> Mapping[str, pd.DataFrame]:
        """All its tables by name: `table()` under its own name, and what else it counts or shows in another form.

        Raises:
            AnalysisError: no result was added yet.
        """
        return {self.name: self.table()}

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.groups} groups in {', '.join(self.languages)}>"

    def _repr_html_(self) -> str:
        """What a notebook shows of it."""
        return notebook.html(self.title, self.definition(), self.tables())

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
        self.sums.add(result.group_id, self.measure(result))
        self.whole.add(result.group_id, self.measure_whole(result))

    def add_mismatched(self, group: Mismatched) -> None:
        """Count a mismatched group in."""
        if measures := self.measure_mismatched(group):
            self.mismatched.add(group.group_id, measures)

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
            self._admit(other.sums.ids, other.geometry)
            self.sums.merge(other.sums)
            self.whole.merge(other.whole)
            self.mismatched.merge(other.mismatched)

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
        if twice := self.sums.ids & groups:
            raise AnalysisError(f"group {min(twice)!r} is counted already: the parts of a run must not overlap")
        if self.geometry and geometry != self.geometry:
            raise AnalysisError(
                f"results of two models: layers and neurons are {geometry} here, {self.geometry} before"
            )
        self.geometry = dict(geometry)

    def require_results(self) -> None:
        """Refuse to go on without results.

        Raises:
            AnalysisError: there is none.
        """
        if not self.groups:
            raise AnalysisError(f"{self.name} has nothing to show: no group result was added")


class Analysis(Fold):
    """A fold that draws its figure, too.

    Attributes:
        paper: the figures or tables of the paper that it is the form of, `Figures 2 to 4`.
    """

    paper: ClassVar[str]

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

    def _repr_html_(self) -> str:
        """The same, with the figure."""
        picture = notebook.pictured(self.figure(), self.name, self.caption())
        return notebook.html(self.title, self.definition(), self.tables(), picture)
