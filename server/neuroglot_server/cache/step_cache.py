"""Steps that are run once, however many requests ask for them.

A request that needs what is kept takes it from the cache. One that needs what another is running waits for that, unless
the other is less urgent; if the other comes to no result, being cancelled or at fault, those that waited run it
themselves. Nothing passes between tenants, unless the model is configured so: that something is known already can be
told from the time an answer takes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from time import monotonic
from typing import NamedTuple, Protocol

from neuroglot_server.cache.branch_index import BranchIndex
from neuroglot_server.cache.lru import Cache
from neuroglot_server.core import Caller, MemoryUse, Observer, Priority
from neuroglot_server.engine.steps import NO_TOKENS, KeyValues, RowStep, StepResult
from neuroglot_server.scheduler.batcher import Batcher, Timing

Key = tuple[str, bytes]
"""A tenant, and what is known under a link's key."""


class Continuation(NamedTuple):
    """How a link's tokens go on from the link before it.

    Attributes:
        before: that link's key.
        ids: the tokens. What is kept of a link is keys and values of its tokens, of which the first stand for
            themselves.
    """

    before: bytes
    ids: tuple[int, ...]


class Link(NamedTuple):
    """A part of what is wanted that may be known by itself, if all parts before it are.

    Attributes:
        key: under which it is kept; None where it is of use to nobody else.
        tokens: how many tokens are run for it.
        continuation: what its first tokens may be known by, if another goes on alike for a while; None where no others
            are looked for.
    """

    key: bytes | None
    tokens: int
    continuation: Continuation | None = None


class Wanted(Protocol):
    """Something that a step computes, in one or more links."""

    @property
    def cache(self) -> str:
        """The name under which hits are counted."""

    @property
    def links(self) -> Sequence[Link]:
        """Its links, the first one first; worked out each time."""

    def rest(self, found: Sequence[StepResult], begun: KeyValues = NO_TOKENS) -> RowStep:
        """The step that computes the links after those that were found.

        Args:
            found: results of the first links.
            begun: keys and values of the first tokens of the link after those.
        """

    def split(
        self, result: StepResult, found: Sequence[StepResult], begun: KeyValues = NO_TOKENS
    ) -> Sequence[StepResult]:
        """The results of these links, one each."""

    def worth_waiting(self, running: int, left: int) -> bool:
        """Whether to wait for links of `running` tokens that another computes, when `left` are to be computed."""


class Whole(NamedTuple):
    """A step that is wanted as it is.

    Attributes:
        component: of which component.
        prompt: what its past and its encoder's keys and values follow from; None where interventions, or what is wanted
            of it, make it a step of its own.
        step: the step.
        read: tokens of the answer that are in its past.
    """

    component: str
    prompt: tuple[int, ...] | None
    step: RowStep
    read: tuple[int, ...] = ()
    cache: str = "steps"

    @property
    def links(self) -> Sequence[Link]:
        """The step is its only link."""
        step = self.step
        if self.prompt is None:
            return (Link(None, len(step.tokens)),)
        tokens = step.tokens[step.focus :]  # those before are the prompt's
        same = repr((self.component, self.prompt, self.read, tokens, step.wanted))
        return (Link(blake2b(same.encode(), digest_size=16).digest(), len(step.tokens)),)

    def rest(self, found: Sequence[StepResult], begun: KeyValues = NO_TOKENS) -> RowStep:
        """The step."""
        return self.step

    def split(
        self, result: StepResult, found: Sequence[StepResult], begun: KeyValues = NO_TOKENS
    ) -> Sequence[StepResult]:
        """Its result."""
        return (result,)

    def worth_waiting(self, running: int, left: int) -> bool:
        """Always: whoever waits has nothing else to do."""
        return True


@dataclass(eq=False)
class _Flight:
    """Links that one request is computing now.

    Attributes:
        priority: of the request.
        keys: of the links that it is said to compute.
        landed: what came out, by key. Those that wait find it here, whether or not there is room to keep it.
        ended: set when nothing more comes.
    """

    priority: Priority
    keys: list[Key] = field(default_factory=list)
    landed: dict[Key, StepResult] = field(default_factory=dict)
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class _Pending:
    """Something wanted that is not known yet.

    Attributes:
        wanted: what.
        links: its links.
        keys: of these, with the tenant.
        found: the results of its first links.
        begun: keys and values of the next link's first tokens, where another link has begun alike.
        hit: how many tokens were known.
        flight: who computes the next link, where it is waited for.
    """

    def __init__(self, wanted: Wanted, tenant: str) -> None:
        """Begin with nothing found."""
        self.wanted = wanted
        self.links = wanted.links
        self.keys = [None if link.key is None else (tenant, link.key) for link in self.links]
        self.found: list[StepResult] = []
        self.begun = NO_TOKENS
        self.hit = 0
        self.flight: _Flight | None = None

    def add(self, result: StepResult) -> None:
        """Go on by a link that was computed before."""
        self.hit += self.links[len(self.found)].tokens
        self.found.append(result)


