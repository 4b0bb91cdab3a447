"""Tables and figures as files that are readable without neuroglot."""

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
"""Key of a Parquet file's schema metadata that describes the run, as JSON."""

METADATA = "metadata.json"
"""File beside the tables that describes the run for CSV files, which have no metadata."""

_DOTS_PER_INCH = 300

_Canvas = Any
"""matplotlib has no type hints for the print methods of its canvases."""


def save_tables(tables: Mapping[str, pd.DataFrame], folder: Path, metadata: Mapping[str, object]) -> None:
    """Write each table as `NAME.csv` and `NAME.parquet`, with a description of the run.

    Args:
        tables: tables by name.
        folder: output folder, created if missing.
        metadata: JSON-serialisable description of the run, written to each Parquet schema and to `metadata.json`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False, encoding="utf-8")
        arrow = pa.Table.from_pandas(table, preserve_index=False)
        schema_metadata = {**(arrow.schema.metadata or {}), METADATA_KEY: json.dumps(metadata, ensure_ascii=False)}
        pq.write_table(arrow.replace_schema_metadata(schema_metadata), folder / f"{name}.parquet")
    of_tables = {name: {"rows": len(table), "columns": list(table.columns)} for name, table in tables.items()}
    text = json.dumps({METADATA_KEY: metadata, "tables": of_tables}, indent=1, ensure_ascii=False)
    (folder / METADATA).write_text(f"{text}\n", encoding="utf-8")


def save_figure(figure: Figure, folder: Path, name: str) -> str:
    """Write `NAME.png`, `NAME.pdf` and `NAME.svg`; return the text of the SVG.

    The figure is laid out once and drawn once a file; `savefig` would do both twice a file.
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
    """Return the figure as SVG; equal figures with equal names give equal text."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": name}):
        canvas: _Canvas = FigureCanvasSVG(figure)
        canvas.print_svg(text, metadata={"Date": None, "Creator": None})
    return text.getvalue()
