"""What waits: steps that were handed in together, each in the lane of its component."""

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
    """Steps that were handed in together, and what has come out for them.

    Attributes:
        caller: who did.
        begun: whether any batch of the request has run.
        results: one a step, in their order; None until it is there.
        left: how many are not.
        done: comes true with the last result; whoever waits for it is gone where it is cancelled.
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
        """Whether nobody waits for what is still to come."""
        return self.done.done()

    def fail(self, error: BaseException) -> None:
        """Tell whoever waits, if there still is someone."""
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
