"""What the transport tells metrics and traces, and what it tells where there are none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class TransportObserver(Protocol):
    """Is told what the transport does; must be quick and must not raise."""

    def started(self, method: str) -> None:
        """A call has come in."""

    def handled(self, method: str, code: str, seconds: float) -> None:
        """A call has ended with a status, `OK` or another."""

    def held(self, size: int) -> None:
        """So many bytes of requests and results are held by the transport now."""

    def refused(self, tenant: str, reason: str) -> None:
        """A call, or a group of a stream, was refused or failed; the reason is the error's class."""

    def models(self, answering: Mapping[str, bool]) -> None:
        """These models are served, and answer or hang."""

    def health(self, problem: str) -> None:
        """Why the server as a whole does not answer; empty while it does."""


Describe = Callable[[Mapping[str, str | float]], None]
"""Adds what is known by the end of a span to it, under names that begin with `neuroglot.`."""


class Tracer(Protocol):
    """Makes spans of a trace."""

    def span(self, name: str, metadata: Mapping[str, str | bytes] | None = None) -> AbstractContextManager[Describe]:
        """A context manager that gives a `Describe`; the metadata of a call may name the trace that it belongs to."""


class Unwatched:
    """An observer of the transport that looks away."""

    def started(self, method: str) -> None:
        """Look away."""

    def handled(self, method: str, code: str, seconds: float) -> None:
        """Look away."""

    def held(self, size: int) -> None:
        """Look away."""

    def refused(self, tenant: str, reason: str) -> None:
        """Look away."""

    def models(self, answering: Mapping[str, bool]) -> None:
        """Look away."""

    def health(self, problem: str) -> None:
        """Look away."""


class Untraced:
    """A tracer for nobody."""

    def span(self, name: str, metadata: Mapping[str, str | bytes] | None = None) -> AbstractContextManager[Describe]:
        """No span."""
        return _NO_SPAN


def _to_nobody(_: Mapping[str, str | float]) -> None:
    """Describe nothing."""


_NO_SPAN: AbstractContextManager[Describe] = nullcontext(_to_nobody)
