"""Batches: which of the steps that wait run together, whoever sent them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import NamedTuple

from neuroglot_server.core import ModelClosed
from neuroglot_server.steps import RowStep, StepResult
from neuroglot_server.worker import Worker

_logger = logging.getLogger(__name__)

_LOOK_AHEAD = 2048
"""How many of the oldest steps are looked at for one batch."""

_MOST_PADDING = 1.5
"""Most new positions a batch runs for each real one."""


@dataclass(frozen=True)
class Budget:
    """How large a batch may be.

    Attributes:
        tokens: most rows times (longest past + longest encoder's prompt + most new tokens).
        scores: most rows times positions with logits, which are as wide as the vocabulary.
        masks: most rows times positions with masks of their own, which are as wide as all layers' neurons.
    """

    tokens: int
    scores: int
    masks: int


@dataclass
class Timing:
    """How long a request waited for its batches, one after the other, and how long those ran, in seconds."""

    queue: float = 0.0
    compute: float = 0.0


@dataclass(eq=False)
class _Submission:
    """Steps that were handed in together, and what has come out for them."""

    results: list[StepResult | None]
    left: int
    done: asyncio.Future[None]
    timing: Timing = field(default_factory=Timing)


@dataclass(frozen=True, eq=False)
class _Waiting:
    """A step in the queue."""

    step: RowStep
    submission: _Submission
    place: int
    since: float


class _Shape(NamedTuple):
    """How large a batch is: its rows, the longest of each part of them, and the new tokens that are no padding."""

    rows: int = 0
    new: int = 0
    past: int = 0
    cross: int = 0
    scored: int = 0
    masked: bool = False
    real: int = 0

    def grown(self, step: RowStep) -> _Shape:
        """With one more row."""
        length = len(step.tokens)
        return _Shape(
            rows=self.rows + 1,
            new=max(self.new, length),
            past=max(self.past, step.past_length),
            cross=max(self.cross, step.cross_length),
            scored=max(self.scored, length if step.scored else 0),
            masked=self.masked or not step.uniform,
            real=self.real + length,
        )

    def within(self, budget: Budget) -> bool:
        """Whether a batch of this shape may run."""
        return (
            self.rows * (self.past + self.cross + self.new) <= budget.tokens
            and self.rows * self.scored <= budget.scores
            and (not self.masked or self.rows * self.new <= budget.masks)
            and self.rows * self.new <= _MOST_PADDING * self.real
        )

    def full(self, budget: Budget) -> bool:
        """Whether no step fits any more: not even one that makes no part of the batch longer and needs no padding."""
        return not self._replace(rows=self.rows + 1, real=self.real + self.new).within(budget)


def choose(steps: Sequence[RowStep], budget: Budget) -> list[int]:
    """Which steps run next: the first, and those most like it in length, within the budget.

    Args:
        steps: at least one, the oldest first.
        budget: what the batch must stay within; the first step is taken even if it alone exceeds it.

    Returns:
        Indices into `steps`, the first being 0.
    """
    head = steps[0]
    new, past, cross = len(head.tokens), head.past_length, head.cross_length

    def unlikeness(index: int) -> tuple[int, int]:
        step = steps[index]
        return abs(len(step.tokens) - new), abs(step.past_length - past) + abs(step.cross_length - cross)

    chosen = [0]
    shape = _Shape().grown(head)
    for index in sorted(range(1, min(len(steps), _LOOK_AHEAD)), key=unlikeness):
        grown = shape.grown(steps[index])
        if grown.within(budget):
            chosen.append(index)
            shape = grown
            if shape.full(budget):
                break
    return chosen


class Batcher:
    """A queue of steps of one component.

    Everything but the passes themselves happens on the event loop of the first caller, so nothing is locked.
    """

    def __init__(self, run: Callable[[Sequence[RowStep]], list[StepResult]], budget: Budget, worker: Worker) -> None:
        """Run batches within the budget through `run`, on the thread of a worker that others may use, too."""
        self._run = run
        self._budget = budget
        self._worker = worker
        self._queue: list[_Waiting] = []
        self._filled = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def waiting(self) -> int:
        """How many steps are in the queue."""
        return len(self._queue)

    async def run(self, steps: Sequence[RowStep], timing: Timing) -> list[StepResult]:
        """Run steps, in batches with whatever else waits; if the caller is cancelled they leave the queue at once.

        Args:
            steps: independent of each other.
            timing: is added to.

        Returns:
            One result a step, in their order.

        Raises:
            ModelClosed: the batcher was closed first.
        """
        if not steps:
            return []
        if self._closed:
            raise ModelClosed("the model is going down: ask again when it is back")
        if self._loop is None:
            self._loop = asyncio.create_task(self._serve())
        submission = _Submission([None] * len(steps), len(steps), asyncio.get_running_loop().create_future())
        now = monotonic()
        self._queue += [_Waiting(step, submission, place, now) for place, step in enumerate(steps)]
        self._filled.set()
        try:
            await submission.done
        except asyncio.CancelledError:
            self._drop(submission)
            raise
        timing.queue += submission.timing.queue
        timing.compute += submission.timing.compute
        return [result for result in submission.results if result is not None]

    async def close(self) -> None:
        """Fail what waits, and come back when the running batch is done."""
        self._closed = True
        for waiting in self._queue:
            _fail(waiting.submission, ModelClosed("the model went down before it came to this request: ask again"))
        self._queue.clear()
        self._filled.set()
        if self._loop is not None:
            await asyncio.wait([self._loop])
            if error := self._loop.exception():
                _logger.error("the queue had ended before it was closed", exc_info=error)

    def _drop(self, submission: _Submission) -> None:
        self._queue = [waiting for waiting in self._queue if waiting.submission is not submission]

    async def _serve(self) -> None:
        batch: Sequence[_Waiting] = ()
        try:
            while not self._closed:
                if not self._queue:
                    self._filled.clear()
                    await self._filled.wait()
                    continue
                async with self._worker.turn:
                    batch = self._take()
                    if batch:
                        await self._run_batch(batch)
        finally:
            # However it ends (the interpreter takes the threads down first), nobody waits for what never comes.
            self._closed = True
            for waiting in (*batch, *self._queue):
                _fail(waiting.submission, ModelClosed("the model went down while it ran this request: ask again"))
            self._queue.clear()

    def _take(self) -> Sequence[_Waiting]:
        """Take the next batch out of the queue; none where all that waited has left."""
        if not self._queue:
            return ()
        chosen = choose([waiting.step for waiting in self._queue[:_LOOK_AHEAD]], self._budget)
        batch = [self._queue[index] for index in chosen]
        taken = set(chosen)
        self._queue = [waiting for index, waiting in enumerate(self._queue) if index not in taken]
        return batch

    async def _run_batch(self, batch: Sequence[_Waiting]) -> None:
        """Run a batch; one that fails is run again in halves, until the step at fault is alone."""
        start = monotonic()
        running = self._worker.submit(partial(self._run, [waiting.step for waiting in batch]))
        await asyncio.wait([running])
        seconds = monotonic() - start
        submissions = {waiting.submission for waiting in batch}
        for submission in submissions:
            submission.timing.compute += seconds
        error = running.exception()
        if error is None:
            for waiting, result in zip(batch, running.result(), strict=True):
                _deliver(waiting, result, start)
        elif len(batch) == 1:
            _fail(batch[0].submission, error)
            self._drop(batch[0].submission)
        else:
            half = len(batch) // 2
            for part in (batch[:half], batch[half:]):
                alive = [waiting for waiting in part if not waiting.submission.done.done()]
                if alive:
                    await self._run_batch(alive)


def _deliver(waiting: _Waiting, result: StepResult, start: float) -> None:
    submission = waiting.submission
    submission.results[waiting.place] = result
    submission.timing.queue = max(submission.timing.queue, start - waiting.since)
    submission.left -= 1
    if not submission.left and not submission.done.done():
        submission.done.set_result(None)


def _fail(submission: _Submission, error: BaseException) -> None:
    if not submission.done.done():
        submission.done.set_exception(error)
