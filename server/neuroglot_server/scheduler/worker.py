"""The thread on which passes run, and what runs there next."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import Context
from dataclasses import dataclass
from time import monotonic

from neuroglot_server.core import BatchRun, Caller, ModelClosed, Observer, Priority, Unobserved
from neuroglot_server.engine.session import Stopped
from neuroglot_server.engine.steps import StepResult
from neuroglot_server.scheduler.budget import Shape
from neuroglot_server.scheduler.entries import ComponentQueue, QueueEntry, Submission
from neuroglot_server.scheduler.fair_queue import Batch, FairQueue
from neuroglot_server.scheduler.watchdog import Watchdog, unwatched

_logger = logging.getLogger(__name__)

_LONGEST_PAUSE_SECONDS = 0.25
"""How long the machine is left to an interactive request that is between two of its steps."""

_HOPS = 3
"""Turns of the event loop in which those whose results have just come may hand in what follows from them."""

_CLOSED = "the model is shutting down: retry when it is back"

_GRACE_SECONDS = 10.0
"""How long the pass that runs has to end when the worker is closed, and once more when it has been told to stop."""


_Outcome = list[StepResult] | BaseException
"""What came out of a pass, one result a step, or what it raised."""


@dataclass(eq=False)
class _Pass:
    """What runs on the thread.

    Attributes:
        queue: where.
        rows: its steps.
        stopped: whether it need not run any more.
    """

    queue: ComponentQueue
    rows: Sequence[QueueEntry]
    stopped: bool = False

    def __call__(self) -> list[StepResult]:
        """Run, on the thread.

        Raises:
            Stopped: it was stopped.
        """
        if self.stopped:
            raise Stopped("the pass was ended before it began")
        return self.queue.run([waiting.step for waiting in self.rows])

    def stop(self) -> None:
        """End it, from the event loop."""
        self.stopped = True
        self.queue.stop()


class Worker:
    """One thread, for all components of a model: two passes at once would only fight for the same cores.

    Everything but the passes themselves happens on the event loop of the first caller, so nothing is locked.
    """

    def __init__(
        self,
        observer: Observer | None = None,
        hang_seconds: float = 300.0,
        hang_changed: Callable[[bool], None] = unwatched,
    ) -> None:
        """Prepare a thread; it starts with the first pass.

        Args:
            observer: is told of every batch.
            hang_seconds: how long a pass may run before it counts as hung.
            hang_changed: is called with True when one does, and with False when it has ended.
        """
        self._observer = observer or Unobserved()
        self._watchdog = Watchdog(hang_seconds, hang_changed)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._queue = FairQueue()
        self._expected = 0
        self._pause = 0.0
        self._news = asyncio.Event()
        self._pass: _Pass | None = None
        self._serving: asyncio.Task[None] | None = None
        self._draining = False
        self._closed = False

    @property
    def hung(self) -> bool:
        """Whether a pass runs for too long right now."""
        return self._watchdog.hung

    def waiting(self, queue: ComponentQueue) -> int:
        """How many steps wait in a queue."""
        return self._queue.waiting(queue)

    @contextmanager
    def expecting(self, caller: Caller) -> Iterator[None]:
        """Expect steps of a request for the length of a block.

        Between two steps of an interactive request the machine is left to it for a moment, as long as its last batch
        took and no longer than a quarter of a second, rather than given to a long batch of bulk that it had to wait
        for at every step.

        Raises:
            ModelClosed: the worker is closed, which a request whose steps are all known would not notice.
        """
        if self._closed:
            raise ModelClosed(_CLOSED)
        interactive = caller.priority is Priority.INTERACTIVE
        self._expected += interactive
        try:
            yield
        finally:
            self._expected -= interactive
            self._news.set()

    def submit(self, queue: ComponentQueue, steps: Sequence[QueueEntry]) -> None:
        """Queue steps of one submission, at least one.

        Raises:
            ModelClosed: the worker is closed, or shutting down before the request began.
        """
        if self._closed or (self._draining and not steps[0].submission.begun):
            raise ModelClosed(_CLOSED)
        if self._serving is None:
            self._serving = asyncio.create_task(self._serve(), context=Context())  # not in the first request's trace
        self._queue.add(queue, steps, monotonic())
        self._news.set()

    def drop(self, submission: Submission) -> None:
        """Take out what waits of a submission that is dead, and end the pass that runs if all of its rows are."""
        self._queue.drop(submission)
        if self._pass is not None and all(waiting.submission.dead for waiting in self._pass.rows):
            self._pass.stop()

    def drain(self) -> None:
        """Refuse all requests of which nothing has run yet, those that wait and those to come; the others go on."""
        self._draining = True
        for submission in self._queue.submissions():
            if not submission.begun and submission.left == len(submission.results):
                self._queue.drop(submission)
                submission.fail(ModelClosed("the model is shutting down and has not started this request: retry"))

    async def close(self, grace_seconds: float = _GRACE_SECONDS) -> None:
        """Fail what waits, and come back when the pass that runs has ended.

        One that does not end within the grace is stopped; one that cannot be stopped within as long again is left
        alone, so that a pass that hangs does not hang its server.
        """
        self._closed = True
        self._fail_all("the model went down before it came to this request: ask again")
        self._news.set()
        if self._serving is not None:
            await asyncio.wait([self._serving], timeout=grace_seconds)
            if self._pass is not None:
                self._pass.stop()
                await asyncio.wait([self._serving], timeout=grace_seconds)
            if not self._serving.done():
                _logger.error("a pass did not end when it was stopped: leaving its thread behind")
                self._serving.cancel()
                await asyncio.wait([self._serving])
            elif (
                not self._serving.cancelled()
                and (error := self._serving.exception())
                and not isinstance(error, ModelClosed)
            ):
                _logger.error("the queue had ended before it was closed", exc_info=error)
        self._thread.shutdown(wait=False)

    def _fail_all(self, message: str) -> None:
        """Fail what waits."""
        for submission in self._queue.submissions():
            self._queue.drop(submission)
            submission.fail(ModelClosed(message))

    async def _serve(self) -> None:
        try:
            while not self._closed:
                if not self._queue:
                    self._news.clear()
                    await self._news.wait()
                    continue
                await self._leave_to_expected()
                batch = self._queue.take(monotonic())
                if batch is not None:
                    await self._run_batch(batch)
        finally:
            # However it ends (the interpreter takes the threads down first), nobody waits for what never comes.
            self._closed = True
            message = "the model went down while it ran this request: ask again"
            for waiting in () if self._pass is None else self._pass.rows:
                waiting.submission.fail(ModelClosed(message))
            self._fail_all(message)

    async def _leave_to_expected(self) -> None:
        """Let the next step of an interactive request come before a batch of bulk begins, if one is to come soon."""
        end = monotonic() + self._pause
        self._pause = 0.0
        while self._expected and not self._closed and not self._queue.has(Priority.INTERACTIVE):
            now = monotonic()
            if now >= end or self._queue.bulk_is_due(now):
                return
            self._news.clear()
            try:
                await asyncio.wait_for(self._news.wait(), end - now)
            except TimeoutError:
                return

    async def _run_batch(self, batch: Batch) -> None:
        start = monotonic()
        await self._run(batch.queue, batch.rows, batch.shape)
        seconds = monotonic() - start
        self._queue.ran(batch, seconds, start + seconds)
        if batch.priority is Priority.INTERACTIVE:
            self._pause = min(seconds, _LONGEST_PAUSE_SECONDS)
        for _ in range(_HOPS):
            await asyncio.sleep(0)

    async def _run(self, queue: ComponentQueue, rows: Sequence[QueueEntry], shape: Shape) -> None:
        """Run rows together; if that fails they are run again in halves, until the step at fault is alone."""
        start = monotonic()

        def deliver(outcome: _Outcome) -> None:
            watched()
            seconds = monotonic() - start
            for submission in {waiting.submission for waiting in rows}:
                submission.timing.compute += seconds
            if isinstance(outcome, BaseException):
                return
            for waiting, result in zip(rows, outcome, strict=True):
                waiting.deliver(result, start)
            # After those who were just woken: they are on their way to an answer.
            asyncio.get_running_loop().call_soon(self._observer.batch, _report(queue, rows, shape, start, seconds))

        self._pass = running = _Pass(queue, rows)
        watched = self._watchdog.watch()
        try:
            outcome = await self._on_thread(running, deliver)
        finally:
            watched()
        self._pass = None
        if not isinstance(outcome, BaseException):
            return
        if self._closed:
            for waiting in rows:
                waiting.submission.fail(ModelClosed("the model went down while it ran this request: ask again"))
        elif isinstance(outcome, Stopped):
            await self._run_parts(queue, [rows])
        elif len(rows) == 1:
            rows[0].submission.fail(outcome)
            self._queue.drop(rows[0].submission)
        else:
            half = len(rows) // 2
            await self._run_parts(queue, [rows[:half], rows[half:]])

    async def _on_thread(self, running: _Pass, deliver: Callable[[_Outcome], None]) -> _Outcome:
        """Run a pass on the thread; what came out, which has been delivered by then, or what it raised.

        What comes back is delivered at once; by `run_in_executor` it takes three more turns of the loop.
        """
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[_Outcome] = loop.create_future()

        def end(outcome: _Outcome) -> None:
            if ended.done():
                return
            try:
                deliver(outcome)
            finally:
                ended.set_result(outcome)

        def work() -> None:
            outcome: _Outcome
            try:
                outcome = running()
            except BaseException as error:  # noqa: BLE001 - each is raised where the pass is awaited
                outcome = error
            with suppress(RuntimeError):  # nobody waits where the loop has ended
                loop.call_soon_threadsafe(end, outcome)

        try:
            self._thread.submit(work)
        except RuntimeError as error:  # Python is shutting down, and its threads take no more work
            raise ModelClosed(_CLOSED) from error
        return await ended

    async def _run_parts(self, queue: ComponentQueue, parts: Sequence[Sequence[QueueEntry]]) -> None:
        """Run again what somebody still waits for."""
        for part in parts:
            alive = [waiting for waiting in part if not waiting.submission.dead]
            if alive:
                await self._run(queue, alive, Shape.of(waiting.extent for waiting in alive))


def _report(queue: ComponentQueue, rows: Sequence[QueueEntry], shape: Shape, start: float, seconds: float) -> BatchRun:
    return BatchRun(
        component=queue.component,
        rows=shape.rows,
        positions=shape.positions,
        tokens=shape.real,
        seconds=seconds,
        queue_seconds=tuple(start - waiting.since for waiting in rows),
    )
