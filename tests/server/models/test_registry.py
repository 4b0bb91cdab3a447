"""Models are loaded, replaced and unloaded while requests run on them and on others."""

from __future__ import annotations

import asyncio
import shutil
import threading
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from neuroglot.definitions.bundle import MANIFEST, read_manifest
from neuroglot.v1 import service_pb2
from neuroglot_server.core import LoadTooSlow, ModelClosed, Settings
from neuroglot_server.models.model import Model
from neuroglot_server.models.registry import Registry
from neuroglot_server.transport.endpoint import health_name
from neuroglot_server.transport.probing import check_probe
from tests.server.live import NAME, Finishing, Live, group, load, said, serving, until

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def request(model: str = NAME, group_id: str = "FR") -> service_pb2.AnalyzeGroupRequest:
    return service_pb2.AnalyzeGroupRequest(model=model, group=group(group_id))


async def listed(live: Live) -> list[str]:
    return [model.name for model in (await live.stub.ListModels(service_pb2.ListModelsRequest())).models]


async def status(live: Live, model: str) -> int:
    request = health_pb2.HealthCheckRequest(service=health_name(model))
    return (await health_pb2_grpc.HealthStub(live.channel).Check(request)).status


@pytest.fixture
def bundles(bloom_bundle: Path, tmp_path: Path) -> Path:
    """A folder with two bundles, a damaged one, a link to the outside, and a folder that is not a bundle."""
    folder = tmp_path / "bundles"
    shutil.copytree(bloom_bundle, folder / "one")
    shutil.copytree(bloom_bundle, folder / "family" / "two")
    shutil.copytree(bloom_bundle, folder / "damaged")
    (folder / "damaged" / MANIFEST).unlink()
    shutil.copytree(bloom_bundle, tmp_path / "outside")
    (folder / "link").symlink_to(tmp_path / "outside")
    (folder / "loop").symlink_to("loop")
    return folder


def test_models_are_loaded_and_unloaded_under_traffic(bloom_bundle: Path, bundles: Path) -> None:
    async def conversation() -> None:
        async with serving(load(bloom_bundle), bundles_folder=bundles) as live:
            answered = 0

            async def ask() -> None:
                nonlocal answered
                while True:
                    assert (await live.stub.AnalyzeGroup(request())).result.group_id == "FR"
                    answered += 1

            asking = asyncio.create_task(ask())
            loaded = await live.stub.LoadModel(service_pb2.LoadModelRequest(bundle="one"))
            assert (loaded.model.name, loaded.model.bundle_identity) == ("one", read_manifest(bundles / "one").identity)
            await live.stub.LoadModel(service_pb2.LoadModelRequest(bundle="family/two", name="second"))
            assert await listed(live) == [NAME, "one", "second"]
            await until(lambda: answered > 3)
            assert (await live.stub.AnalyzeGroup(request("second"))).result.provenance.model == "second"
            assert await status(live, "second") == SERVING
            await live.stub.UnloadModel(service_pb2.UnloadModelRequest(model="second"))
            assert await listed(live) == [NAME, "one"]
            assert await status(live, "second") == NOT_SERVING
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await live.stub.AnalyzeGroup(request("second"))
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
            assert said(caught.value).message == f"model 'second' is not served here: there is {NAME}, one"
            before = answered
            await until(lambda: answered > before)
            assert not asking.done()
            asking.cancel()

    asyncio.run(conversation())


def test_an_unloaded_model_completes_running_requests_and_accepts_no_new_ones(bloom_bundle: Path) -> None:
    async def conversation() -> None:
        model = load(bloom_bundle, kind=Finishing)
        async with serving(model) as live:
            stream = live.stub.AnalyzeGroups()
            await stream.write(service_pb2.AnalyzeGroupsRequest(model=NAME, group=group("a")))
            alone = asyncio.ensure_future(live.stub.AnalyzeGroup(request()))
            await until(lambda: model.in_flight == 2)
            unloading = asyncio.ensure_future(live.stub.UnloadModel(service_pb2.UnloadModelRequest(model=NAME)))
            await until(lambda: not live.registry.models)
            await stream.write(service_pb2.AnalyzeGroupsRequest(group=group("b")))
            late = await stream.read()
            assert (late.group_id, late.error.code) == ("b", grpc.StatusCode.NOT_FOUND.value[0])
            assert "there is none" in late.error.message
            assert not unloading.done()
            model.go.set()
            assert (await stream.read()).result.group_id == "a"
            assert (await alone).result.group_id == "FR"
            await unloading
            with pytest.raises(ModelClosed):
                await model.analyze(*_plain_group())

    asyncio.run(conversation())


