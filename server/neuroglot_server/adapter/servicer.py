"""The methods of the service: read the request, call the core, write the answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from operator import methodcaller
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
from google.protobuf.message import Message

from neuroglot.errors import Violation
from neuroglot.v1 import result_pb2, service_pb2
from neuroglot_server.adapter import requests, responses, wire
from neuroglot_server.adapter.gate import Gate
from neuroglot_server.adapter.statuses import Failure, abort, attempt
from neuroglot_server.adapter.stream import Context, GroupStream
from neuroglot_server.core import InvalidRequest, ModelNotFound

if TYPE_CHECKING:
    from neuroglot_server.model import Model

_Request = TypeVar("_Request", bound=Message)

SERVICE_NAME: str = service_pb2.DESCRIPTOR.services_by_name["NeuroglotService"].full_name

MESSAGE_LIMIT_BYTES = 64 * 2**20
"""Longest message, in both directions."""

LARGEST_RESULT_BYTES = MESSAGE_LIMIT_BYTES - 2**16
"""Largest result: the rest is for what is around it in its message."""


class Servicer:
    """Answers for the models of one server.

    Requests are taken from gRPC as bytes and parsed here, so that malformed ones get a status of ours.
    """

    def __init__(self, models: Sequence[Model], gate: Gate) -> None:
        """Serve models, each under the name in its description, to whom the gate lets in."""
        self._models = {model.description.name: model for model in models}
        self._gate = gate

    def handler(self) -> grpc.GenericRpcHandler:
        """The methods, to be added to a server."""
        return grpc.method_handlers_generic_handler(
            SERVICE_NAME,
            {
                "ListModels": self._unary(service_pb2.ListModelsRequest, self.list_models),
                "GetModel": self._unary(service_pb2.GetModelRequest, self.get_model),
                "Tokenize": self._unary(service_pb2.TokenizeRequest, self.tokenize),
                "AnalyzeGroup": self._unary(service_pb2.AnalyzeGroupRequest, self.analyze_group),
                "AnalyzeGroups": grpc.stream_stream_rpc_method_handler(
                    self.analyze_groups, response_serializer=service_pb2.AnalyzeGroupsResponse.SerializeToString
                ),
            },
        )

    async def list_models(self, _: service_pb2.ListModelsRequest) -> service_pb2.ListModelsResponse:
        """Describe all models."""
        return service_pb2.ListModelsResponse(
            models=[responses.model(model.description) for model in self._models.values()]
        )

    async def get_model(self, request: service_pb2.GetModelRequest) -> service_pb2.GetModelResponse:
        """Describe one model."""
        return service_pb2.GetModelResponse(model=responses.model(self._model(request.model).description))

    async def tokenize(self, request: service_pb2.TokenizeRequest) -> service_pb2.TokenizeResponse:
        """Tokenize texts."""
        model = self._model(request.model)
        texts = model.tokenize(request.texts, special_tokens=not request.without_special_tokens)
        return service_pb2.TokenizeResponse(texts=[responses.tokenized(text) for text in texts])

    async def analyze_group(self, request: service_pb2.AnalyzeGroupRequest) -> service_pb2.AnalyzeGroupResponse:
        """Analyse one group."""
        return service_pb2.AnalyzeGroupResponse(result=await self._analyze(request))

    async def analyze_groups(self, _: object, context: Context) -> None:
        """Analyse a stream of groups."""
        places = min(model.description.limits.groups_in_flight for model in self._models.values())

        async def work() -> None:
            with self._gate.enter():
                await GroupStream(context, self._analyze, self._gate, places).run()

        outcome = await attempt(work())
        if isinstance(outcome, Failure):
            await abort(context, outcome)

    async def _analyze(
        self, request: service_pb2.AnalyzeGroupRequest | service_pb2.AnalyzeGroupsRequest
    ) -> result_pb2.GroupResult:
        model = self._model(request.model)
        result = await model.analyze(requests.group(request.group), requests.analysis(request.analysis))
        return _sendable(responses.group_result(result, model.description))

    def _model(self, name: str) -> Model:
        """The model of a name.

        Raises:
            ModelNotFound: there is none.
        """
        if name not in self._models:
            raise ModelNotFound(name, tuple(self._models))
        return self._models[name]

    def _unary(
        self, kind: type[_Request], method: Callable[[_Request], Awaitable[Message]]
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """A method of one request and one answer, behind the gate and the checks of the wire."""

        async def work(raw: bytes) -> Message:
            with self._gate.enter():
                request = wire.parse(kind, raw)
                wire.check(request)
                return await method(request)

        async def answer(raw: bytes, context: grpc.aio.ServicerContext[bytes, Message]) -> Message:
            outcome = await attempt(work(raw))
            if isinstance(outcome, Failure):
                await abort(context, outcome)
            return outcome

        return grpc.unary_unary_rpc_method_handler(answer, response_serializer=methodcaller("SerializeToString"))


def _sendable(result: result_pb2.GroupResult) -> result_pb2.GroupResult:
    """A result, if it fits into a message.

    Raises:
        InvalidRequest: it does not.
    """
    size = result.ByteSize()
    if size > LARGEST_RESULT_BYTES:
        wrong = (
            f"asks for a result of {size / 2**20:.0f} MiB, expected one that fits into a message of "
            f"{MESSAGE_LIMIT_BYTES / 2**20:.0f} MiB: ask for fewer thresholds, or leave out active_bitmaps"
        )
        raise InvalidRequest([Violation("analysis", wrong)])
    return result
