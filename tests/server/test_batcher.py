from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuroglot.bundle import read_manifest
from neuroglot_server.batcher import Batcher, Budget, Timing, choose
from neuroglot_server.core import ModelClosed
from neuroglot_server.engine import Engine
from neuroglot_server.signature import interfaces
from neuroglot_server.steps import Edit, Edits, KeyValues, RowStep, StepResult
from neuroglot_server.worker import Worker

BUDGET = Budget(tokens=64, scores=4, masks=12)
LARGE = Budget(1000, 1000, 1000)
CULPRIT = 317
EDIT = Edit((0,), np.ones((1, 8), np.float32), np.ones((1, 8), np.float32))


class Past(KeyValues):
    """A past of some length, without its keys and values."""

    def __init__(self, length: int) -> None:
        object.__setattr__(self, "fixed", length)

    @property
    def length(self) -> int:
        return self.fixed  # type: ignore[attr-defined,no-any-return]


def step(new: int, past: int = 0, cross: int = 0, *, scored: bool = False, masked: bool = False) -> RowStep:
    edits = Edits(at=EDIT) if masked else Edits(EDIT, EDIT, EDIT)
    return RowStep((5,) * new, Past(past), Past(cross), edits=edits, scored=scored)


STEPS = st.lists(
    st.builds(
        step,
        st.integers(1, 40),
        st.integers(0, 70),
        st.integers(0, 30),
        scored=st.booleans(),
        masked=st.booleans(),
    ),
    min_size=1,
    max_size=40,
)


@given(STEPS)
def test_a_batch_has_the_oldest_step_and_stays_within_the_budget(steps: list[RowStep]) -> None:
    chosen = choose(steps, BUDGET)
    assert chosen[0] == 0
    assert len(set(chosen)) == len(chosen)
    batch = [steps[index] for index in chosen]
    if len(batch) > 1:
        new = max(len(one.tokens) for one in batch)
        known = max(one.past_length for one in batch) + max(one.cross_length for one in batch)
        assert len(batch) * (new + known) <= BUDGET.tokens
        assert len(batch) * max((len(one.tokens) for one in batch if one.scored), default=0) <= BUDGET.scores
        if any(one.edits.before is None and len(one.tokens) > 1 for one in batch):
            assert len(batch) * new <= BUDGET.masks
        assert len(batch) * new <= 1.5 * sum(len(one.tokens) for one in batch)


def test_steps_of_the_oldest_ones_length_go_with_it() -> None:
    steps = [step(3), step(30), step(1), step(3), step(29), step(3)]
    assert sorted(choose(steps, Budget(9, 9, 9))) == [0, 3, 5]


def test_equals_are_taken_in_the_order_in_which_they_came() -> None:
    assert choose([step(3)] * 9, Budget(12, 12, 12)) == [0, 1, 2, 3]


def test_masks_of_every_position_have_a_budget_of_their_own() -> None:
    budget = Budget(tokens=100, scores=100, masks=10)
    assert choose([step(5)] * 4, budget) == [0, 1, 2, 3]
    assert choose([step(5, masked=True)] * 4, budget) == [0, 1]
    assert choose([step(5), step(5), step(5, masked=True), step(5)], budget) == [0, 1, 3]
    assert choose([step(1, masked=True)] * 12, budget) == list(range(12)), "one position is no more than one mask a row"


