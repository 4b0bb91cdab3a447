from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from threading import Event

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuroglot.definitions.bundle import read_manifest
from neuroglot_server.core import BatchRun, Caller, InvalidRequest, ModelClosed, Priority, Unobserved
from neuroglot_server.engine.graph import interfaces
from neuroglot_server.engine.session import Engine, Stopped
from neuroglot_server.engine.steps import RowStep, StepResult
from neuroglot_server.scheduler.batcher import Batcher, Timing
from neuroglot_server.scheduler.budget import Budget, Sizes
from neuroglot_server.scheduler.worker import Worker
from tests.checkpoints import random_checkpoint

LARGE = Budget(1000, 10**9, Sizes())
CULPRIT = 317


class Recorder(Unobserved):
    """Keeps what is said of batches."""

    def __init__(self) -> None:
        self.batches: list[BatchRun] = []

    def batch(self, run: BatchRun) -> None:
        self.batches.append(run)


class Gate:
    """Runs batches through a real engine when it is let to, and fails those that the culprit is in."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.open = Event()
        self.open.set()
        self.batches: list[list[tuple[int, ...]]] = []
        self.stops = 0
        self.stopping = False
        self.inside = False

    def __call__(self, steps: Sequence[RowStep]) -> list[StepResult]:
        self.inside = True
        assert self.open.wait(30)
        self.inside = False
        if self.stopping:
            self.stopping = False
            raise Stopped
        self.batches.append([one.tokens for one in steps])
        if any(CULPRIT in one.tokens for one in steps):
            raise MemoryError("too large")
        return self.engine.run(steps)

    def stop(self) -> None:
        self.stops += 1
        self.stopping = True
        self.open.set()

    @property
    def sizes(self) -> list[int]:
        return [len(batch) for batch in self.batches]


@pytest.fixture(scope="module")
def engine(bloom_bundle: Path) -> Engine:
    facts = read_manifest(bloom_bundle).model
    (component,) = facts.components
    return Engine(bloom_bundle / component.graph, component, interfaces(facts)[component.name], threads=1)


@pytest.fixture
def gate(engine: Engine) -> Gate:
    return Gate(engine)


@asynccontextmanager
async def batching(gate: Gate, budget: Budget = LARGE, worker: Worker | None = None) -> AsyncIterator[Batcher]:
    worker = worker or Worker()
    batcher = Batcher(gate, budget, worker, stop=gate.stop)
    try:
        yield batcher
    finally:
        gate.open.set()
        await worker.close()


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


@asynccontextmanager
async def while_another_runs(gate: Gate, batcher: Batcher) -> AsyncIterator[asyncio.Task[list[StepResult]]]:
    """A block in which a step runs, so that what is handed in waits; at its end all of that may run."""
    gate.open.clear()
    running = asyncio.create_task(batcher.run([scored(4)], Timing()))
    await until(lambda: gate.inside)
    yield running
    gate.open.set()
    await asyncio.wait([running])


def test_steps_of_different_callers_run_together_and_each_gets_its_own(gate: Gate) -> None:
    async def test() -> None:
        async with batching(gate) as batcher:
            timings = Timing(), Timing()
            async with while_another_runs(gate, batcher):
                others = [
                    asyncio.create_task(
                        batcher.run([scored(6, token), scored(7, token)], timing, Caller(f"tenant {token}"))
                    )
                    for token, timing in zip((8, 9), timings, strict=True)
                ]
                await until(lambda: batcher.waiting == 4)
            for token, task in zip((8, 9), others, strict=True):
                for result, expected in zip(
                    await task, gate.engine.run([scored(6, token), scored(7, token)]), strict=True
                ):
                    assert result.scores is not None
                    assert expected.scores is not None
                    assert result.scores.greedy == expected.scores.greedy
            assert gate.sizes == [1, 4]
            assert all(timing.queue > 0 and timing.compute > 0 for timing in timings)

    within_a_minute(test)


def test_what_follows_from_results_joins_the_next_batch(gate: Gate) -> None:
    """Rows that generate in step stay in step, though all that waits is taken as soon as a batch has ended."""

    async def generate(batcher: Batcher, first: int) -> None:
        for token in range(first, first + 4):
            await batcher.run([scored(token)], Timing())

    async def test() -> None:
        async with batching(gate) as batcher:
            gate.open.clear()
            first = asyncio.create_task(generate(batcher, 10))
            await until(lambda: gate.inside)
            second = asyncio.create_task(generate(batcher, 20))
            await until(lambda: batcher.waiting == 1)
            gate.open.set()
            await asyncio.gather(first, second)
            assert gate.sizes == [1, 2, 2, 2, 1]

    within_a_minute(test)


def test_a_tenant_with_a_hundred_times_as_many_rows_gets_as_much_as_another(gate: Gate) -> None:
    async def test() -> None:
        async with batching(gate, Budget(40, 10**9, Sizes())) as batcher:
            async with while_another_runs(gate, batcher):
                tasks = [
                    asyncio.create_task(batcher.run([scored(token, 5)] * rows, Timing(), Caller(tenant, Priority.BULK)))
                    for tenant, token, rows in (("many", 6, 3000), ("few", 7, 30))
                ]
                await until(lambda: batcher.waiting == 3030)
            await tasks[1]
            given = Counter(tokens[0] for batch in gate.batches for tokens in batch)
            assert given[7] == 30
            assert 30 - 20 <= given[6] <= 30 + 20, "half of what ran, to a batch of 20 rows"
            tasks[0].cancel()
            await asyncio.wait(tasks)
            assert batcher.waiting == 0

    within_a_minute(test)


def test_an_interactive_request_waits_for_no_more_than_the_batch_that_runs(gate: Gate) -> None:
    async def test() -> None:
        async with batching(gate, Budget(8, 10**9, Sizes())) as batcher:
            async with while_another_runs(gate, batcher):
                bulk = asyncio.create_task(batcher.run([scored(6)] * 100, Timing(), Caller("", Priority.BULK)))
                await until(lambda: batcher.waiting == 100)
                asked = asyncio.create_task(batcher.run([scored(7)], Timing(), Caller("", Priority.INTERACTIVE)))
                await until(lambda: batcher.waiting == 101)
            await asked
            assert (7,) in gate.batches[1]
            assert len(await bulk) == 100

    within_a_minute(test)


def test_between_its_steps_the_machine_is_left_to_an_interactive_request(gate: Gate) -> None:
    """It works on its results for a while, and bulk's long batches do not get in between."""

    def slow(steps: Sequence[RowStep]) -> list[StepResult]:
        time.sleep(0.02)
        return gate(steps)

    async def ask(batcher: Batcher, worker: Worker) -> None:
        with worker.expecting(Caller("somebody")):
            for token in (7, 8, 9):
                await batcher.run([scored(token)], Timing(), Caller("somebody"))
                await asyncio.sleep(0.005)

    async def test() -> None:
        worker = Worker()
        batcher = Batcher(slow, Budget(8, 10**9, Sizes()), worker)
        try:
            bulk = asyncio.create_task(batcher.run([scored(6, 6, 6)] * 60, Timing(), Caller("", Priority.BULK)))
            await until(lambda: len(gate.batches) == 3)
            await ask(batcher, worker)
            seen = [any(tokens[0] in (7, 8, 9) for tokens in batch) for batch in gate.batches]
            asked = "".join("-#"[one] for one in seen)
            assert "##" in asked, asked
            assert len(await bulk) == 60, "and when it has left, bulk goes on"
        finally:
            await worker.close()

    within_a_minute(test)


