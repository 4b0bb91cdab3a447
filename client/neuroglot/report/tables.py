"""Tables of the page: what is read is rounded, what is sorted and downloaded is what the table's CSV file holds."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

import numpy as np
import pandas as pd
from markupsafe import Markup
from pandas.api.types import is_bool_dtype, is_integer_dtype, is_numeric_dtype

OPEN_ROWS = 16
"""Tables of at most this many rows may be expanded by default."""

SHOWN_ROWS = 200
"""Rows of a table shown at a time; browsers get slow with thousands."""

_DIGITS = 3  # significant ones, of all but the smallest tenth of a column's numbers
_LEAST_DECIMALS, _MOST_DECIMALS = 2, 5


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: as in the table's files.
        decimals: how many are shown; None where the column holds no numbers.
    """

    name: str
    decimals: int | None

    @property
    def title(self) -> str:
        """The name as displayed."""
        return self.name.replace("_", " ")

    def shown(self, value: str) -> str:
        """A value as displayed: numbers with thousands separated, rounded half up as browsers do."""
        if self.decimals is None or not value or not (number := Decimal(value)).is_finite():
            return value
        return f"{number.quantize(Decimal(1).scaleb(-self.decimals), ROUND_HALF_UP):,}"


@dataclass(frozen=True)
class Table:
    """A table of the page.

    Attributes:
        name: stem of the file that it can be downloaded as; unique in a page.
        columns: its columns.
        rows: the values as its CSV file has them; empty where there is none.
        is_open: whether it stands on the page, instead of being folded away.
    """

    name: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    is_open: bool

    @classmethod
    def of(cls, name: str, frame: pd.DataFrame, *, is_open: bool = False) -> Table:
        """The table of a data frame."""
        columns = tuple(Column(str(column), _decimals(frame[column])) for column in frame.columns)
        rows = csv.reader(io.StringIO(frame.to_csv(index=False, header=False)))
        return cls(name, columns, tuple(map(tuple, rows)), is_open)

    @property
    def data(self) -> Markup:
        """All of it as JSON that can stand in a page, for sorting and downloading."""
        columns: Sequence[Sequence[str]] = list(zip(*self.rows, strict=True)) or [()] * len(self.columns)
        content = [
            {"name": column.name, "decimals": column.decimals, "values": _constant(values)}
            for column, values in zip(self.columns, columns, strict=True)
        ]
        text = json.dumps({"rows": len(self.rows), "columns": content}, ensure_ascii=False, separators=(",", ":"))
        for character in "<>&":
            text = text.replace(character, f"\\u{ord(character):04x}")
        return Markup(text)  # noqa: S704 - nothing of HTML is left in it


def _constant(values: Sequence[str]) -> Sequence[str] | str:
    """The values of a column, reduced to a single one if all rows have the same."""
    return values[0] if values and len(set(values)) == 1 else values


def _decimals(values: pd.Series) -> int | None:
    """How many decimals show enough digits of all but a column's smallest numbers; None if it holds no numbers."""
    if is_bool_dtype(values) or not is_numeric_dtype(values):
        return None
    if is_integer_dtype(values):
        return 0
    sizes = np.abs(values.to_numpy(dtype=np.float64))
    sizes = sizes[np.isfinite(sizes) & (sizes > 0)]
    if not len(sizes):
        return _LEAST_DECIMALS
    decimals = _DIGITS - 1 - math.floor(math.log10(np.quantile(sizes, 0.1, method="lower")))
    return min(max(decimals, _LEAST_DECIMALS), _MOST_DECIMALS)
