from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Iterable
from pathlib import Path

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from neuroglot.v1 import service_pb2, service_pb2_grpc
from neuroglot_server.config.address import AddressError
from neuroglot_server.config.deployment import TransportLimits
from neuroglot_server.transport.endpoint import Endpoint, health_name
from neuroglot_server.transport.service import SERVICE_NAME
from tests.server.live import NAME, Finishing, Held, Live, Said, Watched, channel_to, group, load, said, serving, until

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def request() -> service_pb2.AnalyzeGroupRequest:
    return service_pb2.AnalyzeGroupRequest(model=NAME, group=group())


async def health(live: Live, service: str) -> health_pb2.HealthCheckResponse.ServingStatus.ValueType:
    stub = health_pb2_grpc.HealthStub(live.channel)
    return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status


def test_health_covers_the_server_the_service_and_each_model(bloom_bundle: Path) -> None:
    async def conversation() -> list[int]:
        async with serving(load(bloom_bundle)) as live:
            known = [await health(live, service) for service in ("", SERVICE_NAME, health_name(NAME))]
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await health(live, health_name("other"))
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
            return known

    assert health_name(NAME) == f"neuroglot.v1.NeuroglotService/{NAME}"
    assert asyncio.run(conversation()) == [SERVING] * 3


REFLECTION = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
SERVICES = (SERVICE_NAME, "grpc.health.v1.Health", *REFLECTION)


def pool_of(files: Iterable[descriptor_pb2.FileDescriptorProto]) -> descriptor_pool.DescriptorPool:
    """Build a pool of files given in any order; each is added after the files that it imports."""
    pool, by_name, added = descriptor_pool.DescriptorPool(), {file.name: file for file in files}, set[str]()

    def add(name: str) -> None:
        if name not in added:
            added.add(name)
            for imported in by_name[name].dependency:
                add(imported)
            pool.AddSerializedFile(by_name[name].SerializeToString())

    for name in by_name:
        add(name)
    return pool


@pytest.mark.parametrize("version", REFLECTION)
def test_reflection_lists_the_services_and_their_files(bloom_bundle: Path, version: str) -> None:
    async def conversation() -> tuple[set[str], dict[str, set[str]]]:
        async with serving(load(bloom_bundle)) as live:
            reflect = live.channel.stream_stream(
                f"/{version}/ServerReflectionInfo",
                request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
                response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
            )
            requests = [
                reflection_pb2.ServerReflectionRequest(list_services=""),
                *(reflection_pb2.ServerReflectionRequest(file_containing_symbol=service) for service in SERVICES),
            ]
            services, *files = [answer async for answer in reflect(iter(requests))]
            serialized = [proto for file in files for proto in file.file_descriptor_response.file_descriptor_proto]
            pool = pool_of(map(descriptor_pb2.FileDescriptorProto.FromString, serialized))
            methods = {name: set(pool.FindServiceByName(name).methods_by_name) for name in SERVICES}
            return {service.name for service in services.list_services_response.service}, methods

    services, methods = asyncio.run(conversation())
    assert services == set(SERVICES)
    assert "AnalyzeGroups" in methods[SERVICE_NAME]
    assert methods["grpc.health.v1.Health"] >= {"Check", "Watch"}
    assert methods[REFLECTION[0]] == methods[REFLECTION[1]] == {"ServerReflectionInfo"}


def test_two_servers_cannot_share_a_port(bloom_bundle: Path) -> None:
    async def conversation() -> None:
        async with serving(load(bloom_bundle)) as live:
            second = Endpoint(live.registry)
            with pytest.raises(AddressError, match=f"cannot listen on {live.target}"):
                second.bind(live.target)
            await second.stop()

    asyncio.run(conversation())


