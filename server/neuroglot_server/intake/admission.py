"""Admission: how many tokens and bytes of requests may be in flight, and which request is admitted next.

The capacity is bounded in tokens and in bytes; bulk requests may fill seven eighths of it, interactive ones all of it.
A tenant's quota bounds what it has in flight and what it is charged a minute. Bytes that several requests of a tenant
hold together, such as those of one prompt, count once.

A request that does not fit waits or is refused:

- A group of a stream waits, whatever its tenant has in flight. It is planned once, and admitted when its turn comes.
- A request by itself waits while its tenant has less than its share: the capacity, divided by the tenants that have
  requests in flight or waiting. Over its share it is refused with a time after which to retry. So all requests by
  themselves that wait are never more than the capacity.

Requests wait in order: those of a tenant first in, first out; between tenants the one that was given the fewest tokens
while it waited goes first (start-time fair queueing). The first in turn that does not fit holds back those behind it,
so that a large request is not starved by small ones; a tenant whose own quota is used up holds back nobody. Interactive
requests go before bulk ones, but one bulk request goes first after eight interactive ones in a row. Nothing polls: the
next requests are admitted when a request leaves, or when a tenant's minute allows.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import NamedTuple

from neuroglot.errors import Violation
from neuroglot_server.core import (
    Caller,
    InvalidRequest,
    MemoryUse,
    ModelClosed,
    Observer,
    Priority,
    QueueFull,
    Unobserved,
)
from neuroglot_server.intake.rates import Bucket, Speed

_logger = logging.getLogger(__name__)

_SHORTEST_WAIT_SECONDS = 0.1
_LONGEST_WAIT_SECONDS = 60.0

_BULK_SHARE = 7 / 8
"""Share of the capacity that bulk requests may fill."""

_BYTES_AS_OBJECTS = 8
"""How much larger a request is once it was parsed: of four bytes a number becomes an object of 24, and a reference."""

_INTERACTIVE_IN_A_ROW = 8
"""How many interactive requests are admitted in a row while a bulk request waits that would fit."""

_NEARLY_FULL = 7 / 8
"""Share of a tenant's share from which on its requests are refused unplanned, once one was refused."""

_DRAINING = "the model is going down and has not come to this request: ask again"


class Cost(NamedTuple):
    """What a request takes.

    Attributes:
        tokens: that it is charged, over all of its variants; see `neuroglot_server.intake.costs`.
        bytes: that it holds at most while it is in flight: keys and values, taps, edits, its result and itself.
    """

    tokens: int
    bytes: int

    def plus(self, other: Cost) -> Cost:
        """Both together."""
        return Cost(self.tokens + other.tokens, self.bytes + other.bytes)

    def minus(self, other: Cost) -> Cost:
        """This without a part of it."""
        return Cost(self.tokens - other.tokens, self.bytes - other.bytes)

    def within(self, capacity: Cost) -> bool:
        """Whether it is neither too many tokens nor too many bytes."""
        return self.tokens <= capacity.tokens and self.bytes <= capacity.bytes

    def times(self, share: float) -> Cost:
        """A part of it."""
        return Cost(int(self.tokens * share), int(self.bytes * share))


NOTHING = Cost(0, 0)

NO_SHARES: Mapping[bytes, int] = {}

_Hold = tuple[str, Priority, bytes]
"""Tenant, priority and key of bytes that requests hold together."""


@dataclass(eq=False)
class _Request:
    """A request from when it asks for admission until it leaves.

    Attributes:
        caller: who asks.
        alone: what it takes beside the bytes that it may hold together with others.
        holds: those bytes.
        admitted: comes true when it is admitted, where it waits.
    """

    caller: Caller
    alone: Cost
    holds: Mapping[_Hold, int]
    admitted: asyncio.Future[None] | None = None

    @property
    def whole(self) -> Cost:
        """What it takes if nobody holds anything together with it."""
        return self.alone.plus(Cost(0, sum(self.holds.values())))


@dataclass(eq=False)
class _Flow:
    """The waiting requests of one tenant and priority, in the order in which they came.

    Attributes:
        given: tokens that the flow was given, counted from where the flows stood when it began to wait.
        requests: at least one.
        cost: of all of them.
    """

    given: int
    requests: deque[_Request] = field(default_factory=deque)
    cost: Cost = NOTHING

    def add(self, request: _Request) -> None:
        """Add a request at the end."""
        self.requests.append(request)
        self.cost = self.cost.plus(request.whole)

    def remove(self, request: _Request) -> None:
        """Take a request out."""
        self.requests.remove(request)
        self.cost = self.cost.minus(request.whole)