class Gate:
    """Runs batches through a real engine when it is let to, and fails those that the culprit is in."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.open = Event()
        self.open.set()
        self.batches: list[int] = []
        self.inside = False

    def __call__(self, steps: Sequence[RowStep]) -> list[StepResult]:
        self.inside = True
        assert self.open.wait(30)
        self.batches.append(len(steps))
        if any(CULPRIT in one.tokens for one in steps):
            raise MemoryError("too large")
        return self.engine.run(steps)


@pytest.fixture
def gate(bloom_bundle: Path) -> Gate:
    facts = read_manifest(bloom_bundle).model
    (component,) = facts.components
    return Gate(Engine(bloom_bundle / component.graph, component, interfaces(facts)[component.name], threads=1))


@asynccontextmanager
async def batching(gate: Gate) -> AsyncIterator[Batcher]:
    worker = Worker()
    batcher = Batcher(gate, LARGE, worker)
    try:
        yield batcher
    finally:
        gate.open.set()
        await batcher.close()
        worker.close()


def within_a_minute(test: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(30):
            await test()

    asyncio.run(limited())


def scored(*tokens: int) -> RowStep:
    return RowStep(tokens, scored=True)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_steps_of_different_callers_run_together_and_each_gets_its_own(gate: Gate) -> None:
    async def test() -> None:
        async with batching(gate) as batcher:
            gate.open.clear()
            first = asyncio.create_task(batcher.run([scored(4, 5)], Timing()))
            await until(lambda: gate.inside)
            timings = Timing(), Timing()
            others = [
                asyncio.create_task(batcher.run([scored(6, token), scored(7, token)], timing))
                for token, timing in zip((8, 9), timings, strict=True)
            ]
            await until(lambda: batcher.waiting == 4)
            gate.open.set()
            await first
            for token, task in zip((8, 9), others, strict=True):
                for result, expected in zip(
                    await task, gate.engine.run([scored(6, token), scored(7, token)]), strict=True
                ):
                    assert result.scores is not None
                    assert expected.scores is not None
                    assert result.scores.greedy == expected.scores.greedy
            assert gate.batches == [1, 4]
            assert all(timing.queue > 0 and timing.compute > 0 for timing in timings)

    within_a_minute(test)


def test_a_caller_that_is_cancelled_takes_its_steps_out_of_the_queue(gate: Gate) -> None:
    async def test() -> None:
        async with batching(gate) as batcher:
            gate.open.clear()
            running = asyncio.create_task(batcher.run([scored(4)], Timing()))
            await until(lambda: gate.inside)
            gone = asyncio.create_task(batcher.run([scored(5), scored(6)], Timing()))
            stays = asyncio.create_task(batcher.run([scored(7)], Timing()))
            await until(lambda: batcher.waiting == 3)
            gone.cancel()
            await asyncio.wait([gone])
            assert batcher.waiting == 1
            running.cancel()
            await asyncio.wait([running])
            gate.open.set()
            (result,) = await stays
            assert result.finite
            assert gate.batches == [1, 1]

    within_a_minute(test)


def test_a_batch_that_fails_is_halved_until_the_culprit_is_alone(gate: Gate) -> None:
    async def test() -> None:
        async with batching(gate) as batcher:
            gate.open.clear()
            first = asyncio.create_task(batcher.run([scored(4)], Timing()))
            await until(lambda: gate.inside)
            innocent = [asyncio.create_task(batcher.run([scored(token)] * 2, Timing())) for token in (5, 6, 7)]
            guilty = asyncio.create_task(batcher.run([scored(8), scored(CULPRIT), scored(9)], Timing()))
            await until(lambda: batcher.waiting == 9)
            gate.open.set()
            for task in innocent:
                assert [result.finite for result in await task] == [True, True]
            with pytest.raises(MemoryError, match="too large"):
                await guilty
            assert batcher.waiting == 0
            assert (await first)[0].finite

    within_a_minute(test)


def test_batchers_that_share_a_thread_take_turns(gate: Gate) -> None:
    """What waits meanwhile runs in one batch when the turn has come, however many turns the other still wants."""

    async def test() -> None:
        async with batching(gate) as batcher:
            order: list[str] = []

            def run_other(steps: Sequence[RowStep]) -> list[StepResult]:
                order.append(f"other {len(steps)}")
                return gate.engine.run(steps)

            other = Batcher(run_other, Budget(2, 2, 2), batcher._worker)
            gate.open.clear()
            running = asyncio.create_task(batcher.run([scored(4)], Timing()))
            await until(lambda: gate.inside)
            timing = Timing()
            others = asyncio.create_task(other.run([scored(token) for token in (5, 6, 7, 8)], timing))
            await until(lambda: other.waiting == 4)
            later = [asyncio.create_task(batcher.run([scored(token)], Timing())) for token in (9, 10, 11)]
            await until(lambda: batcher.waiting == 3)
            assert order == []
            gate.open.set()
            await asyncio.gather(running, others, *later)
            assert order == ["other 2", "other 2"]
            assert gate.batches == [1, 3]
            assert timing.queue > 0
            await other.close()

    within_a_minute(test)


def test_closing_fails_what_waits_and_lets_the_running_batch_end(gate: Gate) -> None:
    async def test() -> None:
        worker = Worker()
        batcher = Batcher(gate, LARGE, worker)
        gate.open.clear()
        running = asyncio.create_task(batcher.run([scored(4)], Timing()))
        await until(lambda: gate.inside)
        waiting = asyncio.create_task(batcher.run([scored(5)], Timing()))
        await until(lambda: batcher.waiting == 1)
        closing = asyncio.create_task(batcher.close())
        with pytest.raises(ModelClosed):
            await waiting
        assert not closing.done()
        gate.open.set()
        assert (await running)[0].finite
        await closing
        with pytest.raises(ModelClosed):
            await batcher.run([scored(6)], Timing())
        worker.close()

    within_a_minute(test)


def test_when_its_thread_is_gone_nobody_waits_for_ever(gate: Gate) -> None:
    async def test() -> None:
        worker = Worker()
        batcher = Batcher(gate, LARGE, worker)
        worker.close()  # as the interpreter does when the main thread ends
        with pytest.raises(ModelClosed):
            await batcher.run([scored(5)], Timing())
        with pytest.raises(ModelClosed):
            await batcher.run([scored(6)], Timing())
        await batcher.close()

    within_a_minute(test)
