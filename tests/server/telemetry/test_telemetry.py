"""Metrics, health, logs and spans of a server, and what must not be in them."""

from __future__ import annotations

import asyncio
import json
import logging
import platform
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from importlib import metadata
from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families

from neuroglot.errors import InstallationError
from neuroglot.v1 import analysis_pb2, service_pb2
from neuroglot_server.config.address import Address, AddressError
from neuroglot_server.config.deployment import Deployment
from neuroglot_server.config.tenants import Tenants, new_token
from neuroglot_server.core import BatchRun, Settings
from neuroglot_server.lifecycle import run
from neuroglot_server.models.model import Model
from neuroglot_server.telemetry.logs import FIELDS
from neuroglot_server.telemetry.metrics import Metrics
from neuroglot_server.telemetry.monitoring import monitoring_at
from neuroglot_server.telemetry.tracing import Tracing
from neuroglot_server.transport.auth import Access
from tests.end_to_end.processes import process, works
from tests.server.live import NAME, PROMPTS, Held, group, load, said, serving, until

ANY_PORT = Address("127.0.0.1", 0)
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def request(**changes: object) -> service_pb2.AnalyzeGroupRequest:
    return service_pb2.AnalyzeGroupRequest(**{"model": NAME, "group": group(), **changes})


def monitored(metrics: Metrics, address: Address = ANY_PORT) -> AbstractContextManager[Address]:
    return monitoring_at(address, metrics.registry, lambda: metrics.problem)


def fetched(address: Address, path: str) -> tuple[int, str]:
    """The status and the body of a response."""
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def numbers(address: Address) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """The metrics that Prometheus would scrape."""
    _, text = fetched(address, "/metrics")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_are_those_of_the_calls_and_batches_that_ran(bloom_bundle: Path, tmp_path: Path) -> None:
    token = new_token()
    (tmp_path / "tokens").write_text(f'[tenants.alice]\ntoken_sha256 = ["{token.sha256}"]')
    alice = (("authorization", f"Bearer {token.token}"),)

    async def conversation(metrics: Metrics) -> None:
        model = Model.load(bloom_bundle, NAME, Settings(threads=1), metrics.of_model(NAME))
        async with serving(model, observer=metrics, access=Access(Tenants(tmp_path / "tokens"))) as live:
            for _ in range(2):
                await live.stub.AnalyzeGroup(request(), metadata=alice)
            with pytest.raises(grpc.aio.AioRpcError):
                await live.stub.AnalyzeGroup(request(model="other"), metadata=alice)
            sent = [service_pb2.AnalyzeGroupsRequest(model=NAME, group=group("a"))]
            assert [answer async for answer in live.stub.AnalyzeGroups(iter(sent), metadata=alice)]
            metrics.seen = numbers(address)

    metrics = Metrics()
    with monitored(metrics) as address:
        asyncio.run(conversation(metrics))
    seen = metrics.seen

    def value(name: str, **labels: str) -> float:
        return seen[name, frozenset(labels.items())]

    unary = {"grpc_type": "unary", "grpc_service": "neuroglot.v1.NeuroglotService", "grpc_method": "AnalyzeGroup"}
    stream = {**unary, "grpc_type": "bidi_stream", "grpc_method": "AnalyzeGroups"}
    assert value("grpc_server_started_total", **unary) == 3
    assert value("grpc_server_handled_total", **unary, grpc_code="OK") == 2
    assert value("grpc_server_handled_total", **unary, grpc_code="NOT_FOUND") == 1
    assert value("grpc_server_handling_seconds_count", **unary) == 3
    assert value("grpc_server_handled_total", **stream, grpc_code="OK") == 1
    of_model, part = {"model": NAME}, {"model": NAME, "component": "decoder"}
    assert value("neuroglot_model_up", **of_model) == 1
    assert value("neuroglot_queue_depth_tokens", **of_model) == 0
    tokens = value("neuroglot_tokens_total", tenant="alice", **of_model)
    assert tokens > 0
    assert tokens % 3 == 0  # the same group, three times
    batches = value("neuroglot_batch_seconds_count", **part)
    assert batches > 0
    assert value("neuroglot_batch_rows_count", **part) == batches
    assert value("neuroglot_batch_rows_sum", **part) == value("neuroglot_queue_seconds_count", **of_model)
    assert 0 <= value("neuroglot_batch_padding_ratio_sum", **part) < batches
    assert value("neuroglot_transport_held_bytes") == 0
    assert value("process_resident_memory_bytes") > 0


