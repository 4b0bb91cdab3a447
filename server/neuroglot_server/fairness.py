"""Which of the steps that wait run next: fair between tenants, urgent ones first, similar lengths together.

Between tenants. Each has a flow for interactive and one for bulk steps, and each flow a running total of the row-tokens
that it was given, padding not counted: what a flow lies behind the others is its deficit, as in deficit round robin.
The flow that lies furthest behind heads the next batch with its oldest step, and the batch is filled in turns, a
quantum at a time, always from the flow that then lies furthest behind, with its steps most like the head. A flow
without steps that fit gives up its turn, so that room is never wasted; all that is run is counted, so that it comes
first in the next batch. A flow that has not waited is owed nothing: it begins where those stand that have (as in
start-time fair queueing). So while two tenants wait, what they are given differs by no more than a batch and a turn,
however many steps each has.

Between priorities. Interactive steps head the next batch whenever there are any, and bulk steps may no more than double
such a batch, so that it is not slow for their sake. Bulk is not starved: once it has waited eight times as long as the
last batch took that it headed, it heads one again.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

from neuroglot_server.budget import Extent, Shape
from neuroglot_server.core import Caller, Priority
from neuroglot_server.waiting import Lane, Submission, Waiting

_QUANTUM = 32
"""How many row-tokens a flow may get ahead of the next one before that has its turn."""

_PATIENCE = 8.0
"""How many times as long as its last batch bulk waits for interactive steps to end."""

_FIRST_BATCH_SECONDS = 1.0
"""How long a batch of bulk is taken to last until one has shown it."""

_Bucket = deque[tuple[int, Waiting]]


class Batch(NamedTuple):
    """Steps that run together.

    Attributes:
        lane: where.
        rows: the steps.
        shape: how large they are together.
        priority: of the step that heads it.
    """

    lane: Lane
    rows: list[Waiting]
    shape: Shape
    priority: Priority


@dataclass(eq=False)
class _Flow:
    """The waiting steps of one tenant and priority, the alike ones in one bucket in the order in which they came.

    Attributes:
        served: row-tokens that it was given.
        headed: which batch it headed last, for ties.
        lanes: its buckets; none of them is empty.
    """

    served: int = 0
    headed: int = -1
    lanes: dict[Lane, dict[Extent, _Bucket]] = field(default_factory=dict)

    def add(self, lane: Lane, number: int, waiting: Waiting) -> None:
        self.lanes.setdefault(lane, {}).setdefault(waiting.extent, deque()).append((number, waiting))

    def oldest(self) -> tuple[Lane, Extent]:
        """Where the step is that has waited longest."""
        _, lane, extent = min(
            (bucket[0][0], lane, extent) for lane, buckets in self.lanes.items() for extent, bucket in buckets.items()
        )
        return lane, extent

    def alike(self, lane: Lane, head: Extent) -> list[Extent]:
        """What waits in a lane, the most like the head last."""
        return sorted(self.lanes.get(lane, ()), key=head.unlikeness, reverse=True)

    def take(self, lane: Lane, extent: Extent, most: int) -> list[Waiting]:
        """The oldest steps of an extent, as many as there are and may be."""
        buckets = self.lanes.get(lane, {})
        bucket = buckets.get(extent)
        if bucket is None:
            return []
        taken = [bucket.popleft()[1] for _ in range(min(most, len(bucket)))]
        self.served += extent.new * len(taken)
        if not bucket:
            self._forget(lane, extent)
        return taken

    def drop(self, lane: Lane, extent: Extent, submission: Submission) -> int:
        """Take out the steps of a submission that are of one extent; how many those were."""
        bucket = self.lanes[lane][extent]
        kept = deque(item for item in bucket if item[1].submission is not submission)
        self.lanes[lane][extent] = kept
        if not kept:
            self._forget(lane, extent)
        return len(bucket) - len(kept)

    def _forget(self, lane: Lane, extent: Extent) -> None:
        """Remove a bucket that has become empty."""
        del self.lanes[lane][extent]
        if not self.lanes[lane]:
            del self.lanes[lane]


class FairQueue:
    """The steps that wait for one worker."""

    def __init__(self) -> None:
        """Begin empty."""
        self._flows: dict[Priority, dict[str, _Flow]] = {priority: {} for priority in Priority}
        self._clocks = dict.fromkeys(Priority, 0)
        self._numbers = count()
        self._batches = count()
        self._waiting: dict[Lane, int] = {}
        self._submissions: dict[Submission, Counter[tuple[Lane, Extent]]] = {}
        self._bulk_since = 0.0
        self._bulk_seconds = _FIRST_BATCH_SECONDS

    def __len__(self) -> int:
        """How many steps wait."""
        return sum(self._waiting.values())

    def waiting(self, lane: Lane) -> int:
        """How many steps wait in a lane."""
        return self._waiting.get(lane, 0)

    def has(self, priority: Priority) -> bool:
        """Whether any step of a priority waits."""
        return any(flow.lanes for flow in self._flows[priority].values())

    def add(self, lane: Lane, steps: Sequence[Waiting], now: float) -> None:
        """Take in steps of one submission, at least one."""
        submission = steps[0].submission
        flow = self._active(submission.caller, now)
        for waiting in steps:
            flow.add(lane, next(self._numbers), waiting)
        self._submissions.setdefault(submission, Counter()).update((lane, waiting.extent) for waiting in steps)
        self._waiting[lane] = self._waiting.get(lane, 0) + len(steps)

    def drop(self, submission: Submission) -> None:
        """Take out what is left of a submission."""
        flow = self._flows[submission.caller.priority].get(submission.caller.tenant)
        for lane, extent in self._submissions.pop(submission, ()):
            assert flow is not None
            self._waiting[lane] -= flow.drop(lane, extent, submission)

    def submissions(self) -> list[Submission]:
        """All that have steps here."""
        return list(self._submissions)

    def bulk_is_due(self, now: float) -> bool:
        """Whether bulk has waited long enough for interactive steps to end."""
        return self.has(Priority.BULK) and now - self._bulk_since > _PATIENCE * self._bulk_seconds

    def take(self, now: float) -> Batch | None:
        """Take out the next batch; None where nothing waits."""
        first = Priority.INTERACTIVE
        if not self.has(first) or self.bulk_is_due(now):
            first = Priority.BULK
        flows = [flow for flow in self._flows[first].values() if flow.lanes]
        if not flows:
            return None
        head = min(flows, key=lambda flow: (flow.served, flow.headed))
        head.headed = next(self._batches)
        self._clocks[first] = max(self._clocks[first], head.served)
        lane, extent = head.oldest()
        rows = head.take(lane, extent, 1)
        shape = self._fill(lane, extent, rows, Shape().grown(extent), first, lane.budget.tokens)
        second, most = Priority.BULK, 2 * shape.positions
        if first is Priority.BULK:
            second, most = Priority.INTERACTIVE, lane.budget.tokens
        shape = self._fill(lane, extent, rows, shape, second, most)
        self._settle(lane, rows)
        return Batch(lane, rows, shape, first)

    def ran(self, batch: Batch, seconds: float, now: float) -> None:
        """Be told how long a batch took."""
        if batch.priority is Priority.BULK:
            self._bulk_since = now
            self._bulk_seconds = seconds

    def _active(self, caller: Caller, now: float) -> _Flow:
        """The flow of a caller, which is about to have steps."""
        if caller.priority is Priority.BULK and not self.has(Priority.BULK):
            self._bulk_since = now
        flow = self._flows[caller.priority].setdefault(caller.tenant, _Flow())
        if not flow.lanes:
            flow.served = max(flow.served, self._clocks[caller.priority])
        return flow

    def _fill(
        self, lane: Lane, head: Extent, rows: list[Waiting], shape: Shape, priority: Priority, most: int
    ) -> Shape:
        """Add rows of a priority while there is room for so many padded tokens; the shape that comes out."""
        budget = lane.budget
        turns = [
            (flow.served, flow.headed, place, flow, flow.alike(lane, head))
            for place, flow in enumerate(self._flows[priority].values())
            if lane in flow.lanes
        ]
        heapq.heapify(turns)
        while turns and not budget.full(shape):
            _, _, place, flow, extents = heapq.heappop(turns)
            limit = turns[0][0] + _QUANTUM if turns else None
            while extents and (limit is None or flow.served < limit):
                extent = extents[-1]
                room = budget.room(shape, extent, most)
                count = room if limit is None else min(room, -(-(limit - flow.served) // extent.new))
                taken = flow.take(lane, extent, count) if count else []
                if len(taken) == room or len(taken) < count:
                    extents.pop()  # no more of these fit, or none are left
                if taken:
                    rows += taken
                    shape = shape.grown(extent, len(taken))
            if extents:
                heapq.heappush(turns, (flow.served, flow.headed, place, flow, extents))
        return shape

    def _settle(self, lane: Lane, rows: list[Waiting]) -> None:
        """Forget steps that were taken."""
        self._waiting[lane] -= len(rows)
        for waiting in rows:
            left = self._submissions[waiting.submission]
            left[lane, waiting.extent] -= 1
            if not left[lane, waiting.extent]:
                del left[lane, waiting.extent]
                if not left:
                    del self._submissions[waiting.submission]