def test_a_caller_that_is_cancelled_takes_its_steps_out_of_the_queue(gate: Gate) -> None:
    async def test() -> None:
        async with batching(gate) as batcher:
            async with while_another_runs(gate, batcher):
                gone = asyncio.create_task(batcher.run([scored(5), scored(6)], Timing()))
                stays = asyncio.create_task(batcher.run([scored(7)], Timing()))
                await until(lambda: batcher.waiting == 3)
                gone.cancel()
                await asyncio.wait([gone])
                assert batcher.waiting == 1
            (result,) = await stays
            assert result.finite
            assert gate.batches == [[(4,)], [(7,)]]

    within_a_minute(test)


def test_a_deadline_fires_in_the_queue(gate: Gate) -> None:
    async def test() -> None:
        async with batching(gate) as batcher, while_another_runs(gate, batcher) as running:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await batcher.run([scored(5), scored(6)], Timing())
            assert batcher.waiting == 0
            assert not running.done(), "long before the batch that ran"

    within_a_minute(test)


def test_a_batch_is_stopped_when_nobody_waits_for_any_of_its_rows(gate: Gate) -> None:
    async def test() -> None:
        async with batching(gate) as batcher:
            gate.open.clear()
            pair = [asyncio.create_task(batcher.run([scored(token)], Timing())) for token in (5, 6)]
            await until(lambda: gate.inside)
            waits = asyncio.create_task(batcher.run([scored(7)], Timing()))
            await until(lambda: batcher.waiting == 1)
            pair[0].cancel()
            await asyncio.wait([pair[0]])
            assert gate.stops == 0, "one still waits for it"
            pair[1].cancel()
            (result,) = await waits
            assert result.finite
            assert gate.batches == [[(7,)]], "the one that was stopped gave nothing, and the next one runs"

    within_a_minute(test)


