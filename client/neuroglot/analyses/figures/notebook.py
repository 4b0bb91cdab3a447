"""How analyses look in a notebook: the figure, and the first rows of its tables."""

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
"""Rows of a table that are shown."""

_WIDTH = "max-width: 34em"


def html(title: str, definition: str, tables: Mapping[str, pd.DataFrame], picture: str = "") -> str:
    """A heading, a definition, a picture, and the first rows of tables; all that is text is escaped.

    Args:
        title: what is shown.
        definition: what is counted.
        tables: by name.
        picture: what `pictured` gives; empty where there is none.
    """
    head = Markup('<h4>{}</h4><p style="{}">{}</p>').format(title, _WIDTH, definition)
    return Markup("").join([head, Markup(picture), *(_table(*one) for one in tables.items())])  # noqa: S704 - ours


def pictured(figure: Figure, name: str, caption: str) -> str:
    """A figure as inline SVG over its caption, as HTML.

    Args:
        figure: as an analysis draws it.
        name: of the analysis; with what is drawn, it keeps the figures of a notebook apart.
        caption: what it shows.
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
