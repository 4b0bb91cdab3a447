from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from time import perf_counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from neuroglot_server.core import Caller, Priority
from neuroglot_server.engine.steps import NO_TOKENS, KeyValues, RowStep, StepResult
from neuroglot_server.scheduler.budget import Budget, Extent, Shape, Sizes
from neuroglot_server.scheduler.entries import ComponentQueue, QueueEntry, Submission
from neuroglot_server.scheduler.fair_queue import Batch, FairQueue

INTERACTIVE, BULK = Priority.INTERACTIVE, Priority.BULK
BUDGET = Budget(tokens=64, bytes=5000, sizes=Sizes(key_values=7, activations=31, edits=62, logits=101))


def queue(tokens: int = 64, component: str = "decoder", budget: Budget | None = None) -> ComponentQueue:
    def run(steps: Sequence[RowStep]) -> list[StepResult]:
        raise AssertionError("nothing runs here")

    return ComponentQueue(component, run, lambda: None, budget or Budget(tokens, 10**9, Sizes()))


class House:
    """A queue, and the tenants that fill it."""

    def __init__(self) -> None:
        self.queue = FairQueue()
        self.loop = asyncio.new_event_loop()
        self.now = 0.0

    def add(
        self,
        queue: ComponentQueue,
        tenant: str,
        extents: Sequence[Extent | int],
        priority: Priority = INTERACTIVE,
        *,
        begun: bool = False,
        past: KeyValues = NO_TOKENS,
    ) -> Submission:
        caller = Caller(tenant, priority)
        submission = Submission(caller, begun, [None] * len(extents), len(extents), self.loop.create_future())
        self.queue.add(
            queue,
            [
                QueueEntry(
                    RowStep((5,), past),
                    extent if isinstance(extent, Extent) else Extent(extent),
                    submission,
                    place,
                    0.0,
                )
                for place, extent in enumerate(extents)
            ],
            self.now,
        )
        return submission

    def take(self, seconds: float = 1.0) -> Batch:
        """The next batch, which takes so long."""
        batch = self.queue.take(self.now)
        assert batch is not None
        self.now += seconds
        self.queue.ran(batch, seconds, self.now)
        return batch


@contextmanager
def house() -> Iterator[House]:
    one = House()
    try:
        yield one
    finally:
        one.loop.close()


def tokens_by_tenant(batch: Batch) -> Counter[str]:
    given: Counter[str] = Counter()
    for waiting in batch.rows:
        given[waiting.submission.caller.tenant] += waiting.extent.new
    return given


def lengths(batch: Batch) -> list[int]:
    return sorted(waiting.extent.new for waiting in batch.rows)


def test_steps_of_the_oldest_ones_length_go_with_it() -> None:
    with house() as one:
        one.add(queue(9), "", [3, 30, 1, 3, 29, 3])
        assert lengths(one.take()) == [3, 3, 3]
        assert lengths(one.take()) == [30], "the oldest is not left behind, and larger than the batch it runs alone"


def test_a_group_of_short_prompts_is_one_batch() -> None:
    with house() as one:
        one.add(queue(512), "", [6, 16, 9, 12, 7, 14, 11, 10, 15, 8])
        assert len(one.take().rows) == 10


def test_equals_are_taken_in_the_order_in_which_they_came() -> None:
    with house() as one:
        only = queue(12)
        first, second = one.add(only, "", [3] * 3), one.add(only, "", [3] * 3)
        rows = one.take().rows
        assert [waiting.submission for waiting in rows] == [first, first, first, second]
        assert [waiting.place for waiting in rows] == [0, 1, 2, 0]


def test_two_tenants_get_half_each_however_many_steps_they_have() -> None:
    with house() as one:
        only = queue(64)
        one.add(only, "many", [1, 2, 3, 4, 5] * 400, BULK)
        one.add(only, "few", [5, 4] * 40, BULK)
        given: Counter[str] = Counter()
        while one.queue.has(BULK):
            given += tokens_by_tenant(one.take())
            if given["few"] == 9 * 40:
                break
            assert abs(given["many"] - given["few"]) <= 64
        assert given["many"] <= given["few"] + 64 + 32, "the batch in which the few end is filled up"


