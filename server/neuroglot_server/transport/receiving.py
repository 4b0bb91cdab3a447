"""How much of requests may be on its way at once.

gRPC gathers a message in memory as soon as somebody waits for it, and says nothing before it is whole. So as many calls
wait for one as there is room for the longest, and the others stand in a queue: a request by itself until it is here, a
stream for as long as it is open.
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
    """A call that did not send its request."""

    def __init__(self, seconds: float) -> None:
        """Say how long was waited."""
        super().__init__(
            f"no whole request was here after {seconds:g} s (request_seconds): send it as soon as the call is open"
        )


class TooManyRequests(RequestError):
    """As many requests are on their way as may, or streams open.

    Attributes:
        retry_after_seconds: when a try is likely to find room.
    """

    retry_after_seconds = 1.0

    def __init__(self, most: int) -> None:
        """Say how many may."""
        super().__init__(
            f"{most} requests are on their way or streams open, and no more may (receive_bytes): try again in "
            f"{self.retry_after_seconds:g} s, and send many groups through one stream"
        )


async def first_request(call: Call, seconds: float) -> bytes | None:
    """The first message of a call; None where it has none.

    Raises:
        RequestTooSlow: it was not here after so many seconds.
    """
    try:
        async with asyncio.timeout(seconds):
            return await call.read()
    except TimeoutError:
        raise RequestTooSlow(seconds) from None


class Receiving:
    """Counts the calls that wait for a message, and lets the next one wait when one has it.

    No caller may have more than half of the places and no machine more than three quarters, so that none keeps the
    others out. Streams, which keep theirs, may have three quarters. Whoever finds no place stands in a queue; of those
    that may have one, the caller that has the fewest is next.
    """

    def __init__(self, most: int) -> None:
        """So many places."""
        self._most = most
        self._taken: Counter[str] = Counter()
        self._queue: deque[_Waiting] = deque()

    @asynccontextmanager
    async def place(self, tenant: str, peer: str, seconds: float, *, stream: bool) -> AsyncIterator[None]:
        """Have a place for the length of a block.

        Args:
            tenant: whose call it is; empty where tenants are not told apart, and a connection is a caller.
            peer: the address at the other end of the connection.
            seconds: how long to stand in the queue.
            stream: whether the call is a stream.

        Raises:
            TooManyRequests: there was none all the time.
        """
        caller, machine = f"caller {tenant or peer}", f"machine {peer.rpartition(':')[0]}"
        half, three_quarters = max(1, self._most // 2), max(1, self._most * 3 // 4)
        bounds = {caller: half, machine: three_quarters, "": self._most}
        if stream:
            bounds["stream"] = three_quarters
        if self._is_free(bounds):
            self._taken.update(bounds.keys())
        else:
            await self._stand(_Waiting(caller, bounds, asyncio.get_running_loop().create_future()), seconds)
        try:
            yield
        finally:
            self._leave(bounds)

    async def _stand(self, waiting: _Waiting, seconds: float) -> None:
        """Take a place as soon as there is one."""
        self._queue.append(waiting)
        try:
            async with asyncio.timeout(seconds):
                await waiting.called
        except BaseException as error:
            if waiting in self._queue:
                self._queue.remove(waiting)
            else:  # it was given a place just when it left
                self._leave(waiting.bounds)
            if isinstance(error, TimeoutError):
                raise TooManyRequests(self._most) from None
            raise

    def _leave(self, bounds: Mapping[str, int]) -> None:
        """Give a place back, and give those that are free to those in the queue."""
        self._taken.subtract(bounds.keys())
        self._taken = +self._taken  # without those that have none
        while able := [one for one in self._queue if not one.called.done() and self._is_free(one.bounds)]:
            one = min(able, key=lambda one: self._taken[one.caller])  # of equal ones the first in the queue
            self._queue.remove(one)
            self._taken.update(one.bounds.keys())
            one.called.set_result(None)

    def _is_free(self, bounds: Mapping[str, int]) -> bool:
        return all(self._taken[key] < most for key, most in bounds.items())


@dataclass(frozen=True, eq=False)
class _Waiting:
    """A call that stands in the queue.

    Attributes:
        caller: whose it is.
        bounds: what it is counted under, and how many may be.
        called: set once it has a place.
    """

    caller: str
    bounds: Mapping[str, int]
    called: asyncio.Future[None]
