"""Common style of all figures: one column wide, colour-blind-safe colours, labels at the ends of lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.text import Annotation
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from neuroglot.request.neurons import NeuronType

COLUMN_INCHES = 3.4
"""Width of every figure: a column of a two-column paper, which is also readable on a phone."""

FONT_SIZE = 7  # points

INK = "#222222"
FAINT = "#8a8a8a"
RULE = "#d9d9d9"

TYPE_COLOURS = {
    NeuronType.ALL_SHARED: "#009E73",
    NeuronType.PARTIAL_SHARED: "#E69F00",
    NeuronType.SPECIFIC: "#CC79A7",
    NeuronType.NON_ACTIVATED: "#0072B2",
}
"""Colours of the types, from Okabe and Ito's palette and close to those of the paper."""

TYPE_TEXT_COLOURS = {
    NeuronType.ALL_SHARED: "#00704F",
    NeuronType.PARTIAL_SHARED: "#8F6200",
    NeuronType.SPECIFIC: "#9C4878",
    NeuronType.NON_ACTIVATED: "#005E93",
}
"""The same hues, dark enough to be read as text on white."""

TYPE_MARKERS = {
    NeuronType.ALL_SHARED: "o",
    NeuronType.PARTIAL_SHARED: "s",
    NeuronType.SPECIFIC: "D",
    NeuronType.NON_ACTIVATED: "^",
}

TYPES = (NeuronType.NON_ACTIVATED, NeuronType.PARTIAL_SHARED, NeuronType.ALL_SHARED, NeuronType.SPECIFIC)
"""Order of the types in legends and labels."""

STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": FONT_SIZE,
    "axes.titlesize": 7.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 7,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.2,
    "grid.color": RULE,
    "grid.linewidth": 0.5,
    "svg.fonttype": "path",
}

CONTROL_MARK: Any = {
    "linestyle": "none",
    "marker": "o",
    "markersize": 3.4,
    "markerfacecolor": "none",
    "markeredgecolor": FAINT,
    "markeredgewidth": 0.6,
}
"""Marker style of a draw of a control."""

_MARKED_LAYERS = 12  # markers of more layers would overlap
_LABEL_GAP = 1.2  # distance between labels, in font heights
_LABEL_OFFSET = 9  # distance of a label from the end of its line, in points


class EndLabel(NamedTuple):
    """Label at the right end of a line."""

    height: float
    text: str
    colour: str


def layer_axis(axes: Axes, layers: int) -> None:
    """Set up the horizontal axis as layer indices, integers from 0."""
    axes.set_xlim(-0.02 * layers - 0.05, layers - 1 + 0.02 * layers)
    ticks = MaxNLocator(nbins=8, integer=True, steps=[1, 2, 5, 10]).tick_values(0, layers - 1)
    axes.set_xticks([tick for tick in ticks if 0 <= tick < layers and tick == int(tick)])


def percent_axis(axes: Axes, top: float, bottom: float = 0, intervals: int = 5) -> None:
    """Set up the vertical axis in percent, with a faint grid."""
    axes.set_ylim(bottom, top)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=intervals, steps=[1, 2, 5, 10]))
    axes.grid(axis="y")
    axes.set_axisbelow(True)


def marks(layers: int) -> bool:
    """Return whether a line over `layers` layers has few enough points for markers."""
    return layers <= _MARKED_LAYERS


def spread(heights: Sequence[float], gap: float, top: float = math.inf) -> NDArray[np.float64]:
    """Move labels apart to a distance of at least `gap`, each as little as possible, keeping their order.

    >>> spread([0.5, 0.6, 5.0], gap=1.0).tolist()
    [0.05, 1.05, 5.0]

    Args:
        heights: preferred heights of the labels.
        gap: minimum distance between labels.
        top: maximum height; the minimum is 0. Ignored if the labels do not fit.
    """
    order = np.argsort(heights, kind="stable")
    clusters: list[tuple[float, int]] = []  # of touching labels: (mean preferred height, number of labels)

    def place(mean: float, count: int) -> float:
        reach = gap * (count - 1) / 2
        return min(max(mean, reach), top - reach) if 2 * reach <= top else mean

    for height in np.asarray(heights, dtype=np.float64)[order]:
        mean, count = float(height), 1
        while clusters and place(mean, count) - place(*clusters[-1]) < gap * (count + clusters[-1][1]) / 2:
            before, others = clusters.pop()
            mean, count = (before * others + mean * count) / (others + count), others + count
        clusters.append((mean, count))
    placed = [place(mean, count) + gap * (np.arange(count) - (count - 1) / 2) for mean, count in clusters]
    moved = np.empty(len(order))
    moved[order] = np.concatenate(placed)
    return moved


def label_ends(figure: Figure, ends: Sequence[tuple[Axes, float, Sequence[EndLabel]]]) -> None:
    """Write labels to the right of lines, moved apart to avoid overlap, each connected to its line.

    Args:
        figure: the figure, with all panels drawn.
        ends: for each panel its axes, the horizontal position of the line ends, and the labels.
    """
    texts = [[_end_text(axes, x, label) for label in labels] for axes, x, labels in ends]
    figure.draw_without_rendering()  # the layout sets the heights of the axes
    for (axes, _, labels), written in zip(ends, texts, strict=True):
        low, high = axes.get_ylim()
        points = axes.get_window_extent().height * 72 / figure.dpi
        heights = np.array([(label.height - low) / (high - low) * points for label in labels])
        moves = spread(heights.tolist(), _LABEL_GAP * FONT_SIZE, points) - heights
        for text, move in zip(written, moves, strict=True):
            text.set_position((_LABEL_OFFSET, move))


def _end_text(axes: Axes, x: float, label: EndLabel) -> Annotation:
    return axes.annotate(
        label.text,
        (x, label.height),
        xytext=(_LABEL_OFFSET, 0),
        textcoords="offset points",
        va="center",
        color=label.colour,
        annotation_clip=False,
        arrowprops={
            "arrowstyle": "-",
            "lw": 0.5,
            "color": label.colour,
            "relpos": (0, 0.5),
            "shrinkA": 0,
            "shrinkB": 3,
        },
    )


def type_key(figure: Figure) -> None:
    """Draw a legend of the types in their colours, in one line above the panels."""
    marks = [
        Line2D([], [], color=TYPE_COLOURS[kind], marker=TYPE_MARKERS[kind], markersize=3, label=kind.label)
        for kind in TYPES
    ]
    texts = key(figure, marks).get_texts()
    for text, kind in zip(texts, TYPES, strict=True):
        text.set_color(TYPE_TEXT_COLOURS[kind])


def key(figure: Figure, marks: Sequence[Line2D]) -> Legend:
    """Draw a legend of marks, in one line above the panels."""
    return figure.legend(
        handles=marks,
        loc="outside upper center",
        ncols=len(marks),
        frameon=False,
        handlelength=1.4,
        handletextpad=0.4,
        columnspacing=1,
        borderpad=0,
    )