def test_rows_that_somebody_waits_for_are_run_again_when_their_batch_was_stopped(gate: Gate) -> None:
    async def test() -> None:
        async with batching(gate) as batcher:
            gate.open.clear()
            waits = asyncio.create_task(batcher.run([scored(5), scored(6)], Timing()))
            await until(lambda: gate.inside)
            gate.stop()
            assert [result.finite for result in await waits] == [True, True]
            assert gate.batches == [[(5,), (6,)]]

    within_a_minute(test)


@pytest.fixture(scope="module")
def slow_engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """One whose passes take long enough to be stopped."""
    from neuroglot_exporter import export

    folder = tmp_path_factory.mktemp("slow")
    random_checkpoint(folder / "checkpoint", hidden_size=192, n_layer=12, n_head=4)
    export(str(folder / "checkpoint"), folder / "bundle", verify=False)
    facts = read_manifest(folder / "bundle").model
    (component,) = facts.components
    return Engine(folder / "bundle" / component.graph, component, interfaces(facts)[component.name], threads=1)


def test_a_real_pass_that_nobody_waits_for_ends_early(slow_engine: Engine) -> None:
    async def test() -> None:
        worker = Worker()
        batcher = Batcher(slow_engine.run, Budget(10**6, 10**10, Sizes()), worker, stop=slow_engine.stop)
        try:
            long = [RowStep((5,) * 400, focus=399, taps=True)] * 8
            begun = time.monotonic()
            await batcher.run(long, Timing())
            alone = time.monotonic() - begun
            gone = asyncio.create_task(batcher.run(long, Timing()))
            await asyncio.sleep(alone / 10)
            begun = time.monotonic()
            gone.cancel()
            await asyncio.wait([gone])
            (result,) = await batcher.run([scored(7)], Timing())
            assert result.finite
            assert time.monotonic() - begun < alone / 2, f"{alone=}"
        finally:
            await worker.close()

    within_a_minute(test)


def test_a_batch_that_fails_is_halved_until_the_culprit_is_alone(gate: Gate) -> None:
    async def test() -> None:
        async with batching(gate) as batcher:
            async with while_another_runs(gate, batcher) as first:
                innocent = [asyncio.create_task(batcher.run([scored(token)] * 2, Timing())) for token in (5, 6, 7)]
                guilty = asyncio.create_task(batcher.run([scored(8), scored(CULPRIT), scored(9)], Timing()))
                await until(lambda: batcher.waiting == 9)
            for task in innocent:
                assert [result.finite for result in await task] == [True, True]
            with pytest.raises(MemoryError, match="too large"):
                await guilty
            assert batcher.waiting == 0
            assert (await first)[0].finite
            failed = [len(batch) for batch in gate.batches if (CULPRIT,) in batch]
            assert failed == [9, 5, 3, 2, 1]
            sound = Counter(tokens for batch in gate.batches if (CULPRIT,) not in batch for tokens in batch)
            assert all(sound[token,] == 2 for token in (5, 6, 7)), "what had run was not run again"

    within_a_minute(test)


def test_a_step_that_can_never_run_is_refused_at_once_with_the_limit(gate: Gate) -> None:
    async def test() -> None:
        async with batching(gate, Budget(10, 100, Sizes(logits=30))) as batcher:
            with pytest.raises(InvalidRequest, match=r"batch may take up 0.0 MiB \(batch_bytes\): shorten it"):
                await batcher.run([scored(5, 5, 5, 5)], Timing())
            assert batcher.waiting == 0
            assert (await batcher.run([scored(5, 5, 5)], Timing()))[0].finite

    within_a_minute(test)


