from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from functools import wraps
from typing import Any, ParamSpec

import pytest

from neuroglot_server.core import (
    ANYONE,
    Caller,
    InvalidRequest,
    ModelClosed,
    Priority,
    QueueFull,
    Quota,
    Unobserved,
)
from neuroglot_server.intake.admission import Admission, Cost
from neuroglot_server.intake.rates import Bucket, Speed
from tests.server.live import until

BULK = Priority.BULK
P = ParamSpec("P")


def in_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a test on an event loop."""

    @wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


class Clock:
    """Seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Recorder(Unobserved):
    def __init__(self) -> None:
        self.heard: list[object] = []

    def admitted(self, tenant: str, tokens: int) -> None:
        self.heard.append((tenant, tokens))

    def queued(self, tokens: int) -> None:
        self.heard.append(tokens)


def tokens(capacity: int) -> Admission:
    return Admission(Cost(capacity, 10**9))


def cost(tokens: int, size: int = 0) -> Cost:
    return Cost(tokens, size)


def stream(tenant: str = "", priority: Priority = BULK, quota: Quota | None = None) -> Caller:
    """A caller whose requests wait, as the groups of a stream."""
    return Caller(tenant, priority, quota or Quota(), waits=True)


async def refuse(
    admission: Admission, request: Cost, caller: Caller = ANYONE, match: str = "the queue is full"
) -> float:
    """Seconds after which a refused request may retry."""
    with pytest.raises(QueueFull, match=match) as full:
        async with admission.admit(request, caller):
            pass
    return full.value.retry_after_seconds


