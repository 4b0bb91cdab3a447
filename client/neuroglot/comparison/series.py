"""Line styles of runs in a shared figure: colour and dash of each run, equal in all panels."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib import colormaps
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from neuroglot.analyses.base.fold import Fold
from neuroglot.analyses.figures.style import FONT_SIZE
from neuroglot.comparison.compared_runs import ComparedRun

_COLOURS = ("#000000", "#D55E00", "#56B4E9", "#7A4FA0", "#8A8A8A")
"""Colour-blind-safe colours of runs; only the hues of the last two are close to those of types."""

_DASHES: Sequence[Any] = ("-", (0, (4, 1.2)), (0, (1, 1)))

_RAMP = colormaps["cividis_r"]
_RAMP_START = 0.25  # lighter colours are not visible on white

_KEY_CHARACTERS = 58  # maximum width of a legend row above a figure
_TICK_CHARACTERS = 36  # maximum width of the names of all runs under a panel


class Look(NamedTuple):
    """Style of a line.

    Attributes:
        label: label in the legend.
        colour: colour of the line.
        dash: dash pattern of the line.
    """

    label: str
    colour: str
    dash: Any


class Series(NamedTuple):
    """One line: a component of a run.

    Attributes:
        run: the run.
        component: component of its model.
        look: style of the line.
    """

    run: ComparedRun
    component: str
    look: Look


def series_of(runs: Sequence[ComparedRun], analysis: str) -> list[Series]:
    """Return one series a run and component; labels include the component if the components differ.

    Args:
        runs: runs that have the analysis.
        analysis: name of the analysis.
    """
    parts = [(one, component) for one in runs for component in fold_of(one, analysis).geometry]
    several = len({component for _, component in parts}) > 1
    labels = [f"{one.name}, {component}" if several else one.name for one, component in parts]
    looks = looks_of(labels, ordered=numbers_of(runs) is not None and len(parts) == len(runs))
    return [Series(*part, look) for part, look in zip(parts, looks, strict=True)]


def fold_of(run: ComparedRun, analysis: str) -> Fold:
    """Return an analysis of a run by name."""
    return run.study.folds[analysis]


def looks_of(labels: Sequence[str], *, ordered: bool = False) -> list[Look]:
    """Return a style for each label: a ramp from light to dark if `ordered`, else distinct colours."""
    if ordered:
        steps = [_RAMP_START + (1 - _RAMP_START) * index / max(len(labels) - 1, 1) for index in range(len(labels))]
        return [Look(label, to_hex(_RAMP(step)), "-") for label, step in zip(labels, steps, strict=True)]
    return [
        Look(label, _COLOURS[index % len(_COLOURS)], _DASHES[index // len(_COLOURS) % len(_DASHES)])
        for index, label in enumerate(labels)
    ]


class Numbers(NamedTuple):
    """A numeric setting that orders the runs.

    Attributes:
        setting: name of the setting.
        values: its value in each run.
    """

    setting: str
    values: tuple[float, ...]


def numbers_of(runs: Sequence[ComparedRun]) -> Numbers | None:
    """Return the only differing setting if it is numeric and distinct in each run; else None."""
    names = list(runs[0].varied)
    if len(names) != 1:
        return None
    values = [one.varied[names[0]] for one in runs]
    numbers = tuple(float(value) for value in values if isinstance(value, int | float) and not isinstance(value, bool))
    return Numbers(names[0], numbers) if len(set(numbers)) == len(runs) else None


def look_key(figure: Figure, looks: Sequence[Look]) -> None:
    """Draw a legend of the lines above the panels, in as many columns as fit."""
    widest = max(len(look.label) for look in looks) + 6
    figure.legend(
        handles=[Line2D([], [], color=look.colour, linestyle=look.dash, label=look.label) for look in looks],
        loc="outside upper left",
        ncols=max(1, min(len(looks), _KEY_CHARACTERS // widest)),
        frameon=False,
        handlelength=1.8,
        handletextpad=0.5,
        columnspacing=1,
        borderpad=0,
        fontsize=FONT_SIZE,
    )


def broken(labels: Sequence[str]) -> list[str]:
    """Wrap labels so that they fit side by side under a panel."""
    return ["\n".join(textwrap.wrap(label, max(8, _TICK_CHARACTERS // len(labels)))) for label in labels]