def test_tenants_get_the_same_though_their_steps_cannot_share_batches() -> None:
    with house() as one:
        only = queue(64)
        one.add(only, "short", [1] * 2000)
        one.add(only, "long", [30] * 60)
        one.add(only, "mixed", [1, 30] * 200)
        given: Counter[str] = Counter()
        for _ in range(40):
            given += tokens_by_tenant(one.take())
            assert max(given.values()) - min(given[tenant] for tenant in ("short", "long", "mixed")) <= 128


def test_room_that_one_tenant_leaves_is_filled_by_another() -> None:
    with house() as one:
        only = queue(64)
        one.add(only, "many", [4] * 100)
        one.add(only, "few", [4])
        batch = one.take()
        assert tokens_by_tenant(batch) == {"few": 4, "many": 60}


def test_who_was_away_is_owed_nothing_and_who_worked_alone_owes_nothing() -> None:
    with house() as one:
        only = queue(64)
        one.add(only, "alone", [1] * 2000)
        for _ in range(20):
            one.take()
        one.add(only, "late", [1] * 2000)
        given: Counter[str] = Counter()
        for _ in range(10):
            given += tokens_by_tenant(one.take())
        assert abs(given["alone"] - given["late"]) <= 64 + 32, "a batch and a turn"
        while len(one.queue):
            one.take()
        one.add(only, "alone", [1] * 500)
        one.add(only, "third", [1] * 500)
        given = Counter()
        for _ in range(10):
            given += tokens_by_tenant(one.take())
        assert abs(given["alone"] - given["third"]) <= 64 + 32


def test_who_was_alone_and_had_all_it_asked_for_at_once_owes_nothing() -> None:
    with house() as one:
        only = queue(64)
        for _ in range(100):
            one.add(only, "alone", [1] * 60)
            assert len(one.take().rows) == 60
        for tenant in ("alone", "late"):
            one.add(only, tenant, [1] * 2000)
        given: Counter[str] = Counter()
        for _ in range(10):
            given += tokens_by_tenant(one.take())
        assert abs(given["alone"] - given["late"]) <= 64 + 32, "a batch and a turn"


def test_interactive_steps_overtake_bulk() -> None:
    with house() as one:
        only = queue(64)
        one.add(only, "bulk", [8] * 100, BULK)
        one.take()
        asked = one.add(only, "somebody", [8, 8])
        batch = one.take()
        assert [waiting.submission for waiting in batch.rows[:2]] == [asked, asked]
        assert tokens_by_tenant(batch) == {"somebody": 16}, "bulk does not join such a batch"


def test_batches_of_bulk_are_short_while_interactive_requests_come() -> None:
    """The next one waits for the batch that runs."""
    with house() as one:
        only = queue(64)
        one.add(only, "bulk", [8] * 100, BULK)
        assert len(one.take().rows) == 8
        one.add(only, "somebody", [8])
        assert one.take().priority is INTERACTIVE
        assert [len(one.take(seconds=0.3).rows) for _ in range(5)] == [2, 2, 2, 2, 8]


def test_interactive_steps_share_their_batches_fully() -> None:
    with house() as one:
        only = queue(64)
        for tenant in "abcdefgh":
            one.add(only, tenant, [8])
        assert len(one.take().rows) == 8


def test_bulk_is_not_starved_by_interactive_steps() -> None:
    with house() as one:
        only = queue(64)
        one.add(only, "bulk", [30] * 20, BULK)
        one.take(seconds=2)
        headed = []
        for _ in range(36):
            one.add(only, "somebody", [1] * 64)
            headed.append(one.take(seconds=2 if one.queue.bulk_is_due(one.now) else 1).priority)
        assert headed.count(BULK) == 3
        assert headed[8] is INTERACTIVE
        assert headed[9] is BULK, "after it waited for four times two seconds"


def test_bulk_that_has_just_come_is_patient() -> None:
    with house() as one:
        only = queue(64)
        one.add(only, "bulk", [30], BULK)
        one.take(seconds=1)
        one.now = 1000.0
        one.add(only, "bulk", [30], BULK)
        one.add(only, "somebody", [1])
        assert one.take().priority is INTERACTIVE


