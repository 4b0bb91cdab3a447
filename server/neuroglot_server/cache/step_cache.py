"""Step cache: runs each step once, however many requests need its result.

A request takes cached results from the cache. If another request is computing a result right now (single flight), it
waits for that one, unless the other has a lower priority. If the other is cancelled or fails, the requests that waited
run the step themselves. Tenants share nothing unless the model is configured with a shared cache: a request's latency
would reveal what other tenants have sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from time import monotonic
from typing import NamedTuple, Protocol

from neuroglot_server.cache.branch_index import BranchIndex, Key
from neuroglot_server.cache.lru import Cache
from neuroglot_server.core import Caller, MemoryUse, Observer, Priority
from neuroglot_server.engine.steps import NO_TOKENS, KeyValues, RowStep, StepResult
from neuroglot_server.scheduler.batcher import Batcher, Timing


class Branch(NamedTuple):
    """The position of a link in the tree of cached blocks.

    Attributes:
        parent: the key of the link before it.
        ids: the link's token ids. The cached result holds keys and values of these tokens, and those of the first
            tokens are usable without the rest.
    """

    parent: bytes
    ids: tuple[int, ...]


class Link(NamedTuple):
    """A part of a step with a cache entry of its own, usable once all parts before it are available.

    Attributes:
        key: the cache key; None if the result is not cached.
        tokens: how many tokens are run for it.
        branch: where to look for a cached link with the same first tokens; None to look for none.
    """

    key: bytes | None
    tokens: int
    branch: Branch | None = None


class CachedStep(Protocol):
    """A step whose result is cached in one or more links."""

    @property
    def cache(self) -> str:
        """The name under which hits and misses are counted."""

    @property
    def links(self) -> Sequence[Link]:
        """Its links in order, computed on each access."""

    def rest(self, found: Sequence[StepResult], partial_hit: KeyValues = NO_TOKENS) -> RowStep:
        """Build the step that computes the missing links.

        Args:
            found: results of the first links.
            partial_hit: keys and values of the first tokens of the first missing link.
        """

    def split(
        self, result: StepResult, found: Sequence[StepResult], partial_hit: KeyValues = NO_TOKENS
    ) -> Sequence[StepResult]:
        """Split the result of `rest` into the results of the missing links, one each."""

    def worth_waiting(self, running: int, left: int) -> bool:
        """Whether to wait for links of `running` tokens in flight when `left` tokens are missing."""


class WholeStep(NamedTuple):
    """A step cached as a single link.

    Attributes:
        component: the component that runs it.
        prompt: the prompt that determines the step's past and cross keys and values; None if interventions apply or
            thresholds are requested: such a step is not cached.
        step: the step.
        generated: answer tokens that are in the step's past.
        cache: the name under which hits and misses are counted.
    """

    component: str
    prompt: tuple[int, ...] | None
    step: RowStep
    generated: tuple[int, ...] = ()
    cache: str = "steps"

    @property
    def links(self) -> Sequence[Link]:
        """A single link, the step."""
        step = self.step
        if self.prompt is None:
            return (Link(None, len(step.tokens)),)
        tokens = step.tokens[step.focus :]  # the tokens before the focus belong to the prompt
        same = repr((self.component, self.prompt, self.generated, tokens, step.wanted))
        return (Link(blake2b(same.encode(), digest_size=16).digest(), len(step.tokens)),)

    def rest(self, found: Sequence[StepResult], partial_hit: KeyValues = NO_TOKENS) -> RowStep:
        """Return the step."""
        return self.step

    def split(
        self, result: StepResult, found: Sequence[StepResult], partial_hit: KeyValues = NO_TOKENS
    ) -> Sequence[StepResult]:
        """Return the result as the only one."""
        return (result,)

    def worth_waiting(self, running: int, left: int) -> bool:
        """Always: the request has nothing else to run meanwhile."""
        return True


@dataclass(eq=False)
class _Flight:
    """Links that one request is computing now.

    Attributes:
        priority: of the request.
        keys: keys of the links that other requests may wait for.
        results: computed results by key. Waiting requests take them from here, even if the cache has no space for them.
        ended: set when no more results will come.
    """

    priority: Priority
    keys: list[Key] = field(default_factory=list)
    results: dict[Key, StepResult] = field(default_factory=dict)
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class _Pending:
    """A step whose result is not complete yet.

    Attributes:
        step: the step.
        links: its links.
        keys: their keys, with the tenant; None for links that are not cached.
        found: results of the first links.
        partial_hit: keys and values of the next link's first tokens, taken from a cached link that forks inside it.
        hit_tokens: how many tokens came from the cache or from another request.
        flight: the flight that computes the next link, if this step waits for it.
    """

    def __init__(self, step: CachedStep, tenant: str) -> None:
        """Start with no results."""
        self.step = step
        self.links = step.links
        self.keys = [None if link.key is None else (tenant, link.key) for link in self.links]
        self.found: list[StepResult] = []
        self.partial_hit = NO_TOKENS
        self.hit_tokens = 0
        self.flight: _Flight | None = None

    def add_hit(self, result: StepResult) -> None:
        """Add the result of the next link, computed earlier or by another request."""
        self.hit_tokens += self.links[len(self.found)].tokens
        self.found.append(result)


class StepCache:
    """Runs steps through a cache with single flight. Used on one event loop only, so it needs no locks."""

    def __init__(self, max_bytes: int, observer: Observer, *, shared: bool = False) -> None:
        """Create an empty cache.

        Args:
            max_bytes: the capacity; 0 turns off the cache and single flight.
            observer: receives hits and misses.
            shared: whether tenants share results.
        """
        self._cache = Cache(max_bytes)
        self._observer = observer
        self._shared = shared
        self._flights: dict[Key, _Flight] = {}
        self._branches = BranchIndex()

    @property
    def enabled(self) -> bool:
        """Whether results are cached and shared between requests."""
        return self._cache.max_bytes > 0

    @property
    def memory(self) -> MemoryUse:
        """Bytes in use and capacity of the cache. Thread-safe."""
        return MemoryUse(self._cache.nbytes, self._cache.max_bytes)

    def tenant_of(self, caller: Caller) -> str:
        """The tenant that a caller's cache keys belong to: one for all callers if the cache is shared."""
        return "" if self._shared else caller.tenant

    def contains(self, step: CachedStep, caller: Caller) -> bool:
        """Whether all links of a step are cached."""
        tenant = self.tenant_of(caller)
        return all(link.key is not None and (tenant, link.key) in self._cache for link in step.links)

    async def run(
        self, steps: Sequence[CachedStep], batcher: Batcher, timing: Timing, caller: Caller
    ) -> list[list[StepResult]]:
        """Run the parts of steps that are neither cached nor in flight.

        Args:
            steps: steps that do not depend on each other; duplicates are allowed.
            batcher: runs the row steps.
            timing: the time spent waiting and computing is added to it.
            caller: the tenant and priority of the request.

        Returns:
            For each step, the results of its links.

        Raises:
            ModelClosed: the model was closed meanwhile.
        """
        tenant = self.tenant_of(caller)
        all_pending = [_Pending(step, tenant) for step in steps]
        pending = all_pending
        while pending:
            flight = _Flight(caller.priority)
            try:
                running = self._select(pending, flight)
                row_steps = [entry.step.rest(entry.found, entry.partial_hit) for entry in running]
                for entry, result in zip(running, await batcher.run(row_steps, timing, caller), strict=True):
                    self._store(entry, result, flight)
            finally:
                self._finish(flight)
            pending = [entry for entry in pending if entry.flight is not None]
            since = monotonic()
            for entry in pending:
                assert entry.flight is not None
                await entry.flight.ended.wait()
            timing.queue += monotonic() - since
        self._observe(all_pending)
        return [entry.found for entry in all_pending]

    def _observe(self, entries: Sequence[_Pending]) -> None:
        """Report hits and misses in tokens, by cache name, of the steps that can be cached."""
        tallies: dict[str, tuple[int, int]] = {}
        for entry in entries:
            if any(entry.keys):
                hit, tokens = tallies.get(entry.step.cache, (0, 0))
                tallies[entry.step.cache] = hit + entry.hit_tokens, tokens + sum([link.tokens for link in entry.links])
        for cache, (hit, tokens) in tallies.items():
            self._observer.cached(cache, hit, tokens - hit)

    def _select(self, pending: Sequence[_Pending], flight: _Flight) -> list[_Pending]:
        """Return the steps to run now. The others are complete, or have their `flight` set to the one they wait for."""
        running = []
        for entry in pending:
            missing = self._look_up(entry)
            entry.flight = None
            if not missing:
                continue
            if missing[0] in self._flights:
                entry.flight = self._flight_worth_waiting_for(entry, missing, flight.priority)
            if entry.flight is None:
                running.append(entry)
                if self.enabled:
                    self._register(missing, flight)
        return running

    def _register(self, keys: Sequence[Key | None], flight: _Flight) -> None:
        """Let other requests wait for these links, unless a flight of at least the same priority computes them."""
        for key in keys:
            if key is None:
                continue
            other = self._flights.get(key)
            if other is None or other.priority < flight.priority:
                self._flights[key] = flight
                flight.keys.append(key)

    def _look_up(self, entry: _Pending) -> Sequence[Key | None]:
        """Add the available links to an entry, and return the keys of the missing ones."""
        in_flight = {} if entry.flight is None else entry.flight.results
        missing = entry.keys[len(entry.found) :]
        hits = []
        for key in missing:
            result = None if key is None else in_flight.get(key) or self._cache.get(key)
            if result is None:
                break
            entry.add_hit(result)
            hits.append(key)
        if hits:
            for key in reversed(hits):  # evict the first links last: later ones cannot be used without them
                self._cache.get(key)
            missing = missing[len(hits) :]
        entry.partial_hit = self._find_partial_hit(entry, missing[0]) if entry.found and missing else NO_TOKENS
        return missing

    def _find_partial_hit(self, entry: _Pending, key: Key | None) -> KeyValues:
        """Keys and values of the next link's first tokens, from a cached link that starts with the same tokens.

        Args:
            entry: the step.
            key: the next link's key.
        """
        branch = entry.links[len(entry.found)].branch
        if branch is None or key is None:
            return NO_TOKENS
        tenant, _ = key
        match = self._branches.longest_match((tenant, branch.parent), branch.ids)
        cached = None if match is None else self._cache.get(match.key)
        if match is None or cached is None or cached.kept is None:
            return NO_TOKENS
        return cached.kept.first(match.tokens)

    def _flight_worth_waiting_for(
        self, entry: _Pending, missing: Sequence[Key | None], priority: Priority
    ) -> _Flight | None:
        """The flight that computes enough of the missing links to be worth waiting for; None if there is none."""
        links = entry.links[len(entry.found) :]
        running, last = 0, None
        for link, key in zip(links, missing, strict=True):
            flight = None if key is None else self._flights.get(key)
            if flight is None or flight.priority < priority:
                break
            running, last = running + link.tokens, flight
        left = sum(link.tokens for link in links)
        return last if entry.step.worth_waiting(running, left) else None

    def _store(self, entry: _Pending, result: StepResult, flight: _Flight) -> None:
        """Add a result to its entry, cache it, and hand it to the requests that wait for the flight."""
        found = entry.step.split(result, entry.found, entry.partial_hit)
        entry.hit_tokens += entry.partial_hit.length
        first = len(entry.found)
        entry.found += found
        # In reverse, as in `_look_up`: the first links are evicted last.
        for key, link, of_link in reversed(list(zip(entry.keys[first:], entry.links[first:], found, strict=True))):
            if key is None:
                continue
            flight.results[key] = of_link
            self._cache.put(key, of_link)
            branch = link.branch
            if branch is not None:
                tenant, _ = key
                self._branches.add((tenant, branch.parent), branch.ids, key)

    def _finish(self, flight: _Flight) -> None:
        """End a flight and wake the requests that wait for it."""
        for key in flight.keys:
            if self._flights.get(key) is flight:
                del self._flights[key]
        flight.ended.set()