def test_a_batch_counts_as_what_it_was() -> None:
    metrics = Metrics()
    metrics.of_model("m").batch(BatchRun("encoder", 4, 40, 30, 0.2, (0.0, 0.1, 0.1, 0.3)))
    metrics.of_model("m").cached("prefix", 7, 3)
    get = metrics.registry.get_sample_value
    part = {"model": "m", "component": "encoder"}
    assert get("neuroglot_batch_rows_sum", part) == 4
    assert get("neuroglot_batch_padding_ratio_sum", part) == 0.25
    assert get("neuroglot_batch_seconds_sum", part) == 0.2
    assert get("neuroglot_queue_seconds_sum", {"model": "m"}) == pytest.approx(0.5)
    assert get("neuroglot_cache_tokens_total", {"model": "m", "cache": "prefix", "found": "hit"}) == 7
    assert get("neuroglot_cache_tokens_total", {"model": "m", "cache": "prefix", "found": "miss"}) == 3
    metrics.models({"m": True, "n": False})
    assert get("neuroglot_model_up", {"model": "n"}) == 0
    metrics.models({"m": True})
    assert get("neuroglot_model_up", {"model": "n"}) is None


def test_metrics_at_an_address_that_is_taken() -> None:
    with (
        monitored(Metrics()) as taken,
        pytest.raises(AddressError, match=f"cannot serve metrics on {taken}: Address already in use"),
        monitored(Metrics(), taken),
    ):
        pass


def test_build_info_names_what_runs() -> None:
    labels = {
        "version": metadata.version("neuroglot"),
        "python": platform.python_version(),
        "onnxruntime": metadata.version("onnxruntime"),
        "provider": "CPUExecutionProvider",
    }
    assert Metrics().registry.get_sample_value("neuroglot_build_info", labels) == 1


def test_refusals_are_counted_by_tenant_and_reason_in_calls_and_on_streams(bloom_bundle: Path, tmp_path: Path) -> None:
    token = new_token()
    (tmp_path / "tokens").write_text(f'[tenants.alice]\ntoken_sha256 = ["{token.sha256}"]')
    alice = (("authorization", f"Bearer {token.token}"),)
    metrics = Metrics()

    async def conversation() -> None:
        async with serving(load(bloom_bundle), observer=metrics, access=Access(Tenants(tmp_path / "tokens"))) as live:
            for metadata_sent in (alice, ()):
                with pytest.raises(grpc.aio.AioRpcError):
                    await live.stub.AnalyzeGroup(request(model="other"), metadata=metadata_sent)
            bad_row = service_pb2.AnalyzeGroupsRequest(model=NAME, group=group("b"))
            bad_row.group.rows[0].text = ""
            sent = [service_pb2.AnalyzeGroupsRequest(model=NAME, group=group("a")), bad_row]
            assert [answer async for answer in live.stub.AnalyzeGroups(iter(sent), metadata=alice)]

    def refused(tenant: str, reason: str) -> float | None:
        return metrics.registry.get_sample_value("neuroglot_refusals_total", {"tenant": tenant, "reason": reason})

    asyncio.run(conversation())
    assert refused("alice", "ModelNotFound") == 1
    assert refused("alice", "InvalidRequest") == 1
    assert refused("", "Unauthenticated") == 1


def test_tenants_beyond_a_thousand_are_counted_together() -> None:
    """With client certificates any common name is a tenant, and each would add series."""
    metrics = Metrics()
    for number in range(1500):
        metrics.refused(f"tenant-{number}", "QueueFull")
        metrics.of_model("m").admitted(f"tenant-{number}", 10)
    get = metrics.registry.get_sample_value
    assert get("neuroglot_refusals_total", {"tenant": "tenant-999", "reason": "QueueFull"}) == 1
    assert get("neuroglot_refusals_total", {"tenant": "tenant-1000", "reason": "QueueFull"}) is None
    assert get("neuroglot_refusals_total", {"tenant": "(others)", "reason": "QueueFull"}) == 500
    assert get("neuroglot_tokens_total", {"tenant": "(others)", "model": "m"}) == 5000


def test_memory_is_given_beside_its_limits(bloom_bundle: Path) -> None:
    settings = Settings(threads=1, queue_bytes=2**28, cache_bytes=2**24)
    metrics = Metrics()

    def bytes_of(part: str) -> tuple[float | None, float | None]:
        labels = {"model": NAME, "part": part}
        get = metrics.registry.get_sample_value
        return get("neuroglot_memory_bytes", labels), get("neuroglot_memory_limit_bytes", labels)

    async def conversation() -> None:
        model = load(bloom_bundle, settings)
        async with serving(model, observer=metrics) as live:
            metrics.memory(lambda: {NAME: model.memory}, 2**26)
            assert [bytes_of(part) for part in ("queue", "cache", "uploads")] == [(0, 2**28), (0, 2**24), (0, 2**26)]
            neurons = analysis_pb2.NeuronSet(layers=3, neurons=96, bits=bytes(36))
            await live.stub.UploadNeuronSet(service_pb2.UploadNeuronSetRequest(model=NAME, neurons=neurons))
            assert bytes_of("uploads") == (36 + 512, 2**26), "its bits, and what is around them"
            long = analysis_pb2.Analysis(prediction=analysis_pb2.Prediction(generate=True, max_tokens=300))
            running = live.stub.AnalyzeGroup(request(analysis=long, group=group(answers=False)))
            await until(lambda: bytes_of("queue") > (0, 2**28))
            await running
            kept, _ = bytes_of("cache")
            assert kept is not None
            assert kept > 3 * 2 * 3 * 24 * 4, "keys and values of a token or more of each of three rows"
            assert bytes_of("queue") == (0, 2**28)

    asyncio.run(conversation())
    assert metrics.registry.get_sample_value("neuroglot_transport_limit_bytes") == 2**26