def test_components_share_a_thread_and_its_turns(gate: Gate) -> None:
    """The first request runs first, and the requests that queue meanwhile run in one batch."""

    async def test() -> None:
        worker = Worker()
        async with batching(gate, worker=worker) as batcher:
            order: list[str] = []

            def run_other(steps: Sequence[RowStep]) -> list[StepResult]:
                order.append(f"other {len(steps)} after {len(gate.batches)}")
                return gate.engine.run(steps)

            other = Batcher(run_other, Budget(2, 10**9, Sizes()), worker, "encoder")
            timing = Timing()
            async with while_another_runs(gate, batcher):
                others = asyncio.create_task(other.run([scored(token) for token in (5, 6, 7, 8)], timing))
                await until(lambda: other.waiting == 4)
                later = [asyncio.create_task(batcher.run([scored(token)], Timing())) for token in (9, 10, 11)]
                await until(lambda: batcher.waiting == 3)
                assert order == []
            await asyncio.gather(others, *later)
            assert order == ["other 2 after 1", "other 2 after 1"]
            assert gate.sizes == [1, 3]
            assert timing.queue > 0

    within_a_minute(test)


def test_batches_are_reported_as_they_ran(gate: Gate) -> None:
    async def test() -> None:
        recorder = Recorder()
        async with batching(gate, worker=Worker(recorder)) as batcher:
            async with while_another_runs(gate, batcher):
                tasks = [asyncio.create_task(batcher.run([scored(5, 6, 7), scored(8, 9)], Timing()))]
                await until(lambda: batcher.waiting == 2)
                await asyncio.sleep(0.02)
            await asyncio.gather(*tasks)
            first, second = recorder.batches
            assert (first.component, first.rows, first.positions, first.tokens) == ("decoder", 1, 1, 1)
            assert (second.rows, second.positions, second.tokens) == (2, 6, 5)
            assert len(second.queue_seconds) == 2
            assert min(second.queue_seconds) > 0.02 > 0 < second.seconds
            assert first.seconds > 0.02, "the gate was closed for so long"
            with pytest.raises(MemoryError):
                await batcher.run([scored(CULPRIT)], Timing())
            assert len(recorder.batches) == 2

    within_a_minute(test)


def test_a_pass_that_hangs_is_noticed_and_so_is_its_end(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        changes: list[bool] = []
        worker = Worker(hang_seconds=0.05, hang_changed=changes.append)
        async with batching(gate, worker=worker) as batcher:
            assert (await batcher.run([scored(5)], Timing()))[0].finite
            await asyncio.sleep(0.1)
            assert changes == []
            async with while_another_runs(gate, batcher):
                await until(lambda: worker.hung)
                assert changes == [True]
            assert not worker.hung
            assert changes == [True, False]
            assert (await batcher.run([scored(5)], Timing()))[0].finite
            assert changes == [True, False]

    with caplog.at_level(logging.WARNING, "neuroglot_server.scheduler.watchdog"):
        within_a_minute(test)
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]


def test_draining_refuses_what_has_not_begun_and_goes_on_with_the_rest(gate: Gate) -> None:
    async def test() -> None:
        worker = Worker()
        async with batching(gate, Budget(4, 10**9, Sizes()), worker) as batcher:
            begun = Timing()
            await batcher.run([scored(5)], begun)
            async with while_another_runs(gate, batcher) as running:
                goes_on = asyncio.create_task(batcher.run([scored(6)] * 9, begun))
                too_late = asyncio.create_task(batcher.run([scored(7)], Timing()))
                await until(lambda: batcher.waiting == 10)
                worker.drain()
                with pytest.raises(ModelClosed, match="has not started this request"):
                    await too_late
                with pytest.raises(ModelClosed):
                    await batcher.run([scored(8)], Timing())
            assert len(await running) == 1
            assert len(await goes_on) == 9

    within_a_minute(test)