class StepCache:
    """Runs what is wanted, once. Everything happens on one event loop, so nothing is locked."""

    def __init__(self, most_bytes: int, observer: Observer, *, shared: bool = False) -> None:
        """Keep results.

        Args:
            most_bytes: how much is kept at most; 0 for none, and then nobody waits for what another runs, either.
            observer: is told what was found and what was not.
            shared: whether tenants share.
        """
        self._cache = Cache(most_bytes)
        self._observer = observer
        self._shared = shared
        self._flights: dict[Key, _Flight] = {}
        self._beginnings = BranchIndex()

    @property
    def keeps(self) -> bool:
        """Whether anything is kept, and shared."""
        return self._cache.most_bytes > 0

    @property
    def memory(self) -> MemoryUse:
        """What is kept for requests to come; may be read on any thread."""
        return MemoryUse(self._cache.nbytes, self._cache.most_bytes)

    def tenant_of(self, caller: Caller) -> str:
        """The one under whom what is known for a caller is kept."""
        return "" if self._shared else caller.tenant

    def knows(self, wanted: Wanted, caller: Caller) -> bool:
        """Whether what comes out is kept."""
        tenant = self.tenant_of(caller)
        return all(link.key is not None and (tenant, link.key) in self._cache for link in wanted.links)

    async def run(
        self, wanted: Sequence[Wanted], batcher: Batcher, timing: Timing, caller: Caller
    ) -> list[list[StepResult]]:
        """Compute what is not known.

        Args:
            wanted: independent of each other; the same may be wanted twice.
            batcher: runs the steps.
            timing: is added to.
            caller: who asks.

        Returns:
            The results of the links of each.

        Raises:
            ModelClosed: the model went down meanwhile.
        """
        tenant = self.tenant_of(caller)
        everything = [_Pending(one, tenant) for one in wanted]
        pending = everything
        while pending:
            flight = _Flight(caller.priority)
            try:
                running = self._board(pending, flight)
                steps = [one.wanted.rest(one.found, one.begun) for one in running]
                for one, result in zip(running, await batcher.run(steps, timing, caller), strict=True):
                    self._land(one, result, flight)
            finally:
                self._end(flight)
            pending = [one for one in pending if one.flight is not None]
            since = monotonic()
            for one in pending:
                assert one.flight is not None
                await one.flight.ended.wait()
            timing.queue += monotonic() - since
        self._observe(everything)
        return [one.found for one in everything]

    def _observe(self, everything: Sequence[_Pending]) -> None:
        """Say how many tokens were known of what is kept, and how many were not."""
        tallies: dict[str, tuple[int, int]] = {}
        for one in everything:
            if any(one.keys):
                hit, tokens = tallies.get(one.wanted.cache, (0, 0))
                tallies[one.wanted.cache] = hit + one.hit, tokens + sum([link.tokens for link in one.links])
        for cache, (hit, tokens) in tallies.items():
            self._observer.cached(cache, hit, tokens - hit)

    def _board(self, pending: Sequence[_Pending], flight: _Flight) -> list[_Pending]:
        """Those that are to be run now; of the others, some are known by now, and some wait for what is running."""
        running = []
        for one in pending:
            missing = self._look_up(one)
            one.flight = None
            if not missing:
                continue
            if missing[0] in self._flights:
                one.flight = self._worth_waiting_for(one, missing, flight.priority)
            if one.flight is None:
                running.append(one)
                if self.keeps:
                    self._announce(missing, flight)
        return running

    def _announce(self, keys: Sequence[Key | None], flight: _Flight) -> None:
        """Let others wait for links, unless they may wait for somebody already."""
        for key in keys:
            if key is None:
                continue
            other = self._flights.get(key)
            if other is None or other.priority < flight.priority:
                self._flights[key] = flight
                flight.keys.append(key)

    def _look_up(self, one: _Pending) -> Sequence[Key | None]:
        """Go on by the links that are known; the keys of those that are not."""
        landed = {} if one.flight is None else one.flight.landed
        missing = one.keys[len(one.found) :]
        known = []
        for key in missing:
            result = None if key is None else landed.get(key) or self._cache.get(key)
            if result is None:
                break
            one.add(result)
            known.append(key)
        if known:
            for key in reversed(known):  # the first links are to be dropped last: without them nothing else is found
                self._cache.get(key)
            missing = missing[len(known) :]
        one.begun = self._begun(one, missing[0]) if one.found and missing else NO_TOKENS
        return missing

    def _begun(self, one: _Pending, key: Key | None) -> KeyValues:
        """What is known of the first tokens of the next link, which has this key, since another has begun alike."""
        continuation = one.links[len(one.found)].continuation
        if continuation is None or key is None:
            return NO_TOKENS
        tenant, _ = key
        alike = self._beginnings.alike((tenant, continuation.before), continuation.ids)
        known = None if alike is None else self._cache.get(alike.key)
        if alike is None or known is None or known.kept is None:
            return NO_TOKENS
        return known.kept.first(alike.tokens)

    def _worth_waiting_for(self, one: _Pending, missing: Sequence[Key | None], priority: Priority) -> _Flight | None:
        """Who is computing so much of what is missing that it is better to wait."""
        links = one.links[len(one.found) :]
        running, last = 0, None
        for link, key in zip(links, missing, strict=True):
            flight = None if key is None else self._flights.get(key)
            if flight is None or flight.priority < priority:
                break
            running, last = running + link.tokens, flight
        left = sum(link.tokens for link in links)
        return last if one.wanted.worth_waiting(running, left) else None

    def _land(self, one: _Pending, result: StepResult, flight: _Flight) -> None:
        """Take a result in, keep it, and hand it to those that wait."""
        found = one.wanted.split(result, one.found, one.begun)
        one.hit += one.begun.length
        first = len(one.found)
        one.found += found
        # The first links last, as in looking up.
        for key, link, of_link in reversed(list(zip(one.keys[first:], one.links[first:], found, strict=True))):
            if key is None:
                continue
            flight.landed[key] = of_link
            self._cache.put(key, of_link)
            continuation = link.continuation
            if continuation is not None:
                tenant, _ = key
                self._beginnings.note((tenant, continuation.before), continuation.ids, key)

    def _end(self, flight: _Flight) -> None:
        """Let go of those that wait."""
        for key in flight.keys:
            if self._flights.get(key) is flight:
                del self._flights[key]
        flight.ended.set()