class Hanging(Model):
    """A model that hangs when the test says so."""

    hangs = False

    @property
    def hung(self) -> bool:
        return self.hangs


def test_healthz_is_503_before_the_start_while_all_models_hang_and_during_shutdown(bloom_bundle: Path) -> None:
    metrics = Metrics()
    seen: list[tuple[int, str]] = []

    async def conversation(address: Address) -> None:
        async def look() -> None:
            seen.append(await asyncio.to_thread(fetched, address, "/healthz"))

        await look()
        model = load(bloom_bundle, kind=Hanging)
        async with serving(model, observer=metrics) as live:
            for hangs, status in ((False, 200), (True, 503), (False, 200)):
                model.hangs = hangs
                live.registry.changed.set()
                await until(lambda status=status: fetched(address, "/healthz")[0] == status)
                await look()
            await live.endpoint.drain(1)
            await look()

    with monitored(metrics) as address:
        asyncio.run(conversation(address))
        assert fetched(address, "/other") == (404, "unknown path, expected /metrics or /healthz\n")
    assert seen == [
        (503, "the server is starting\n"),
        (200, "ok\n"),
        (503, "a pass hangs in every model\n"),
        (200, "ok\n"),
        (503, "the server is shutting down\n"),
    ]


def test_every_answer_and_every_line_has_the_request_s_name_and_no_line_a_prompt(
    bloom_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def named(name: str) -> tuple[tuple[str, str]]:
        return (("x-request-id", name),)

    async def conversation() -> list[str]:
        model = load(bloom_bundle)
        async with serving(model) as live:
            unary = live.stub.AnalyzeGroup(request(), metadata=named("well"))
            await unary
            failed = live.stub.AnalyzeGroup(request(model="other"), metadata=named("failed"))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await failed
            assert said(caught.value).request_id == "failed"
            bad_row = service_pb2.AnalyzeGroupsRequest(model=NAME, group=group("b"))
            bad_row.group.rows[0].text = ""
            sent = [service_pb2.AnalyzeGroupsRequest(model=NAME, group=group("a")), bad_row]
            stream = live.stub.AnalyzeGroups(iter(sent), metadata=named("stream"))
            answers = {answer.group_id: answer async for answer in stream}
            assert answers["b"].error.request_id == "stream"
            made = live.stub.ListModels(service_pb2.ListModelsRequest())
            await made
            return [dict(await call.trailing_metadata())["x-request-id"] for call in (unary, failed, stream, made)]

    with caplog.at_level(logging.INFO):
        trailing = asyncio.run(conversation())
    assert trailing[:3] == ["well", "failed", "stream"]
    lines = [getattr(record, FIELDS) for record in caplog.records if record.name == "neuroglot_server.requests"]
    assert [(line["method"], line["code"], line["model"]) for line in lines] == [
        ("AnalyzeGroup", "OK", NAME),
        ("AnalyzeGroup", "NOT_FOUND", ""),
        ("AnalyzeGroups", "OK", NAME),
        ("ListModels", "OK", ""),
    ]
    assert lines[0]["compute_ms"] > 0
    assert lines[0]["duration_ms"] >= lines[0]["compute_ms"]
    assert not [prompt for prompt in PROMPTS.values() if prompt in caplog.text]


def test_a_cancelled_call_is_logged_as_cancelled(bloom_bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def conversation() -> None:
        model = load(bloom_bundle, kind=Held)
        async with serving(model) as live:
            assert await live.stub.AnalyzeGroup(request(), timeout=0.3).code() is grpc.StatusCode.DEADLINE_EXCEEDED
            await until(lambda: model.in_flight == 0)
            call = live.stub.AnalyzeGroup(request())
            asked = asyncio.ensure_future(call.code())
            await until(lambda: model.in_flight == 1)
            call.cancel()
            await asked
            await until(lambda: len(lines()) == 2)

    def lines() -> list[dict[str, object]]:
        return [getattr(record, FIELDS) for record in caplog.records if record.name == "neuroglot_server.requests"]

    with caplog.at_level(logging.INFO):
        asyncio.run(conversation())
    assert [line["code"] for line in lines()] == ["DEADLINE_EXCEEDED", "CANCELLED"]


@pytest.fixture
def spans() -> Iterator[tuple[Tracing, InMemorySpanExporter]]:
    exporter = InMemorySpanExporter()
    tracing = Tracing(exporter)
    yield tracing, exporter
    tracing.close()


def test_spans_continue_the_caller_s_trace(bloom_bundle: Path, spans: tuple[Tracing, InMemorySpanExporter]) -> None:
    tracing, exporter = spans

    async def conversation() -> None:
        async with serving(load(bloom_bundle), tracer=tracing) as live:
            await live.stub.AnalyzeGroup(request(), metadata=(("traceparent", PARENT),))
            with pytest.raises(grpc.aio.AioRpcError):
                await live.stub.AnalyzeGroup(request(group=group(repeat=999)))
            sent = [service_pb2.AnalyzeGroupsRequest(model=NAME, group=group(name)) for name in ("a", "b")]
            assert [answer async for answer in live.stub.AnalyzeGroups(iter(sent))]

    asyncio.run(conversation())
    tracing.close()
    one, refused, *groups, stream = exporter.get_finished_spans()
    assert one.name == refused.name == "neuroglot.v1.NeuroglotService/AnalyzeGroup"
    assert f"{one.context.trace_id:032x}" == PARENT.split("-")[1]
    assert f"{one.parent.span_id:016x}" == PARENT.split("-")[2]
    assert one.attributes["rpc.method"] == "AnalyzeGroup"
    assert one.attributes["neuroglot.model"] == NAME
    assert one.attributes["neuroglot.code"] == "OK"
    assert one.attributes["neuroglot.compute_ms"] > 0
    assert one.resource.attributes["service.name"] == "neuroglot"
    assert refused.attributes["neuroglot.code"] == "INVALID_ARGUMENT"
    assert refused.parent is None
    assert [span.name for span in groups] == ["group", "group"]
    assert {span.parent.span_id for span in groups} == {stream.context.span_id}
    assert all(span.attributes["neuroglot.compute_ms"] >= 0 for span in groups)
    told = "".join(span.to_json() for span in exporter.get_finished_spans())
    assert PROMPTS["en"] not in told


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Takes spans as a collector of OpenTelemetry does."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def Export(  # noqa: N802 - the contract's name
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        self.names += [span.name for of in request.resource_spans for scope in of.scope_spans for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()


def test_the_program_sends_its_spans_to_a_collector(bloom_bundle: Path) -> None:
    collector, server = Collector(), grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        with process(bloom_bundle, "--tracing-endpoint", endpoint) as program:
            assert works(program)
            program.popen.terminate()
            assert program.popen.wait(20) == 0
        assert "neuroglot.v1.NeuroglotService/AnalyzeGroup" in collector.names, "what was left was sent in the end"
    finally:
        server.stop(0).wait()


def test_without_its_packages_tracing_is_refused(bloom_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    monkeypatch.delitem(sys.modules, "neuroglot_server.telemetry.tracing")
    deployment = Deployment({"b": bloom_bundle}, Address("127.0.0.1", 0), tracing_endpoint="http://127.0.0.1:9")
    with pytest.raises(InstallationError, match=r"pip install 'neuroglot\[tracing\]'"):
        asyncio.run(run(deployment, asyncio.Event(), lambda _: None))


def test_the_program_writes_json_and_serves_metrics(bloom_bundle: Path) -> None:
    """End to end, as a program: environment, metrics, log and a clean exit."""
    command = [sys.executable, "-m", "neuroglot", "serve", str(bloom_bundle), "--address", "127.0.0.1:0"]
    flags = ["--metrics-address", "127.0.0.1:0", "--log-format", "json", "--threads", "1"]
    process = subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        lines = []
        while not any("metrics are at" in line["message"] for line in lines):
            lines.append(json.loads(process.stderr.readline()))
        url = lines[-1]["message"].split(" at ")[1]
        assert process.stdout.readline().startswith("model ")
        assert process.stdout.readline().startswith("listening on ")
        address = Address.parse(url.removeprefix("http://").removesuffix("/metrics"))
        assert fetched(address, "/healthz") == (200, "ok\n")
        _, text = fetched(address, "/metrics")
        assert f'neuroglot_model_up{{model="{bloom_bundle.name}"}} 1.0' in text
        assert f'neuroglot_memory_limit_bytes{{model="{bloom_bundle.name}",part="queue"}}' in text
        process.terminate()
        assert process.wait(10) == 0
        assert all(json.loads(line) for line in process.stderr)
    finally:
        process.kill()
        process.communicate()
