"""Authentication: tokens, certificates, quotas, and which addresses need them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from neuroglot.v1 import service_pb2, service_pb2_grpc
from neuroglot_server.config.address import Address
from neuroglot_server.config.deployment import Certificates, Deployment, TransportLimits
from neuroglot_server.config.tenants import NewToken, Tenant, Tenants, new_token
from neuroglot_server.core import Priority, Quota, Settings
from neuroglot_server.transport.auth import Access, Unauthenticated, request_id
from tests.server.certificates import Authority, authority
from tests.server.deployed import deployed
from tests.server.live import NAME, Live, Watched, channel_to, group, load, said, serving

ALICE, BOB = new_token(), new_token()


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    file = tmp_path / "tokens.toml"
    file.write_text(
        f"""
        [tenants.alice]
        token_sha256 = ["{ALICE.sha256}"]
        queue_tokens = 5000
        tokens_per_minute = 60000
        calls = 3
        may_manage_models = true
        [tenants.bob]
        token_sha256 = ["{BOB.sha256}"]
        """
    )
    return file


def bearer(token: str) -> tuple[tuple[str, str]]:
    return (("authorization", f"Bearer {token}"),)


def request() -> service_pb2.AnalyzeGroupRequest:
    return service_pb2.AnalyzeGroupRequest(model=NAME, group=group())


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ((), "this server requires a token: send it as metadata, `authorization: Bearer TOKEN`"),
        ((("authorization", "Basic abc"),), "requires a token"),
        (bearer("ng_guessed"), "unknown token"),
        (bearer(ALICE.sha256), "unknown token"),
    ],
)
def test_calls_without_a_known_token_are_refused(
    bloom_bundle: Path, tokens: Path, metadata: tuple[tuple[str, str], ...], message: str
) -> None:
    async def conversation() -> None:
        async with serving(load(bloom_bundle), access=Access(Tenants(tokens))) as live:
            stream = live.stub.AnalyzeGroups(metadata=metadata)
            for call in (
                live.stub.AnalyzeGroup(request(), metadata=metadata),
                live.stub.ListModels(service_pb2.ListModelsRequest(), metadata=metadata),
                live.stub.Generate(service_pb2.GenerateRequest(), metadata=metadata).read(),
                stream.read(),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call
                assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
                assert message in said(caught.value).message

    asyncio.run(conversation())


def test_a_token_identifies_the_tenant_and_its_quota(bloom_bundle: Path, tokens: Path) -> None:
    async def conversation() -> Watched:
        model = load(bloom_bundle, kind=Watched)
        async with serving(model, access=Access(Tenants(tokens))) as live:
            get_model = service_pb2.GetModelRequest(model=NAME)
            limits = [
                (await live.stub.GetModel(get_model, metadata=bearer(token.token))).model.limits
                for token in (ALICE, BOB)
            ]
            assert [limit.tenant_queue_tokens for limit in limits] == [5000, 0]
            assert [limit.tenant_tokens_per_minute for limit in limits] == [60000, 0]
            assert [limit.tenant_calls for limit in limits] == [3, 256], "the default is half of the server's limit"
            named = (*bearer(ALICE.token), ("x-request-id", "mine-1"))
            await live.stub.AnalyzeGroup(request(), metadata=named)
            bulk = service_pb2.AnalyzeGroupRequest(model=NAME, group=group(), priority=service_pb2.PRIORITY_BULK)
            await live.stub.AnalyzeGroup(bulk, metadata=bearer(BOB.token))
            sent = [
                service_pb2.AnalyzeGroupsRequest(model=NAME, group=group("a")),
                service_pb2.AnalyzeGroupsRequest(
                    model=NAME, group=group("b"), priority=service_pb2.PRIORITY_INTERACTIVE
                ),
            ]
            assert (
                len([answer async for answer in live.stub.AnalyzeGroups(iter(sent), metadata=bearer(BOB.token))]) == 2
            )
            return model

    from_alice, *from_bob = asyncio.run(conversation()).callers
    assert (from_alice.tenant, from_alice.quota, from_alice.priority, from_alice.request_id) == (
        "alice",
        Quota(5000, 60000, 3),
        Priority.INTERACTIVE,
        "mine-1",
    )
    assert [(caller.tenant, caller.quota) for caller in from_bob] == [("bob", Quota())] * 3
    assert [caller.priority for caller in from_bob] == [Priority.BULK, Priority.BULK, Priority.INTERACTIVE]


def test_calls_of_a_tenant_are_limited_and_leave_capacity_for_others(bloom_bundle: Path, tokens: Path) -> None:
    async def conversation() -> None:
        access, limits = Access(Tenants(tokens)), TransportLimits(calls=5)
        async with serving(load(bloom_bundle), access=access, limits=limits) as live:

            async def refused(token: NewToken) -> str:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await live.stub.ListModels(service_pb2.ListModelsRequest(), metadata=bearer(token.token))
                answer = said(caught.value)
                assert answer.code is grpc.StatusCode.RESOURCE_EXHAUSTED
                assert answer.retry_seconds == 1.0
                return answer.message

            def stream(token: NewToken) -> grpc.aio.StreamStreamCall:
                return live.stub.AnalyzeGroups(metadata=bearer(token.token))

            async def running(token: NewToken, group_id: str) -> grpc.aio.StreamStreamCall:
                call = stream(token)
                await call.write(service_pb2.AnalyzeGroupsRequest(model=NAME, group=group(group_id)))
                assert (await call.read()).group_id == group_id  # so it is counted as running
                return call

            of_alice = [await running(ALICE, str(number)) for number in range(3)]
            assert "3 calls of this tenant are running" in await refused(ALICE)
            of_bob = [await running(BOB, str(number)) for number in range(2)]
            assert "5 calls are running" in await refused(BOB), "the server's own limit comes first"
            await of_alice[0].done_writing()
            assert await of_alice[0].code() is grpc.StatusCode.OK
            assert "2 calls of this tenant are running" in await refused(BOB)
            await live.stub.ListModels(service_pb2.ListModelsRequest(), metadata=bearer(ALICE.token))
            for call in (*of_alice[1:], *of_bob):
                call.cancel()

    asyncio.run(conversation())


def test_tokens_per_minute_are_limited_per_tenant(bloom_bundle: Path, tokens: Path) -> None:
    tokens.write_text(tokens.read_text().replace("60000", "100"))

    async def conversation() -> None:
        access = Access(Tenants(tokens))
        async with serving(load(bloom_bundle, Settings(threads=1, cache_bytes=0)), access=access) as live:

            def ask(token: NewToken) -> grpc.aio.UnaryUnaryCall:
                return live.stub.AnalyzeGroup(request(), metadata=bearer(token.token))

            with pytest.raises(grpc.aio.AioRpcError) as caught:
                for _ in range(100):
                    await ask(ALICE)
            answer = said(caught.value)
            assert answer.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "your quota of 100 tokens a minute is used up" in answer.message
            assert answer.retry_seconds is not None
            assert 0 < answer.retry_seconds <= 60
            for _ in range(10):
                assert (await ask(BOB)).result.group_id == "FR"

    asyncio.run(conversation())


def test_revoked_and_new_tokens_take_effect_without_a_restart(bloom_bundle: Path, tokens: Path) -> None:
    """A stream that is open when its token is revoked continues."""

    async def conversation() -> None:
        async with serving(load(bloom_bundle), access=Access(Tenants(tokens))) as live:

            async def code(token: NewToken) -> grpc.StatusCode:
                return await live.stub.ListModels(service_pb2.ListModelsRequest(), metadata=bearer(token.token)).code()

            stream = live.stub.AnalyzeGroups(metadata=bearer(BOB.token))
            await stream.write(service_pb2.AnalyzeGroupsRequest(model=NAME, group=group("before")))
            assert (await stream.read()).result.group_id == "before"
            carol = new_token()
            assert await code(BOB) is grpc.StatusCode.OK
            assert await code(carol) is grpc.StatusCode.UNAUTHENTICATED
            tokens.write_text(tokens.read_text().replace(BOB.sha256, carol.sha256))
            async with asyncio.timeout(10):
                while await code(carol) is not grpc.StatusCode.OK:
                    await asyncio.sleep(0.05)
            assert await code(ALICE) is grpc.StatusCode.OK
            assert await code(BOB) is grpc.StatusCode.UNAUTHENTICATED
            await stream.write(service_pb2.AnalyzeGroupsRequest(group=group("after")))
            await stream.done_writing()
            assert (await stream.read()).result.group_id == "after"

    asyncio.run(conversation())


def test_loading_and_unloading_need_may_manage_models(bloom_bundle: Path, tokens: Path) -> None:
    async def conversation() -> None:
        async with serving(load(bloom_bundle), access=Access(Tenants(tokens))) as live:
            for call in (
                live.stub.LoadModel(service_pb2.LoadModelRequest(bundle="x"), metadata=bearer(BOB.token)),
                live.stub.UnloadModel(service_pb2.UnloadModelRequest(model=NAME), metadata=bearer(BOB.token)),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call
                assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
                assert "'bob' may not load or unload models" in said(caught.value).message
            await live.stub.UnloadModel(service_pb2.UnloadModelRequest(model=NAME), metadata=bearer(ALICE.token))

    asyncio.run(conversation())


def test_health_and_reflection_need_no_token(bloom_bundle: Path, tokens: Path) -> None:
    async def conversation(live: Live) -> int:
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        stub = reflection_pb2_grpc.ServerReflectionStub(live.channel)
        assert [answer async for answer in stub.ServerReflectionInfo(iter([request]))]
        return (await health_pb2_grpc.HealthStub(live.channel).Check(health_pb2.HealthCheckRequest())).status

    async def serve() -> int:
        async with serving(load(bloom_bundle), access=Access(Tenants(tokens))) as live:
            return await conversation(live)

    assert asyncio.run(serve()) == health_pb2.HealthCheckResponse.SERVING


def test_an_unauthenticated_call_is_refused_before_its_message_is_read(bloom_bundle: Path, tokens: Path) -> None:
    async def conversation() -> grpc.StatusCode:
        async with serving(load(bloom_bundle), access=Access(Tenants(tokens))) as live:
            call = live.channel.stream_unary("/neuroglot.v1.NeuroglotService/AnalyzeGroup")()
            return await asyncio.wait_for(call.code(), 5)  # the client never sends a message

    assert asyncio.run(conversation()) is grpc.StatusCode.UNAUTHENTICATED


@pytest.fixture(scope="module")
def issued(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return authority(tmp_path_factory.mktemp("certificates"))


async def names(
    target: str, channel_credentials: grpc.ChannelCredentials | None, metadata: tuple[tuple[str, str], ...] = ()
) -> list[str]:
    """List the names of a server's models; a target that does not respond fails within seconds."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.initial_reconnect_backoff_ms", 100)]
    channel = (
        grpc.aio.secure_channel(target, channel_credentials, options) if channel_credentials else channel_to(target)
    )
    async with channel:
        stub = service_pb2_grpc.NeuroglotServiceStub(channel)
        answer = await stub.ListModels(service_pb2.ListModelsRequest(), metadata=metadata, timeout=10)
        return [model.name for model in answer.models]


