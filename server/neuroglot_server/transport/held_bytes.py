"""Bytes held by the transport: requests that were read, and results that wait to be written."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from neuroglot_server.core import RequestError


class ReaderTooSlow(RequestError):
    """The client did not read the next part of a response in time."""

    def __init__(self, seconds: float) -> None:
        """Set the message.

        Args:
            seconds: how long the server waited.
        """
        super().__init__(
            f"the client read nothing of this response for {seconds:g} s, so the server dropped it: request it again, "
            "and read it without a pause or ask for fewer layers or tokens at once"
        )


class HeldBytes:
    """Counts the bytes of messages in flight over all calls: those held now, and expected results of running groups.

    gRPC gives a message only once it is whole in memory, so nothing is refused here. Instead, at or over the limit, a
    call reads its next group only when it holds no other. The total is bounded by the limit plus one group per call.
    A slow reader delays itself alone: calls whose results are read hold nothing and continue.
    """

    def __init__(self, limit_bytes: int, changed: Callable[[int], None]) -> None:
        """Start empty.

        Args:
            limit_bytes: from how many bytes on calls read their groups one at a time.
            changed: called with the number of bytes held whenever it changes.
        """
        self._limit = limit_bytes
        self._changed = changed
        self._held = 0
        self._below_limit = asyncio.Event()
        self._below_limit.set()
        self._empty = asyncio.Event()
        self._empty.set()

    async def wait_below_limit(self) -> None:
        """Wait until fewer bytes are held than the limit."""
        await self._below_limit.wait()

    async def wait_empty(self) -> None:
        """Wait until nothing is held."""
        await self._empty.wait()

    def hold(self, size: int) -> Held:
        """Hold `size` bytes until they are released."""
        return Held(self._add, size)

    def _add(self, size: int) -> None:
        self._held += size
        if self._held < self._limit:
            self._below_limit.set()
        else:
            self._below_limit.clear()
        if self._held:
            self._empty.clear()
        else:
            self._empty.set()
        self._changed(self._held)


class Held:
    """Bytes counted in a `HeldBytes`, until the end of a block or `resize(0)`."""

    def __init__(self, add: Callable[[int], None], size: int) -> None:
        """Hold `size` bytes; `add` changes the total."""
        self._add = add
        self._size = 0
        self.resize(size)

    def resize(self, size: int) -> None:
        """Hold `size` bytes instead of the present number."""
        self._add(size - self._size)
        self._size = size

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *_: object) -> None:
        self.resize(0)
