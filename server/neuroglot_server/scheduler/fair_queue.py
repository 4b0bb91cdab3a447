"""Which of the steps that wait run next: fair between tenants, urgent ones first, similar lengths together.

Between tenants. Each has a flow for interactive and one for bulk steps, and each flow a running total of the row-tokens
that it was given, padding not counted: what a flow lies behind the others is its deficit, as in deficit round robin.
The flow that lies furthest behind heads the next batch with its oldest step, and the batch is filled in turns, a
quantum at a time, always from the flow that then lies furthest behind, with its steps most like the head. A flow
without steps that fit gives up its turn, so that room is never wasted; all that is run is counted, so that it comes
first in the next batch. A flow that has not waited is owed nothing: it begins where those stand that have (as in
start-time fair queueing). So while two tenants wait, what they are given differs by no more than a batch and a turn,
however many steps each has.

Between priorities. Interactive steps head the next batch whenever there are any, and no bulk steps join them, so that
the batch is not slow for their sake. For a second after it, batches of bulk are a quarter as long, since the next
interactive request waits for the one that runs. Bulk is not starved: once it has waited four times as long as the last
batch took that it headed, it heads one again.

Within a flow. Steps of requests that have begun go before those of requests that have not, each kind in the order in
which it came: a request holds keys and values from its first step to its last, so of many that are held at once each is
held for longer. Requests that have not begun are not starved, by long generations say: after so many batches in a row
that went to others, one of their steps heads the flow's next one.

Where one flow alone has steps, and all of them fit into a batch, there is nothing to choose: they are the batch.
"""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from operator import itemgetter
from typing import NamedTuple

from neuroglot_server.core import Caller, Priority
from neuroglot_server.scheduler.budget import Extent, Shape
from neuroglot_server.scheduler.entries import ComponentQueue, QueueEntry, Submission

_QUANTUM = 32
"""How many row-tokens a flow may get ahead of the next one before that has its turn."""

_PATIENCE = 4.0
"""How many times as long as its last batch bulk waits for interactive steps to end: it has a fifth of the time."""

_FIRST_BATCH_SECONDS = 1.0
"""How long a batch of bulk is taken to last until one has shown it."""

_INTERACTIVE_SECONDS = 1.0
"""How long after an interactive batch another one is expected."""
_SHORT = 4
"""By how much shorter batches of bulk are then: an interactive request waits for the one that runs."""

_BEGUN_IN_A_ROW = 8
"""How many batches in a row a flow heads with requests that have begun while others wait.

More than a group mostly needs from its first step to its last.
"""

_Bucket = deque[tuple[int, QueueEntry]]
"""Steps, each with its place in the order in which all came."""


class _Kind(NamedTuple):
    """Steps that are interchangeable.

    Attributes:
        extent: how long they are.
        begun: whether their requests have begun.
        source: what they go on from, where others may go on from the same; None where each goes on from its own.
    """

    extent: Extent
    begun: bool
    source: tuple[int, ...] | None


class Batch(NamedTuple):
    """Steps that run together.

    Attributes:
        queue: where.
        rows: the steps.
        shape: how large they are together.
        priority: of the step that heads it.
    """

    queue: ComponentQueue
    rows: list[QueueEntry]
    shape: Shape
    priority: Priority


class _Filling:
    """A batch that is being filled.

    Attributes:
        queue: where it runs.
        rows: its steps.
        shape: how large it is.
    """

    def __init__(self, queue: ComponentQueue) -> None:
        """Begin without steps."""
        self.queue = queue
        self.rows: list[QueueEntry] = []
        self.shape = Shape()
        self._sources: set[tuple[int, ...]] = set()

    def room(self, kind: _Kind, most: int) -> int:
        """How many steps of a kind fit, with so many padded tokens at most."""
        return self.queue.budget.room(self.shape, kind.extent, most, sources=self._more_sources(kind))

    def add(self, kind: _Kind, rows: list[QueueEntry]) -> None:
        """Add steps of one kind."""
        self.shape = self.shape.grown(kind.extent, len(rows), sources=self._more_sources(kind))
        self.rows += rows
        if kind.source is not None:
            self._sources.add(kind.source)

    def _more_sources(self, kind: _Kind) -> int | None:
        return None if kind.source is None else int(kind.source not in self._sources)