def test_draining_reports_not_serving_refuses_new_calls_and_finishes_running_ones(bloom_bundle: Path) -> None:
    async def conversation() -> None:
        model, waits = load(bloom_bundle, kind=Finishing), load(bloom_bundle, kind=Held, name="waits")
        async with serving(model, waits) as live:
            running = asyncio.ensure_future(live.stub.AnalyzeGroup(request()))
            waiting = live.stub.AnalyzeGroup(service_pb2.AnalyzeGroupRequest(model="waits", group=group()))
            waiting_code = asyncio.ensure_future(waiting.code())
            await until(lambda: model.in_flight == waits.in_flight == 1)
            draining = asyncio.create_task(live.endpoint.drain(10))
            await asyncio.sleep(0.1)
            assert [await health(live, service) for service in ("", health_name(NAME))] == [NOT_SERVING] * 2
            for late in (
                live.stub.AnalyzeGroup(request()),
                live.stub.ListModels(service_pb2.ListModelsRequest()),
                live.stub.AnalyzeGroups(iter([])).read(),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await late
                assert said(caught.value).code is grpc.StatusCode.UNAVAILABLE
                assert "the server is shutting down" in said(caught.value).message
            assert not draining.done()
            waits.go.set()
            assert await waiting_code is grpc.StatusCode.UNAVAILABLE  # none of it had run
            assert "shutting down" in await waiting.details()
            model.go.set()
            assert (await running).result.group_id == "FR"
            await draining

    asyncio.run(conversation())


def test_an_idle_server_drains_at_once_even_with_a_health_watcher(bloom_bundle: Path) -> None:
    async def conversation() -> tuple[list[int], float]:
        async with serving(load(bloom_bundle)) as live:
            watch = health_pb2_grpc.HealthStub(live.channel).Watch(health_pb2.HealthCheckRequest(service=""))
            seen = [(await watch.read()).status]
            start = time.monotonic()
            draining = asyncio.create_task(live.endpoint.drain(60))
            seen.append((await watch.read()).status)
            await draining
            return seen, time.monotonic() - start

    seen, seconds = asyncio.run(conversation())
    assert seen == [SERVING, NOT_SERVING]
    assert seconds < 5


def test_calls_that_outlast_the_grace_are_cancelled(bloom_bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def conversation() -> tuple[grpc.StatusCode, int]:
        model = load(bloom_bundle, kind=Held)
        async with serving(model) as live:
            call = live.stub.AnalyzeGroup(request())
            running = asyncio.ensure_future(call.code())
            await until(lambda: model.in_flight == 1)
            await live.endpoint.drain(0.2)
            await live.endpoint.stop()
            code = await running
            await until(lambda: model.in_flight == 0)
            return code, model.cancelled

    code, cancelled = asyncio.run(conversation())
    assert code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    assert cancelled == 1
    assert "still run after 0.2 s" in caplog.text


async def refused(call: Awaitable[object]) -> Said:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return said(caught.value)


def test_calls_over_the_limit_get_a_retry_delay_and_health_still_responds(bloom_bundle: Path) -> None:
    async def conversation() -> None:
        model = load(bloom_bundle, kind=Held)
        async with serving(model, limits=TransportLimits(calls=4)) as live, channel_to(live.target) as channel:
            other = service_pb2_grpc.NeuroglotServiceStub(channel)
            running = [asyncio.ensure_future(live.stub.AnalyzeGroup(request())) for _ in range(2)]
            await until(lambda: model.in_flight == 2)
            for late in (live.stub.AnalyzeGroup(request()), live.stub.AnalyzeGroups(iter([])).read()):
                answer = await refused(late)
                assert answer.code is grpc.StatusCode.RESOURCE_EXHAUSTED
                assert "2 calls of this connection are running" in answer.message
                assert answer.retry_seconds == 1.0
            assert await health(live, health_name(NAME)) == SERVING
            running += [asyncio.ensure_future(other.AnalyzeGroup(request())) for _ in range(2)]
            await until(lambda: model.in_flight == 4)
            assert "4 calls are running" in (await refused(other.ListModels(service_pb2.ListModelsRequest()))).message
            assert await health(live, health_name(NAME)) == SERVING
            model.go.set()
            assert [(await call).result.group_id for call in running] == ["FR"] * 4
            await live.stub.AnalyzeGroup(request())

    asyncio.run(conversation())


def test_silent_calls_time_out_without_locking_out_others(bloom_bundle: Path) -> None:
    async def conversation() -> tuple[int, dict[grpc.StatusCode, str]]:
        limits = TransportLimits(request_seconds=1.5)
        async with serving(load(bloom_bundle), limits=limits) as live, channel_to(live.target) as channel:
            silent = [
                channel.stream_stream(f"/{SERVICE_NAME}/{method}")()
                for method in ("AnalyzeGroups", "AnalyzeGroup", "Generate", "Tokenize")
                for _ in range(128)
            ]
            await asyncio.gather(*(call.wait_for_connection() for call in silent[:1]))
            for _ in range(5):
                await live.stub.AnalyzeGroup(request())
            waiting = sum(not call.done() for call in silent)
            details = {await call.code(): await call.details() for call in silent}
            return waiting, details

    waiting, details = asyncio.run(conversation())
    assert waiting >= 64, "another connection was served while they waited"
    assert details.keys() == {grpc.StatusCode.ABORTED, grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert "no complete request arrived within 1.5 s" in details[grpc.StatusCode.ABORTED]


def test_connections_are_limited_and_silent_ones_are_closed(bloom_bundle: Path) -> None:
    """Two silent connections lock out a third until the server closes them."""

    async def conversation() -> tuple[bytes, float]:
        async with serving(load(bloom_bundle), limits=TransportLimits(connections=2, request_seconds=1.0)) as live:
            host, port = live.target.split(":")
            silent = [await asyncio.open_connection(host, port) for _ in range(2)]
            await asyncio.sleep(0.2)  # until the server has accepted them
            reader, writer = await asyncio.open_connection(host, port)
            refused = await asyncio.wait_for(reader.read(), 5)
            start = time.monotonic()
            await live.stub.AnalyzeGroup(request(), wait_for_ready=True, timeout=20)
            for _, opened in [*silent, (reader, writer)]:
                opened.close()
            return refused, time.monotonic() - start

    refused, seconds = asyncio.run(conversation())
    assert refused == b"", "it is closed without data"
    assert seconds < 15


def test_connections_are_renewed_and_running_calls_outlast_them(bloom_bundle: Path) -> None:
    async def conversation() -> tuple[int, list[str]]:
        model = load(bloom_bundle, kind=Watched)
        async with serving(model, limits=TransportLimits(connection_seconds=0.5)) as live:
            stream = live.stub.AnalyzeGroups()
            answered, end = 0, time.monotonic() + 2.5
            ids = []
            while time.monotonic() < end:
                await stream.write(service_pb2.AnalyzeGroupsRequest(model=NAME, group=group(str(answered))))
                ids.append((await stream.read()).group_id)
                await live.stub.AnalyzeGroup(request())
                answered += 1
                await asyncio.sleep(0.1)
            await stream.done_writing()
            assert await stream.code() is grpc.StatusCode.OK
            return answered, ids

    answered, ids = asyncio.run(conversation())
    assert answered > 3
    assert ids == [str(number) for number in range(answered)]
