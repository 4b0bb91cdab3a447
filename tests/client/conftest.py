"""A real gRPC server on loopback that says what a test tells it to: for what the real one does not do on demand."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
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

    def capture_activations(self, request, context):
        for layer in request.layers:
            data = np.full((1, 2), layer, dtype="<f4").tobytes()
            values = service_pb2.Tensor(shape=[1, 2], dtype="float32", data=data)
            yield service_pb2.CaptureActivationsResponse(layer=layer, positions=[4], values=values)

    def generate(self, request, context):
        for number, text in enumerate((" Pa", "", "ris")):
            yield service_pb2.GenerateResponse(token_id=number, text=text, log_probability=-1.0)

    def upload_neuron_set(self, request, context):
        return service_pb2.UploadNeuronSetResponse(name=f"set-{request.neurons.bits.hex()}")

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

    def CaptureActivations(self, request, context):  # noqa: N802
        return self.capture_activations(request, context)

    def Generate(self, request, context):  # noqa: N802
        return self.generate(request, context)

    def UploadNeuronSet(self, request, context):  # noqa: N802
        return self.upload_neuron_set(request, context)


class Servers:
    """Scripted servers on loopback: call it to start one, which gives its address."""

    def __init__(self) -> None:
        self._running: dict[str, grpc.Server] = {}

    def __call__(
        self, servicer: Scripted, address: str = "127.0.0.1:0", tls: grpc.ServerCredentials | None = None
    ) -> str:
        """Start a server; at an address where one was stopped, it is the same one restarted."""
        server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
        service_pb2_grpc.add_NeuroglotServiceServicer_to_server(servicer, server)
        port = server.add_secure_port(address, tls) if tls else server.add_insecure_port(address)
        server.start()
        host, _, _ = address.rpartition(":")
        self._running[f"{host}:{port}"] = server
        return f"{host}:{port}"

    def stop(self, address: str) -> None:
        """Stop the server at an address; what runs on it is cut off."""
        self._running.pop(address).stop(grace=0).wait()

    def close(self) -> None:
        """Stop all."""
        for address in tuple(self._running):
            self.stop(address)


@pytest.fixture
def serve() -> Iterator[Servers]:
    """Starts scripted servers and gives their addresses; stopped when the test ends."""
    servers = Servers()
    yield servers
    servers.close()


@pytest.fixture
def scripted() -> type[Scripted]:
    """The servicer, to be used as it is or overridden."""
    return Scripted