@dataclass(eq=False)
class _Flow:
    """The waiting steps of one tenant and priority, the alike ones in one bucket in the order in which they came.

    Attributes:
        served: row-tokens that it was given.
        headed: which batch it headed last, for ties.
        in_a_row: how many batches it headed with requests that had begun, one after the other, while others waited.
        queues: its buckets; none of them is empty.
    """

    served: int = 0
    headed: int = -1
    in_a_row: int = 0
    queues: dict[ComponentQueue, dict[_Kind, _Bucket]] = field(default_factory=dict)

    def add(self, queue: ComponentQueue, kind: _Kind, numbered: _Bucket) -> None:
        self.queues.setdefault(queue, {}).setdefault(kind, _Bucket()).extend(numbered)

    def head(self) -> tuple[ComponentQueue, _Kind]:
        """Where the step is that heads a batch now: the oldest one of a request that has begun, as a rule."""
        firsts = [(bucket[0][0], queue, kind) for queue, kinds in self.queues.items() for kind, bucket in kinds.items()]
        begun = [first for first in firsts if first[2].begun]
        others = [first for first in firsts if not first[2].begun]
        passed_over = bool(begun and others) and self.in_a_row < _BEGUN_IN_A_ROW
        self.in_a_row = self.in_a_row + 1 if passed_over else 0
        _, queue, kind = min(begun if passed_over else others or begun, key=itemgetter(0))
        return queue, kind

    def alike(self, queue: ComponentQueue, head: _Kind) -> list[_Kind]:
        """What waits in a queue, the most like the head last.

        Of equals those whose requests have begun, then those that go on from what the head goes on from, then the
        oldest.
        """
        buckets = self.queues.get(queue, {})

        def unlikeness(kind: _Kind) -> tuple[tuple[int, int], bool, bool, int]:
            return (
                head.extent.unlikeness(kind.extent),
                not kind.begun,
                kind.source != head.source,
                buckets[kind][0][0],
            )

        return sorted(buckets, key=unlikeness, reverse=True)

    def take(self, queue: ComponentQueue, kind: _Kind, most: int) -> list[QueueEntry]:
        """The oldest steps of a kind, as many as there are and may be."""
        buckets = self.queues.get(queue, {})
        bucket = buckets.get(kind)
        if bucket is None:
            return []
        taken = [bucket.popleft()[1] for _ in range(min(most, len(bucket)))]
        self.served += kind.extent.new * len(taken)
        if not bucket:
            self._forget(queue, kind)
        return taken

    def take_all(self, tokens: int, batch: int) -> None:
        """Hand out all steps, of so many tokens, in a batch that this flow heads."""
        self.served += tokens
        self.headed = batch
        self.in_a_row = 0
        self.queues.clear()

    def drop(self, queue: ComponentQueue, kind: _Kind, submission: Submission) -> int:
        """Take out the steps of a submission that are of one kind; how many those were."""
        bucket = self.queues[queue][kind]
        kept = deque(item for item in bucket if item[1].submission is not submission)
        self.queues[queue][kind] = kept
        if not kept:
            self._forget(queue, kind)
        return len(bucket) - len(kept)

    def _forget(self, queue: ComponentQueue, kind: _Kind) -> None:
        """Remove a bucket that has become empty."""
        del self.queues[queue][kind]
        if not self.queues[queue]:
            del self.queues[queue]


