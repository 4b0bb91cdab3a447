"""Rates of tokens: how fast they are run, and how many a tenant may have run."""

from __future__ import annotations

from collections.abc import Callable

_REMEMBERED_SECONDS = 60.0
"""The speed is that of about so long a time of work."""

_UNKNOWN_SECONDS = 1.0
"""What is said as long as nothing has been done yet."""


class Speed:
    """How many tokens are run a second, while there are any."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Know nothing yet."""
        self._clock = clock
        self._tokens = 0.0
        self._seconds = 0.0
        self._since: float | None = None

    def begin(self) -> None:
        """There is work."""
        if self._since is None:
            self._since = self._clock()

    def done(self, tokens: int, *, idle: bool) -> None:
        """So many tokens have been run, and maybe there are no more."""
        assert self._since is not None
        now = self._clock()
        self._tokens += tokens
        self._seconds += now - self._since
        self._since = None if idle else now
        if self._seconds > _REMEMBERED_SECONDS:  # what is long ago counts less and less
            self._tokens /= 2
            self._seconds /= 2

    def seconds(self, tokens: int) -> float:
        """How long so many tokens are likely to take."""
        if not self._tokens:
            return _UNKNOWN_SECONDS
        running = 0.0 if self._since is None else self._clock() - self._since
        return tokens * (self._seconds + running) / self._tokens


class Bucket:
    """A minute's worth of tokens, which are taken out at once and come back continuously.

    A request of more than a minute's worth empties a full bucket, and leaves a debt.

    Attributes:
        capacity: tokens a minute.
    """

    def __init__(self, capacity: int, clock: Callable[[], float]) -> None:
        """Begin full."""
        self.capacity = capacity
        self._clock = clock
        self._level = float(capacity)
        self._at = clock()

    def seconds_until(self, tokens: int) -> float:
        """In how many seconds so many tokens may be taken; 0 if now."""
        self._fill()
        return max(min(tokens, self.capacity) - self._level, 0.0) * 60 / self.capacity

    def take(self, tokens: int) -> None:
        """Take tokens out."""
        self._fill()
        self._level -= tokens

    def _fill(self) -> None:
        now = self._clock()
        self._level = min(self._level + (now - self._at) * self.capacity / 60, float(self.capacity))
        self._at = now
