"""HTML of analyses for notebooks: the figure and the first rows of the tables."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd
from markupsafe import Markup

from neuroglot.analyses.figures.output import to_svg
from neuroglot.analyses.figures.svg import inline_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROWS = 5
"""Maximum number of table rows shown."""

_WIDTH = "max-width: 34em"


def html(title: str, definition: str, tables: Mapping[str, pd.DataFrame], picture: str = "") -> str:
    """Return a heading, a definition, a figure and the first rows of tables as HTML; all text is escaped.

    Args:
        title: the heading.
        definition: definition of the measured quantity.
        tables: tables by name.
        picture: HTML of `pictured`; empty for no figure.
    """
    head = Markup('<h4>{}</h4><p style="{}">{}</p>').format(title, _WIDTH, definition)
    return Markup("").join([head, Markup(picture), *(_table(*one) for one in tables.items())])  # noqa: S704 - ours


def pictured(figure: Figure, name: str, caption: str) -> str:
    """Return a figure as inline SVG above its caption, as HTML.

    Args:
        figure: the figure of an analysis.
        name: name of the analysis; with a hash of the figure it makes SVG ids unique in a notebook.
        caption: the caption.
    """
    svg = to_svg(figure, name)
    unique = f"{name}-{hashlib.sha256(svg.encode()).hexdigest()[:8]}"
    return Markup('<div style="{}">{}<p><small>{}</small></p></div>').format(
        _WIDTH, inline_svg(svg, unique, caption), caption
    )


def _table(name: str, table: pd.DataFrame) -> Markup:
    rest = f", the first {ROWS} of {len(table):,} rows" if len(table) > ROWS else ""
    html = table.head(ROWS).to_html(index=False, border=0, escape=True, na_rep="")
    return Markup("<p><small>{}{}</small></p>").format(name, rest) + Markup(html)  # noqa: S704 - pandas has escaped it
