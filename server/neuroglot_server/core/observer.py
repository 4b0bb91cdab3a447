"""What the core tells whoever operates it: numbers for metrics and traces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol


class MemoryUse(NamedTuple):
    """How much memory a part of a model holds.

    Attributes:
        bytes: in use now.
        limit: how many it may use.
    """

    bytes: int
    limit: int


@dataclass(frozen=True)
class BatchRun:
    """One batch that ran.

    Attributes:
        component: of which component.
        rows: its rows.
        positions: rows times the new positions of the longest, padding included.
        tokens: the new positions that are no padding.
        seconds: how long it ran.
        queue_seconds: how long each of its rows had waited.
    """

    component: str
    rows: int
    positions: int
    tokens: int
    seconds: float
    queue_seconds: tuple[float, ...]


class Observer(Protocol):
    """Is told what a model does; must be quick and must not raise."""

    def batch(self, run: BatchRun) -> None:
        """A batch has run."""

    def admitted(self, tenant: str, tokens: int) -> None:
        """A request that is charged so many tokens, over all its variants, was admitted."""

    def queued(self, tokens: int) -> None:
        """Requests of so many tokens are admitted now."""

    def cached(self, cache: str, hit_tokens: int, missed_tokens: int) -> None:
        """Of a step's tokens so many were found in a cache (`prefix`, `steps`), and so many were not."""


class Unobserved:
    """An observer that looks away."""

    def batch(self, run: BatchRun) -> None:
        """Look away."""

    def admitted(self, tenant: str, tokens: int) -> None:
        """Look away."""

    def queued(self, tokens: int) -> None:
        """Look away."""

    def cached(self, cache: str, hit_tokens: int, missed_tokens: int) -> None:
        """Look away."""
