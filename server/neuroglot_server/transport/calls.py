"""What all calls have in common: a name, a caller, an end, and somebody who takes note of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from time import monotonic
from typing import Any, TypeVar, cast

import grpc
from google.protobuf.message import Message

from neuroglot_server.config.tenants import Tenant
from neuroglot_server.core import Caller, Priority
from neuroglot_server.telemetry.logs import FIELDS, current_request
from neuroglot_server.telemetry.transport_observer import Describe, Tracer, TransportObserver
from neuroglot_server.transport.auth import REQUEST_ID_KEY, Access, metadata_of, request_id
from neuroglot_server.transport.concurrency import ConcurrencyLimit
from neuroglot_server.transport.statuses import Failure, abort, attempt

_logger = logging.getLogger("neuroglot_server.requests")

Context = grpc.aio.ServicerContext[bytes, Message]
_Answered = TypeVar("_Answered")


class Call:
    """One call while it is answered.

    Attributes:
        method: its name, `AnalyzeGroup`.
        request_id: its name in logs, traces and answers.
        request_bytes: how long its one request is, once that is here; 0 for a stream.
        peer: the address at the other end of its connection.
        tenant: whose it is, once that is known.
        model: the model that it is about, once that is known to be served.
        queue_ms: how long its groups waited for batches, in all.
        compute_ms: how long batches with its groups ran, in all.
    """

    def __init__(self, method: str, name: str, context: Context, observer: TransportObserver) -> None:
        """A call that has just come in."""
        self.method = method
        self.request_id = name
        self.request_bytes = 0
        self.peer = context.peer()
        self.tenant = Tenant()
        self.model = ""
        self.queue_ms = 0.0
        self.compute_ms = 0.0
        self._context = context
        self._observer = observer
        self._writing = asyncio.Lock()

    def at_end(self, callback: Callable[[], None]) -> None:
        """Have something done once the last of the answer is on its way, or nobody is left to read it."""
        # To the stubs a callback is a class of theirs.
        self._context.add_done_callback(cast(Any, lambda _: callback()))

    def caller(self, priority: Priority, *, waits: bool = False) -> Caller:
        """Who asks, in the core's words."""
        return Caller(self.tenant.name, priority, self.tenant.quota, self.request_id, self.request_bytes, waits)

    def refused(self, failure: Failure) -> None:
        """Count a failure of the call, or of one group of it."""
        self._observer.refused(self.tenant.name, failure.reason)

    async def read(self) -> bytes | None:
        """The next message; None after the last one."""
        raw: object = await self._context.read()
        return raw if isinstance(raw, bytes) else None

    async def write(self, message: Message) -> None:
        """Write a message, and come back when the connection has taken it.

        Raises:
            CancelledError: nobody is there to read it.
        """
        async with self._writing:  # gRPC allows no two writes at once
            try:
                await self._context.write(message)
            except grpc.aio.InternalError:
                # gRPC cancels the whole call next. It is no fault of ours that the log should have.
                _logger.debug("nobody is left to read an answer")
                raise asyncio.CancelledError from None


Answer = Callable[[Call], Awaitable[Message]]
"""Gives the one answer to a call."""
AnswerInParts = Callable[[Call], Awaitable[None]]
"""Writes answers to a call, or none."""


class Calls:
    """Takes calls in: gives each a name, finds out whose it is, lets it through the gate, and notes how it ends.

    To gRPC the requests of every method are a stream, which looks the same on the wire: so all this happens before the
    first byte of a message is read, and nobody who may not come in can have us hold one.
    """

    def __init__(self, gate: ConcurrencyLimit, access: Access, observer: TransportObserver, tracer: Tracer) -> None:
        """Take in whoever the gate and the access let in."""
        self._gate = gate
        self._access = access
        self._observer = observer
        self._tracer = tracer

    def one(self, name: str, answer: Answer) -> grpc.RpcMethodHandler[Any, Any]:
        """A method of one answer, which goes out together with the call's status."""
        return grpc.stream_unary_rpc_method_handler(self._behaviour(name, answer), response_serializer=_serialized)

    def many(self, name: str, answer: AnswerInParts) -> grpc.RpcMethodHandler[Any, Any]:
        """A method of any number of answers."""
        return grpc.stream_stream_rpc_method_handler(self._behaviour(name, answer), response_serializer=_serialized)

    def _behaviour(
        self, name: str, answer: Callable[[Call], Awaitable[_Answered]]
    ) -> Callable[[object, Context], Awaitable[_Answered]]:
        async def behave(_: object, context: Context) -> _Answered:
            metadata = metadata_of(context)
            call = Call(name, request_id(metadata), context, self._observer)
            current_request.set(call.request_id)  # gRPC has made a task of its own for this call
            context.set_trailing_metadata(((REQUEST_ID_KEY, call.request_id),))

            async def work() -> _Answered:
                call.tenant = self._access.tenant(metadata, context.auth_context())
                with self._gate.enter(call.tenant, call.peer):
                    return await answer(call)

            with self._noted(call, metadata, context) as ended:
                outcome = await attempt(work(), call.request_id)
                if isinstance(outcome, Failure):
                    ended(outcome.code)
                    call.refused(outcome)
                    await abort(context, outcome)
                ended(grpc.StatusCode.OK)
                return outcome

        return behave

    def part(self, name: str) -> AbstractContextManager[Describe]:
        """A part of the running call, for its trace."""
        return self._tracer.span(name)

    @contextmanager
    def _noted(
        self, call: Call, metadata: Mapping[str, str | bytes], context: Context
    ) -> Iterator[Callable[[grpc.StatusCode], None]]:
        """Count a call, trace it, and write its line; whoever does not say how it ended was cut off."""
        code = grpc.StatusCode.CANCELLED

        def ended(how: grpc.StatusCode) -> None:
            nonlocal code
            code = how

        start = monotonic()
        self._observer.started(call.method)
        with self._tracer.span(call.method, metadata) as describe:
            try:
                yield ended
            finally:
                remaining = context.time_remaining()
                if code is grpc.StatusCode.CANCELLED and remaining is not None and remaining <= 0:
                    code = grpc.StatusCode.DEADLINE_EXCEEDED
                seconds = monotonic() - start
                self._observer.handled(call.method, code.name, seconds)
                fields: dict[str, str | float] = {
                    "method": call.method,
                    "code": code.name,
                    "tenant": call.tenant.name,
                    "model": call.model,
                    "duration_ms": round(seconds * 1000, 3),
                    "queue_ms": round(call.queue_ms, 3),
                    "compute_ms": round(call.compute_ms, 3),
                }
                describe(fields)
                if _logger.isEnabledFor(logging.INFO):
                    text = " ".join(f"{key}={value}" for key, value in fields.items() if value != "")
                    _logger.info("%s", text, extra={FIELDS: fields})


def _serialized(message: Message) -> bytes:
    return message.SerializeToString()