def test_each_component_has_batches_of_its_own_in_the_same_turns() -> None:
    with house() as one:
        encoder, decoder = queue(64, "encoder"), queue(64, "decoder")
        one.add(encoder, "many", [8] * 200)
        one.add(decoder, "few", [1] * 200)
        one.add(decoder, "many", [1] * 10)
        given: Counter[str] = Counter()
        for _ in range(6):
            batch = one.take()
            given += tokens_by_tenant(batch)
            assert {waiting.submission.caller.tenant for waiting in batch.rows} <= {"many", "few"}
            assert abs(given["many"] - given["few"]) <= 64
        assert one.queue.waiting(encoder) + one.queue.waiting(decoder) == len(one.queue) < 410


def test_what_has_begun_goes_before_what_has_not() -> None:
    with house() as one:
        only = queue(64)
        one.add(only, "", [30] * 4)
        begun = one.add(only, "", [1] * 64, begun=True)
        one.add(only, "", [1] * 30)
        batch = one.take()
        assert {waiting.submission for waiting in batch.rows} == {begun}, "alike ones that have not begun wait, too"
        assert lengths(one.take()) == [30, 30], "and then the oldest comes first"


def test_what_little_has_begun_is_joined_by_what_has_not() -> None:
    with house() as one:
        only = queue(64)
        fresh = one.add(only, "", [2] * 100)
        begun = one.add(only, "", [2] * 4, begun=True)
        rows = one.take().rows
        assert [waiting.submission for waiting in rows] == [begun] * 4 + [fresh] * 28


def test_a_request_that_has_not_begun_does_not_wait_for_all_generations_to_end() -> None:
    with house() as one:
        only = queue(64)
        one.add(only, "", [30, 30])
        one.add(only, "", [30, 30])
        headed = []
        for _ in range(20):
            one.add(only, "", [1] * 8, begun=True)
            headed.append(one.take().rows[0].extent.new)
        assert headed == [*[1] * 8, 30, *[1] * 8, 30, 1, 1], "every ninth batch, while there are any"


def test_only_batches_at_the_expense_of_another_request_are_counted() -> None:
    with house() as one:
        only = queue(64)
        for _ in range(20):
            one.add(only, "", [1] * 8, begun=True)
            one.take()
        one.add(only, "", [30])
        one.add(only, "", [1] * 8, begun=True)
        assert one.take().rows[0].extent.new == 1


def test_batches_at_the_expense_of_a_request_that_had_its_turn_are_counted_no_more() -> None:
    with house() as one:
        only = queue(64)
        one.add(only, "", [30, 30])
        for _ in range(8):
            one.add(only, "", [1] * 8, begun=True)
            one.take()
        assert lengths(one.take()) == [30, 30]
        one.add(only, "", [30])
        one.add(only, "", [1] * 8, begun=True)
        assert one.take().rows[0].extent.new == 1


def test_what_has_begun_overtakes_neither_other_tenants_nor_what_is_urgent() -> None:
    with house() as one:
        only = queue(64)
        one.add(only, "begun", [30] * 40, begun=True)
        one.add(only, "new", [30] * 40)
        given: Counter[str] = Counter()
        for _ in range(20):
            given += tokens_by_tenant(one.take())
            assert abs(given["begun"] - given["new"]) <= 64
        one.add(only, "bulk", [8] * 8, BULK, begun=True)
        one.add(only, "new", [8])
        assert one.take().priority is INTERACTIVE


def test_what_is_dropped_is_gone_and_the_rest_stays_in_order() -> None:
    with house() as one:
        only = queue(12)
        one.add(only, "a", [3, 2])
        gone = one.add(only, "a", [3, 3, 2, 9])
        last = one.add(only, "a", [3])
        one.queue.drop(gone)
        one.queue.drop(gone)
        assert len(one.queue) == 3
        assert gone not in one.queue.submissions()
        rows = one.take().rows
        assert [waiting.extent.new for waiting in rows] == [3, 3, 2]
        assert rows[1].submission is last
        assert (len(one.queue), one.queue.submissions(), one.queue.take(0.0)) == (0, [], None)


