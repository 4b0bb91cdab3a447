"""A server on a loopback port for the length of a block, and requests for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from google.rpc import error_details_pb2, status_pb2

from neuroglot.v1 import analysis_pb2, group_pb2, service_pb2_grpc
from neuroglot_server.core import ANYONE, Analysis, Caller, Group, GroupResult, Settings
from neuroglot_server.models.model import Model
from neuroglot_server.models.registry import Registry
from neuroglot_server.transport.endpoint import Endpoint
from neuroglot_server.transport.probing import check_probe
from neuroglot_server.transport.service import SERVICE_NAME

NAME = "random-bloom"
PROMPTS = {"en": "The capital of France is", "es": "La capital de Francia es", "th": "เมืองหลวงของฝรั่งเศสคือ"}


class Live(NamedTuple):
    """A server and a channel to it."""

    endpoint: Endpoint
    channel: grpc.aio.Channel
    target: str
    registry: Registry

    @property
    def stub(self) -> service_pb2_grpc.NeuroglotServiceAsyncStub:
        return service_pb2_grpc.NeuroglotServiceStub(self.channel)

    def bytes_to(self, method: str) -> grpc.aio.UnaryUnaryMultiCallable:
        """A unary method on raw bytes."""
        return self.channel.unary_unary(f"/{SERVICE_NAME}/{method}")


@asynccontextmanager
async def serving(
    *models: Model, bundles_folder: Path | None = None, settings: Settings | None = None, **options: Any
) -> AsyncIterator[Live]:
    """Serve models, and close them at the end.

    Args:
        models: models that are already loaded.
        bundles_folder: the folder that `LoadModel` loads from.
        settings: settings of models loaded by requests.
        options: options of the endpoint.
    """
    loaded = {model.description.name: model for model in models}

    def load_or_take(folder: Path, name: str, hang_changed: Callable[[bool], None]) -> Model:
        return loaded.pop(name, None) or Model.load(folder, name, settings or Settings(threads=1), None, hang_changed)

    registry = Registry(load_or_take, check_probe, bundles_folder)
    for model in models:
        await registry.load(Path(), model.description.name)
    endpoint = Endpoint(registry, **options)
    target = f"127.0.0.1:{endpoint.bind('127.0.0.1:0')}"
    await endpoint.start()
    try:
        async with channel_to(target) as channel:
            yield Live(endpoint, channel, target, registry)
    finally:
        await endpoint.stop()
        await registry.close()


def channel_to(target: str) -> grpc.aio.Channel:
    """A channel with its own connection, not shared with other channels."""
    return grpc.aio.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)])


def load(bundle: Path, settings: Settings | None = None, kind: type[Model] = Model, name: str = NAME) -> Model:
    return kind.load(bundle, name=name, settings=settings or Settings(threads=1))


def group(group_id: str = "FR", repeat: int = 1, answers: bool = True) -> group_pb2.Group:
    """A group of three languages, each prompt repeated `repeat` times."""
    rows = [
        group_pb2.Row(label=label, text=" ".join([prompt] * repeat), answers=["Paris"] if answers else [])
        for label, prompt in PROMPTS.items()
    ]
    return group_pb2.Group(id=group_id, rows=rows)


def deactivate(*types: analysis_pb2.NeuronType.ValueType) -> analysis_pb2.Intervention:
    return analysis_pb2.Intervention(
        selection=analysis_pb2.Selection(types=analysis_pb2.TypeSelection(types=types)),
        deactivate=analysis_pb2.Deactivate(),
    )


class Watched(Model):
    """A model that counts its analyses, with hooks before and after each."""

    in_flight = 0
    max_in_flight = 0
    seen = 0
    cancelled = 0

    def __init__(self, *parts: Any, **more: Any) -> None:
        super().__init__(*parts, **more)
        self.callers: list[Caller] = []

    async def before(self, group: Group) -> None:
        """Hook before an analysis."""

    async def after(self, group: Group) -> None:
        """Hook after an analysis."""

    async def analyze(self, group: Group, analysis: Analysis, caller: Caller = ANYONE) -> GroupResult:
        self.seen += 1
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            await self.before(group)
            self.callers.append(caller)
            result = await super().analyze(group, analysis, caller)
            await self.after(group)
            return result
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.in_flight -= 1


class Held(Watched):
    """A model whose analyses start only once `go` is set."""

    def __init__(self, *parts: Any, **more: Any) -> None:
        super().__init__(*parts, **more)
        self.go = asyncio.Event()

    async def before(self, group: Group) -> None:
        await self.go.wait()


class Finishing(Held):
    """A model whose analyses run, but end only once `go` is set."""

    async def before(self, group: Group) -> None:
        """Start at once."""

    async def after(self, group: Group) -> None:
        await self.go.wait()


class Said(NamedTuple):
    """The error that a server returned for a call."""

    code: grpc.StatusCode
    message: str
    violations: dict[str, str]
    retry_seconds: float | None
    request_id: str


def said(error: grpc.aio.AioRpcError) -> Said:
    """Parse the status of an error and its details."""
    violations: dict[str, str] = {}
    retry_seconds, request_id = None, ""
    for key, value in error.trailing_metadata():
        if key != "grpc-status-details-bin":
            continue
        status = status_pb2.Status.FromString(value)
        assert (status.code, status.message) == (error.code().value[0], error.details())
        for detail in status.details:
            if detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
                bad = error_details_pb2.BadRequest.FromString(detail.value)
                violations = {violation.field: violation.description for violation in bad.field_violations}
            elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
                retry_seconds = error_details_pb2.RetryInfo.FromString(detail.value).retry_delay.ToMilliseconds() / 1000
            else:
                request_id = error_details_pb2.RequestInfo.FromString(detail.value).request_id
    return Said(error.code(), error.details(), violations, retry_seconds, request_id)


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for a condition to become true."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)
