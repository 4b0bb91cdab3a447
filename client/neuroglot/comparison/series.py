"""How runs look when they share a figure: a colour and a dash each, the same in all of its panels."""

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
"""Apart from each other for all eyes, and none of a type's own but the last two's hues."""

_DASHES: Sequence[Any] = ("-", (0, (4, 1.2)), (0, (1, 1)))

_RAMP = colormaps["cividis_r"]
_RAMP_START = 0.25  # what is lighter cannot be seen on white

_KEY_CHARACTERS = 58  # that fit beside each other above a figure
_TICK_CHARACTERS = 36  # that the names of all runs may have in a line under a panel


class Look(NamedTuple):
    """How a line looks.

    Attributes:
        label: what it is of.
        colour: of the line.
        dash: of the line.
    """

    label: str
    colour: str
    dash: Any


class Series(NamedTuple):
    """A component of a run.

    Attributes:
        run: the run.
        component: of its model.
        look: of its line.
    """

    run: ComparedRun
    component: str
    look: Look


def series_of(runs: Sequence[ComparedRun], analysis: str) -> list[Series]:
    """Every component of every run; it is named where some run has several.

    Args:
        runs: those that have the analysis.
        analysis: its name.
    """
    parts = [(one, component) for one in runs for component in fold_of(one, analysis).geometry]
    several = len({component for _, component in parts}) > 1
    labels = [f"{one.name}, {component}" if several else one.name for one, component in parts]
    looks = looks_of(labels, ordered=numbers_of(runs) is not None and len(parts) == len(runs))
    return [Series(*part, look) for part, look in zip(parts, looks, strict=True)]


def fold_of(run: ComparedRun, analysis: str) -> Fold:
    """An analysis of a run."""
    return run.study.folds[analysis]


def looks_of(labels: Sequence[str], *, ordered: bool = False) -> list[Look]:
    """A look for each label: of one hue from light to dark where they are in an order, else as different as can be."""
    if ordered:
        steps = [_RAMP_START + (1 - _RAMP_START) * place / max(len(labels) - 1, 1) for place in range(len(labels))]
        return [Look(label, to_hex(_RAMP(step)), "-") for label, step in zip(labels, steps, strict=True)]
    return [
        Look(label, _COLOURS[place % len(_COLOURS)], _DASHES[place // len(_COLOURS) % len(_DASHES)])
        for place, label in enumerate(labels)
    ]


class Numbers(NamedTuple):
    """What runs stand along.

    Attributes:
        setting: its name.
        values: of each run.
    """

    setting: str
    values: tuple[float, ...]


def numbers_of(runs: Sequence[ComparedRun]) -> Numbers | None:
    """The setting that runs differ in and its values, if it is one alone, a number, and another one in each run."""
    names = list(runs[0].varied)
    if len(names) != 1:
        return None
    values = [one.varied[names[0]] for one in runs]
    numbers = tuple(float(value) for value in values if isinstance(value, int | float) and not isinstance(value, bool))
    return Numbers(names[0], numbers) if len(set(numbers)) == len(runs) else None


def look_key(figure: Figure, looks: Sequence[Look]) -> None:
    """What the lines are of, above the panels, in as many columns as fit."""
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
    """Labels broken into lines, so that they stand beside each other under a panel."""
    return ["\n".join(textwrap.wrap(label, max(8, _TICK_CHARACTERS // len(labels)))) for label in labels]