def test_choosing_among_thousands_of_steps_is_quick() -> None:
    with house() as one:
        only = queue(4096)
        for index in range(64):
            extents = [Extent(1 + index % 6, past, scored=1) for past in range(5, 37)]
            one.add(only, f"tenant {index % 8}", extents, BULK)
        assert len(one.queue) == 2048
        spent = []
        while len(one.queue):
            begun = perf_counter()
            one.take()
            spent.append(perf_counter() - begun)
        assert max(spent) < 0.03, "a few milliseconds, and room for a busy machine"


EXTENTS = st.builds(
    Extent,
    new=st.integers(1, 40),
    past=st.integers(0, 20),
    cross=st.integers(0, 4),
    scored=st.integers(0, 2),
    tapped=st.integers(0, 2),
    masked=st.integers(0, 1),
    kept=st.booleans(),
)
ARRIVALS = st.tuples(
    st.sampled_from("abc"),
    st.sampled_from(Priority),
    st.sampled_from(("encoder", "decoder")),
    st.lists(EXTENTS, min_size=1, max_size=12),
    st.integers(0, 2),
    st.booleans(),
    st.booleans(),
)


@given(st.lists(ARRIVALS, min_size=1, max_size=12))
def test_every_step_runs_once_within_the_budget_unless_it_was_dropped(
    arrivals: list[tuple[str, Priority, str, list[Extent], int, bool, bool]],
) -> None:
    """Random arrivals of both priorities, with batches in between and some requests leaving the queue."""
    queues = {name: queue(component=name, budget=BUDGET) for name in ("encoder", "decoder")}
    with house() as one:
        ran: Counter[tuple[int, int]] = Counter()
        expected: Counter[tuple[int, int]] = Counter()
        numbers = count()
        named: dict[Submission, int] = {}

        def run() -> None:
            batch = one.take()
            extents = [waiting.extent for waiting in batch.rows]
            assert batch.shape == Shape.of(extents)
            assert batch.shape.positions <= BUDGET.tokens
            assert batch.shape.rows * BUDGET.sizes.row(batch.shape.longest) <= BUDGET.bytes
            assert 8 * (batch.shape.positions - 48) <= 9 * batch.shape.real
            ran.update((named[waiting.submission], waiting.place) for waiting in batch.rows)

        for tenant, priority, component, extents, batches, leaves, begun in arrivals:
            submission = one.add(queues[component], tenant, extents, priority, begun=begun)
            named[submission] = next(numbers)
            for _ in range(batches):
                if len(one.queue):
                    run()
            if leaves:
                one.queue.drop(submission)
                for place in range(len(extents)):
                    expected[named[submission], place] = ran[named[submission], place]
            else:
                expected.update((named[submission], place) for place in range(len(extents)))
        while len(one.queue):
            run()
        assert ran == +expected
        assert set(ran.values()) <= {1}
        assert one.queue.submissions() == []


def test_forks_of_one_prompt_run_together_and_their_prompt_counts_once() -> None:
    sizes = Sizes(key_values=1, layers=10)
    decoder = queue(budget=Budget(tokens=100, bytes=760, sizes=sizes))
    pasts = [KeyValues((np.zeros((2, 1, 100, 1), np.float32),)) for _ in range(3)]
    fork = Extent(1, past=100)
    with house() as it:
        for _ in range(10):  # in turns, as many groups ask for them
            for past in pasts:
                it.add(decoder, "a", [fork], past=past)
        batches = [it.take() for _ in range(2)]
    of_prompts = [Counter(pasts.index(waiting.step.past) for waiting in batch.rows) for batch in batches]
    assert of_prompts == [{0: 10, 1: 10, 2: 3}, {2: 7}]
    assert [batch.shape.sources for batch in batches] == [3, 1]
    assert all(sizes.batch(batch.shape) <= 760 for batch in batches)
    with house() as it:
        for _ in range(9):
            it.add(decoder, "a", [fork])
        assert len(it.take().rows) == 6, "each goes on from its own"
