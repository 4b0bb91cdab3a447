"""Who is inside: lets calls in, counts them, and lets no more in once the server goes down."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from neuroglot_server.core import RequestError


class GoingDown(RequestError):
    """The server takes nothing new."""

    def __init__(self) -> None:
        """Say so."""
        super().__init__("the server is going down and takes nothing new: try another server, or this one later")


class Gate:
    """Counts the calls that are running.

    Attributes:
        closed: set once nothing new is let in; streams wait for it beside their next message.
    """

    def __init__(self) -> None:
        """An open gate with nobody inside."""
        self.closed = asyncio.Event()
        self._inside = 0
        self._nobody_inside = asyncio.Event()
        self._nobody_inside.set()

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Be inside for the length of a block.

        Raises:
            GoingDown: the gate is closed.
        """
        if self.closed.is_set():
            raise GoingDown
        self._inside += 1
        self._nobody_inside.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._nobody_inside.set()

    async def empty(self) -> None:
        """Wait until nobody is inside."""
        await self._nobody_inside.wait()