class Admission:
    """Admits requests, and counts what those in flight take. Everything happens on one event loop."""

    def __init__(
        self, capacity: Cost, observer: Observer | None = None, clock: Callable[[], float] = monotonic
    ) -> None:
        """Admit requests up to a capacity.

        Args:
            capacity: tokens and bytes in flight; a request of more tokens is admitted while there is no other.
            observer: is told of what is admitted, and of what is in flight.
            clock: gives seconds.
        """
        self._capacity = capacity
        self._observer = observer or Unobserved()
        self._clock = clock
        self._total = NOTHING
        self._in_flight: dict[str, Cost] = {}
        self._requests: Counter[str] = Counter()
        self._holders: dict[_Hold, int] = {}
        self._flows: dict[tuple[str, Priority], _Flow] = {}
        self._full_until: dict[tuple[str, Priority], float] = {}
        self._given = 0
        self._interactive_in_a_row = 0
        self._minute: asyncio.TimerHandle | None = None
        self._draining = False
        self._buckets: dict[str, Bucket] = {}
        self._speed = Speed(clock)
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return sum(len(flow.requests) for flow in self._flows.values())

    @property
    def memory(self) -> MemoryUse:
        """What the requests in flight hold; may be read on any thread."""
        return MemoryUse(self._total.bytes, self._capacity.bytes)

    @asynccontextmanager
    async def admit(
        self, cost: Cost, caller: Caller, shares: Mapping[bytes, int] = NO_SHARES, field: str = "group"
    ) -> AsyncIterator[None]:
        """Have a request in flight for the length of a block, which begins when it is admitted.

        Tokens are charged to the tenant's minute on admission, whether or not they are run in the end.

        Args:
            cost: what it takes, beside itself as it came and was parsed.
            caller: who asks.
            shares: how many of its bytes it holds together with those of the tenant's requests that name the same key.
            field: what of the request takes so much, for messages.

        Raises:
            InvalidRequest: it could never be admitted.
            QueueFull: it does not fit, and does not wait.
            ModelClosed: the model is going down, and the request would have to wait.
        """
        request = self._request(cost, caller, shares)
        self._require_possible(request, field)
        if self._fits_now(request):
            self._enter(request)
        else:
            if not self._may_wait(request):
                refusal = self._refusal(request)
                if self._nearly_full(caller):
                    self._full_until[caller.tenant, caller.priority] = self._clock() + refusal.retry_after_seconds
                raise refusal
            await self._wait(request)
        try:
            yield
        finally:
            self._leave(request)

    def require_room(self, cost: Cost, caller: Caller) -> None:
        """Refuse a request before it is planned, if even less than it will take is refused.

        Once a request of its tenant was refused and almost no room is left, others are until some request leaves, or
        until that one may try again: of many that come at once, each would be tokenized and costed only to find the
        queue as full.

        Raises:
            InvalidRequest: not even this could ever be admitted.
            QueueFull: not even this fits, and the request does not wait.
        """
        request = self._request(cost, caller, NO_SHARES)
        self._require_possible(request, "group")
        full_until = self._full_until.get((caller.tenant, caller.priority))
        full = full_until is not None and self._clock() < full_until and not caller.waits
        if full or (not self._fits_now(request) and not self._may_wait(request)):
            raise self._refusal(request)

    def drain(self) -> None:
        """Fail all requests that wait, and those to come that would have to wait."""
        self._draining = True
        for flow in self._flows.values():
            for request in flow.requests:
                if request.admitted is not None and not request.admitted.done():
                    request.admitted.set_exception(ModelClosed(_DRAINING))
        self._flows.clear()
        if self._minute is not None:
            self._minute.cancel()

    async def emptied(self, seconds: float) -> None:
        """Come back when no request is in flight, or after so many seconds."""
        try:
            async with asyncio.timeout(seconds):
                await self._empty.wait()
        except TimeoutError:
            _logger.warning("%d requests have not left after %g s", self._requests.total(), seconds)

    def _request(self, cost: Cost, caller: Caller, shares: Mapping[bytes, int]) -> _Request:
        # An interactive request does not wait for the same being computed as bulk, and is held beside it.
        holds = {(caller.tenant, caller.priority, key): size for key, size in shares.items()}
        message = Cost(0, _BYTES_AS_OBJECTS * caller.request_bytes)
        return _Request(caller, cost.plus(message).minus(Cost(0, sum(holds.values()))), holds)

    def _cost(self, request: _Request) -> Cost:
        """What a request takes beside what others of its tenant hold already."""
        return request.alone.plus(
            Cost(0, sum(size for hold, size in request.holds.items() if hold not in self._holders))
        )

    def _capacity_of(self, priority: Priority) -> Cost:
        return self._capacity if priority is Priority.INTERACTIVE else self._capacity.times(_BULK_SHARE)

    def _fits(self, request: _Request) -> bool:
        """Whether there is room for a request; there always is while nothing is in flight."""
        capacity = self._capacity_of(request.caller.priority)
        return not self._in_flight or self._total.plus(self._cost(request)).within(capacity)

    def _quota_seconds(self, request: _Request) -> float:
        """How long the tenant's quota keeps a request waiting at least; 0 if it does not."""
        cost, most = self._cost(request), request.caller.quota.queue_tokens
        held = self._in_flight.get(request.caller.tenant, NOTHING).tokens
        if most is not None and held + cost.tokens > most:
            # The others' work runs beside the tenant's own.
            return _bounded(self._speed.seconds((held + cost.tokens - most) * len(self._in_flight)))
        bucket = self._bucket(request.caller)
        return 0.0 if bucket is None else bucket.seconds_until(cost.tokens)

    def _fits_now(self, request: _Request) -> bool:
        """Whether a request that has just come is admitted: it passes none that waits with at least its priority.

        Those that wait for another tenant's quota alone do not hold it back.
        """
        if self._quota_seconds(request) or not self._fits(request):
            return False
        return not any(
            priority >= request.caller.priority
            and (tenant == request.caller.tenant or not self._quota_seconds(flow.requests[0]))
            for (tenant, priority), flow in self._flows.items()
        )

    def _may_wait(self, request: _Request) -> bool:
        """Whether a request that does not fit waits; otherwise it is refused."""
        caller = request.caller
        if caller.waits:
            return True
        if self._quota_seconds(request):
            return False
        mine, share = self._of_tenant(caller.tenant), self._share(caller)
        return mine == NOTHING or mine.plus(request.whole).within(share)

    def _nearly_full(self, caller: Caller) -> bool:
        """Whether a tenant's share is taken but for a small part."""
        return not self._of_tenant(caller.tenant).within(self._share(caller).times(_NEARLY_FULL))

    def _of_tenant(self, tenant: str) -> Cost:
        """What a tenant has in flight and waiting."""
        mine = self._in_flight.get(tenant, NOTHING)
        for (other, _), flow in self._flows.items():
            if other == tenant:
                mine = mine.plus(flow.cost)
        return mine

    def _share(self, caller: Caller) -> Cost:
        """The capacity, divided by the tenants that have requests in flight or waiting."""
        tenants = {caller.tenant, *self._in_flight, *(tenant for tenant, _ in self._flows)}
        return self._capacity_of(caller.priority).times(1 / len(tenants))

    async def _wait(self, request: _Request) -> None:
        """Come back when a request is admitted.

        Raises:
            ModelClosed: the model is going down.
        """
        if self._draining:
            raise ModelClosed(_DRAINING)
        key = (request.caller.tenant, request.caller.priority)
        request.admitted = asyncio.get_running_loop().create_future()
        self._flows.setdefault(key, _Flow(self._given)).add(request)
        self._admit_waiting()  # which has the timer of a quota set
        try:
            await request.admitted
        except asyncio.CancelledError:
            if request.admitted.cancelled():
                self._forget(key, request)
                self._admit_waiting()  # those that it held back
            elif request.admitted.exception() is None:
                self._leave(request)
            raise

    def _forget(self, key: tuple[str, Priority], request: _Request) -> None:
        """Take a request out of those that wait."""
        flow = self._flows.get(key)
        if flow is not None and request in flow.requests:
            flow.remove(request)
            if not flow.requests:
                del self._flows[key]

    def _admit_waiting(self) -> None:
        """Admit what fits, in turn."""
        if self._minute is not None:
            self._minute.cancel()
            self._minute = None
        while (key := self._next()) is not None:
            flow = self._flows[key]
            request = flow.requests[0]
            if request.admitted is None or request.admitted.done():  # its task is cancelled, and has not run since
                self._forget(key, request)
                continue
            self._given = flow.given
            flow.given += self._cost(request).tokens
            bulk_waits = any(priority is Priority.BULK for _, priority in self._flows)
            interactive = request.caller.priority is Priority.INTERACTIVE
            self._interactive_in_a_row = self._interactive_in_a_row + 1 if interactive and bulk_waits else 0
            self._forget(key, request)
            self._enter(request)
            request.admitted.set_result(None)

    def _next(self) -> tuple[str, Priority] | None:
        """The flow whose first request is admitted next; None where it must wait."""
        order = [Priority.INTERACTIVE, Priority.BULK]
        if self._interactive_in_a_row >= _INTERACTIVE_IN_A_ROW:
            order.reverse()
        until_minute = float("inf")
        for priority in order:
            flows = [(key, flow) for key, flow in self._flows.items() if key[1] is priority]
            for key, flow in sorted(flows, key=lambda one: one[1].given):
                request = flow.requests[0]
                seconds = self._quota_seconds(request)
                if not seconds:
                    return key if self._fits(request) else None
                until_minute = min(until_minute, seconds)
        if until_minute < float("inf"):
            self._minute = asyncio.get_running_loop().call_later(until_minute, self._admit_waiting)
        return None

    def _enter(self, request: _Request) -> None:
        caller, cost = request.caller, self._cost(request)
        for hold in request.holds:
            self._holders[hold] = self._holders.get(hold, 0) + 1
        if (bucket := self._bucket(caller)) is not None:
            bucket.take(cost.tokens)
        self._empty.clear()
        self._speed.begin()
        self._requests[caller.tenant] += 1
        self._add(caller.tenant, cost)
        self._observer.queued(self._total.tokens)
        self._observer.admitted(caller.tenant, cost.tokens)

    def _leave(self, request: _Request) -> None:
        self._full_until.clear()
        tenant, let_go = request.caller.tenant, 0
        for hold, size in request.holds.items():
            self._holders[hold] -= 1
            if not self._holders[hold]:
                del self._holders[hold]
                let_go += size
        self._add(tenant, NOTHING.minus(request.alone.plus(Cost(0, let_go))))
        self._requests[tenant] -= 1
        if not self._requests[tenant]:
            del self._requests[tenant], self._in_flight[tenant]
        self._speed.done(request.alone.tokens, idle=not self._in_flight)
        self._observer.queued(self._total.tokens)
        if not self._in_flight:
            self._empty.set()
        self._admit_waiting()

    def _add(self, tenant: str, cost: Cost) -> None:
        """Count what a tenant has in flight."""
        self._total = self._total.plus(cost)
        self._in_flight[tenant] = self._in_flight.get(tenant, NOTHING).plus(cost)

    def _bucket(self, caller: Caller) -> Bucket | None:
        """The tenant's minute; None where it is not bounded."""
        most = caller.quota.tokens_per_minute
        if most is None:
            return None
        bucket = self._buckets.get(caller.tenant)
        if bucket is None or bucket.capacity != most:  # the quota may change while the server runs
            bucket = self._buckets[caller.tenant] = Bucket(most, self._clock)
        return bucket

    def _require_possible(self, request: _Request, field: str) -> None:
        """Refuse what could never be admitted."""
        cost = request.whole
        if cost.bytes > self._capacity.bytes:
            raise InvalidRequest(
                [
                    Violation(
                        field,
                        f"takes up to {cost.bytes / 2**20:.1f} MiB at once, expected at most "
                        f"{self._capacity.bytes / 2**20:.1f} MiB (queue_bytes): ask for less, or of shorter rows",
                    )
                ]
            )
        most = request.caller.quota.queue_tokens
        if most is not None and cost.tokens > most:
            raise InvalidRequest(
                [
                    Violation(
                        field,
                        f"is charged {cost.tokens} tokens over all its variants, and your quota is {most} at once: "
                        "ask for less",
                    )
                ]
            )

    def _refusal(self, request: _Request) -> QueueFull:
        """Why a request is refused, and when to retry."""
        cost, caller = self._cost(request), request.caller
        if seconds := self._quota_seconds(request):
            quota, held = caller.quota, self._in_flight.get(caller.tenant, NOTHING).tokens
            if quota.queue_tokens is not None and held + cost.tokens > quota.queue_tokens:
                return QueueFull(
                    f"your quota is full: {held} of your tokens are in flight, this request has {cost.tokens}, and "
                    f"{quota.queue_tokens} may be: try again in {seconds:.1f} s",
                    seconds,
                )
            return QueueFull(
                f"your quota of {quota.tokens_per_minute} tokens a minute is used up, and this request has "
                f"{cost.tokens}: try again in {seconds:.1f} s",
                seconds,
            )
        capacity, total = self._capacity_of(caller.priority), self._total
        for flow in self._flows.values():
            total = total.plus(flow.cost)
        seconds = self._room_seconds(total.plus(cost), capacity, total)
        return QueueFull(
            f"the queue is full: {total.tokens} tokens are in flight or waiting, this request has {cost.tokens}, and "
            f"{capacity.tokens} may be ({total.bytes / 2**20:.1f} MiB, {cost.bytes / 2**20:.1f} MiB and "
            f"{capacity.bytes / 2**20:.1f} MiB): try again in {seconds:.1f} s",
            seconds,
        )

    def _room_seconds(self, wanted: Cost, capacity: Cost, total: Cost) -> float:
        """Seconds until enough of what is in flight or waiting is done, at the speed of late."""
        tokens = wanted.tokens - capacity.tokens
        if total.bytes:  # what is too much in bytes goes with the tokens that hold them
            tokens = max(tokens, (wanted.bytes - capacity.bytes) * total.tokens // total.bytes)
        return _bounded(self._speed.seconds(min(max(tokens, 1), total.tokens)))


def _bounded(seconds: float) -> float:
    return min(max(seconds, _SHORTEST_WAIT_SECONDS), _LONGEST_WAIT_SECONDS)
