"""Admission: how much work may be in the house, whose, and how long to stay away when it is too much.

The house is bounded in tokens and in bytes, and the last eighth of it is kept for interactive requests. A tenant may be
bounded, too, in what it has in the house and in what it has run a minute (`Quota`). Bytes that several requests of a
tenant hold together, as those of one prompt, count once.

Nobody waits at the door: who is refused is told when to come again. So that it then finds room, whoever was refused
is remembered until it should have come, and the others give way to the tenant that was refused first: until it is in,
none of them gets more than its share of the house, which is the whole divided by the tenants there; and where it wants
more than a share itself, none of them gets anything, unless it is bulk and they are interactive. Streams, which come
again by themselves, are called in one after the other when somebody leaves. What this guarantees:
a tenant that comes again when it was told to is let in up to its share once what others hold beyond theirs has run, and
with a larger request once what is in its way has.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import NamedTuple

from neuroglot.errors import Violation
from neuroglot_server.core import Caller, InvalidRequest, MemoryUse, Observer, Priority, QueueFull, Unobserved
from neuroglot_server.rates import Bucket, Speed

_logger = logging.getLogger(__name__)

_SHORTEST_WAIT_SECONDS = 0.1
_LONGEST_WAIT_SECONDS = 60.0

_FOR_BULK = 7 / 8
"""How much of the house bulk may fill."""

_TIMES_READ = 8
"""How much larger a request is once it was read: of four bytes a number becomes an object of 24, and a reference."""

_LATE_SECONDS = 2.0
"""How much later than it was told to a tenant may come again without losing its place."""


class Cost(NamedTuple):
    """What a request takes.

    Attributes:
        tokens: that are run for it, over all of its variants.
        bytes: that it holds at most while it is in the house: keys and values, taps, edits, its result and itself.
    """

    tokens: int
    bytes: int

    def plus(self, other: Cost) -> Cost:
        """Both together."""
        return Cost(self.tokens + other.tokens, self.bytes + other.bytes)

    def minus(self, other: Cost) -> Cost:
        """This without a part of it."""
        return Cost(self.tokens - other.tokens, self.bytes - other.bytes)

    def within(self, most: Cost) -> bool:
        """Whether it is neither too many tokens nor too many bytes."""
        return self.tokens <= most.tokens and self.bytes <= most.bytes

    def times(self, share: float) -> Cost:
        """A part of it."""
        return Cost(int(self.tokens * share), int(self.bytes * share))


NOTHING = Cost(0, 0)

NO_SHARES: Mapping[bytes, int] = {}

_Hold = tuple[str, Priority, bytes]
"""Whose, how urgent, and what."""


@dataclass(frozen=True)
class _Refused:
    """A tenant that was refused, and is to come again.

    Attributes:
        wanted: what it would have had in the house with the request that was refused.
        priority: of that request.
        until: when it should have come.
    """

    wanted: Cost
    priority: Priority
    until: float


class Admission:
    """Counts what the requests in the house take."""

    def __init__(self, most: Cost, observer: Observer | None = None, clock: Callable[[], float] = monotonic) -> None:
        """Admit up to so much at once.

        Args:
            most: tokens and bytes; a request of more tokens is let in while there is no other.
            observer: is told of what is let in, and of what is in the house.
            clock: gives seconds.
        """
        self._most = most
        self._observer = observer or Unobserved()
        self._clock = clock
        self._inside: dict[str, Cost] = {}
        self._requests: Counter[str] = Counter()
        self._holders: dict[_Hold, int] = {}
        self._door: deque[asyncio.Future[None]] = deque()
        self._refused: dict[str, _Refused] = {}  # the first one first
        self._buckets: dict[str, Bucket] = {}
        self._speed = Speed(clock)
        self._empty = asyncio.Event()
        self._empty.set()

    @contextmanager
    def admit(
        self, cost: Cost, caller: Caller, shares: Mapping[bytes, int] = NO_SHARES, field: str = "group"
    ) -> Iterator[None]:
        """Hold a place for a request.

        Tokens count against the tenant's minute when they are let in, whether or not they are run in the end.

        Args:
            cost: what it takes, beside itself as it came and was read.
            caller: who asks.
            shares: how many of its bytes it holds together with those of the tenant's requests that name the same key.
            field: what of the request takes so much, for messages.

        Raises:
            InvalidRequest: it could never be let in.
            QueueFull: there is no room; it says when there is likely to be.
        """
        cost = cost.plus(Cost(0, _TIMES_READ * caller.request_bytes))
        self._require_possible(cost, caller, field)
        # What is urgent does not wait for the same being computed with less urgency, and is held beside it.
        holds = {(caller.tenant, caller.priority, key): size for key, size in shares.items()}
        alone = cost.minus(Cost(0, sum(holds.values())))
        cost = alone.plus(Cost(0, sum([size for hold, size in holds.items() if hold not in self._holders])))
        bucket = self._bucket(caller)
        self._require_quota(cost, caller, bucket)
        self._require_room(cost, caller)
        self._refused.pop(caller.tenant, None)
        if bucket is not None:
            bucket.take(cost.tokens)
        self._enter(cost, caller.tenant)
        for hold in holds:
            self._holders[hold] = self._holders.get(hold, 0) + 1
        self._observer.admitted(caller.tenant, cost.tokens)
        try:
            yield
        finally:
            let_go = 0
            for hold, size in holds.items():
                self._holders[hold] -= 1
                if not self._holders[hold]:
                    del self._holders[hold]
                    let_go += size
            self._leave(alone.plus(Cost(0, let_go)), caller.tenant)

    async def emptied(self, seconds: float) -> None:
        """Come back when no request is in the house, or after so many seconds."""
        try:
            async with asyncio.timeout(seconds):
                await self._empty.wait()
        except TimeoutError:
            _logger.warning("%d requests have not left after %g s", self._requests.total(), seconds)

    @property
    def memory(self) -> MemoryUse:
        """What requests hold that wait or run; may be read on any thread."""
        return MemoryUse(sum([cost.bytes for cost in tuple(self._inside.values())]), self._most.bytes)

    @property
    def _total(self) -> Cost:
        """What is in the house."""
        total = NOTHING
        for cost in self._inside.values():
            total = total.plus(cost)
        return total

    def _enter(self, cost: Cost, tenant: str) -> None:
        self._empty.clear()
        self._speed.begin()
        self._requests[tenant] += 1
        self._inside[tenant] = self._inside.get(tenant, NOTHING).plus(cost)
        self._observer.queued(self._total.tokens)
        self._call_next()

    def _leave(self, cost: Cost, tenant: str) -> None:
        self._requests[tenant] -= 1
        self._inside[tenant] = self._inside[tenant].minus(cost)
        if not self._requests[tenant]:
            del self._requests[tenant], self._inside[tenant]
        self._speed.done(cost.tokens, idle=not self._inside)
        self._observer.queued(self._total.tokens)
        if not self._inside:
            self._empty.set()
        self._call_next()

    def _call_next(self) -> None:
        """Let one of those at the door try again; if it gets in, the next one is called."""
        while self._door:
            called = self._door.popleft()
            if not called.done():
                called.set_result(None)
                return

    async def _turn(self) -> None:
        """Stand at the door until called."""
        called = asyncio.get_running_loop().create_future()
        self._door.append(called)
        try:
            await called
        finally:
            if called in self._door:
                self._door.remove(called)

    def _bucket(self, caller: Caller) -> Bucket | None:
        """The tenant's minute; None where it is not bounded."""
        most = caller.quota.tokens_per_minute
        if most is None:
            return None
        bucket = self._buckets.get(caller.tenant)
        if bucket is None or bucket.capacity != most:  # the quota may change while the server runs
            bucket = self._buckets[caller.tenant] = Bucket(most, self._clock)
        return bucket

    def _require_possible(self, cost: Cost, caller: Caller, field: str) -> None:
        """Refuse what could never be let in."""
        if cost.bytes > self._most.bytes:
            raise InvalidRequest(
                [
                    Violation(
                        field,
                        f"takes up to {cost.bytes / 2**20:.1f} MiB at once, expected at most "
                        f"{self._most.bytes / 2**20:.1f} MiB (queue_bytes): ask for less, or of shorter rows",
                    )
                ]
            )
        most = caller.quota.queue_tokens
        if most is not None and cost.tokens > most:
            raise InvalidRequest(
                [
                    Violation(
                        field,
                        f"is {cost.tokens} tokens over all its variants, and your quota is {most} at once: "
                        "ask for less",
                    )
                ]
            )

    def _require_quota(self, cost: Cost, caller: Caller, bucket: Bucket | None) -> None:
        """Refuse what is too much for the tenant."""
        most = caller.quota.queue_tokens
        mine = self._inside.get(caller.tenant, NOTHING).tokens
        if most is not None and mine + cost.tokens > most:
            # The others' work runs beside the tenant's own.
            wait = _bounded(self._speed.seconds((mine + cost.tokens - most) * len(self._inside)))
            raise QueueFull(
                f"your quota is full: {mine} of your tokens are waiting, this request has {cost.tokens}, and {most} "
                f"may wait: try again in {wait:.1f} s",
                wait,
            )
        if bucket is not None and (wait := bucket.seconds_until(cost.tokens)) > 0:
            raise QueueFull(
                f"your quota of {bucket.capacity} tokens a minute is used up, and this request has {cost.tokens}: try "
                f"again in {wait:.1f} s",
                wait,
            )

    def _require_room(self, cost: Cost, caller: Caller) -> None:
        """Refuse what is too much for the house, and what would be at the expense of who was refused before."""
        total = self._total
        if not self._inside:
            return
        most = self._most if caller.priority is Priority.INTERACTIVE else self._most.times(_FOR_BULK)
        wanted = total.plus(cost)
        if wanted.within(most):
            first = self._who_goes_first(cost, caller)
            if first is None:
                return
            wanted = wanted.plus(first)
        wait = self._wait(wanted, most, total)
        mine = self._inside.get(caller.tenant, NOTHING).plus(cost)
        # Assigning to a tenant that was refused before leaves it where it is.
        self._refused[caller.tenant] = _Refused(mine, caller.priority, self._clock() + wait + _LATE_SECONDS)
        raise QueueFull(
            f"the queue is full: {total.tokens} tokens are waiting, this request has {cost.tokens}, and {most.tokens} "
            f"may wait ({total.bytes / 2**20:.1f} MiB, {cost.bytes / 2**20:.1f} MiB and {most.bytes / 2**20:.1f} MiB): "
            f"try again in {wait:.1f} s",
            wait,
            self._turn,
        )

    def _who_goes_first(self, cost: Cost, caller: Caller) -> Cost | None:
        """What the tenant wants to whom this request must give way; None where it need not."""
        now = self._clock()
        for tenant in [tenant for tenant, refused in self._refused.items() if refused.until < now]:
            del self._refused[tenant]
        first = next(iter(self._refused), caller.tenant)
        if first == caller.tenant:
            return None
        share = self._most.times(_FOR_BULK / len({caller.tenant, *self._inside, *self._refused}))
        mine = self._inside.get(caller.tenant, NOTHING).plus(cost)
        refused = self._refused[first]
        passes_by = refused.wanted.within(share) or caller.priority > refused.priority
        return None if passes_by and mine.within(share) else refused.wanted

    def _wait(self, wanted: Cost, most: Cost, total: Cost) -> float:
        """Seconds until enough of what is in the house is done, at the speed of late."""
        tokens = wanted.tokens - most.tokens
        if total.bytes:  # what is too much in bytes goes with the tokens that hold them
            tokens = max(tokens, (wanted.bytes - most.bytes) * total.tokens // total.bytes)
        return _bounded(self._speed.seconds(min(max(tokens, 1), total.tokens)))


def _bounded(seconds: float) -> float:
    return min(max(seconds, _SHORTEST_WAIT_SECONDS), _LONGEST_WAIT_SECONDS)
