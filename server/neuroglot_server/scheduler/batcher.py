"""Continuous batching: steps of one component run together with the steps of other requests in its queue."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from time import monotonic

from neuroglot.errors import Violation
from neuroglot_server.core import ANYONE, DECODER, Caller, InvalidRequest
from neuroglot_server.engine.steps import RowStep, StepResult
from neuroglot_server.scheduler.budget import Budget, Extent
from neuroglot_server.scheduler.entries import ComponentQueue, QueueEntry, Submission, Timing
from neuroglot_server.scheduler.worker import Worker

__all__ = ["Batcher", "Timing"]


class Batcher:
    """Submits steps of one component to the scheduler."""

    def __init__(
        self,
        run: Callable[[Sequence[RowStep]], list[StepResult]],
        budget: Budget,
        worker: Worker,
        component: str = DECODER,
        stop: Callable[[], None] = lambda: None,
    ) -> None:
        """Submit steps to a worker, which other components may share.

        Args:
            run: runs one batch, on the worker's thread.
            budget: the limits of a batch.
            worker: chooses the next batch.
            component: name of the component.
            stop: ends the running batch early, from any thread; `run` then raises `Stopped`.
        """
        self._queue = ComponentQueue(component, run, stop, budget)
        self._worker = worker

    @property
    def waiting(self) -> int:
        """Number of steps in the queue."""
        return self._worker.waiting(self._queue)

    async def run(self, steps: Sequence[RowStep], timing: Timing, caller: Caller = ANYONE) -> list[StepResult]:
        """Run steps in batches, together with steps of other requests.

        If the caller is cancelled, its steps leave the queue at once, and a batch with steps of no other caller ends.

        Args:
            steps: independent of each other.
            timing: of the request; is added to.
            caller: for whom, and how urgently.

        Returns:
            One result a step, in their order.

        Raises:
            InvalidRequest: a step alone is larger than a batch may be.
            ModelClosed: the worker was closed first.
        """
        if not steps:
            return []
        submission = Submission(
            caller=caller,
            begun=timing.compute > 0,
            results=[None] * len(steps),
            left=len(steps),
            done=asyncio.get_running_loop().create_future(),
        )
        now = monotonic()
        waiting = [QueueEntry(step, Extent.of(step), submission, place, now) for place, step in enumerate(steps)]
        self._refuse({one.extent for one in waiting})
        self._worker.submit(self._queue, waiting)
        try:
            await submission.done
        except asyncio.CancelledError:
            self._worker.drop(submission)
            raise
        timing.queue += submission.timing.queue
        timing.compute += submission.timing.compute
        return [result for result in submission.results if result is not None]

    def _refuse(self, extents: set[Extent]) -> None:
        """Refuse steps that could never run.

        Raises:
            InvalidRequest: there is one.
        """
        for extent in extents:
            if reason := self._queue.budget.refusal(extent):
                raise InvalidRequest([Violation("group.rows", reason)])
