"""Concurrency limit on calls: in total, per tenant and per connection; closed when the server shuts down."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from neuroglot_server.config.tenants import Tenant
from neuroglot_server.core import RequestError


class GoingDown(RequestError):
    """The server is shutting down and accepts no new requests."""

    def __init__(self) -> None:
        """Set the message."""
        super().__init__("the server is shutting down: retry on another server, or later")


class TooManyCalls(RequestError):
    """The maximum number of calls is running: in total, of one tenant or of one connection.

    Attributes:
        retry_after_seconds: when a retry is likely to be accepted.
    """

    retry_after_seconds = 1.0

    def __init__(self, limit: int, scope: str = "") -> None:
        """Set the message.

        Args:
            limit: the maximum number of calls.
            scope: ` of this tenant` or ` of this connection` for a limit per caller; empty for the server's own.
        """
        super().__init__(
            f"{limit} calls{scope} are running, which is the limit: try again in {self.retry_after_seconds:g} s, and "
            "send many groups through one AnalyzeGroups stream instead of many calls"
        )


class ConcurrencyLimit:
    """Counts running calls and refuses those over a limit.

    Attributes:
        closed: set once new calls are refused; streams wait for it and for their next message at once.
    """

    def __init__(self, limit: int) -> None:
        """Start open, without running calls.

        Args:
            limit: maximum number of calls at once.
        """
        self.closed = asyncio.Event()
        self._limit = limit
        self._by_tenant: Counter[str] = Counter()
        self._by_peer: Counter[str] = Counter()
        self._idle = asyncio.Event()
        self._idle.set()

    def tenant_limit(self, tenant: Tenant) -> int:
        """Maximum number of concurrent calls of a tenant: its quota or, for a named tenant without one, half of all."""
        if tenant.quota.calls is not None:
            return min(tenant.quota.calls, self._limit)
        return max(self._limit // 2, 1) if tenant.name else self._limit

    @property
    def connection_limit(self) -> int:
        """Maximum number of concurrent calls of a connection without a named tenant: half of all."""
        return max(self._limit // 2, 1)

    @contextmanager
    def acquire(self, tenant: Tenant, peer: str) -> Iterator[None]:
        """Count a call as running for the length of a block.

        Args:
            tenant: the call's tenant; a named tenant has one limit over all of its connections.
            peer: the address at the other end of the connection.

        Raises:
            GoingDown: the limit is closed.
            TooManyCalls: the limit of the server, the tenant or the connection is reached.
        """
        if self.closed.is_set():
            raise GoingDown
        if self._by_tenant.total() >= self._limit:
            raise TooManyCalls(self._limit)
        if self._by_tenant[tenant.name] >= self.tenant_limit(tenant):
            raise TooManyCalls(self.tenant_limit(tenant), " of this tenant")
        if not tenant.name and self._by_peer[peer] >= self.connection_limit:
            raise TooManyCalls(self.connection_limit, " of this connection")
        self._by_tenant[tenant.name] += 1
        self._by_peer[peer] += 1
        self._idle.clear()
        try:
            yield
        finally:
            for counts, key in ((self._by_tenant, tenant.name), (self._by_peer, peer)):
                counts[key] -= 1
                if not counts[key]:
                    del counts[key]
            if not self._by_tenant:
                self._idle.set()

    async def wait_idle(self) -> None:
        """Wait until no call is running."""
        await self._idle.wait()