class FairQueue:
    """The steps that wait for one worker."""

    def __init__(self) -> None:
        """Begin empty."""
        self._flows: dict[Priority, dict[str, _Flow]] = {priority: {} for priority in Priority}
        self._clocks = dict.fromkeys(Priority, 0)
        self._numbers = count()
        self._batches = count()
        self._waiting: dict[ComponentQueue, int] = {}
        self._submissions: dict[Submission, dict[tuple[ComponentQueue, _Kind], int]] = {}
        self._bulk_since = 0.0
        self._bulk_seconds = _FIRST_BATCH_SECONDS
        self._interactive_until = 0.0

    def __len__(self) -> int:
        """How many steps wait."""
        return sum(self._waiting.values())

    def waiting(self, queue: ComponentQueue) -> int:
        """How many steps wait in a queue."""
        return self._waiting.get(queue, 0)

    def has(self, priority: Priority) -> bool:
        """Whether any step of a priority waits."""
        return any(flow.queues for flow in self._flows[priority].values())

    def add(self, queue: ComponentQueue, steps: Sequence[QueueEntry], now: float) -> None:
        """Take in steps of one submission, at least one."""
        submission = steps[0].submission
        flow = self._active(submission.caller, now)
        left = self._submissions.setdefault(submission, {})
        alike: defaultdict[_Kind, _Bucket] = defaultdict(_Bucket)
        for waiting in steps:
            kind = _Kind(waiting.extent, submission.begun, waiting.step.source)
            alike[kind].append((next(self._numbers), waiting))
        for kind, numbered in alike.items():
            flow.add(queue, kind, numbered)
            left[queue, kind] = left.get((queue, kind), 0) + len(numbered)
        self._waiting[queue] = self._waiting.get(queue, 0) + len(steps)

    def drop(self, submission: Submission) -> None:
        """Take out what is left of a submission."""
        flow = self._flows[submission.caller.priority].get(submission.caller.tenant)
        for queue, kind in self._submissions.pop(submission, ()):
            assert flow is not None
            self._waiting[queue] -= flow.drop(queue, kind, submission)

    def submissions(self) -> list[Submission]:
        """All that have steps here."""
        return list(self._submissions)

    def bulk_is_due(self, now: float) -> bool:
        """Whether bulk has waited long enough for interactive steps to end."""
        return self.has(Priority.BULK) and now - self._bulk_since > _PATIENCE * self._bulk_seconds

    def take(self, now: float) -> Batch | None:
        """Take out the next batch; None where nothing waits."""
        active = [(priority, flow) for priority in Priority for flow in self._flows[priority].values() if flow.queues]
        if len(active) == 1 and (everything := self._everything(*active[0], now)):
            return everything
        first = Priority.INTERACTIVE
        if not self.has(first) or self.bulk_is_due(now):
            first = Priority.BULK
        flows = [flow for flow in self._flows[first].values() if flow.queues]
        if not flows:
            return None
        head = min(flows, key=lambda flow: (flow.served, flow.headed))
        head.headed = next(self._batches)
        self._clocks[first] = max(self._clocks[first], head.served)
        queue, kind = head.head()
        first_row = head.take(queue, kind, 1)
        self._settle(queue, kind, first_row)
        batch = _Filling(queue)
        batch.add(kind, first_row)
        self._fill(batch, kind, first, self._most(first, queue, now))
        if first is Priority.BULK:
            self._fill(batch, kind, Priority.INTERACTIVE, queue.budget.tokens)
        return Batch(queue, batch.rows, batch.shape, first)

    def _most(self, priority: Priority, queue: ComponentQueue, now: float) -> int:
        """Most padded tokens of a batch of a priority: few for bulk while interactive requests come."""
        tokens = queue.budget.tokens
        return tokens if priority is Priority.INTERACTIVE or now >= self._interactive_until else tokens // _SHORT

    def _everything(self, priority: Priority, flow: _Flow, now: float) -> Batch | None:
        """All that waits, of the one flow that has steps, if it fits into a batch: as a rule, when few ask."""
        if len(flow.queues) > 1:
            return None
        ((queue, kinds),) = flow.queues.items()
        most = self._most(priority, queue, now)
        if self._waiting[queue] > most:
            return None
        batch = _Filling(queue)
        for kind, bucket in kinds.items():
            batch.add(kind, [waiting for _, waiting in bucket])
            if batch.shape.positions > most:
                return None
        if not queue.budget.holds(batch.shape):
            return None
        self._clocks[priority] = max(self._clocks[priority], flow.served)
        flow.take_all(batch.shape.real, next(self._batches))
        self._waiting[queue] = 0
        self._submissions.clear()
        return Batch(queue, batch.rows, batch.shape, priority)

    def ran(self, batch: Batch, seconds: float, now: float) -> None:
        """Be told how long a batch took."""
        if batch.priority is Priority.BULK:
            self._bulk_since = now
            self._bulk_seconds = seconds
        else:
            self._interactive_until = now + _INTERACTIVE_SECONDS

    def _active(self, caller: Caller, now: float) -> _Flow:
        """The flow of a caller, which is about to have steps."""
        if caller.priority is Priority.BULK and not self.has(Priority.BULK):
            self._bulk_since = now
        flow = self._flows[caller.priority].setdefault(caller.tenant, _Flow())
        if not flow.queues:
            flow.served = max(flow.served, self._clocks[caller.priority])
        return flow

    def _fill(self, batch: _Filling, head: _Kind, priority: Priority, most: int) -> None:
        """Add rows of a priority, the most like the head first, while there is room for so many padded tokens."""
        queue, budget = batch.queue, batch.queue.budget
        turns = [
            (flow.served, flow.headed, place, flow, flow.alike(queue, head))
            for place, flow in enumerate(self._flows[priority].values())
            if queue in flow.queues
        ]
        heapq.heapify(turns)
        while turns and not budget.full(batch.shape):
            _, _, place, flow, kinds = heapq.heappop(turns)
            limit = turns[0][0] + _QUANTUM if turns else None
            while kinds and (limit is None or flow.served < limit):
                kind = kinds[-1]
                room = batch.room(kind, most)
                count = room if limit is None else min(room, -(-(limit - flow.served) // kind.extent.new))
                taken = flow.take(queue, kind, count) if count else []
                if len(taken) == room or len(taken) < count:
                    kinds.pop()  # no more of these fit, or none are left
                if taken:
                    self._settle(queue, kind, taken)
                    batch.add(kind, taken)
            if kinds:
                heapq.heappush(turns, (flow.served, flow.headed, place, flow, kinds))

    def _settle(self, queue: ComponentQueue, kind: _Kind, rows: list[QueueEntry]) -> None:
        """Forget steps of one kind that were taken."""
        self._waiting[queue] -= len(rows)
        place = queue, kind
        for waiting in rows:
            left = self._submissions[waiting.submission]
            left[place] -= 1
            if not left[place]:
                del left[place]
                if not left:
                    del self._submissions[waiting.submission]
