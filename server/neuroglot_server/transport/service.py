"""The methods of the service: read the request, call the core, write the response."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar, cast

import grpc
from google.protobuf.message import Message

from neuroglot.errors import Violation
from neuroglot.v1 import model_pb2, result_pb2, service_pb2
from neuroglot_server.config.deployment import TransportLimits
from neuroglot_server.core import Analysis, Caller, InvalidRequest, Limits, Priority
from neuroglot_server.models.registry import Registry
from neuroglot_server.transport import requests, responses, wire
from neuroglot_server.transport.auth import PermissionDenied
from neuroglot_server.transport.calls import Call, Calls, StreamHandler, UnaryHandler
from neuroglot_server.transport.concurrency import ConcurrencyLimit
from neuroglot_server.transport.held_bytes import HeldBytes, ReaderTooSlow
from neuroglot_server.transport.receiving import ReceiveLimit, first_request
from neuroglot_server.transport.result_sizes import result_bytes
from neuroglot_server.transport.stream import GroupStream

if TYPE_CHECKING:
    from neuroglot_server.models.model import Model

_Request = TypeVar("_Request", bound=Message)

SERVICE_NAME: str = service_pb2.DESCRIPTOR.services_by_name["NeuroglotService"].full_name

ANSWER_LIMIT_BYTES = 64 * 2**20
"""Maximum size of a response message."""

LARGEST_RESULT_BYTES = ANSWER_LIMIT_BYTES - 2**16
"""Maximum size of a result: the rest is for the other fields of its message."""

_LARGE_RESULT_BYTES = 2**18
"""Results estimated to be larger are built on a thread; smaller ones take up to about a millisecond."""

_DEFAULT_MAX_TOKENS = 64
"""Maximum number of generated tokens where a request sets none."""


class Servicer:
    """Implements the service for the models of one server.

    gRPC passes requests as bytes, which are parsed here, so that malformed ones also fail with a status of `statuses`.
    """

    def __init__(
        self,
        registry: Registry,
        calls: Calls,
        concurrency: ConcurrencyLimit,
        held_bytes: HeldBytes,
        limits: TransportLimits,
    ) -> None:
        """Serve the models of a registry.

        Args:
            registry: the models.
            calls: wraps the handlers of methods.
            concurrency: the limit on calls at once; streams end when it closes.
            held_bytes: counts the bytes of requests and responses in flight.
            limits: limits of the transport.
        """
        self._limits = limits
        self._registry = registry
        self._calls = calls
        self._concurrency = concurrency
        self._held_bytes = held_bytes
        self._receiving = ReceiveLimit(max(1, limits.receive_bytes // limits.request_bytes))

    def handler(self) -> grpc.GenericRpcHandler:
        """Return the handlers of all methods, to be added to a server."""
        unary: dict[str, UnaryHandler] = {
            "ListModels": self._unary(service_pb2.ListModelsRequest, self.list_models),
            "GetModel": self._unary(service_pb2.GetModelRequest, self.get_model),
            "Tokenize": self._unary(service_pb2.TokenizeRequest, self.tokenize),
            "AnalyzeGroup": self._unary(service_pb2.AnalyzeGroupRequest, self.analyze_group, self._require_capacity),
            "UploadNeuronSet": self._unary(service_pb2.UploadNeuronSetRequest, self.upload_neuron_set),
            "LoadModel": self._unary(service_pb2.LoadModelRequest, self.load_model),
            "UnloadModel": self._unary(service_pb2.UnloadModelRequest, self.unload_model),
        }
        streaming: dict[str, StreamHandler] = {
            "AnalyzeGroups": self.analyze_groups,
            "CaptureActivations": self._streaming(service_pb2.CaptureActivationsRequest, self.capture_activations),
            "Generate": self._streaming(service_pb2.GenerateRequest, self.generate),
        }
        methods = {name: self._calls.unary(name, handler) for name, handler in unary.items()}
        methods |= {name: self._calls.streaming(name, handler) for name, handler in streaming.items()}
        return grpc.method_handlers_generic_handler(SERVICE_NAME, methods)

    async def list_models(self, call: Call, _: service_pb2.ListModelsRequest) -> service_pb2.ListModelsResponse:
        """Describe all models."""
        return service_pb2.ListModelsResponse(models=[self._described(call, model) for model in self._registry.models])

    async def get_model(self, call: Call, request: service_pb2.GetModelRequest) -> service_pb2.GetModelResponse:
        """Describe one model."""
        with self._registry.use(request.model) as model:
            call.model = request.model
            probe = model.probe if request.probe else None
            return service_pb2.GetModelResponse(model=self._described(call, model), probe=probe)

    async def tokenize(self, call: Call, request: service_pb2.TokenizeRequest) -> service_pb2.TokenizeResponse:
        """Tokenize texts."""
        with self._registry.use(request.model) as model:
            call.model = request.model
            caller = call.caller(Priority.INTERACTIVE)
            texts = await model.tokenize(request.texts, caller, special_tokens=not request.without_special_tokens)
        return service_pb2.TokenizeResponse(texts=[responses.tokenized(text) for text in texts])

    async def analyze_group(
        self, call: Call, request: service_pb2.AnalyzeGroupRequest
    ) -> service_pb2.AnalyzeGroupResponse:
        """Analyse one group."""
        priority = requests.priority(request.priority, Priority.INTERACTIVE)
        result = await self._analyze(call, request, requests.analysis(request.analysis), call.caller(priority))
        return service_pb2.AnalyzeGroupResponse(result=result)

    async def analyze_groups(self, call: Call) -> None:
        """Analyse a stream of groups."""
        limits = [model.description.limits for model in self._registry.models] or [Limits()]
        groups_in_flight = min(limit.groups_in_flight for limit in limits)

        async def analyze(
            request: service_pb2.AnalyzeGroupsRequest, analysis: Analysis, priority: Priority
        ) -> result_pb2.GroupResult:
            with self._calls.span("group") as describe:
                result = await self._analyze(call, request, analysis, call.caller(priority, waits=True))
                times = result.provenance
                describe({"queue_ms": times.queue_time_ms, "compute_ms": times.compute_time_ms})
                return result

        seconds = self._limits.request_seconds
        stream = GroupStream(
            call, analyze, self._expected_bytes, self._concurrency, self._held_bytes, groups_in_flight, seconds
        )
        async with self._receiving.slot(call.tenant.name, call.peer, seconds, stream=True):
            await stream.run()

    async def capture_activations(
        self, call: Call, request: service_pb2.CaptureActivationsRequest
    ) -> AsyncIterator[service_pb2.CaptureActivationsResponse]:
        """Stream raw activations, one layer per message."""
        with self._registry.use(request.model) as model:
            call.model = request.model
            caller = call.caller(Priority.INTERACTIVE)
            model.require_room(1, caller)
            layers = model.capture(requests.row(request.row), requests.capture(request), caller)
            provenance: result_pb2.Provenance | None = responses.provenance(model.description)
            async with aclosing(layers):
                async for layer in layers:
                    yield responses.captured_layer(layer, provenance)
                    provenance = None

    async def generate(
        self, call: Call, request: service_pb2.GenerateRequest
    ) -> AsyncIterator[service_pb2.GenerateResponse]:
        """Stream a greedy continuation, one token per message."""
        with self._registry.use(request.model) as model:
            call.model = request.model
            caller = call.caller(Priority.INTERACTIVE)
            model.require_room(2, caller)
            tokens = model.generate(
                requests.row(request.row),
                requests.interventions(request.interventions),
                request.threshold,
                request.max_tokens or _DEFAULT_MAX_TOKENS,
                request.past_newlines,
                caller,
            )
            provenance: result_pb2.Provenance | None = responses.provenance(model.description)
            async with aclosing(tokens):
                async for token in tokens:
                    yield responses.generated_token(token, provenance)
                    provenance = None

    async def upload_neuron_set(
        self, call: Call, request: service_pb2.UploadNeuronSetRequest
    ) -> service_pb2.UploadNeuronSetResponse:
        """Store a set of neurons under a name, for later interventions."""
        with self._registry.use(request.model) as model:
            call.model = request.model
            name = await model.upload(requests.neurons(request.neurons), call.caller(Priority.INTERACTIVE))
        return service_pb2.UploadNeuronSetResponse(name=name)

    async def load_model(self, call: Call, request: service_pb2.LoadModelRequest) -> service_pb2.LoadModelResponse:
        """Load a model and serve it. Requires `may_manage_models`."""
        _check_may_manage(call)
        model = await self._registry.load_by_request(request.bundle, request.name)
        call.model = model.description.name
        return service_pb2.LoadModelResponse(model=self._described(call, model))

    async def unload_model(
        self, call: Call, request: service_pb2.UnloadModelRequest
    ) -> service_pb2.UnloadModelResponse:
        """Stop serving a model. Requires `may_manage_models`."""
        _check_may_manage(call)
        await self._registry.unload(request.model)
        call.model = request.model
        return service_pb2.UnloadModelResponse()

    async def _analyze(
        self,
        call: Call,
        request: service_pb2.AnalyzeGroupRequest | service_pb2.AnalyzeGroupsRequest,
        analysis: Analysis,
        caller: Caller,
    ) -> result_pb2.GroupResult:
        with self._registry.use(request.model) as model:
            call.model = request.model
            result = await model.analyze(requests.group(request.group), analysis, caller)
            call.queue_ms += result.queue_time_ms
            call.compute_ms += result.compute_time_ms
            build = partial(responses.group_result, result, model.description)
            large = result_bytes(model.description, analysis, len(request.group.rows)) > _LARGE_RESULT_BYTES
            return _sendable(await asyncio.to_thread(build) if large else build())

    def _described(self, call: Call, model: Model) -> model_pb2.Model:
        return responses.model(
            model.description,
            quota=replace(call.tenant.quota, calls=self._concurrency.tenant_limit(call.tenant)),
            request_bytes=self._limits.request_bytes,
            result_bytes=LARGEST_RESULT_BYTES,
        )

    def _expected_bytes(self, request: service_pb2.AnalyzeGroupsRequest, analysis: Analysis) -> int:
        """Estimate the size of a result in bytes; 0 for an unknown model."""
        for model in self._registry.models:
            if model.description.name == request.model:
                return result_bytes(model.description, analysis, len(request.group.rows))
        return 0

    def _require_capacity(self, call: Call, request: service_pb2.AnalyzeGroupRequest) -> None:
        """Refuse a group that its model has no capacity for before it is checked, which costs a quarter less.

        Raises:
            InvalidRequest: it could never be admitted.
            QueueFull: the queue has no capacity for it now.
        """
        caller = call.caller(requests.priority(request.priority, Priority.INTERACTIVE))
        for model in self._registry.models:
            if model.description.name == request.model:
                # Each row has at least one prompt token and one position that its answer is predicted from.
                model.require_room(2 * len(request.group.rows), caller)

    def _unary(
        self,
        kind: type[_Request],
        method: Callable[[Call, _Request], Awaitable[Message]],
        first: Callable[[Call, _Request], None] | None = None,
    ) -> UnaryHandler:
        """Return the handler of a method with one request and one response.

        Args:
            kind: type of the request.
            method: the method.
            first: may refuse the parsed request before it is checked.
        """

        async def handler(call: Call) -> Message:
            raw, request = await self._request(call, kind, first)
            held = self._held_bytes.hold(len(raw))
            call.at_end(partial(held.resize, 0))  # not when the handler returns: gRPC writes the response after that
            response = await method(call, request)
            held.resize(len(raw) + response.ByteSize())
            return response

        return handler

    def _streaming(
        self, kind: type[_Request], method: Callable[[Call, _Request], AsyncIterator[Message]]
    ) -> StreamHandler:
        """Return the handler of a method with one request and many responses, each made once the last is written."""

        async def handler(call: Call) -> None:
            raw, request = await self._request(call, kind)
            with self._held_bytes.hold(len(raw)):
                stream = cast(AsyncGenerator[Message, None], method(call, request))
                async with aclosing(stream):
                    async for response in stream:
                        with self._held_bytes.hold(response.ByteSize()):
                            await self._write(call, response, stream)

        return handler

    async def _request(
        self, call: Call, kind: type[_Request], first: Callable[[Call, _Request], None] | None = None
    ) -> tuple[bytes, _Request]:
        """Read the one request of a call.

        Args:
            call: the call.
            kind: type of the request.
            first: may refuse the parsed request before it is checked.

        Returns:
            The raw bytes and the checked request.

        Raises:
            InvalidRequest: the request is missing or invalid.
            RequestTooSlow: it did not arrive in time.
            TooManyRequests: too many requests are being received.
        """
        seconds = self._limits.request_seconds
        async with self._receiving.slot(call.tenant.name, call.peer, seconds, stream=False):
            raw = await first_request(call, seconds)
        if raw is None:
            raise InvalidRequest([Violation("request", f"is missing, expected one {kind.DESCRIPTOR.full_name}")])
        request = wire.parse(kind, raw)
        call.request_bytes = len(raw)
        if first is not None:
            first(call, request)
        wire.check(request)
        return raw, request

    async def _write(self, call: Call, response: Message, stream: AsyncGenerator[Message, None]) -> None:
        """Write one message of a response stream; after the timeout, close `stream` and wait for the write alone.

        Raises:
            ReaderTooSlow: the client took the message only after `reader_seconds`.
        """
        writing = asyncio.ensure_future(call.write(response))
        try:
            await asyncio.wait([writing], timeout=self._limits.reader_seconds)
            if writing.done():
                return await writing
            await stream.aclose()
            await writing
            raise ReaderTooSlow(self._limits.reader_seconds)
        finally:
            writing.cancel()


def _check_may_manage(call: Call) -> None:
    if not call.tenant.may_manage_models:
        raise PermissionDenied(
            f"{call.tenant.name!r} may not load or unload models: ask the server's operator for may_manage_models"
        )


def _sendable(result: result_pb2.GroupResult) -> result_pb2.GroupResult:
    """Return a result that fits into a message.

    Raises:
        InvalidRequest: it is too large.
    """
    size = result.ByteSize()
    if size > LARGEST_RESULT_BYTES:
        wrong = (
            f"asks for a result of {size / 2**20:.0f} MiB, expected one that fits into a message of "
            f"{ANSWER_LIMIT_BYTES / 2**20:.0f} MiB: ask for fewer thresholds, or leave out active_bitmaps"
        )
        raise InvalidRequest([Violation("analysis", wrong)])
    return result
