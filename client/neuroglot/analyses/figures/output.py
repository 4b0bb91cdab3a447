"""Tables and figures as files that need nothing of ours to be read."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

METADATA_KEY = "neuroglot"
"""Under this key a Parquet file's schema says what was run, as JSON."""

METADATA = "metadata.json"
"""The file beside the tables that says the same of those that are CSV, which has no place for it."""

_DOTS_PER_INCH = 300

_Canvas = Any
"""matplotlib has no types for what its canvases print."""


def save_tables(tables: Mapping[str, pd.DataFrame], folder: Path, metadata: Mapping[str, object]) -> None:
    """Write each table as `NAME.csv` and `NAME.parquet`, and beside them what was run.

    Args:
        tables: by name.
        folder: made if it is not there.
        metadata: what was run, as JSON can say it: in the schema of each Parquet file, and in `metadata.json`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False, encoding="utf-8")
        arrow = pa.Table.from_pandas(table, preserve_index=False)
        said = {**(arrow.schema.metadata or {}), METADATA_KEY: json.dumps(metadata, ensure_ascii=False)}
        pq.write_table(arrow.replace_schema_metadata(said), folder / f"{name}.parquet")
    of_tables = {name: {"rows": len(table), "columns": list(table.columns)} for name, table in tables.items()}
    text = json.dumps({METADATA_KEY: metadata, "tables": of_tables}, indent=1, ensure_ascii=False)
    (folder / METADATA).write_text(f"{text}\n", encoding="utf-8")


def save_figure(figure: Figure, folder: Path, name: str) -> str:
    """Write `NAME.png` and `NAME.pdf`, ready for print, and `NAME.svg`; give the text of the latter.

    The figure is laid out once and drawn once for each, where `savefig` would do both twice for each.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    svg = to_svg(figure, name)
    (folder / f"{name}.svg").write_text(svg, encoding="utf-8")
    pdf: _Canvas = FigureCanvasPdf(figure)
    pdf.print_pdf(folder / f"{name}.pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})
    figure.dpi = _DOTS_PER_INCH
    png: _Canvas = FigureCanvasAgg(figure)
    png.print_png(folder / f"{name}.png", metadata={"Software": None})
    return svg


def to_svg(figure: Figure, name: str) -> str:
    """The figure as SVG; equal figures of equal names give equal text."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": name}):
        canvas: _Canvas = FigureCanvasSVG(figure)
        canvas.print_svg(text, metadata={"Date": None, "Creator": None})
    return text.getvalue()