class Waiting:
    """Requests that wait for admission, and then stay in flight until `leave`."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.order: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.leaving: dict[str, asyncio.Event] = {}

    async def come(self, name: str, tokens: int, caller: Caller) -> None:
        """Send a request, and return when it waits or is in flight."""
        before = self.admission.waiting + len(self.order)
        self.leaving[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(self._stay(name, tokens, caller))
        await until(lambda: self.admission.waiting + len(self.order) > before)

    async def _stay(self, name: str, tokens: int, caller: Caller) -> None:
        async with self.admission.admit(cost(tokens), caller):
            self.order.append(name)
            await self.leaving[name].wait()

    async def leave(self, *names: str) -> None:
        """End requests, one after the other."""
        for name in names:
            self.leaving[name].set()
            await self.tasks[name]

    async def all_leave(self) -> list[str]:
        """End each request once it is in flight; return the order of admission."""
        for index in range(len(self.tasks)):
            await until(lambda index=index: len(self.order) > index)
            await self.leave(self.order[index])
        return self.order


@in_loop
async def test_no_more_is_admitted_than_the_capacity() -> None:
    admission = tokens(100)
    async with admission.admit(cost(60), ANYONE):
        async with admission.admit(cost(40), ANYONE):
            wait = await refuse(admission, cost(1), match="100 tokens are in flight or waiting, this request has 1, ")
            assert 0.1 <= wait <= 60
        async with admission.admit(cost(40), ANYONE):
            pass


@in_loop
async def test_bytes_are_bounded_as_tokens_are() -> None:
    admission = Admission(cost(10**6, 100 * 2**20))
    async with admission.admit(cost(1, 60 * 2**20), ANYONE):
        await refuse(admission, cost(1, 41 * 2**20), match=r"may be \(60.0 MiB, 41.0 MiB and 100.0 MiB\)")
        async with admission.admit(cost(1, 40 * 2**20), ANYONE):
            pass


@in_loop
async def test_a_request_itself_is_held_at_eight_times_its_length() -> None:
    admission = Admission(Cost(1000, 100))
    async with admission.admit(cost(1, 60), Caller("a", request_bytes=5)):
        await refuse(admission, cost(1, 1), Caller("a"))
    with pytest.raises(InvalidRequest, match=r"group: takes up to .* at once"):
        async with admission.admit(cost(1, 61), Caller("a", request_bytes=5)):
            pass


@in_loop
async def test_bytes_that_requests_of_a_tenant_share_count_once() -> None:
    admission = Admission(cost(10**6, 100))
    shares = {b"prompt": 40, b"other": 20}
    async with AsyncExitStack() as first, AsyncExitStack() as second:
        await first.enter_async_context(admission.admit(cost(1, 70), Caller("a"), shares))
        await refuse(admission, cost(1, 31), Caller("a"))
        await second.enter_async_context(admission.admit(cost(1, 50), Caller("a"), {b"prompt": 40}))
        await first.aclose()  # the second request still holds 40, and 10 of its own
        await refuse(admission, cost(1, 51), Caller("a"))
        async with admission.admit(cost(1, 50), Caller("a")):
            pass
    async with admission.admit(cost(1, 100), Caller("a")):
        pass


@in_loop
async def test_bytes_are_not_shared_between_tenants_or_priorities() -> None:
    shares = {b"prompt": 40}
    for other in (Caller("b"), Caller("a", BULK)):
        admission = Admission(cost(10**6, 100))
        async with admission.admit(cost(1, 10), Caller("b")), admission.admit(cost(1, 50), Caller("a"), shares):
            with pytest.raises(QueueFull):
                async with admission.admit(cost(1, 51), other, shares):
                    pass


@in_loop
async def test_a_request_that_could_never_fit_in_memory_is_invalid() -> None:
    admission = Admission(cost(10**6, 100 * 2**20))
    with pytest.raises(
        InvalidRequest, match=r"takes up to 101.0 MiB at once, expected at most 100.0 MiB \(queue_bytes\)"
    ) as refusal:
        async with admission.admit(cost(1, 101 * 2**20), ANYONE, field="row"):
            pass
    assert [violation.field for violation in refusal.value.violations] == ["row"]


@in_loop
async def test_a_request_that_fails_releases_its_capacity() -> None:
    admission = tokens(100)
    for _ in range(3):
        with pytest.raises(KeyError):
            async with admission.admit(cost(100), ANYONE):
                raise KeyError


@in_loop
async def test_a_request_of_more_tokens_than_the_capacity_is_admitted_when_it_is_alone() -> None:
    admission = tokens(100)
    async with admission.admit(cost(500), ANYONE):
        await refuse(admission, cost(1))
    async with admission.admit(cost(1), ANYONE):
        await refuse(admission, cost(500))


@in_loop
async def test_the_last_eighth_is_kept_for_interactive_requests() -> None:
    admission = tokens(80)
    async with admission.admit(cost(70), Caller("a", BULK)):
        await refuse(admission, cost(1), Caller("a", BULK))
        async with admission.admit(cost(10), Caller("a")):
            pass


@in_loop
async def test_the_observer_is_told_what_is_admitted_and_what_is_in_flight() -> None:
    recorder = Recorder()
    admission = Admission(cost(100), recorder)
    async with admission.admit(cost(60), Caller("a")), admission.admit(cost(30), Caller("b")):
        await refuse(admission, cost(30), Caller("b"))
    assert recorder.heard == [60, ("a", 60), 90, ("b", 30), 60, 0]


@in_loop
async def test_it_waits_until_no_request_is_in_flight(caplog: pytest.LogCaptureFixture) -> None:
    admission = tokens(100)
    await admission.emptied(1.0)
    async with admission.admit(cost(1), ANYONE):
        await admission.emptied(0.01)
        assert "1 requests are still in flight" in caplog.text
        waiting = asyncio.create_task(admission.emptied(10.0))
        await asyncio.sleep(0)
        assert not waiting.done()
    await waiting


@in_loop
async def test_a_tenant_may_have_no_more_in_flight_than_its_quota() -> None:
    caller = Caller("a", quota=Quota(queue_tokens=50))
    admission = tokens(1000)
    async with admission.admit(cost(40), caller):
        await refuse(admission, cost(11), caller, "your quota is full: 40 of your tokens are in flight")
        async with admission.admit(cost(900), Caller("b")), admission.admit(cost(10), caller):
            pass
    for ask in (admission.admit(cost(51), caller).__aenter__, lambda: _now(admission, 51, caller)):
        with pytest.raises(
            InvalidRequest, match="is charged 51 tokens over all its variants, and your quota is 50 at once"
        ):
            await ask()


async def _now(admission: Admission, tokens: int, caller: Caller) -> None:
    admission.require_room(cost(tokens), caller)


@in_loop
async def test_a_tenant_is_charged_no_more_a_minute_than_its_quota() -> None:
    clock = Clock()
    admission = Admission(cost(10**6), clock=clock)
    caller = Caller("a", quota=Quota(tokens_per_minute=600))
    async with admission.admit(cost(500), caller):
        pass
    wait = await refuse(
        admission, cost(160), caller, "your quota of 600 tokens a minute is used up, and this request has 160"
    )
    assert wait == pytest.approx(6.0)
    async with admission.admit(cost(10**5), Caller("b")):
        pass
    clock.now = 5.9
    assert await refuse(admission, cost(160), caller, "quota") == pytest.approx(0.1)
    clock.now = 6.0 + 1e-9
    async with admission.admit(cost(160), caller):
        pass
    clock.now = 1000.0
    async with admission.admit(cost(1500), caller):
        pass
    assert await refuse(admission, cost(1), caller, "quota") == pytest.approx(90.1), "what was too much is paid back"
    run = [1500.0]
    for _ in range(2000):
        clock.now += 0.5
        try:
            async with admission.admit(cost(50), caller):
                run.append(50)
        except QueueFull:
            pass
    assert sum(run) <= 600 + 1000 * 10 + 50
    assert sum(run) >= 1000 * 10 - 50


@in_loop
async def test_a_new_quota_applies_at_once() -> None:
    admission = Admission(cost(10**6), clock=Clock())
    async with admission.admit(cost(60), Caller("a", quota=Quota(tokens_per_minute=60))):
        pass
    async with admission.admit(cost(60), Caller("a", quota=Quota(tokens_per_minute=120))):
        pass


@in_loop
async def test_the_wait_that_a_refusal_names_is_what_it_takes_at_the_speed_so_far() -> None:
    clock = Clock()
    admission = Admission(cost(1000, 1000), clock=clock)
    async with admission.admit(cost(100, 10), ANYONE):
        clock.now += 2.0  # 50 tokens a second
    async with admission.admit(cost(500, 500), Caller("a")), admission.admit(cost(500, 500), Caller("b")):
        assert await refuse(admission, cost(250, 0), Caller("b")) == pytest.approx(5.0)
        assert await refuse(admission, cost(1, 400), Caller("b")) == pytest.approx(8.0)


@in_loop
async def test_a_request_is_refused_before_planning_if_a_lower_bound_of_its_cost_does_not_fit() -> None:
    admission = tokens(100)
    admission.require_room(cost(100), ANYONE)
    async with admission.admit(cost(90), ANYONE):
        admission.require_room(cost(10), ANYONE)
        with pytest.raises(QueueFull, match="the queue is full"):
            admission.require_room(cost(11), ANYONE)
        admission.require_room(cost(11), stream())
        admission.require_room(cost(11), Caller("another tenant, which has nothing in flight"))


@in_loop
async def test_after_a_refusal_requests_of_the_tenant_are_refused_before_planning_until_a_request_leaves() -> None:
    admission = tokens(100)
    async with admission.admit(cost(50), ANYONE):
        async with admission.admit(cost(40), ANYONE):
            await refuse(admission, cost(20), ANYONE)
            with pytest.raises(QueueFull, match="the queue is full"):
                admission.require_room(cost(1), ANYONE)
            admission.require_room(cost(1), stream())
            admission.require_room(cost(1), Caller("another"))
        admission.require_room(cost(1), ANYONE)


@in_loop
async def test_small_requests_are_admitted_beside_slow_ones_after_a_large_one_was_refused() -> None:
    clock = Clock()
    admission = Admission(cost(100), clock=clock)
    async with admission.admit(cost(80), ANYONE):
        await refuse(admission, cost(30), ANYONE)
        admission.require_room(cost(1), ANYONE)  # the capacity suffices
        async with admission.admit(cost(15), ANYONE):
            seconds = await refuse(admission, cost(30), ANYONE)
            with pytest.raises(QueueFull, match="the queue is full"):
                admission.require_room(cost(1), ANYONE)
            clock.now += seconds
            admission.require_room(cost(1), ANYONE)


@in_loop
async def test_the_groups_of_a_tenant_are_admitted_in_the_order_in_which_they_came() -> None:
    waiting = Waiting(tokens(80))
    for name in "abcdef":
        await waiting.come(name, 40, stream())
    assert waiting.order == ["a"], "bulk fills 70 tokens"
    assert await waiting.all_leave() == list("abcdef")


@in_loop
async def test_tenants_are_admitted_in_turn_however_many_requests_each_has_waiting() -> None:
    waiting = Waiting(tokens(80))
    for name in ("a1", "a2", "a3", "a4", "a5", "b1", "b2"):
        await waiting.come(name, 50, stream(name[0]))
    assert await waiting.all_leave() == ["a1", "a2", "b1", "a3", "b2", "a4", "a5"]


@in_loop
async def test_turns_are_counted_in_tokens() -> None:
    waiting = Waiting(tokens(80))
    await waiting.come("first", 70, stream())
    for name in ("a1", "a2", "a3"):
        await waiting.come(name, 60, stream("a"))
    for name in ("b1", "b2", "b3", "b4", "b5"):
        await waiting.come(name, 20, stream("b"))
    order = await waiting.all_leave()
    assert order.index("b3") < order.index("a2") < order.index("b5")


@in_loop
async def test_a_large_group_is_not_starved_by_small_ones() -> None:
    waiting = Waiting(tokens(80))
    for name in ("small 1", "small 2"):
        await waiting.come(name, 30, stream("a"))
    await waiting.come("large", 65, stream("b"))
    for name in ("small 3", "small 4"):
        await waiting.come(name, 10, stream("c"))
    assert waiting.order == ["small 1", "small 2"], "10 tokens would fit, and the large one came first"
    await waiting.leave("small 1")
    assert waiting.order == ["small 1", "small 2"]
    await waiting.leave("small 2")
    await until(lambda: len(waiting.order) > 2)
    assert waiting.order[2] == "large"
    await waiting.all_leave()


@in_loop
async def test_interactive_requests_go_before_bulk_and_do_not_starve_it() -> None:
    waiting = Waiting(tokens(80))
    await waiting.come("first", 80, stream(priority=Priority.INTERACTIVE))
    await waiting.come("bulk", 60, stream("a"))
    for index in range(12):
        await waiting.come(f"{index}", 60, stream("b", Priority.INTERACTIVE))
    order = await waiting.all_leave()
    assert order.index("bulk") == 9, "the first, eight interactive ones, and then the bulk one"


@in_loop
async def test_a_quota_that_is_used_up_blocks_its_own_tenant_only() -> None:
    waiting = Waiting(tokens(80))
    quota = Quota(queue_tokens=30)
    for name in ("a1", "a2"):
        await waiting.come(name, 20, stream("a", quota=quota))
    await waiting.come("b1", 20, stream("b"))
    assert waiting.order == ["a1", "b1"]
    await waiting.leave("a1")
    await until(lambda: "a2" in waiting.order)
    await waiting.leave("b1", "a2")


@in_loop
async def test_a_group_waits_until_the_rate_of_its_tenant_allows() -> None:
    waiting = Waiting(tokens(10**6))
    caller = stream("a", quota=Quota(tokens_per_minute=60_000))
    await waiting.come("a1", 60_000, caller)
    await waiting.come("a2", 200, caller)
    assert waiting.order == ["a1"]
    await waiting.come("b1", 200, stream("b"))
    assert waiting.order == ["a1", "b1"]
    await until(lambda: "a2" in waiting.order, 2.0)
    await waiting.leave("a1", "a2", "b1")


@in_loop
async def test_a_unary_request_waits_while_its_tenant_is_below_its_share() -> None:
    """One tenant's streams fill the capacity; another tenant's calls wait up to half of it, and are refused above."""
    admission = tokens(80)
    waiting = Waiting(admission)
    for name in "abcd":
        await waiting.come(name, 30, stream("bulk"))
    calls = Caller("calls", BULK)
    await waiting.come("call 1", 20, calls)
    await waiting.come("call 2", 15, calls)
    await refuse(admission, cost(1), calls)
    assert waiting.order == ["a", "b"]
    await waiting.leave("a")
    await until(lambda: len(waiting.order) == 3)
    assert sorted((await waiting.all_leave())[2:]) == ["c", "call 1", "call 2", "d"]


@in_loop
async def test_a_unary_request_above_its_share_waits_if_its_tenant_has_no_other() -> None:
    waiting = Waiting(tokens(80))
    await waiting.come("small", 10, stream("a"))
    await waiting.come("large", 75, Caller("b"))
    await waiting.come("later", 10, stream("a"))
    assert await waiting.all_leave() == ["small", "large", "later"]


@in_loop
async def test_a_request_that_is_cancelled_while_it_waits_blocks_no_other() -> None:
    waiting = Waiting(tokens(80))
    await waiting.come("first", 30, stream())
    await waiting.come("large", 70, stream())
    await waiting.come("small", 30, stream())
    assert waiting.order == ["first"]
    waiting.tasks.pop("large").cancel()
    await until(lambda: waiting.order == ["first", "small"])
    await waiting.leave("first", "small")
    assert waiting.admission.waiting == 0


@in_loop
async def test_a_request_that_is_cancelled_as_it_is_admitted_releases_its_capacity() -> None:
    recorder = Recorder()
    waiting = Waiting(Admission(cost(80), recorder))
    async with waiting.admission.admit(cost(70), stream()):
        await waiting.come("waits", 60, stream())
    waiting.tasks["waits"].cancel()  # just admitted, and its task has not run since
    with pytest.raises(asyncio.CancelledError):
        await waiting.tasks["waits"]
    assert not waiting.order
    assert recorder.heard == [70, ("", 70), 0, 60, ("", 60), 0]


@in_loop
async def test_waiting_requests_fail_when_the_model_shuts_down() -> None:
    admission = tokens(80)
    waiting = Waiting(admission)
    for name in ("in flight", "waits"):
        await waiting.come(name, 70, stream())
    admission.drain()
    with pytest.raises(ModelClosed, match="shutting down"):
        await waiting.tasks["waits"]
    with pytest.raises(ModelClosed, match="shutting down"):
        async with admission.admit(cost(70), stream()):
            pass
    await waiting.leave("in flight")
    assert admission.waiting == 0


def test_a_stale_speed_is_forgotten() -> None:
    clock = Clock()
    speed = Speed(clock)
    assert speed.seconds(5) == 1.0
    speed.begin()
    for _ in range(10):
        clock.now += 30
        speed.done(3, idle=False)
    assert speed.seconds(10) == pytest.approx(100)
    for _ in range(600):
        clock.now += 1
        speed.done(100, idle=False)
    assert speed.seconds(100) == pytest.approx(1, rel=0.01)
    speed.done(0, idle=True)
    clock.now += 10**6
    assert speed.seconds(100) == pytest.approx(1, rel=0.01), "nothing was to be done meanwhile"


def test_a_bucket_refills_continuously_up_to_its_capacity() -> None:
    clock = Clock()
    bucket = Bucket(120, clock)
    bucket.take(120)
    assert bucket.seconds_until(1) == pytest.approx(0.5)
    clock.now = 10
    assert bucket.seconds_until(20) == 0
    assert bucket.seconds_until(21) == pytest.approx(0.5)
    clock.now = 1000
    bucket.take(120)
    assert bucket.seconds_until(1) == pytest.approx(0.5)
