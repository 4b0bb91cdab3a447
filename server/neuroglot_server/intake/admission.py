"""Admission control: bounds the tokens and bytes of requests in flight, and orders the requests that wait.

The capacity is bounded in tokens and in bytes. Bulk requests may fill 7/8 of it, interactive requests all of it. A
tenant's quota bounds its tokens in flight and the tokens that it is charged per minute. Bytes that several requests of
a tenant share, such as those of one prompt, count once.

A request that does not fit waits or is refused:

- A group of a stream waits, whatever its tenant has in flight. It is planned once, and admitted when its turn comes.
- A unary request waits while its tenant has less than its share: the capacity, divided by the number of tenants that
  have requests in flight or waiting. Above its share it is refused with a time after which to retry. So the unary
  requests that wait never exceed the capacity.

The requests of a tenant are admitted first in, first out. Among tenants, the one that was given the fewest tokens while
it waited goes first (start-time fair queueing). If the next request does not fit, those behind it wait too, so that
small requests do not starve a large one; but a tenant that has used up its own quota does not block other tenants.
Interactive requests go before bulk requests, but after eight interactive requests in a row, one bulk request goes
first. Nothing polls: requests are admitted when another one leaves, or when the rate of a tenant allows.
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

_MIN_RETRY_SECONDS = 0.1
_MAX_RETRY_SECONDS = 60.0

_BULK_SHARE = 7 / 8
"""Fraction of the capacity that bulk requests may fill."""

_BYTES_AS_OBJECTS = 8
"""Size of a parsed request relative to its message: a 4-byte number becomes an object of 24 bytes and a reference."""

_INTERACTIVE_IN_A_ROW = 8
"""Maximum interactive requests that are admitted in a row while bulk requests wait."""

_NEARLY_FULL = 7 / 8
"""Fraction of a tenant's share above which, after one refusal, its further requests are refused before planning."""

_DRAINING = "the model is shutting down and has not started this request: retry"


class Cost(NamedTuple):
    """The cost of a request.

    Attributes:
        tokens: tokens that it is charged, over all of its variants; see `neuroglot_server.intake.costs`.
        bytes: maximum memory while it is in flight: keys and values, activations, edits, its result and the request
            itself.
    """

    tokens: int
    bytes: int

    def plus(self, other: Cost) -> Cost:
        """Return the sum of two costs."""
        return Cost(self.tokens + other.tokens, self.bytes + other.bytes)

    def minus(self, other: Cost) -> Cost:
        """Return the difference of two costs."""
        return Cost(self.tokens - other.tokens, self.bytes - other.bytes)

    def within(self, capacity: Cost) -> bool:
        """Return whether both tokens and bytes are within a capacity."""
        return self.tokens <= capacity.tokens and self.bytes <= capacity.bytes

    def times(self, factor: float) -> Cost:
        """Return a multiple of the cost, rounded down."""
        return Cost(int(self.tokens * factor), int(self.bytes * factor))


NOTHING = Cost(0, 0)

NO_SHARES: Mapping[bytes, int] = {}

_Hold = tuple[str, Priority, bytes]
"""Tenant, priority and key of bytes that several requests share."""


@dataclass(eq=False)
class _Request:
    """A request that waits for admission or is in flight.

    Attributes:
        caller: the caller.
        alone: cost without the bytes that it may share with other requests.
        holds: number of those bytes, by hold.
        admitted: future that is resolved when a waiting request is admitted; None unless it waits.
    """

    caller: Caller
    alone: Cost
    holds: Mapping[_Hold, int]
    admitted: asyncio.Future[None] | None = None

    @property
    def whole(self) -> Cost:
        """The cost if no other request shares its bytes."""
        return self.alone.plus(Cost(0, sum(self.holds.values())))


@dataclass(eq=False)
class _Flow:
    """The queue of waiting requests of one tenant and priority, in order of arrival.

    Attributes:
        given: virtual time of fair queueing: the tokens that the flow was given, plus the virtual time of admission
            when it began to wait.
        requests: the waiting requests, at least one.
        cost: total cost of the requests.
    """

    given: int
    requests: deque[_Request] = field(default_factory=deque)
    cost: Cost = NOTHING

    def add(self, request: _Request) -> None:
        """Append a request."""
        self.requests.append(request)
        self.cost = self.cost.plus(request.whole)

    def remove(self, request: _Request) -> None:
        """Remove a request."""
        self.requests.remove(request)
        self.cost = self.cost.minus(request.whole)


