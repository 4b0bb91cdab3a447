"""A real gRPC server on loopback that says what a test tells it to: for what the real one does not do on demand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from hypothesis import settings

from neuroglot.v1 import model_pb2, result_pb2, service_pb2, service_pb2_grpc

settings.register_profile("neuroglot", deadline=None)  # how long an example takes says how busy the machine is
settings.load_profile("neuroglot")


class Scripted(service_pb2_grpc.NeuroglotServiceServicer):
    """One model of two layers; every group is answered at once with nothing but its id. Tests override methods."""

    model = model_pb2.Model(
        name="small",
        source="hub/small",
        components=[model_pb2.Component(name="decoder", layers=2, neurons=5)],
        limits=model_pb2.Limits(groups_in_flight=4),
    )

    def list_models(self, request, context):
        return service_pb2.ListModelsResponse(models=[self.model])

    def get_model(self, request, context):
        return service_pb2.GetModelResponse(model=self.model)

    def tokenize(self, request, context):
        return service_pb2.TokenizeResponse()

    def analyze_group(self, request, context):
        return service_pb2.AnalyzeGroupResponse(result=result_pb2.GroupResult(group_id=request.group.id))

    def analyze_groups(self, request_iterator, context):
        for request in request_iterator:
            yield self.answer(request)

    def answer(self, request):
        result = result_pb2.GroupResult(group_id=request.group.id)
        return service_pb2.AnalyzeGroupsResponse(group_id=request.group.id, result=result)

    def ListModels(self, request, context):  # noqa: N802 - the contract's names, here and below
        return self.list_models(request, context)

    def GetModel(self, request, context):  # noqa: N802
        return self.get_model(request, context)

    def Tokenize(self, request, context):  # noqa: N802
        return self.tokenize(request, context)

    def AnalyzeGroup(self, request, context):  # noqa: N802
        return self.analyze_group(request, context)

    def AnalyzeGroups(self, request_iterator, context):  # noqa: N802
        return self.analyze_groups(request_iterator, context)


@pytest.fixture
def serve() -> Iterator[Callable[[Scripted], str]]:
    """Starts a scripted server and gives its address; stopped when the test ends."""
    servers: list[grpc.Server] = []

    def start(servicer: Scripted) -> str:
        server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
        service_pb2_grpc.add_NeuroglotServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(grace=0).wait()


@pytest.fixture
def scripted() -> type[Scripted]:
    """The servicer, to be used as it is or overridden."""
    return Scripted
