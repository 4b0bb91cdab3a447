"""Token rates: the throughput of a model, and the token bucket of a tenant's rate limit."""

from __future__ import annotations

from collections.abc import Callable

_AVERAGED_SECONDS = 60.0
"""Busy time over which the throughput is averaged, approximately."""

_UNKNOWN_SECONDS = 1.0
"""The estimate before any tokens were run."""


class Speed:
    """Measures throughput in tokens per second of busy time."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Start without measurements; `clock` returns seconds."""
        self._clock = clock
        self._tokens = 0.0
        self._seconds = 0.0
        self._since: float | None = None

    def begin(self) -> None:
        """Start the busy time, if it is not running."""
        if self._since is None:
            self._since = self._clock()

    def done(self, tokens: int, *, idle: bool) -> None:
        """Count tokens that have been run; `idle` ends the busy time."""
        assert self._since is not None
        now = self._clock()
        self._tokens += tokens
        self._seconds += now - self._since
        self._since = None if idle else now
        if self._seconds > _AVERAGED_SECONDS:  # older measurements count less and less
            self._tokens /= 2
            self._seconds /= 2

    def seconds(self, tokens: int) -> float:
        """Estimate how many seconds a number of tokens takes."""
        if not self._tokens:
            return _UNKNOWN_SECONDS
        running = 0.0 if self._since is None else self._clock() - self._since
        return tokens * (self._seconds + running) / self._tokens


class Bucket:
    """A token bucket that holds one minute's worth of tokens and refills continuously.

    A request of more than a minute's worth is allowed when the bucket is full, and leaves a negative level.

    Attributes:
        capacity: tokens per minute.
    """

    def __init__(self, capacity: int, clock: Callable[[], float]) -> None:
        """Create a full bucket; `clock` returns seconds."""
        self.capacity = capacity
        self._clock = clock
        self._level = float(capacity)
        self._at = clock()

    def seconds_until(self, tokens: int) -> float:
        """Return in how many seconds a number of tokens may be taken; 0 for now."""
        self._fill()
        return max(min(tokens, self.capacity) - self._level, 0.0) * 60 / self.capacity

    def take(self, tokens: int) -> None:
        """Take tokens; the level may become negative."""
        self._fill()
        self._level -= tokens

    def _fill(self) -> None:
        now = self._clock()
        self._level = min(self._level + (now - self._at) * self.capacity / 60, float(self.capacity))
        self._at = now
