"""What waits: steps that were handed in together, each in the queue of its component."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from neuroglot_server.core import Caller
from neuroglot_server.engine.steps import RowStep, StepResult
from neuroglot_server.scheduler.budget import Budget, Extent


@dataclass(frozen=True, eq=False)
class ComponentQueue:
    """A component, whose steps run together and with no others.

    Attributes:
        component: its name.
        run: runs a batch, on the worker's thread.
        stop: has the batch that runs end, from any thread.
        budget: how large its batches may be.
    """

    component: str
    run: Callable[[Sequence[RowStep]], list[StepResult]]
    stop: Callable[[], None]
    budget: Budget


@dataclass
class Timing:
    """How long a request waited for its batches, one after the other, and how long those ran, in seconds."""

    queue: float = 0.0
    compute: float = 0.0


@dataclass(eq=False)
class Submission:
    """Steps submitted together, and their results.

    Attributes:
        caller: the caller that submitted them.
        begun: whether any batch of the request has run.
        results: one per step, in order; None until the step has run.
        left: number of results still missing.
        done: resolved with the last result; cancelled when the caller is cancelled.
        timing: of these steps.
    """

    caller: Caller
    begun: bool
    results: list[StepResult | None]
    left: int
    done: asyncio.Future[None]
    timing: Timing = field(default_factory=Timing)

    @property
    def dead(self) -> bool:
        """Whether the caller no longer waits for results."""
        return self.done.done()

    def fail(self, error: BaseException) -> None:
        """Raise an error in the caller, if it still waits."""
        if not self.done.done():
            self.done.set_exception(error)


class QueueEntry(NamedTuple):
    """A step in the queue.

    Attributes:
        step: the step.
        extent: how long it is.
        submission: what it was handed in with.
        place: which of that it is.
        since: when that was, in seconds of the monotonic clock.
    """

    step: RowStep
    extent: Extent
    submission: Submission
    place: int
    since: float

    def deliver(self, result: StepResult, start: float) -> None:
        """Hand in the result of a batch that began at `start`."""
        submission = self.submission
        submission.results[self.place] = result
        submission.timing.queue = max(submission.timing.queue, start - self.since)
        submission.left -= 1
        if not submission.left and not submission.done.done():
            submission.done.set_result(None)
