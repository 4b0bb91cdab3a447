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
"""Gives the result of one group of a model, or raises; the request's own analysis is not looked at."""
ExpectedBytes = Callable[[service_pb2.AnalyzeGroupsRequest, Analysis], int]
"""About how large that result will be."""


class GroupStream:
    """Reads groups, has them analysed side by side, and writes each answer as soon as it is there.

    A full queue is no error on a stream: each group is read and planned once, and waits for its admission in order.

    A group holds its place from when it is read until its answer is written, and nothing is read without a place. So a
    client that sends too fast, or reads too slowly, is held back by HTTP/2's flow control instead of filling memory.
    """

    def __init__(
        self,
        call: Call,
        analyze: Analyze,
        expected_bytes: ExpectedBytes,
        gate: ConcurrencyLimit,
        room: HeldBytes,
        groups_in_flight: int,
        request_seconds: float,
    ) -> None:
        """Prepare for a call.

        Args:
            call: the call.
            analyze: gives the result of one group, or raises.
            expected_bytes: how large it will be.
            gate: when it closes, nothing more is read, and what runs is still answered.
            room: what all calls hold together; while it is full, groups are taken one by one.
            groups_in_flight: number of places.
            request_seconds: how long the first group may be on its way.
        """
        self._call = call
        self._analyze = analyze
        self._expected_bytes = expected_bytes
        self._gate = gate
        self._room = room
        self._places = asyncio.Semaphore(groups_in_flight)
        self._request_seconds = request_seconds
        self._started = False
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._ids_in_flight: set[str] = set()
        self._model = ""
        self._analysis: Analysis | InvalidRequest = Analysis()

    async def run(self) -> None:
        """Answer groups until the client has sent its last. If it goes away, all that is in flight is cancelled.

        Raises:
            GoingDown: the gate closed first; what was read before is answered.
            RequestTooSlow: the first group did not come.
        """
        too_slow = None
        async with asyncio.TaskGroup() as tasks:
            closing = tasks.create_task(self._gate.closed.wait())
            while True:
                await self._places.acquire()
                await self._first_of(self._room.free(), self._idle.wait(), closing)
                try:
                    raw = await self._read(closing)
                except RequestTooSlow as error:  # nothing was read before, and nothing runs
                    too_slow = error
                    break
                if raw is None:
                    break
                self._in_flight += 1
                self._idle.clear()
                held = self._room.hold(len(raw))
                tasks.create_task(self._serve(raw, held)).add_done_callback(partial(self._leave, held))
            going_down = closing.done()
            closing.cancel()
        if too_slow is not None:
            raise too_slow
        if going_down:
            raise GoingDown

    def _leave(self, held: Held, _: asyncio.Task[None]) -> None:
        """Give back what a group took up, however it ended."""
        held.resize(0)
        self._in_flight -= 1
        if not self._in_flight:
            self._idle.set()
        self._places.release()

    async def _read(self, closing: asyncio.Task[bool]) -> bytes | None:
        """The next message; None after the last one, and once the gate is closed."""
        if closing.done():
            return None
        read = self._call.read() if self._started else first_request(self._call, self._request_seconds)
        self._started = True
        reading = asyncio.ensure_future(read)
        await self._first_of(reading, closing)
        return reading.result() if reading.done() and not reading.cancelled() else None

    async def _first_of(self, *events: Awaitable[object]) -> None:
        """Come back when the first of these has happened, and wait for the others no more; the gate's is for all."""
        tasks = [asyncio.ensure_future(event) for event in events]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks[:-1]:
                task.cancel()

    def _serve(self, raw: bytes, held: Held) -> Coroutine[None, None, None]:
        """Take a message in, now, for the next one may build on it; what comes back has it answered."""
        request = service_pb2.AnalyzeGroupsRequest()
        try:
            request = wire.parse(service_pb2.AnalyzeGroupsRequest, raw)
            analysis = self._complete(request)
            wire.check(request)
            self._admit(request.group.id)
        except InvalidRequest as error:
            return self._write(request.group.id, failure_of(error, self._call.request_id), held)
        held.resize(len(raw) + self._expected_bytes(request, analysis))
        return self._answer(request, analysis, held)

    def _complete(self, request: service_pb2.AnalyzeGroupsRequest) -> Analysis:
        """Fill in what the client left out since it is as in the message before.

        An analysis is read once for all groups that it stands for, however large its neurons are.

        Raises:
            InvalidRequest: the analysis is wrong, or was when it was sent.
        """
        request.model = self._model = request.model or self._model
        if request.HasField("analysis"):
            self._analysis = _read_analysis(request.analysis)
            request.ClearField("analysis")
        if isinstance(self._analysis, InvalidRequest):
            raise self._analysis
        return self._analysis

    def _admit(self, group_id: str) -> None:
        """Hold a group's id until it is answered.

        Raises:
            InvalidRequest: it has none, or another one of this id is in flight.
        """
        if not group_id:
            raise InvalidRequest([Violation("group.id", "is empty, expected a name that the answer comes back under")])
        if group_id in self._ids_in_flight:
            wrong = f"is {group_id!r}, which is in flight on this stream: choose another, or wait for its answer"
            raise InvalidRequest([Violation("group.id", wrong)])
        self._ids_in_flight.add(group_id)

    async def _answer(self, request: service_pb2.AnalyzeGroupsRequest, analysis: Analysis, held: Held) -> None:
        priority = requests.priority(request.priority, Priority.BULK)
        outcome = await attempt(self._analyze(request, analysis, priority), self._call.request_id)
        self._ids_in_flight.remove(request.group.id)  # first, for the client may use it again once it reads the answer
        await self._write(request.group.id, outcome, held)

    async def _write(self, group_id: str, outcome: result_pb2.GroupResult | Failure, held: Held) -> None:
        """Write one answer; each waits until there is room for it on the way to the client."""
        response = service_pb2.AnalyzeGroupsResponse(group_id=group_id)
        if isinstance(outcome, Failure):
            self._call.refused(outcome)
            response.error.CopyFrom(group_error(outcome))
        else:
            response.result.CopyFrom(outcome)
        held.resize(response.ByteSize())
        await self._call.write(response)


def _read_analysis(message: analysis_pb2.Analysis) -> Analysis | InvalidRequest:
    """An analysis, or what is wrong with it."""
    try:
        wire.check(service_pb2.AnalyzeGroupsRequest(analysis=message))
    except InvalidRequest as error:
        return error
    return requests.analysis(message)
