"""One call of AnalyzeGroups: many groups in flight on one stream."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine

import grpc

from neuroglot.errors import Violation
from neuroglot.v1 import analysis_pb2, result_pb2, service_pb2
from neuroglot_server.adapter import wire
from neuroglot_server.adapter.gate import Gate, GoingDown
from neuroglot_server.adapter.statuses import Failure, attempt, failure_of, group_error
from neuroglot_server.core import InvalidRequest, QueueFull

_logger = logging.getLogger(__name__)

Analyze = Callable[[service_pb2.AnalyzeGroupsRequest], Awaitable[result_pb2.GroupResult]]
Context = grpc.aio.ServicerContext[bytes, service_pb2.AnalyzeGroupsResponse]


class GroupStream:
    """Reads groups, has them analysed side by side, and writes each answer as soon as it is there.

    A group holds its place from when it is read until its answer is written, and nothing is read without a place. So a
    client that sends too fast, or reads too slowly, is held back by HTTP/2's flow control instead of filling memory.
    """

    def __init__(self, context: Context, analyze: Analyze, gate: Gate, groups_in_flight: int) -> None:
        """Prepare for a call.

        Args:
            context: the call, whose messages are read as bytes.
            analyze: gives the result of one complete request, or raises.
            gate: when it closes, nothing more is read, and what is in flight is still answered.
            groups_in_flight: number of places.
        """
        self._context = context
        self._analyze = analyze
        self._gate = gate
        self._places = asyncio.Semaphore(groups_in_flight)
        self._writing = asyncio.Lock()
        self._ids_in_flight: set[str] = set()
        self._model = ""
        self._analysis = analysis_pb2.Analysis()

    async def run(self) -> None:
        """Answer groups until the client has sent its last. If it goes away, all that is in flight is cancelled.

        Raises:
            GoingDown: the gate closed first; what was read before is answered.
        """
        async with asyncio.TaskGroup() as tasks:
            closing = tasks.create_task(self._gate.closed.wait())
            while True:
                await self._places.acquire()
                raw = await self._read(closing)
                if not isinstance(raw, bytes):
                    break
                tasks.create_task(self._serve(raw)).add_done_callback(lambda _: self._places.release())
            closing.cancel()
        if raw is None:
            raise GoingDown

    async def _read(self, closing: asyncio.Task[bool]) -> object:
        """The next message; gRPC's end-of-file after the last one; None once the gate is closed."""
        if closing.done():
            return None
        reading = asyncio.ensure_future(self._context.read())
        try:
            await asyncio.wait((reading, closing), return_when=asyncio.FIRST_COMPLETED)
            return reading.result() if reading.done() else None
        finally:
            reading.cancel()

    def _serve(self, raw: bytes) -> Coroutine[None, None, None]:
        """Take a message in, now, for the next one may build on it; what comes back has it answered."""
        request = service_pb2.AnalyzeGroupsRequest()
        try:
            request = wire.parse(service_pb2.AnalyzeGroupsRequest, raw)
            self._complete(request)
            wire.check(request)
            self._admit(request.group.id)
        except InvalidRequest as error:
            return self._write(request.group.id, failure_of(error))
        return self._answer(request)

    def _complete(self, request: service_pb2.AnalyzeGroupsRequest) -> None:
        """Fill in what the client left out since it is as in the message before."""
        if request.model:
            self._model = request.model
        if request.HasField("analysis"):
            self._analysis = request.analysis
        request.model = self._model
        request.analysis.CopyFrom(self._analysis)

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

    async def _answer(self, request: service_pb2.AnalyzeGroupsRequest) -> None:
        outcome = await attempt(self._analyze_when_there_is_room(request))
        self._ids_in_flight.remove(request.group.id)  # first, for the client may use it again once it reads the answer
        await self._write(request.group.id, outcome)

    async def _analyze_when_there_is_room(self, request: service_pb2.AnalyzeGroupsRequest) -> result_pb2.GroupResult:
        """A full queue is no error on a stream: the group waits in its place, and with it the sender."""
        while True:
            try:
                return await self._analyze(request)
            except QueueFull as full:
                await asyncio.sleep(full.retry_after_seconds)

    async def _write(self, group_id: str, outcome: result_pb2.GroupResult | Failure) -> None:
        """Write one answer; gRPC allows no two writes at once, and each waits until there is room for it."""
        response = service_pb2.AnalyzeGroupsResponse(group_id=group_id)
        if isinstance(outcome, Failure):
            response.error.CopyFrom(group_error(outcome))
        else:
            response.result.CopyFrom(outcome)
        async with self._writing:
            try:
                await self._context.write(response)
            except grpc.aio.InternalError:
                # The client is gone; gRPC cancels the whole call next. It is no fault of ours that the log should have.
                _logger.debug("nobody is left to read the answer to group %r", group_id)
