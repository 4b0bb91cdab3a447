"""Tables and figures as files."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path

import matplotlib
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.figure import Figure

METADATA_KEY = "neuroglot"
"""Under this key a Parquet file's schema says what was run, as JSON."""

_DOTS_PER_INCH = 300


def save_table(table: pd.DataFrame, folder: Path, name: str, metadata: Mapping[str, object]) -> None:
    """Write `name.csv` and `name.parquet`; the latter carries the metadata in its schema."""
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / f"{name}.csv", index=False, encoding="utf-8")
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    said = {**(arrow.schema.metadata or {}), METADATA_KEY: json.dumps(metadata, ensure_ascii=False)}
    pq.write_table(arrow.replace_schema_metadata(said), folder / f"{name}.parquet")


def save_figure(figure: Figure, folder: Path, name: str) -> str:
    """Write `name.png`, ready for print, and `name.svg`; give the text of the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.png", dpi=_DOTS_PER_INCH, metadata={"Software": None})
    svg = to_svg(figure, name)
    (folder / f"{name}.svg").write_text(svg, encoding="utf-8")
    return svg


def to_svg(figure: Figure, name: str) -> str:
    """The figure as SVG; equal figures of equal names give equal text."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": name}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()
