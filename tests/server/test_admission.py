from __future__ import annotations

import asyncio
import heapq
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import pytest

from neuroglot_server.admission import Admission, Cost
from neuroglot_server.core import ANYONE, Caller, InvalidRequest, Priority, QueueFull, Quota, Unobserved
from neuroglot_server.rates import Bucket, Speed

BULK = Priority.BULK


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


def tokens(most: int) -> Admission:
    return Admission(Cost(most, 10**9))


def cost(tokens: int, size: int = 0) -> Cost:
    return Cost(tokens, size)


@contextmanager
def refused(
    admission: Admission, request: Cost, caller: Caller = ANYONE, match: str = "the queue is full"
) -> Iterator[QueueFull]:
    with pytest.raises(QueueFull, match=match) as full:
        admission.admit(request, caller).__enter__()
    yield full.value


def refuse(admission: Admission, request: Cost, caller: Caller = ANYONE, match: str = "the queue is full") -> float:
    with refused(admission, request, caller, match) as full:
        return full.retry_after_seconds


def test_no_more_is_admitted_than_may_wait() -> None:
    admission = tokens(100)
    with admission.admit(cost(60), ANYONE):
        with admission.admit(cost(40), ANYONE):
            wait = refuse(admission, cost(1), match="100 tokens are waiting, this request has 1, and 100")
            assert 0.1 <= wait <= 60
        with admission.admit(cost(40), ANYONE):
            pass


def test_bytes_are_bounded_as_tokens_are() -> None:
    admission = Admission(cost(10**6, 100 * 2**20))
    with admission.admit(cost(1, 60 * 2**20), ANYONE):
        refuse(admission, cost(1, 41 * 2**20), match=r"may wait \(60.0 MiB, 41.0 MiB and 100.0 MiB\)")
        with admission.admit(cost(1, 40 * 2**20), ANYONE):
            pass


def test_a_request_itself_is_held_at_eight_times_its_length() -> None:
    admission = Admission(Cost(1000, 100))
    with admission.admit(cost(1, 60), Caller("a", request_bytes=5)):
        refuse(admission, cost(1, 1), Caller("b"))
    with pytest.raises(InvalidRequest, match=r"group: takes up to .* at once"):
        admission.admit(cost(1, 61), Caller("a", request_bytes=5)).__enter__()


def test_what_requests_of_a_tenant_hold_together_counts_once() -> None:
    admission = Admission(cost(10**6, 100))
    shares = {b"prompt": 40, b"other": 20}
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(admission.admit(cost(1, 70), Caller("a"), shares))
        refuse(admission, cost(1, 31), Caller("a"))
        second.enter_context(admission.admit(cost(1, 50), Caller("a"), {b"prompt": 40}))
        first.close()  # 40 that the second still holds, and 10 of its own
        refuse(admission, cost(1, 51), Caller("a"))
        with admission.admit(cost(1, 50), Caller("a")):
            pass
    with admission.admit(cost(1, 100), Caller("a")):
        pass


def test_what_another_tenant_or_one_in_less_of_a_hurry_holds_counts_again() -> None:
    shares = {b"prompt": 40}
    for other in (Caller("b"), Caller("a", BULK)):
        admission = Admission(cost(10**6, 100))
        with admission.admit(cost(1, 50), Caller("a"), shares), pytest.raises(QueueFull):
            admission.admit(cost(1, 51), other, shares).__enter__()


def test_those_at_the_door_are_called_one_after_the_other() -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    async def test() -> list[str]:
        admission = tokens(100)
        entered: list[str] = []

        async def come(name: str, size: int, stay: float) -> None:
            while True:
                try:
                    with admission.admit(cost(size), ANYONE):
                        entered.append(name)
                        await asyncio.sleep(stay)
                        return
                except QueueFull as full:
                    await (full.turn or never)()

        sizes = {"first": 100, "gone": 90, "second": 60, "third": 40, "late": 90}
        coming = {name: asyncio.create_task(come(name, size, 0.02)) for name, size in sizes.items()}
        asyncio.get_running_loop().call_later(0.01, coming.pop("gone").cancel)
        async with asyncio.timeout(5):
            await asyncio.gather(*coming.values())
        return entered

    assert asyncio.run(test()) == ["first", "second", "third", "late"]


