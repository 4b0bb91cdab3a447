"""How much the transport holds: requests that were read, and results that wait to be written."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from neuroglot_server.core import RequestError


class ReaderTooSlow(RequestError):
    """Nobody took the next part of an answer."""

    def __init__(self, seconds: float) -> None:
        """Say how long was waited."""
        super().__init__(
            f"nothing of this answer was taken for {seconds:g} s, so its place went to others: ask again, and read on "
            "without a pause, or for fewer layers or tokens at once"
        )


class HeldBytes:
    """Counts the bytes of messages over all calls: those that are held, and the results that running groups will have.

    A message is in memory before anybody can ask whether there is room for it, so nothing is refused here. Instead,
    while the room is full, a call takes in its next group only when it holds no other. So at most what `most_bytes`
    says is held, and beside it one group for each call. A reader that is slow waits for itself alone: whoever reads
    their answers holds nothing and goes on.
    """

    def __init__(self, most_bytes: int, changed: Callable[[int], None]) -> None:
        """An empty room; `changed` is told how many bytes are in it, whenever that changes."""
        self._most = most_bytes
        self._changed = changed
        self._held = 0
        self._free = asyncio.Event()
        self._free.set()
        self._empty = asyncio.Event()
        self._empty.set()

    async def free(self) -> None:
        """Come back when there is room."""
        await self._free.wait()

    async def empty(self) -> None:
        """Come back when nothing is held."""
        await self._empty.wait()

    def hold(self, size: int) -> Held:
        """Hold so many bytes until they are let go."""
        return Held(self._add, size)

    def _add(self, size: int) -> None:
        self._held += size
        if self._held < self._most:
            self._free.set()
        else:
            self._free.clear()
        if self._held:
            self._empty.clear()
        else:
            self._empty.set()
        self._changed(self._held)


class Held:
    """Bytes in a room, until the end of a block."""

    def __init__(self, add: Callable[[int], None], size: int) -> None:
        """Hold so many."""
        self._add = add
        self._size = 0
        self.resize(size)

    def resize(self, size: int) -> None:
        """Hold so many instead."""
        self._add(size - self._size)
        self._size = size

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *_: object) -> None:
        self.resize(0)
