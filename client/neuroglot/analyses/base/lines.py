"""Line plots by layer: types with intervals and mismatched groups, and languages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle, islice, product
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from neuroglot.analyses.base.shares import Compared
from neuroglot.analyses.figures.style import (
    COLUMN_INCHES,
    TYPE_COLOURS,
    TYPE_MARKERS,
    TYPE_TEXT_COLOURS,
    TYPES,
    EndLabel,
    label_ends,
    layer_axis,
    marks,
    percent_axis,
    type_key,
)

MISMATCHED_DASHES: Any = (0, (3, 1.5))

_BAND_OPACITY = 0.2
_COLUMNS = 2  # of small panels, side by side
_PANEL_INCHES = 0.82

_COLOURS = ("#000000", "#56B4E9", "#D55E00")
"""Colours of Okabe and Ito's palette that the types do not use."""

_TEXT_COLOURS = {"#000000": "#000000", "#56B4E9": "#1F77A8", "#D55E00": "#B04A00"}
_DASHES: Sequence[Any] = ("-", (0, (4, 1.2)), (0, (1, 1)), (0, (5, 1, 1, 1)))


class Panel(NamedTuple):
    """A small panel with one line a type.

    Attributes:
        component: the component whose layers are on the horizontal axis.
        title: title of the panel.
        shares: shares in percent, `[layers, 4]`.
    """

    component: str
    title: str
    shares: Compared


def component_panels(geometry: Mapping[str, tuple[int, int]], inches: float) -> tuple[Figure, dict[str, Axes]]:
    """Create a figure with one panel a component, stacked, with layer axes, and titles if there are several components.

    Args:
        geometry: (layers, neurons) by component.
        inches: height of a panel.
    """
    figure = Figure(figsize=(COLUMN_INCHES, 0.2 + inches * len(geometry)), layout="constrained")
    panels = dict(zip(geometry, figure.subplots(len(geometry), squeeze=False)[:, 0], strict=True))
    for component, axes in panels.items():
        layer_axis(axes, geometry[component][0])
        axes.set_xlabel("layer")
        if len(geometry) > 1:
            axes.set_title(component)
    return figure, panels


def type_lines(axes: Axes, shares: Compared) -> None:
    """Draw one line a type with its interval as a band, and a thin dashed line for mismatched groups if there are any.

    Args:
        axes: axes to draw on.
        shares: shares in percent, `[layers, 4]`.
    """
    matched, mismatched = shares
    layers = np.arange(len(matched.mean))
    for kind in TYPES:
        axes.plot(
            matched.mean[:, kind],
            color=TYPE_COLOURS[kind],
            marker=TYPE_MARKERS[kind] if marks(len(layers)) else None,
            markersize=2.6,
            clip_on=False,
        )
        axes.fill_between(
            layers,
            matched.low[:, kind],
            matched.high[:, kind],
            color=TYPE_COLOURS[kind],
            alpha=_BAND_OPACITY,
            linewidth=0,
        )
    if np.isnan(mismatched.mean).all():
        return
    for kind in TYPES:
        axes.plot(
            mismatched.mean[:, kind],
            color=TYPE_COLOURS[kind],
            linestyle=MISMATCHED_DASHES,
            linewidth=0.8,
            marker="_" if len(layers) == 1 else None,
            clip_on=False,
        )


def type_grid(panels: Sequence[Panel], geometry: Mapping[str, tuple[int, int]], what: str, layer: str) -> Figure:
    """Draw small panels with one line a type, two panels a row, under one legend.

    Args:
        panels: the panels row by row; two components alternate, so that each has its own column.
        geometry: (layers, neurons) by component.
        what: label of the vertical axis.
        layer: label of the horizontal axis.
    """
    columns = min(_COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(COLUMN_INCHES, 0.75 + _PANEL_INCHES * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharex="col", sharey=True, squeeze=False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        type_lines(axes, panel.shares)
        layer_axis(axes, geometry[panel.component][0])
        percent_axis(axes, 100, intervals=2)
        axes.set_title(panel.title if len(geometry) == 1 else f"{panel.title}, {panel.component}", pad=2)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    for axes in grid.flat[len(panels) - columns : len(panels)]:
        axes.tick_params(labelbottom=True)  # the lowest panel of its column, also if the last row is incomplete
    figure.supxlabel(layer, fontsize=7)
    figure.supylabel(what, fontsize=7)
    type_key(figure)
    return figure


def label_types(figure: Figure, panels: Mapping[str, Axes], shares: Mapping[str, NDArray[np.float64]]) -> None:
    """Label the lines of the types at their right ends.

    Args:
        figure: the figure, with all panels drawn.
        panels: axes by component.
        shares: shares in percent by component, `[layers, 4]`.
    """
    ends = [
        (axes, len(shares[component]) - 1, [_type_label(kind, shares[component]) for kind in TYPES])
        for component, axes in panels.items()
    ]
    label_ends(figure, ends)


def language_lines(
    figure: Figure, panels: Mapping[str, Axes], shares: Mapping[str, NDArray[np.float64]], languages: Sequence[str]
) -> None:
    """Draw one line a language in every panel, labelled at its right end.

    Args:
        figure: the figure of the panels.
        panels: axes by component.
        shares: shares in percent by component, `[layers, languages]`.
        languages: the languages, in the order of the columns.
    """
    looks = list(islice(cycle((colour, dash) for dash, colour in product(_DASHES, _COLOURS)), len(languages)))
    ends = []
    for component, axes in panels.items():
        for column, (colour, dash) in enumerate(looks):
            axes.plot(
                shares[component][:, column],
                color=colour,
                linestyle=dash,
                linewidth=1,
                marker="." if len(shares[component]) == 1 else None,
                clip_on=False,
            )
        labels = [
            EndLabel(shares[component][-1, column], languages[column], _TEXT_COLOURS[colour])
            for column, (colour, _) in enumerate(looks)
        ]
        ends.append((axes, len(shares[component]) - 1, labels))
    label_ends(figure, ends)


def _type_label(kind: Any, shares: NDArray[np.float64]) -> EndLabel:
    return EndLabel(shares[-1, kind], kind.label, TYPE_TEXT_COLOURS[kind])