def test_a_request_that_could_never_fit_in_memory_is_invalid() -> None:
    admission = Admission(cost(10**6, 100 * 2**20))
    with pytest.raises(
        InvalidRequest, match=r"takes up to 101.0 MiB at once, expected at most 100.0 MiB \(queue_bytes\)"
    ) as refusal:
        admission.admit(cost(1, 101 * 2**20), ANYONE, field="row").__enter__()
    assert [violation.field for violation in refusal.value.violations] == ["row"]


def test_a_request_that_fails_gives_its_place_back() -> None:
    admission = tokens(100)
    for _ in range(3):
        with pytest.raises(KeyError), admission.admit(cost(100), ANYONE):
            raise KeyError


def test_a_request_of_more_tokens_than_the_queue_is_admitted_when_it_is_alone() -> None:
    admission = tokens(100)
    with admission.admit(cost(500), ANYONE):
        refuse(admission, cost(1))
    with admission.admit(cost(1), ANYONE):
        refuse(admission, cost(500))


def test_the_last_eighth_is_kept_for_interactive_requests() -> None:
    admission = tokens(80)
    with admission.admit(cost(70), Caller("a", BULK)):
        refuse(admission, cost(1), Caller("a", BULK))
        with admission.admit(cost(10), Caller("a")):
            pass


def test_who_operates_it_hears_what_is_let_in_and_what_is_there() -> None:
    recorder = Recorder()
    admission = Admission(cost(100), recorder)
    with admission.admit(cost(60), Caller("a")), admission.admit(cost(30), Caller("b")):
        refuse(admission, cost(30), Caller("c"))
    assert recorder.heard == [60, ("a", 60), 90, ("b", 30), 60, 0]