def _plain_group() -> tuple[object, object]:
    from neuroglot_server.core import Analysis, Group, Row

    return Group("x", (Row("en", "The capital"),)), Analysis()


def test_a_model_is_replaced_atomically(bloom_bundle: Path, bundles: Path) -> None:
    async def conversation() -> None:
        old = load(bloom_bundle, kind=Finishing)
        async with serving(old, bundles_folder=bundles) as live:
            running = asyncio.ensure_future(live.stub.AnalyzeGroup(request()))
            await until(lambda: old.in_flight == 1)
            await live.stub.LoadModel(service_pb2.LoadModelRequest(bundle="one", name=NAME))
            assert await listed(live) == [NAME]
            assert (await live.stub.AnalyzeGroup(request(group_id="new"))).result.group_id == "new"
            assert old.seen == 1
            old.go.set()
            assert (await running).result.group_id == "FR"

    asyncio.run(conversation())


@pytest.mark.parametrize(
    ("bundle", "name", "field", "message"),
    [
        ("", "", "bundle", "expected a folder inside the one"),
        (".", "", "bundle", "expected a folder inside the one"),
        ("..", "", "bundle", "expected a folder inside the one"),
        ("../outside", "", "bundle", "is '../outside', expected a folder inside"),
        ("one/../../outside", "", "bundle", "expected a folder inside"),
        ("/etc", "", "bundle", "expected a folder inside"),
        ("link", "", "bundle", "expected a folder inside"),
        ("missing", "", "bundle", "expected a folder inside"),
        ("x\0y", "", "bundle", "expected a folder inside"),
        ("x" * 1000, "", "bundle", "expected a folder inside"),
        ("x" * 5000, "", "bundle", "has 5000 bytes, expected at most 1024"),
        ("loop", "", "bundle", "expected a folder inside"),
        ("damaged", "", "bundle", "cannot be loaded: 'damaged' is no bundle: it has no manifest.json"),
        ("one", "new\nline", "name", "printable"),
        ("one", "x" * 101, "name", "at most 100"),
    ],
)
def test_a_request_cannot_reach_outside_of_the_folder(
    bloom_bundle: Path, bundles: Path, bundle: str, name: str, field: str, message: str
) -> None:
    async def conversation() -> None:
        async with serving(load(bloom_bundle), bundles_folder=bundles) as live:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await live.stub.LoadModel(service_pb2.LoadModelRequest(bundle=bundle, name=name))
            answer = said(caught.value)
            assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
            assert message in answer.violations[field]
            assert str(bundles) not in answer.message
            assert await listed(live) == [NAME]

    asyncio.run(conversation())


def test_without_a_folder_nothing_can_be_loaded(bloom_bundle: Path) -> None:
    async def conversation() -> None:
        async with serving(load(bloom_bundle)) as live:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await live.stub.LoadModel(service_pb2.LoadModelRequest(bundle="one"))
            assert "was given no folder of bundles" in said(caught.value).violations["bundle"]

    asyncio.run(conversation())


def test_loading_continues_without_its_caller_and_a_late_model_is_closed(bloom_bundle: Path) -> None:
    async def conversation() -> None:
        slow = asyncio.Event()
        loop = asyncio.get_running_loop()
        closed = []

        class Noted(Model):
            async def close(self) -> None:
                closed.append(self.description.name)
                await super().close()

        def load_slowly(folder: Path, name: str, hang_changed: object) -> Model:
            asyncio.run_coroutine_threadsafe(slow.wait(), loop).result(10)
            return Noted.load(folder, name, Settings(threads=1))

        registry = Registry(load_slowly, check_probe)
        asking = asyncio.create_task(registry.load(bloom_bundle, "first"))
        await asyncio.sleep(0.05)
        asking.cancel()
        slow.set()
        await until(lambda: len(registry.models) == 1)
        slow.clear()
        late = asyncio.create_task(registry.load(bloom_bundle, "second"))
        await asyncio.sleep(0.05)
        closing = asyncio.create_task(registry.close())
        await asyncio.sleep(0.05)
        slow.set()
        await closing
        with pytest.raises(ModelClosed):
            await late
        assert sorted(closed) == ["first", "second"]

    asyncio.run(conversation())