def test_tls_with_a_token(bloom_bundle: Path, tokens: Path, issued: Authority) -> None:
    async def conversation() -> None:
        tls = issued.server._replace(client_ca=None)
        anywhere = Address("127.0.0.1", 0)
        async with deployed(Deployment({"b": bloom_bundle}, anywhere, certificates=tls, tokens=tokens)) as target:
            trusting = grpc.ssl_channel_credentials(issued.root)
            assert await names(target, trusting, bearer(ALICE.token)) == ["b"]
            for channel_credentials, metadata, code in (
                (trusting, (), grpc.StatusCode.UNAUTHENTICATED),
                (grpc.ssl_channel_credentials(authority(tokens.parent).root), (), grpc.StatusCode.UNAVAILABLE),
                (None, bearer(ALICE.token), grpc.StatusCode.UNAVAILABLE),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await names(target, channel_credentials, metadata)
                assert caught.value.code() is code

    asyncio.run(conversation())


def test_a_client_certificate_identifies_the_tenant(bloom_bundle: Path, tokens: Path, issued: Authority) -> None:
    async def code(target: str, name: str | None) -> grpc.StatusCode:
        key, certificate = issued.client(name)
        channel_credentials = grpc.ssl_channel_credentials(issued.root, key, certificate)
        async with grpc.aio.secure_channel(target, channel_credentials) as channel:
            stub = service_pb2_grpc.NeuroglotServiceStub(channel)
            return await stub.UnloadModel(service_pb2.UnloadModelRequest(model="other"), timeout=10).code()

    async def conversation() -> None:
        deployment = Deployment({"b": bloom_bundle}, Address("127.0.0.1", 0), certificates=issued.server, tokens=tokens)
        async with deployed(deployment) as target:
            assert await code(target, "alice") is grpc.StatusCode.NOT_FOUND  # permitted, but the model does not exist
            assert await code(target, "bob") is grpc.StatusCode.PERMISSION_DENIED
            assert await code(target, "carol") is grpc.StatusCode.PERMISSION_DENIED
            assert await code(target, None) is grpc.StatusCode.UNAUTHENTICATED
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await names(target, grpc.ssl_channel_credentials(issued.root), bearer(ALICE.token))
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE

    asyncio.run(conversation())


def test_a_token_takes_precedence_over_a_certificate(tokens: Path, issued: Authority) -> None:
    access = Access(Tenants(tokens), client_certificates=True)
    certificate = {"x509_pem_cert": [issued.client("bob")[1]]}
    assert access.tenant(dict(bearer(ALICE.token)), certificate).name == "alice"
    assert access.tenant({}, certificate).name == "bob"
    with pytest.raises(Unauthenticated, match="unknown token"):
        access.tenant(dict(bearer("wrong")), certificate)
    assert Access(client_certificates=True).tenant({}, certificate) == Tenant("bob")
    assert Access().tenant(dict(bearer("whatever")), {}).name == ""


TLS = Certificates(Path("c"), Path("k"))


@pytest.mark.parametrize(
    ("address", "certificates", "file", "exposure"),
    [
        ("127.0.0.1:1", None, None, ""),
        ("0.0.0.0:1", None, None, "neither encrypted nor authenticated"),
        ("0.0.0.0:1", None, Path("t"), "traffic is not encrypted"),
        ("0.0.0.0:1", TLS, None, "calls are not authenticated"),
        ("0.0.0.0:1", TLS, Path("t"), ""),
        ("0.0.0.0:1", TLS._replace(client_ca=Path("a")), None, ""),
    ],
)
def test_a_non_loopback_address_needs_tls_and_authentication(
    address: str, certificates: Certificates | None, file: Path | None, exposure: str
) -> None:
    deployment = Deployment({}, Address.parse(address), certificates=certificates, tokens=file)
    assert exposure in "".join(deployment.exposures)
    assert len(deployment.exposures) == bool(exposure)


@pytest.mark.parametrize(("address", "exposed"), [("0.0.0.0:9464", True), ("[::]:0", True), ("127.0.0.1:9464", False)])
def test_metrics_on_a_non_loopback_address_are_reported_too(address: str, exposed: bool) -> None:
    calls_are_safe = {"certificates": TLS._replace(client_ca=Path("a")), "tokens": Path("t")}
    deployment = Deployment({}, Address.parse("0.0.0.0:1"), metrics_address=Address.parse(address), **calls_are_safe)
    assert len(deployment.exposures) == exposed
    if exposed:
        assert f"can reach the metrics on {address}, which need no token" in deployment.exposures[0]


def test_a_caller_s_request_id_is_kept_if_it_is_valid() -> None:
    assert request_id({"x-request-id": "4bf9-2f.A_z/1"}) == "4bf9-2f.A_z/1"
    generated = {request_id({"x-request-id": invalid}) for invalid in ("", "two words", "new\nline", "é", "x" * 200)}
    assert len(generated) == 5
    assert all(len(generated_id) == 16 for generated_id in generated)