def test_it_says_when_the_last_has_left(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        admission = tokens(100)
        await admission.emptied(1.0)
        with admission.admit(cost(1), ANYONE):
            await admission.emptied(0.01)
            assert "1 requests have not left" in caplog.text
            waiting = asyncio.create_task(admission.emptied(10.0))
            await asyncio.sleep(0)
            assert not waiting.done()
        await waiting

    asyncio.run(test())


def test_a_tenant_may_have_no_more_in_the_house_than_its_quota() -> None:
    caller = Caller("a", quota=Quota(queue_tokens=50))
    admission = tokens(1000)
    with admission.admit(cost(40), caller):
        refuse(admission, cost(11), caller, "your quota is full: 40 of your tokens are waiting, this request has 11")
        with admission.admit(cost(900), Caller("b")), admission.admit(cost(10), caller):
            pass
    with pytest.raises(InvalidRequest, match="is 51 tokens over all its variants, and your quota is 50 at once"):
        admission.admit(cost(51), caller).__enter__()


def test_a_tenant_may_run_no_more_a_minute_than_its_quota() -> None:
    clock = Clock()
    admission = Admission(cost(10**6), clock=clock)
    caller = Caller("a", quota=Quota(tokens_per_minute=600))

    def ask(count: int) -> AbstractContextManager[None]:
        return admission.admit(cost(count), caller)

    with ask(500):
        pass
    wait = refuse(
        admission, cost(160), caller, "your quota of 600 tokens a minute is used up, and this request has 160"
    )
    assert wait == pytest.approx(6.0)
    with admission.admit(cost(10**5), Caller("b")):
        pass
    clock.now = 5.9
    assert refuse(admission, cost(160), caller, "quota") == pytest.approx(0.1)
    clock.now = 6.0 + 1e-9
    with ask(160):
        pass
    clock.now = 1000.0
    with ask(1500):
        pass
    assert refuse(admission, cost(1), caller, "quota") == pytest.approx(90.1), "what was too much is paid back"
    run = [1500.0]
    for _ in range(2000):
        clock.now += 0.5
        try:
            with ask(50):
                run.append(50)
        except QueueFull:
            pass
    assert sum(run) <= 600 + 1000 * 10 + 50
    assert sum(run) >= 1000 * 10 - 50


def test_a_new_quota_holds_at_once() -> None:
    clock = Clock()
    admission = Admission(cost(10**6), clock=clock)
    with admission.admit(cost(60), Caller("a", quota=Quota(tokens_per_minute=60))):
        pass
    with admission.admit(cost(60), Caller("a", quota=Quota(tokens_per_minute=120))):
        pass


def test_who_comes_again_when_told_to_finds_room() -> None:
    """The wait that is named is what it takes at the speed of the work so far, whatever is short."""
    clock = Clock()
    admission = Admission(cost(1000, 1000), clock=clock)
    house = ExitStack()
    with admission.admit(cost(100, 10), ANYONE):
        clock.now += 2.0  # 50 tokens a second
    first, second = (admission.admit(cost(500, 500), Caller(tenant)) for tenant in "ab")
    house.enter_context(first)
    house.enter_context(second)
    assert refuse(admission, cost(250, 0), Caller("c")) == pytest.approx(5.0)
    assert refuse(admission, cost(1, 400), Caller("c")) == pytest.approx(8.0)
    assert refuse(admission, cost(100, 0), Caller("a")) > 0
    house.close()


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


def test_a_bucket_fills_continuously_and_no_further_than_to_the_brim() -> None:
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


class Town:
    """Tenants that ask again and again, and a machine that runs so many tokens a second of what is in the house.

    Each tenant gets an equal part of the machine, as the queue sees to.
    """

    def __init__(self, most: int) -> None:
        self.clock = Clock()
        self.admission = Admission(cost(most), clock=self.clock)
        self.speed = 100.0
        self.running: list[tuple[str, float, ExitStack]] = []
        self.coming: list[tuple[float, float, Caller, int]] = []
        self.random = random.Random(7)
        self.let_in: list[tuple[float, str, int]] = []
        self.done: Counter[str] = Counter()

    def asks(self, tenant: str, size: int, *, streams: int = 1, priority: Priority = BULK, at: float = 0.0) -> None:
        """So many streams of requests of a size, each asking as soon as its last one is done."""
        for _ in range(streams):
            heapq.heappush(self.coming, (at, self.random.random(), Caller(tenant, priority), size))

    def live(self, until: float) -> None:
        while self.clock.now < until:
            self.clock.now += 0.2
            self._run(0.2)
            while self.coming and self.coming[0][0] <= self.clock.now:
                _, _, caller, size = heapq.heappop(self.coming)
                self._ask(caller, size)

    def _ask(self, caller: Caller, size: int) -> None:
        place = ExitStack()
        try:
            place.enter_context(self.admission.admit(cost(size), caller))
        except QueueFull as full:
            again = self.clock.now + full.retry_after_seconds
            heapq.heappush(self.coming, (again, self.random.random(), caller, size))
            return
        self.let_in.append((self.clock.now, caller.tenant, size))
        place.callback(self.asks, caller.tenant, size, priority=caller.priority, at=self.clock.now)
        self.running.append((caller.tenant, size, place))

    def _run(self, seconds: float) -> None:
        part = self.speed * seconds / max(len({tenant for tenant, _, _ in self.running}), 1)
        left: Counter[str] = Counter({tenant: part for tenant, _, _ in self.running})  # type: ignore[dict-item]
        still = []
        for tenant, size, place in self.running:
            ran = min(left[tenant], size)
            left[tenant] -= ran
            self.done[tenant] += ran
            if size > ran + 1e-9:
                still.append((tenant, size - ran, place))
            else:
                place.close()
        self.running = still

    def first_of(self, tenant: str) -> float:
        return next((when for when, who, _ in self.let_in if who == tenant), float("inf"))


def test_a_house_full_of_one_tenants_work_opens_to_another() -> None:
    """Many streams of one tenant retry all the time; one of another is let in, and then gets its half."""
    town = Town(most=1000)
    town.asks("many", 20, streams=100)
    town.live(20)
    town.asks("few", 20, streams=40, at=20.0)
    town.live(30)
    assert town.first_of("few") < 30, "when what the other holds beyond its share has run"
    town.done.clear()
    town.live(90)
    share = town.done["few"] / sum(town.done.values())
    assert 0.4 < share < 0.6


def test_a_large_request_gets_in_among_small_ones() -> None:
    town = Town(most=1000)
    town.asks("small", 10, streams=100)
    town.asks("other", 10, streams=100)
    town.live(10)
    town.asks("large", 700, at=10.0)
    town.live(60)
    assert town.first_of("large") < 40
    assert town.done["small"] > 0 < town.done["other"]


def test_who_does_not_come_again_keeps_nobody_out() -> None:
    town = Town(most=1000)
    town.asks("many", 20, streams=100)
    town.live(20)
    refuse(town.admission, cost(700), Caller("gone", BULK))
    town.live(90)
    town.done.clear()
    town.live(100)
    assert town.done["many"] > 900, "as much as the machine can"