class Admission:
    """Admits requests, and accounts for those in flight. Must be used on one event loop."""

    def __init__(
        self, capacity: Cost, observer: Observer | None = None, clock: Callable[[], float] = monotonic
    ) -> None:
        """Create an admission control with nothing in flight.

        Args:
            capacity: maximum tokens and bytes in flight; a request of more tokens is admitted when it is the only one.
            observer: receives the tokens admitted and the tokens in flight.
            clock: returns the time in seconds.
        """
        self._capacity = capacity
        self._observer = observer or Unobserved()
        self._clock = clock
        self._total = NOTHING
        self._in_flight: dict[str, Cost] = {}
        self._requests: Counter[str] = Counter()
        self._holders: dict[_Hold, int] = {}
        self._flows: dict[tuple[str, Priority], _Flow] = {}
        self._full_until: dict[tuple[str, Priority], float] = {}  # times until which requests are refused unplanned
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
        """Number of waiting requests."""
        return sum(len(flow.requests) for flow in self._flows.values())

    @property
    def memory(self) -> MemoryUse:
        """Memory of the requests in flight; may be read on any thread."""
        return MemoryUse(self._total.bytes, self._capacity.bytes)

    @asynccontextmanager
    async def admit(
        self, cost: Cost, caller: Caller, shares: Mapping[bytes, int] = NO_SHARES, field: str = "group"
    ) -> AsyncIterator[None]:
        """Admit a request for the duration of a block, waiting until it is admitted.

        Tokens are charged to the tenant's rate on admission, whether or not they are run in the end.

        Args:
            cost: cost of the request, not counting its message and the parsed message.
            caller: the caller.
            shares: bytes that it shares with requests of the tenant that have the same key, by key.
            field: field of the request that the cost comes from, for messages.

        Raises:
            InvalidRequest: the request could never be admitted.
            QueueFull: the request does not fit, and may not wait.
            ModelClosed: the model is shutting down, and the request would have to wait.
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
        """Refuse a request before it is planned, if a lower bound of its cost is refused.

        Once a request of a tenant was refused and little capacity is left, further requests of the tenant are refused
        until some request leaves, or until the retry time of that refusal. Otherwise each of many simultaneous requests
        would be tokenized and costed only to be refused.

        Raises:
            InvalidRequest: the lower bound could never be admitted.
            QueueFull: the lower bound does not fit, and the request may not wait.
        """
        request = self._request(cost, caller, NO_SHARES)
        self._require_possible(request, "group")
        full_until = self._full_until.get((caller.tenant, caller.priority))
        full = full_until is not None and self._clock() < full_until and not caller.waits
        if full or (not self._fits_now(request) and not self._may_wait(request)):
            raise self._refusal(request)

    def drain(self) -> None:
        """Fail all waiting requests, and future requests that would have to wait."""
        self._draining = True
        for flow in self._flows.values():
            for request in flow.requests:
                if request.admitted is not None and not request.admitted.done():
                    request.admitted.set_exception(ModelClosed(_DRAINING))
        self._flows.clear()
        if self._minute is not None:
            self._minute.cancel()

    async def emptied(self, seconds: float) -> None:
        """Wait until no request is in flight, but at most for the given seconds."""
        try:
            async with asyncio.timeout(seconds):
                await self._empty.wait()
        except TimeoutError:
            _logger.warning("%d requests are still in flight after %g s", self._requests.total(), seconds)

    def _request(self, cost: Cost, caller: Caller, shares: Mapping[bytes, int]) -> _Request:
        # Keyed by priority: an interactive request does not wait for the same bulk work, so both hold their own bytes.
        holds = {(caller.tenant, caller.priority, key): size for key, size in shares.items()}
        message = Cost(0, _BYTES_AS_OBJECTS * caller.request_bytes)
        return _Request(caller, cost.plus(message).minus(Cost(0, sum(holds.values()))), holds)

    def _cost(self, request: _Request) -> Cost:
        """Return the cost of a request without the bytes that other requests of its tenant already hold."""
        return request.alone.plus(
            Cost(0, sum(size for hold, size in request.holds.items() if hold not in self._holders))
        )

    def _capacity_of(self, priority: Priority) -> Cost:
        return self._capacity if priority is Priority.INTERACTIVE else self._capacity.times(_BULK_SHARE)

    def _fits(self, request: _Request) -> bool:
        """Return whether the capacity suffices for a request; always True while nothing is in flight."""
        capacity = self._capacity_of(request.caller.priority)
        return not self._in_flight or self._total.plus(self._cost(request)).within(capacity)

    def _quota_seconds(self, request: _Request) -> float:
        """Return how many seconds the tenant's quota delays a request at least; 0 for no delay."""
        cost, limit = self._cost(request), request.caller.quota.queue_tokens
        held = self._in_flight.get(request.caller.tenant, NOTHING).tokens
        if limit is not None and held + cost.tokens > limit:
            # Multiplied by the tenants in flight, whose work runs interleaved with the tenant's own.
            return _bounded(self._speed.seconds((held + cost.tokens - limit) * len(self._in_flight)))
        bucket = self._bucket(request.caller)
        return 0.0 if bucket is None else bucket.seconds_until(cost.tokens)

    def _fits_now(self, request: _Request) -> bool:
        """Return whether a new request is admitted at once: it overtakes no waiting request of at least its priority.

        Requests that wait only for the quota of another tenant do not block it.
        """
        if self._quota_seconds(request) or not self._fits(request):
            return False
        return not any(
            priority >= request.caller.priority
            and (tenant == request.caller.tenant or not self._quota_seconds(flow.requests[0]))
            for (tenant, priority), flow in self._flows.items()
        )

    def _may_wait(self, request: _Request) -> bool:
        """Return whether a request that does not fit may wait; otherwise it is refused."""
        caller = request.caller
        if caller.waits:
            return True
        if self._quota_seconds(request):
            return False
        own, share = self._of_tenant(caller.tenant), self._share(caller)
        return own == NOTHING or own.plus(request.whole).within(share)

    def _nearly_full(self, caller: Caller) -> bool:
        """Return whether a tenant has used up nearly all of its share."""
        return not self._of_tenant(caller.tenant).within(self._share(caller).times(_NEARLY_FULL))

    def _of_tenant(self, tenant: str) -> Cost:
        """Return the cost of a tenant's requests in flight and waiting."""
        cost = self._in_flight.get(tenant, NOTHING)
        for (other, _), flow in self._flows.items():
            if other == tenant:
                cost = cost.plus(flow.cost)
        return cost

    def _share(self, caller: Caller) -> Cost:
        """Return a tenant's share: the capacity, divided by the tenants with requests in flight or waiting."""
        tenants = {caller.tenant, *self._in_flight, *(tenant for tenant, _ in self._flows)}
        return self._capacity_of(caller.priority).times(1 / len(tenants))

    async def _wait(self, request: _Request) -> None:
        """Wait until a request is admitted.

        Raises:
            ModelClosed: the model is shutting down.
        """
        if self._draining:
            raise ModelClosed(_DRAINING)
        key = (request.caller.tenant, request.caller.priority)
        request.admitted = asyncio.get_running_loop().create_future()
        self._flows.setdefault(key, _Flow(self._given)).add(request)
        self._admit_waiting()  # sets the timer of a quota
        try:
            await request.admitted
        except asyncio.CancelledError:
            if request.admitted.cancelled():
                self._forget(key, request)
                self._admit_waiting()  # it may have blocked others
            elif request.admitted.exception() is None:
                self._leave(request)
            raise

    def _forget(self, key: tuple[str, Priority], request: _Request) -> None:
        """Remove a request from its queue."""
        flow = self._flows.get(key)
        if flow is not None and request in flow.requests:
            flow.remove(request)
            if not flow.requests:
                del self._flows[key]

    def _admit_waiting(self) -> None:
        """Admit the waiting requests that fit, in order."""
        if self._minute is not None:
            self._minute.cancel()
            self._minute = None
        while (key := self._next()) is not None:
            flow = self._flows[key]
            request = flow.requests[0]
            if request.admitted is None or request.admitted.done():  # cancelled, and its task has not run since
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
        """Return the key of the flow whose first request is admitted next; None if it must wait."""
        order = [Priority.INTERACTIVE, Priority.BULK]
        if self._interactive_in_a_row >= _INTERACTIVE_IN_A_ROW:
            order.reverse()
        until_minute = float("inf")
        for priority in order:
            flows = [(key, flow) for key, flow in self._flows.items() if key[1] is priority]
            for key, flow in sorted(flows, key=lambda item: item[1].given):
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
        """Add a cost to what a tenant has in flight."""
        self._total = self._total.plus(cost)
        self._in_flight[tenant] = self._in_flight.get(tenant, NOTHING).plus(cost)

    def _bucket(self, caller: Caller) -> Bucket | None:
        """Return the token bucket of the tenant's rate; None if the rate is not limited."""
        rate = caller.quota.tokens_per_minute
        if rate is None:
            return None
        bucket = self._buckets.get(caller.tenant)
        if bucket is None or bucket.capacity != rate:  # the quota may change while the server runs
            bucket = self._buckets[caller.tenant] = Bucket(rate, self._clock)
        return bucket

    def _require_possible(self, request: _Request, field: str) -> None:
        """Refuse a request that could never be admitted.

        Raises:
            InvalidRequest: its bytes exceed the capacity, or its tokens exceed the tenant's quota.
        """
        cost = request.whole
        if cost.bytes > self._capacity.bytes:
            raise InvalidRequest(
                [
                    Violation(
                        field,
                        f"takes up to {cost.bytes / 2**20:.1f} MiB at once, expected at most "
                        f"{self._capacity.bytes / 2**20:.1f} MiB (queue_bytes): request less, or send shorter rows",
                    )
                ]
            )
        limit = request.caller.quota.queue_tokens
        if limit is not None and cost.tokens > limit:
            raise InvalidRequest(
                [
                    Violation(
                        field,
                        f"is charged {cost.tokens} tokens over all its variants, and your quota is {limit} at once: "
                        "send fewer rows or variants",
                    )
                ]
            )

    def _refusal(self, request: _Request) -> QueueFull:
        """Create the error of a refused request: why it is refused, and when to retry."""
        cost, caller = self._cost(request), request.caller
        if seconds := self._quota_seconds(request):
            quota, held = caller.quota, self._in_flight.get(caller.tenant, NOTHING).tokens
            if quota.queue_tokens is not None and held + cost.tokens > quota.queue_tokens:
                return QueueFull(
                    f"your quota is full: {held} of your tokens are in flight, this request has {cost.tokens}, and "
                    f"at most {quota.queue_tokens} may be: retry in {seconds:.1f} s",
                    seconds,
                )
            return QueueFull(
                f"your quota of {quota.tokens_per_minute} tokens a minute is used up, and this request has "
                f"{cost.tokens}: retry in {seconds:.1f} s",
                seconds,
            )
        capacity, total = self._capacity_of(caller.priority), self._total
        for flow in self._flows.values():
            total = total.plus(flow.cost)
        seconds = self._seconds_until_free(total.plus(cost), capacity, total)
        return QueueFull(
            f"the queue is full: {total.tokens} tokens are in flight or waiting, this request has {cost.tokens}, and "
            f"at most {capacity.tokens} may be ({total.bytes / 2**20:.1f} MiB, {cost.bytes / 2**20:.1f} MiB and "
            f"{capacity.bytes / 2**20:.1f} MiB): retry in {seconds:.1f} s",
            seconds,
        )

    def _seconds_until_free(self, needed: Cost, capacity: Cost, total: Cost) -> float:
        """Estimate the seconds until enough requests in flight or waiting are done, at the recent throughput."""
        tokens = needed.tokens - capacity.tokens
        if total.bytes:  # convert excess bytes to tokens, at the average bytes per token
            tokens = max(tokens, (needed.bytes - capacity.bytes) * total.tokens // total.bytes)
        return _bounded(self._speed.seconds(min(max(tokens, 1), total.tokens)))


def _bounded(seconds: float) -> float:
    return min(max(seconds, _MIN_RETRY_SECONDS), _MAX_RETRY_SECONDS)
