"""The interface through which the core reports to metrics and traces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol


class MemoryUse(NamedTuple):
    """Memory of a part of a model.

    Attributes:
        bytes: bytes in use.
        limit: maximum bytes.
    """

    bytes: int
    limit: int


@dataclass(frozen=True)
class BatchRun:
    """A batch that has run.

    Attributes:
        component: name of the component that ran it.
        rows: number of rows.
        positions: rows times the new tokens of the longest row, padding included.
        tokens: new tokens, without padding.
        seconds: run time.
        queue_seconds: waiting time of each row.
    """

    component: str
    rows: int
    positions: int
    tokens: int
    seconds: float
    queue_seconds: tuple[float, ...]


class Observer(Protocol):
    """Receives the events of a model. Methods must be quick and must not raise."""

    def batch(self, run: BatchRun) -> None:
        """Called after a batch has run."""

    def admitted(self, tenant: str, tokens: int) -> None:
        """Called when a request is admitted, with the tokens it is charged over all its variants."""

    def queued(self, tokens: int) -> None:
        """Called with the tokens in flight when their number changes."""

    def cached(self, cache: str, hit_tokens: int, missed_tokens: int) -> None:
        """Called with the tokens of a step that were found in a cache (`prefix`, `steps`), and those that were not."""


class Unobserved:
    """An observer that does nothing."""

    def batch(self, run: BatchRun) -> None:
        """Do nothing."""

    def admitted(self, tenant: str, tokens: int) -> None:
        """Do nothing."""

    def queued(self, tokens: int) -> None:
        """Do nothing."""

    def cached(self, cache: str, hit_tokens: int, missed_tokens: int) -> None:
        """Do nothing."""
