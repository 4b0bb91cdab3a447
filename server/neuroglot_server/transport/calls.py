"""Handling common to all calls: request id, tenant, concurrency limit, status, metrics, trace and log line."""

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
_Response = TypeVar("_Response")


class Call:
    """One call in flight.

    Attributes:
        method: name of the method, such as `AnalyzeGroup`.
        request_id: id of the request in logs, traces and responses.
        request_bytes: size of its one request, once received; 0 for a stream.
        peer: the address at the other end of the connection.
        tenant: the caller's tenant, once authenticated.
        model: name of the requested model, once found among the served ones.
        queue_ms: total time that its groups waited for batches, in milliseconds.
        compute_ms: total time that batches with its groups ran, in milliseconds.
    """

    def __init__(self, method: str, request_id: str, context: Context, observer: TransportObserver) -> None:
        """Start with a call that was just received."""
        self.method = method
        self.request_id = request_id
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
        """Run a callback once the last response message is sent or the client has left."""
        # The stubs declare a callback as a class of their own.
        self._context.add_done_callback(cast(Any, lambda _: callback()))

    def caller(self, priority: Priority, *, waits: bool = False) -> Caller:
        """Describe the caller for the core.

        Args:
            priority: of the request.
            waits: whether the request waits for admission when the queue is full.
        """
        return Caller(self.tenant.name, priority, self.tenant.quota, self.request_id, self.request_bytes, waits)

    def refused(self, failure: Failure) -> None:
        """Count a failure of the call, or of one group of it."""
        self._observer.refused(self.tenant.name, failure.reason)

    async def read(self) -> bytes | None:
        """Read the next message; None after the last one."""
        raw: object = await self._context.read()
        return raw if isinstance(raw, bytes) else None

    async def write(self, message: Message) -> None:
        """Write a message, and wait until the connection has taken it.

        Raises:
            CancelledError: the client has left.
        """
        async with self._writing:  # gRPC does not allow concurrent writes
            try:
                await self._context.write(message)
            except grpc.aio.InternalError:
                # gRPC cancels the whole call next. A client that leaves is not a server error.
                _logger.debug("the client left before a response was written")
                raise asyncio.CancelledError from None


UnaryHandler = Callable[[Call], Awaitable[Message]]
"""Returns the one response of a call."""
StreamHandler = Callable[[Call], Awaitable[None]]
"""Writes any number of responses of a call."""


class Calls:
    """Wraps method handlers: assigns a request id, authenticates, applies the concurrency limit, records the outcome.

    Every method is registered with gRPC as one of streamed requests, which are identical on the wire. So all of this
    happens before the first byte of a message is read, and a caller that is refused cannot occupy memory with one.
    """

    def __init__(
        self, concurrency: ConcurrencyLimit, access: Access, observer: TransportObserver, tracer: Tracer
    ) -> None:
        """Wrap handlers with these.

        Args:
            concurrency: the limit on calls at once.
            access: authenticates callers.
            observer: receives the metrics of calls.
            tracer: traces calls.
        """
        self._concurrency = concurrency
        self._access = access
        self._observer = observer
        self._tracer = tracer

    def unary(self, name: str, handler: UnaryHandler) -> grpc.RpcMethodHandler[Any, Any]:
        """Return the gRPC handler of a method with one response, which is sent together with the call's status."""
        return grpc.stream_unary_rpc_method_handler(self._wrap(name, handler), response_serializer=_serialize)

    def streaming(self, name: str, handler: StreamHandler) -> grpc.RpcMethodHandler[Any, Any]:
        """Return the gRPC handler of a method with any number of responses."""
        return grpc.stream_stream_rpc_method_handler(self._wrap(name, handler), response_serializer=_serialize)

    def _wrap(
        self, name: str, handler: Callable[[Call], Awaitable[_Response]]
    ) -> Callable[[object, Context], Awaitable[_Response]]:
        async def behave(_: object, context: Context) -> _Response:
            metadata = metadata_of(context)
            call = Call(name, request_id(metadata), context, self._observer)
            current_request.set(call.request_id)  # gRPC runs each call in its own task
            context.set_trailing_metadata(((REQUEST_ID_KEY, call.request_id),))

            async def work() -> _Response:
                call.tenant = self._access.tenant(metadata, context.auth_context())
                with self._concurrency.acquire(call.tenant, call.peer):
                    return await handler(call)

            with self._recorded(call, metadata, context) as set_code:
                outcome = await attempt(work(), call.request_id)
                if isinstance(outcome, Failure):
                    set_code(outcome.code)
                    call.refused(outcome)
                    await abort(context, outcome)
                set_code(grpc.StatusCode.OK)
                return outcome

        return behave

    def span(self, name: str) -> AbstractContextManager[Describe]:
        """Trace a part of the running call as a span of its own."""
        return self._tracer.span(name)

    @contextmanager
    def _recorded(
        self, call: Call, metadata: Mapping[str, str | bytes], context: Context
    ) -> Iterator[Callable[[grpc.StatusCode], None]]:
        """Count, trace and log a call. Gives a function that sets its status; without one the call was cancelled."""
        code = grpc.StatusCode.CANCELLED

        def set_code(final: grpc.StatusCode) -> None:
            nonlocal code
            code = final

        start = monotonic()
        self._observer.started(call.method)
        with self._tracer.span(call.method, metadata) as describe:
            try:
                yield set_code
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


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()
