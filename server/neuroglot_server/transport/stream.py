"""One call of AnalyzeGroups: many groups in flight on one stream."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial

from neuroglot.errors import Violation
from neuroglot.v1 import analysis_pb2, result_pb2, service_pb2
from neuroglot_server.core import Analysis, InvalidRequest, Priority
from neuroglot_server.transport import requests, wire
from neuroglot_server.transport.calls import Call
from neuroglot_server.transport.concurrency import ConcurrencyLimit, GoingDown
from neuroglot_server.transport.held_bytes import Held, HeldBytes
from neuroglot_server.transport.receiving import RequestTooSlow, first_request
from neuroglot_server.transport.statuses import Failure, attempt, failure_of, group_error

Analyze = Callable[[service_pb2.AnalyzeGroupsRequest, Analysis, Priority], Awaitable[result_pb2.GroupResult]]
"""Returns the result of one group, or raises; ignores the analysis in the request, which is passed separately."""
ExpectedBytes = Callable[[service_pb2.AnalyzeGroupsRequest, Analysis], int]
"""Estimates the size of that result in bytes."""


class GroupStream:
    """Reads groups, analyses them concurrently, and writes each result as soon as it is ready.

    A full queue is not an error on a stream: each group is parsed and tokenized once and waits for admission in order.

    A group holds a slot from being read until its result is written, and a message is read only into a free slot. So a
    client that sends too fast or reads too slowly gets backpressure from HTTP/2 flow control instead of filling memory.
    """

    def __init__(
        self,
        call: Call,
        analyze: Analyze,
        expected_bytes: ExpectedBytes,
        concurrency: ConcurrencyLimit,
        held_bytes: HeldBytes,
        groups_in_flight: int,
        request_seconds: float,
    ) -> None:
        """Prepare for a call.

        Args:
            call: the call.
            analyze: returns the result of one group, or raises.
            expected_bytes: estimates the size of the result.
            concurrency: once closed, no more groups are read, and those in flight are still answered.
            held_bytes: bytes held by all calls; while it is at its limit, groups are read one at a time.
            groups_in_flight: maximum number of groups in flight.
            request_seconds: timeout for the first group to arrive.
        """
        self._call = call
        self._analyze = analyze
        self._expected_bytes = expected_bytes
        self._concurrency = concurrency
        self._held_bytes = held_bytes
        self._slots = asyncio.Semaphore(groups_in_flight)
        self._request_seconds = request_seconds
        self._started = False
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._ids_in_flight: set[str] = set()
        self._model = ""
        self._analysis: Analysis | InvalidRequest = Analysis()

    async def run(self) -> None:
        """Serve groups until the client has sent its last. If the client leaves, all groups in flight are cancelled.

        Raises:
            GoingDown: the server began to shut down first; groups read before are answered.
            RequestTooSlow: the first group did not arrive in time.
        """
        too_slow = None
        async with asyncio.TaskGroup() as tasks:
            closing = tasks.create_task(self._concurrency.closed.wait())
            while True:
                await self._slots.acquire()
                await self._first_of(self._held_bytes.wait_below_limit(), self._idle.wait(), closing)
                try:
                    raw = await self._read(closing)
                except RequestTooSlow as error:  # only the first read has a timeout, so no group is in flight
                    too_slow = error
                    break
                if raw is None:
                    break
                self._in_flight += 1
                self._idle.clear()
                held = self._held_bytes.hold(len(raw))
                tasks.create_task(self._serve(raw, held)).add_done_callback(partial(self._release, held))
            shutting_down = closing.done()
            closing.cancel()
        if too_slow is not None:
            raise too_slow
        if shutting_down:
            raise GoingDown

    def _release(self, held: Held, _: asyncio.Task[None]) -> None:
        """Release the bytes and the slot of a group, whatever its outcome."""
        held.resize(0)
        self._in_flight -= 1
        if not self._in_flight:
            self._idle.set()
        self._slots.release()

    async def _read(self, closing: asyncio.Task[bool]) -> bytes | None:
        """Read the next message; None after the last one, and once the server shuts down."""
        if closing.done():
            return None
        read = self._call.read() if self._started else first_request(self._call, self._request_seconds)
        self._started = True
        reading = asyncio.ensure_future(read)
        await self._first_of(reading, closing)
        return reading.result() if reading.done() and not reading.cancelled() else None

    async def _first_of(self, *events: Awaitable[object]) -> None:
        """Wait for the first of these events and cancel the others, except the last, which all reads share."""
        tasks = [asyncio.ensure_future(event) for event in events]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks[:-1]:
                task.cancel()

    def _serve(self, raw: bytes, held: Held) -> Coroutine[None, None, None]:
        """Parse a message at once, since the next may omit what this one sets; return the coroutine that answers it."""
        request = service_pb2.AnalyzeGroupsRequest()
        try:
            request = wire.parse(service_pb2.AnalyzeGroupsRequest, raw)
            analysis = self._complete(request)
            wire.check(request)
            self._reserve_id(request.group.id)
        except InvalidRequest as error:
            return self._write(request.group.id, failure_of(error, self._call.request_id), held)
        held.resize(len(raw) + self._expected_bytes(request, analysis))
        return self._run_group(request, analysis, held)

    def _complete(self, request: service_pb2.AnalyzeGroupsRequest) -> Analysis:
        """Fill in the model and the analysis of the previous message where this one omits them.

        An analysis is parsed once for all groups that use it, since its neuron sets can be large.

        Raises:
            InvalidRequest: the analysis in effect is invalid, in this message or an earlier one.
        """
        request.model = self._model = request.model or self._model
        if request.HasField("analysis"):
            self._analysis = _read_analysis(request.analysis)
            request.ClearField("analysis")
        if isinstance(self._analysis, InvalidRequest):
            raise self._analysis
        return self._analysis

    def _reserve_id(self, group_id: str) -> None:
        """Reserve a group's id until the group is answered.

        Raises:
            InvalidRequest: the id is empty, or in flight on this stream.
        """
        if not group_id:
            raise InvalidRequest([Violation("group.id", "is empty, expected an id to return the result under")])
        if group_id in self._ids_in_flight:
            wrong = f"is {group_id!r}, which is in flight on this stream: choose another, or wait for its result"
            raise InvalidRequest([Violation("group.id", wrong)])
        self._ids_in_flight.add(group_id)

    async def _run_group(self, request: service_pb2.AnalyzeGroupsRequest, analysis: Analysis, held: Held) -> None:
        priority = requests.priority(request.priority, Priority.BULK)
        outcome = await attempt(self._analyze(request, analysis, priority), self._call.request_id)
        # Before writing: a client may reuse an id once it has read its result.
        self._ids_in_flight.remove(request.group.id)
        await self._write(request.group.id, outcome, held)

    async def _write(self, group_id: str, outcome: result_pb2.GroupResult | Failure, held: Held) -> None:
        """Write one response, waiting for HTTP/2 flow control."""
        response = service_pb2.AnalyzeGroupsResponse(group_id=group_id)
        if isinstance(outcome, Failure):
            self._call.refused(outcome)
            response.error.CopyFrom(group_error(outcome))
        else:
            response.result.CopyFrom(outcome)
        held.resize(response.ByteSize())
        await self._call.write(response)


def _read_analysis(message: analysis_pb2.Analysis) -> Analysis | InvalidRequest:
    """Check and convert an analysis; an invalid one is returned as its error."""
    try:
        wire.check(service_pb2.AnalyzeGroupsRequest(analysis=message))
    except InvalidRequest as error:
        return error
    return requests.analysis(message)