def test_closing_fails_what_waits_and_lets_the_running_batch_end(gate: Gate) -> None:
    async def test() -> None:
        worker = Worker()
        batcher = Batcher(gate, LARGE, worker, stop=gate.stop)
        async with while_another_runs(gate, batcher) as running:
            waiting = asyncio.create_task(batcher.run([scored(5)], Timing()))
            await until(lambda: batcher.waiting == 1)
            closing = asyncio.create_task(worker.close())
            with pytest.raises(ModelClosed):
                await waiting
            assert not closing.done()
        assert (await running)[0].finite
        await closing
        with pytest.raises(ModelClosed):
            await batcher.run([scored(6)], Timing())

    within_a_minute(test)


def test_closing_stops_a_batch_that_takes_too_long(gate: Gate) -> None:
    async def test() -> None:
        worker = Worker()
        batcher = Batcher(gate, LARGE, worker, stop=gate.stop)
        gate.open.clear()
        running = asyncio.create_task(batcher.run([scored(4)], Timing()))
        await until(lambda: gate.inside)
        await worker.close(grace_seconds=0.02)
        with pytest.raises(ModelClosed, match="while it ran this request"):
            await running

    within_a_minute(test)


def test_closing_does_not_wait_for_a_pass_that_cannot_be_stopped(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        worker = Worker()
        batcher = Batcher(gate, LARGE, worker)
        gate.open.clear()
        running = asyncio.create_task(batcher.run([scored(4)], Timing()))
        await until(lambda: gate.inside)
        await worker.close(grace_seconds=0.02)
        with pytest.raises(ModelClosed):
            await running
        gate.open.set()

    within_a_minute(test)
    assert "leaving its thread behind" in caplog.text


def test_when_its_thread_is_gone_nobody_waits_for_ever(gate: Gate) -> None:
    async def test() -> None:
        worker = Worker()
        batcher = Batcher(gate, LARGE, worker)
        worker._thread.shutdown()  # as the interpreter does when the main thread ends
        with pytest.raises(ModelClosed):
            await batcher.run([scored(5)], Timing())
        with pytest.raises(ModelClosed):
            await batcher.run([scored(6)], Timing())
        await worker.close()

    within_a_minute(test)


REQUESTS = st.tuples(
    st.sampled_from("abc"),
    st.sampled_from(Priority),
    st.lists(st.integers(1, 12), min_size=1, max_size=8),
    st.integers(0, 3),
    st.booleans(),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(REQUESTS, min_size=1, max_size=12))
def test_every_step_runs_exactly_once_and_every_caller_gets_its_own(
    requests: list[tuple[str, Priority, list[int], int, bool]],
) -> None:
    """Whatever the mix, some of the callers being cancelled on the way; what comes back says which step it is of."""
    budget = Budget(24, 600, Sizes(logits=40))
    runs: Counter[tuple[int, int]] = Counter()

    def run(steps: Sequence[RowStep]) -> list[StepResult]:
        assert len(steps) * max(len(step.tokens) for step in steps) <= 24
        assert len(steps) * max(len(step.tokens) for step in steps) * 40 <= 600
        runs.update((step.tokens[0], step.targets[0]) for step in steps)
        return [StepResult(True, captured=step.targets) for step in steps]  # type: ignore[arg-type]

    async def ask(batcher: Batcher, index: int) -> None:
        tenant, priority, lengths, hops, _ = requests[index]
        for _ in range(hops):
            await asyncio.sleep(0)
        steps = [
            RowStep((index,) * length, scored=True, targets=(place,) * length) for place, length in enumerate(lengths)
        ]
        results = await batcher.run(steps, Timing(), Caller(tenant, priority))
        assert [result.captured for result in results] == [step.targets for step in steps]

    async def test() -> None:
        worker = Worker()
        batcher = Batcher(run, budget, worker)
        tasks = [asyncio.create_task(ask(batcher, index)) for index in range(len(requests))]
        await asyncio.sleep(0)
        for task, request in zip(tasks, requests, strict=True):
            if request[-1]:
                task.cancel()
                await asyncio.sleep(0)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(outcome is None or isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
        assert batcher.waiting == 0
        await worker.close()
        for index, (_, _, lengths, _, leaves) in enumerate(requests):
            ran = [runs[index, place] for place in range(len(lengths))]
            assert max(ran) <= 1 if leaves else ran == [1] * len(lengths)

    within_a_minute(test)