def test_a_load_that_takes_too_long_fails_and_its_model_is_closed(bloom_bundle: Path) -> None:
    async def conversation() -> None:
        go = threading.Event()
        closed = []

        class Noted(Model):
            async def close(self) -> None:
                closed.append(self.description.name)
                await super().close()

        def load_slowly(folder: Path, name: str, hang_changed: object) -> Model:
            assert name == "quick" or go.wait(20)
            return load(folder, kind=Noted, name=name)

        registry = Registry(load_slowly, check_probe, load_seconds=2.0)
        await registry.load(bloom_bundle, "quick")
        with pytest.raises(
            LoadTooSlow, match="model 'slow' was not loaded within 2 s, for its session has not started"
        ):
            await registry.load(bloom_bundle, "slow")
        with pytest.raises(
            LoadTooSlow, match="model 'quick' was not loaded within 2 s, for another load has not ended"
        ):
            await registry.load(bloom_bundle, "quick")
        assert registry.loading
        assert [model.description.name for model in registry.models] == ["quick"]
        assert closed == []
        go.set()
        await until(lambda: not registry.loading)
        assert closed == ["slow"]
        await registry.load(bloom_bundle, "slow")
        assert [model.description.name for model in registry.models] == ["quick", "slow"]
        await registry.close()

    asyncio.run(conversation())


def test_a_check_that_takes_too_long_fails_the_load(bloom_bundle: Path) -> None:
    async def never(model: Model) -> None:
        await asyncio.Event().wait()

    async def conversation() -> None:
        registry = Registry(lambda folder, name, _: load(folder, name=name), never, load_seconds=2.0)
        with pytest.raises(LoadTooSlow, match="was not loaded within 2 s, for its check has not ended"):
            await registry.load(bloom_bundle, NAME)
        assert not registry.models
        assert not registry.loading
        await registry.close()

    asyncio.run(conversation())


def test_close_waits_for_a_load_for_a_limited_time(bloom_bundle: Path) -> None:
    async def conversation() -> None:
        go = threading.Event()

        def load_slowly(folder: Path, name: str, hang_changed: object) -> Model:
            go.wait(20)
            return load(folder, name=name)

        registry = Registry(load_slowly, check_probe)
        asking = asyncio.create_task(registry.load(bloom_bundle, "slow"))
        await until(lambda: registry.loading)
        async with asyncio.timeout(10):
            await registry.close()
        assert registry.loading
        go.set()
        with pytest.raises(ModelClosed):
            await asking
        assert not registry.loading

    asyncio.run(conversation())


def test_a_model_is_unhealthy_while_a_pass_hangs(bloom_bundle: Path) -> None:
    class Hanging(Finishing):
        stuck = False

        @property
        def hung(self) -> bool:
            return self.stuck

    async def conversation() -> None:
        hanging, well = load(bloom_bundle, kind=Hanging), load(bloom_bundle, name="well")
        async with serving(hanging, well) as live:

            async def seen() -> list[int]:
                live.registry.changed.set()
                await until(lambda: not live.registry.changed.is_set())
                whole = await health_pb2_grpc.HealthStub(live.channel).Check(health_pb2.HealthCheckRequest())
                return [await status(live, NAME), await status(live, "well"), whole.status]

            assert await seen() == [SERVING, SERVING, SERVING]
            hanging.stuck = True
            assert await seen() == [NOT_SERVING, SERVING, SERVING]
            await live.stub.UnloadModel(service_pb2.UnloadModelRequest(model="well"))
            assert await seen() == [NOT_SERVING, NOT_SERVING, NOT_SERVING]
            hanging.stuck = False
            assert await seen() == [SERVING, NOT_SERVING, SERVING]

    asyncio.run(conversation())


def test_a_model_that_is_being_checked_is_closed_with_the_registry(bloom_bundle: Path) -> None:
    checked = 0

    async def check_forever(model: Model) -> None:
        nonlocal checked
        while True:
            await check_probe(model)
            checked += 1

    async def conversation() -> None:
        registry = Registry(lambda folder, name, _: Model.load(folder, name, Settings(threads=1)), check_forever)
        loading = asyncio.create_task(registry.load(bloom_bundle, NAME))
        await until(lambda: checked > 1)
        assert not registry.models
        async with asyncio.timeout(5):
            await registry.close()
            with pytest.raises(ModelClosed):
                await loading

    asyncio.run(conversation())
