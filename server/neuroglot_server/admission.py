"""Admission: how much work may wait at once, and how long to stay away when it is too much."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from neuroglot_server.core import QueueFull

_SHORTEST_WAIT_SECONDS = 0.1
_LONGEST_WAIT_SECONDS = 60.0


class Admission:
    """Counts the tokens of all requests that are in the house."""

    def __init__(self, most_tokens: int) -> None:
        """Admit up to so many tokens at once, and any request while there is no other."""
        self._most = most_tokens
        self._inside = 0
        self._done = 0
        self._busy_seconds = 0.0
        self._busy_since = 0.0
        self._empty = asyncio.Event()
        self._empty.set()

    @contextmanager
    def admit(self, tokens: int) -> Iterator[None]:
        """Hold a place for a request of so many tokens.

        Raises:
            QueueFull: there is no room; it says when there is likely to be.
        """
        if self._inside and self._inside + tokens > self._most:
            raise QueueFull(
                f"the queue is full: {self._inside} tokens are waiting, this request has {tokens}, and "
                f"{self._most} may wait: try again in {self._wait(tokens):.1f} s",
                self._wait(tokens),
            )
        if not self._inside:
            self._busy_since = monotonic()
            self._empty.clear()
        self._inside += tokens
        try:
            yield
        finally:
            self._inside -= tokens
            self._done += tokens
            if not self._inside:
                self._busy_seconds += monotonic() - self._busy_since
                self._empty.set()

    async def emptied(self) -> None:
        """Come back when no request is in the house."""
        await self._empty.wait()

    def _wait(self, tokens: int) -> float:
        """Seconds until enough of what waits is done, at the mean speed so far."""
        excess = min(self._inside, self._inside + tokens - self._most)
        seconds = self._busy_seconds + monotonic() - self._busy_since
        expected = excess * seconds / self._done if self._done else 1.0
        return min(max(expected, _SHORTEST_WAIT_SECONDS), _LONGEST_WAIT_SECONDS)
