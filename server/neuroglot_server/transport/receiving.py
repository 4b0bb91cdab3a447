"""Limit on requests being received at once.

gRPC buffers a message in memory as soon as a call reads, and reports nothing before the message is complete. So only
as many calls read at once as there is memory for messages of the maximum size; the others wait in a queue. A unary
request holds its slot until it has arrived, a stream for as long as it is open.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from neuroglot_server.core import RequestError

if TYPE_CHECKING:
    from neuroglot_server.transport.calls import Call


class RequestTooSlow(RequestError):
    """A call did not send its request in time."""

    def __init__(self, seconds: float) -> None:
        """Set the message.

        Args:
            seconds: how long the server waited.
        """
        super().__init__(
            f"no complete request arrived within {seconds:g} s (request_seconds): send it as soon as the call is open"
        )


class TooManyRequests(RequestError):
    """The maximum number of requests is being received, or of streams is open.

    Attributes:
        retry_after_seconds: when a retry is likely to be accepted.
    """

    retry_after_seconds = 1.0

    def __init__(self, limit: int) -> None:
        """Set the message.

        Args:
            limit: the number of slots.
        """
        super().__init__(
            f"no free slot among the {limit} for requests being received and open streams (receive_bytes): try again "
            f"in {self.retry_after_seconds:g} s, and send many groups through one stream"
        )


async def first_request(call: Call, seconds: float) -> bytes | None:
    """Read the first message of a call; None where the call ends without one.

    Raises:
        RequestTooSlow: it did not arrive within `seconds`.
    """
    try:
        async with asyncio.timeout(seconds):
            return await call.read()
    except TimeoutError:
        raise RequestTooSlow(seconds) from None


class ReceiveLimit:
    """Slots for calls that wait for a message, with a fair queue for a free one.

    A caller holds at most half of the slots and a machine at most three quarters, so that none locks out the others.
    Streams, which keep their slots, hold at most three quarters. A call without a free slot waits in a queue. The next
    slot goes to the caller that holds the fewest, among those below their limits.
    """

    def __init__(self, limit: int) -> None:
        """Start with all slots free.

        Args:
            limit: number of slots.
        """
        self._limit = limit
        self._taken: Counter[str] = Counter()
        self._queue: deque[_QueuedCall] = deque()

    @asynccontextmanager
    async def slot(self, tenant: str, peer: str, seconds: float, *, stream: bool) -> AsyncIterator[None]:
        """Hold a slot for the length of a block.

        Args:
            tenant: the call's tenant; empty without authentication, where each connection is a caller.
            peer: the address at the other end of the connection.
            seconds: how long to wait in the queue.
            stream: whether the call is a stream.

        Raises:
            TooManyRequests: no slot became free in time.
        """
        caller, machine = f"caller {tenant or peer}", f"machine {peer.rpartition(':')[0]}"
        half, three_quarters = max(1, self._limit // 2), max(1, self._limit * 3 // 4)
        limits = {caller: half, machine: three_quarters, "": self._limit}
        if stream:
            limits["stream"] = three_quarters
        if self._is_free(limits):
            self._taken.update(limits.keys())
        else:
            await self._wait(_QueuedCall(caller, limits, asyncio.get_running_loop().create_future()), seconds)
        try:
            yield
        finally:
            self._release(limits)

    async def _wait(self, call: _QueuedCall, seconds: float) -> None:
        """Wait in the queue until the call is granted a slot."""
        self._queue.append(call)
        try:
            async with asyncio.timeout(seconds):
                await call.granted
        except BaseException as error:
            if call in self._queue:
                self._queue.remove(call)
            else:  # it was granted a slot at the moment it gave up
                self._release(call.limits)
            if isinstance(error, TimeoutError):
                raise TooManyRequests(self._limit) from None
            raise

    def _release(self, limits: Mapping[str, int]) -> None:
        """Free a slot, and grant free slots to calls in the queue."""
        self._taken.subtract(limits.keys())
        self._taken = +self._taken  # drops keys with a count of zero
        while eligible := [call for call in self._queue if not call.granted.done() and self._is_free(call.limits)]:
            call = min(eligible, key=lambda call: self._taken[call.caller])  # ties go to the first in the queue
            self._queue.remove(call)
            self._taken.update(call.limits.keys())
            call.granted.set_result(None)

    def _is_free(self, limits: Mapping[str, int]) -> bool:
        return all(self._taken[key] < limit for key, limit in limits.items())


@dataclass(frozen=True, eq=False)
class _QueuedCall:
    """A call that waits in the queue.

    Attributes:
        caller: the tenant or connection that it counts for.
        limits: the keys that it counts under, each with its maximum number of slots.
        granted: set once it has a slot.
    """

    caller: str
    limits: Mapping[str, int]
    granted: asyncio.Future[None]
