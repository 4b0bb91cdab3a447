"""Who is inside: lets calls in, counts them, and lets no more in when it is full or the server goes down."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from neuroglot_server.config.tenants import Tenant
from neuroglot_server.core import RequestError


class GoingDown(RequestError):
    """The server takes nothing new."""

    def __init__(self) -> None:
        """Say so."""
        super().__init__("the server is going down and takes nothing new: try another server, or this one later")


class TooManyCalls(RequestError):
    """As many calls run as may, of everybody's, of one tenant's or of one connection's.

    Attributes:
        retry_after_seconds: when a try is likely to find room.
    """

    retry_after_seconds = 1.0

    def __init__(self, most: int, whose: str = "") -> None:
        """Say how many may, and `of yours` or `of your connection` where it is the caller's own bound."""
        super().__init__(
            f"{most} calls{whose} are running, and no more may: try again in {self.retry_after_seconds:g} s, and send "
            "many groups through one AnalyzeGroups rather than through many calls"
        )


class ConcurrencyLimit:
    """Counts the calls that are running.

    Attributes:
        closed: set once nothing new is let in; streams wait for it beside their next message.
    """

    def __init__(self, most: int) -> None:
        """An open gate with nobody inside, for so many calls at once."""
        self.closed = asyncio.Event()
        self._most = most
        self._inside: Counter[str] = Counter()
        self._from: Counter[str] = Counter()
        self._nobody_inside = asyncio.Event()
        self._nobody_inside.set()

    def most_of(self, tenant: Tenant) -> int:
        """Most calls of a tenant at once: what its quota says or else, where tenants are told apart, half of all."""
        if tenant.quota.calls is not None:
            return min(tenant.quota.calls, self._most)
        return max(self._most // 2, 1) if tenant.name else self._most

    @property
    def most_of_connection(self) -> int:
        """Most calls of one connection at once, where tenants are not told apart: half of all."""
        return max(self._most // 2, 1)

    @contextmanager
    def enter(self, tenant: Tenant, peer: str) -> Iterator[None]:
        """Be inside for the length of a block.

        Args:
            tenant: whose call it is; one that has a name has a bound of its own, whatever connections it has.
            peer: the address at the other end of the connection.

        Raises:
            GoingDown: the gate is closed.
            TooManyCalls: it is full, or the share of the tenant or of the connection is.
        """
        if self.closed.is_set():
            raise GoingDown
        if self._inside.total() >= self._most:
            raise TooManyCalls(self._most)
        if self._inside[tenant.name] >= self.most_of(tenant):
            raise TooManyCalls(self.most_of(tenant), " of yours")
        if not tenant.name and self._from[peer] >= self.most_of_connection:
            raise TooManyCalls(self.most_of_connection, " of your connection")
        self._inside[tenant.name] += 1
        self._from[peer] += 1
        self._nobody_inside.clear()
        try:
            yield
        finally:
            for counted, key in ((self._inside, tenant.name), (self._from, peer)):
                counted[key] -= 1
                if not counted[key]:
                    del counted[key]
            if not self._inside:
                self._nobody_inside.set()

    async def empty(self) -> None:
        """Wait until nobody is inside."""
        await self._nobody_inside.wait()
