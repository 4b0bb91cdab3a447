"""Paired differences of runs of the same examples from the first run, with intervals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from neuroglot.analyses.accuracy.accuracy import Accuracy
from neuroglot.analyses.accuracy.predictions import Count, percent
from neuroglot.analyses.base.bootstrap import percentile_interval, ratios
from neuroglot.analyses.base.fold import Sums
from neuroglot.analyses.figures.style import COLUMN_INCHES, FAINT, TYPES
from neuroglot.analyses.types.types_by_layer import TypesByLayer
from neuroglot.comparison.compared_runs import ComparedRun
from neuroglot.comparison.comparison import Comparison
from neuroglot.comparison.series import Look, look_key, looks_of, numbers_of
from neuroglot.comparison.shares import over_layers, replicated_over_layers
from neuroglot.results.results import BASELINE

_SPREAD = 0.5  # of a row's height, shared by the marks of its runs
_MIN_REACH = 1.0  # minimum reach of an axis on both sides, in percentage points
_ALL = "all"


class Estimates(NamedTuple):
    """An estimate of a run with its bootstrap replicates.

    Attributes:
        of: key of the estimate: (component, type), or ("", language).
        value: the estimate.
        replicated: the estimate in each replicate, `[replicates]`.
    """

    of: tuple[str, str]
    value: float
    replicated: NDArray[np.float64]


class Change(NamedTuple):
    """Difference of an estimate between a run and the first run.

    Attributes:
        of: key of the estimate, as in `Estimates`.
        value: estimate of the run.
        reference: estimate of the first run.
        low: lower end of the 95 % interval of their difference.
        high: upper end.
    """

    of: tuple[str, str]
    value: float
    reference: float
    low: float
    high: float

    @property
    def difference(self) -> float:
        """Estimate of the run minus that of the first run."""
        return self.value - self.reference


class DifferencesAcrossRuns(Comparison):
    """Shares of the types and exact match of every run, minus those of the first run.

    Both runs use the same bootstrap weights, hashed from seed and cluster, so that the difficulty of examples cancels.
    Therefore only runs of the same examples in the same languages are compared; the model or the number of shots may
    differ.
    """

    name = "differences_across_runs"
    title = "What changes from the first run"
    paper = ""
    needs = TypesByLayer.name

    def __init__(self, runs: Sequence[ComparedRun]) -> None:
        """Select the first run and the runs comparable with it; raises as `Comparison`."""
        first, *others = runs
        super().__init__([first, *(one for one in others if not unpaired(first, one))])

    @classmethod
    def possible(cls, runs: Sequence[ComparedRun]) -> bool:
        """Return whether a run can be compared with the first."""
        first, *others = runs
        return super().possible([first, *(one for one in others if not unpaired(first, one))])

    def records(self, run: ComparedRun) -> Iterator[dict[str, object]]:
        """One row a component and type, and one a language; none for the first run.

        Columns against (name of the first run), measure (share_percent or exact_percent), component, type, language
        (each empty if it does not apply), value, reference (the first run's), difference, low, high (its paired 95 %
        interval), groups.
        """
        if run is self.runs[0]:
            return
        for measure, changes in (("share_percent", self.shares(run)), ("exact_percent", self.accuracies(run))):
            for change in changes:
                component, kind, language = (*change.of, "") if measure == "share_percent" else ("", "", change.of[1])
                yield {
                    "against": self.runs[0].name,
                    "measure": measure,
                    "component": component,
                    "type": kind,
                    "language": language,
                    "value": change.value,
                    "reference": change.reference,
                    "difference": change.difference,
                    "low": change.low,
                    "high": change.high,
                    "groups": run.study.groups,
                }

    def shares(self, run: ComparedRun) -> list[Change]:
        """Return changes of the shares of types over all layers, in percentage points, for the common components."""
        return _changes(_shares(run), _shares(self.runs[0]))

    def accuracies(self, run: ComparedRun) -> list[Change]:
        """Return changes of exact match with all neurons, in percentage points; empty if a run has no predictions."""
        return _changes(_accuracies(run), _accuracies(self.runs[0]))

    def definition(self) -> str:
        """Define the difference."""
        return (
            f"The estimate of a run minus that of {self.runs[0].name}. The runs have the same examples, and the "
            "bootstrap draws the same clusters in both, so that the difficulty of examples cancels."
        )

    def caption(self) -> str:
        """Caption with the sizes and the intervals."""
        replicates = self.runs[0].study.context.options.replicates
        return (
            f"Differences from {self.runs[0].name} in percentage points, with 95 % intervals of the paired bootstrap "
            f"over clusters ({replicates:,} replicates), not corrected for multiple comparisons. {self.sizes()}. "
            "Shares: mean over layers. Exact match: with all neurons."
        )

    def draw(self) -> Figure:
        """Draw a panel of the shares of types, and one of exact match if the runs have predictions."""
        others = self.runs[1:]
        looks = looks_of([one.name for one in self.runs], ordered=numbers_of(self.runs) is not None)[1:]
        panels = [
            ("share of a type", [self.shares(one) for one in others]),
            ("exact match", [self.accuracies(one) for one in others]),
        ]
        panels = [(title, changes) for title, changes in panels if any(changes)]
        lines = [len({change.of for of_run in changes for change in of_run}) for _, changes in panels]
        height = 0.08 + 0.08 * len(others)
        figure = Figure(figsize=(COLUMN_INCHES, 0.6 + 0.4 * len(panels) + height * sum(lines)), layout="constrained")
        grid = figure.subplots(len(panels), squeeze=False, height_ratios=lines)[:, 0]
        for axes, (title, changes) in zip(grid, panels, strict=True):
            _panel(axes, title, changes, looks)
        grid[-1].set_xlabel(f"difference from {self.runs[0].name} (percentage points)")
        look_key(figure, looks)
        return figure


def unpaired(first: ComparedRun, other: ComparedRun) -> str:
    """Return why two runs cannot be paired; empty if they can."""
    one, two = first.run.settings, other.run.settings
    ours, theirs = first.study.context, other.study.context
    if one.task != two.task:
        return f"its task is {two.task} instead of {one.task}"
    if ours.languages != theirs.languages:
        return f"its languages are {' '.join(theirs.languages)} instead of {' '.join(ours.languages)}"
    if (ours.options.seed, ours.options.replicates) != (theirs.options.seed, theirs.options.replicates):
        return "its bootstrap has a different seed or number of replicates"
    if ours.clusters != theirs.clusters or _groups(first) != _groups(other):
        return "it has different examples"
    return ""


def _groups(run: ComparedRun) -> set[str]:
    (fold, *_) = run.study.folds.values()
    return fold.sums.ids


def _shares(run: ComparedRun) -> list[Estimates]:
    fold = run.study.find(TypesByLayer)
    assert fold is not None
    estimates = []
    for component in fold.geometry:
        means, replicated = over_layers(fold, component).mean, replicated_over_layers(fold, component)
        estimates += [Estimates((component, kind.label), float(means[kind]), replicated[:, kind]) for kind in TYPES]
    return estimates


def _accuracies(run: ComparedRun) -> list[Estimates]:
    fold = run.study.find(Accuracy)
    if fold is None:
        return []
    replicated = _exact(fold.sums)
    values = percent(fold.sums, BASELINE)
    return [
        Estimates(("", language), float(values[index]), replicated[:, index])
        for index, language in enumerate((_ALL, *fold.languages))
    ]


def _exact(sums: Sums) -> NDArray[np.float64]:
    """Return exact match in percent in each replicate, `[replicates, 1 + languages]`, all languages pooled first."""
    counts = sums.replicated(("counts", BASELINE))
    counts = np.concatenate([counts.sum(axis=1, keepdims=True), counts], axis=1)
    return 100 * ratios(counts[..., Count.EXACT], counts[..., Count.SCORED])


def _changes(run: Sequence[Estimates], first: Sequence[Estimates]) -> list[Change]:
    references = {one.of: one for one in first}
    changes = []
    for one in run:
        if (reference := references.get(one.of)) is not None:
            low, high = percentile_interval(one.replicated - reference.replicated)
            changes.append(Change(one.of, one.value, reference.value, float(low), float(high)))
    return changes


def _panel(axes: Axes, title: str, changes: Sequence[Sequence[Change]], looks: Sequence[Look]) -> None:
    rows = list(dict.fromkeys(change.of for of_run in changes for change in of_run))
    several = len({component for component, _ in rows}) > 1
    steps = np.linspace(-_SPREAD / 2, _SPREAD / 2, len(changes)) if len(changes) > 1 else [0.0]
    axes.axvline(0, color=FAINT, linewidth=0.8)
    for of_run, look, step in zip(changes, looks, steps, strict=True):
        heights = [rows.index(change.of) + step for change in of_run]
        axes.hlines(heights, [one.low for one in of_run], [one.high for one in of_run], color=look.colour, linewidth=1)
        axes.plot([one.difference for one in of_run], heights, "o", color=look.colour, markersize=3.4)
    axes.set_yticks(range(len(rows)), [f"{name}, {component}" if several else name for component, name in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    axes.set_title(title)
    left, right = axes.get_xlim()
    axes.set_xlim(min(left, -_MIN_REACH), max(right, _MIN_REACH))
