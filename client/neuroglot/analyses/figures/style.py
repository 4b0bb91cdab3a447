"""One look for all figures: a column wide, colours that a colour-blind reader tells apart, labels on the lines."""

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
"""Width of a column of a two-column paper, and of every figure: so its text is readable on a phone, too."""

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
"""Of Okabe and Ito's palette, and close to the paper's own colours."""

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
"""The order in which types are listed beside each other."""

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
"""How a draw of a control looks in every figure."""

_MARKED_LAYERS = 12  # more points than these run together
_LABEL_GAP = 1.2  # distance of two labels, in heights of their font
_LABEL_OFFSET = 9  # of a label from the end of its line, in points


class EndLabel(NamedTuple):
    """What stands at the right end of a line."""

    height: float
    text: str
    colour: str


def layer_axis(axes: Axes, layers: int) -> None:
    """An axis of layers: their true indices, integers from 0."""
    axes.set_xlim(-0.02 * layers - 0.05, layers - 1 + 0.02 * layers)
    ticks = MaxNLocator(nbins=8, integer=True, steps=[1, 2, 5, 10]).tick_values(0, layers - 1)
    axes.set_xticks([tick for tick in ticks if 0 <= tick < layers and tick == int(tick)])


def percent_axis(axes: Axes, top: float, bottom: float = 0, intervals: int = 5) -> None:
    """A vertical axis in percent, with a faint grid."""
    axes.set_ylim(bottom, top)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=intervals, steps=[1, 2, 5, 10]))
    axes.grid(axis="y")
    axes.set_axisbelow(True)


def marks(layers: int) -> bool:
    """Whether the points of a line by layer are few enough to be marked."""
    return layers <= _MARKED_LAYERS


def spread(heights: Sequence[float], gap: float, top: float = math.inf) -> NDArray[np.float64]:
    """Move labels apart to at least `gap`, each as little as can be, in the order of their heights.

    >>> spread([0.5, 0.6, 5.0], gap=1.0).tolist()
    [0.05, 1.05, 5.0]

    Args:
        heights: where the labels want to be.
        gap: least distance of two of them.
        top: none is moved above, nor below 0; ignored where there is no room.
    """
    order = np.argsort(heights, kind="stable")
    clusters: list[tuple[float, int]] = []  # of labels that touch: the mean of what they want, and how many they are

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
    """Write labels right of lines, moved apart where they would overlap, each tied to its line.

    Args:
        figure: with all its panels drawn.
        ends: of each panel the axes, where on their horizontal axis the lines end, and the labels.
    """
    texts = [[_end_text(axes, x, label) for label in labels] for axes, x, labels in ends]
    figure.draw_without_rendering()  # the layout decides how high the axes are, and the labels how wide
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
    """The names of the types in their colours, in one line above the panels."""
    marks = [
        Line2D([], [], color=TYPE_COLOURS[kind], marker=TYPE_MARKERS[kind], markersize=3, label=kind.label)
        for kind in TYPES
    ]
    texts = key(figure, marks).get_texts()
    for text, kind in zip(texts, TYPES, strict=True):
        text.set_color(TYPE_TEXT_COLOURS[kind])


def key(figure: Figure, marks: Sequence[Line2D]) -> Legend:
    """What marks mean, in one line above the panels."""
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
