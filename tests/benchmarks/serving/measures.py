"""What a measurement says: a number, the bound that it should keep, and how it came about."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Measure:
    """One line of the table.

    Attributes:
        name: what was measured, in a few words.
        value: the number.
        unit: `x`, `ms`, `bytes`.
        bound: what it should keep.
        kept: `least` if the bound is the smallest good value, `most` if it is the largest.
        details: whatever else one would want to know, for the JSON.
    """

    name: str
    value: float
    unit: str
    bound: float
    kept: Literal["least", "most"]
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool:
        """Whether the bound is kept."""
        return self.value >= self.bound if self.kept == "least" else self.value <= self.bound

    def __str__(self) -> str:
        """A line for a terminal."""
        return f"{'met   ' if self.met else 'MISSED'} {number(self.value):>10} {self.unit:8} {self.name}"


def number(value: float) -> str:
    """A number in three digits; a larger one whole.

    >>> number(0.03494), number(1001.0)
    ('0.0349', '1,001')
    """
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def seconds(run: Callable[[], object]) -> float:
    """How long something takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
