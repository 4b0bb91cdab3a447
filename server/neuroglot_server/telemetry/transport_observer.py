"""The interfaces through which the transport reports to metrics and traces, and implementations that do nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class TransportObserver(Protocol):
    """Receives the events of the transport. Methods must be quick and must not raise."""

    def started(self, method: str) -> None:
        """Called when a call starts."""

    def handled(self, method: str, code: str, seconds: float) -> None:
        """Called when a call has ended, with its status, such as `OK`."""

    def held(self, size: int) -> None:
        """Called with the bytes of requests and results that the transport holds."""

    def refused(self, tenant: str, reason: str) -> None:
        """Called when a call or a group of a stream was refused or failed; the reason is the error's class."""

    def models(self, answering: Mapping[str, bool]) -> None:
        """Called with the served models, and whether each is healthy."""

    def health(self, problem: str) -> None:
        """Called with why the server as a whole is unhealthy; empty while it is healthy."""


Describe = Callable[[Mapping[str, str | float]], None]
"""Adds attributes to a span, under names with the prefix `neuroglot.`."""


class Tracer(Protocol):
    """Creates spans."""

    def span(self, name: str, metadata: Mapping[str, str | bytes] | None = None) -> AbstractContextManager[Describe]:
        """Return a context manager that yields a `Describe`; a call's metadata may have the id of its trace."""


class Unwatched:
    """An observer of the transport that does nothing."""

    def started(self, method: str) -> None:
        """Do nothing."""

    def handled(self, method: str, code: str, seconds: float) -> None:
        """Do nothing."""

    def held(self, size: int) -> None:
        """Do nothing."""

    def refused(self, tenant: str, reason: str) -> None:
        """Do nothing."""

    def models(self, answering: Mapping[str, bool]) -> None:
        """Do nothing."""

    def health(self, problem: str) -> None:
        """Do nothing."""


class Untraced:
    """A tracer that creates no spans."""

    def span(self, name: str, metadata: Mapping[str, str | bytes] | None = None) -> AbstractContextManager[Describe]:
        """Return a context manager without a span."""
        return _NO_SPAN


def _ignore(_: Mapping[str, str | float]) -> None:
    """Discard attributes."""


_NO_SPAN: AbstractContextManager[Describe] = nullcontext(_ignore)
