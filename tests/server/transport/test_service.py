from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import pytest

from neuroglot.definitions.bundle import read_manifest
from neuroglot.v1 import analysis_pb2, group_pb2, service_pb2
from neuroglot_server.core import Group, Limits, ModelClosed, NotFinite, Settings
from neuroglot_server.transport import service
from neuroglot_server.transport.service import SERVICE_NAME
from tests.server.live import NAME, PROMPTS, Held, Live, Said, Watched, deactivate, group, load, said, serving, until


def ask(model: Callable[[], Watched], question: Callable[[Live], Awaitable[object]]) -> object:
    """Serve a model, run a conversation with it, and return its result."""

    async def conversation() -> object:
        async with serving(model()) as live:
            return await question(live)

    return asyncio.run(conversation())


def refused(model: Callable[[], Watched], question: Callable[[Live], Awaitable[object]]) -> Said:
    """Return the error of a request that the server should refuse."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        ask(model, question)
    return said(caught.value)


def request(**changes: object) -> service_pb2.AnalyzeGroupRequest:
    return service_pb2.AnalyzeGroupRequest(**{"model": NAME, "group": group(), **changes})


def test_every_method_of_the_contract_is_implemented(bloom_bundle: Path) -> None:
    async def call_all(live: Live) -> set[str]:
        answered = set()
        for method in service_pb2.DESCRIPTOR.services_by_name["NeuroglotService"].methods:
            call = live.channel.stream_stream(f"/{SERVICE_NAME}/{method.name}")(iter([]))
            if await call.code() is not grpc.StatusCode.UNIMPLEMENTED:
                answered.add(method.name)
        return answered

    assert ask(lambda: load(bloom_bundle), call_all) == {
        "ListModels",
        "GetModel",
        "Tokenize",
        "AnalyzeGroup",
        "AnalyzeGroups",
        "CaptureActivations",
        "Generate",
        "UploadNeuronSet",
        "LoadModel",
        "UnloadModel",
    }


def test_model_info_comes_from_the_bundle(bloom_bundle: Path) -> None:
    async def both(live: Live) -> tuple[service_pb2.ListModelsResponse, service_pb2.GetModelResponse]:
        listed = await live.stub.ListModels(service_pb2.ListModelsRequest())
        return listed, await live.stub.GetModel(service_pb2.GetModelRequest(model=NAME))

    listed, got = ask(lambda: load(bloom_bundle), both)
    assert list(listed.models) == [got.model]
    assert got.model.name == NAME
    assert got.model.bundle_identity == read_manifest(bloom_bundle).identity
    (component,) = got.model.components
    assert (component.name, component.layers, component.neurons) == ("decoder", 3, 96)
    assert got.model.limits.groups_in_flight == Limits().groups_in_flight


def test_texts_are_tokenized_separately(bloom_bundle: Path) -> None:
    async def tokenize(live: Live) -> service_pb2.TokenizeResponse:
        return await live.stub.Tokenize(service_pb2.TokenizeRequest(model=NAME, texts=["Paris", "", "巴黎"]))

    paris, empty, chinese = ask(lambda: load(bloom_bundle), tokenize).texts
    assert "".join(paris.tokens) == "Paris"
    assert len(paris.ids) == len(paris.tokens)
    assert not empty.ids
    assert chinese.ids


def test_a_result_has_what_the_analysis_requests(bloom_bundle: Path) -> None:
    analysis = analysis_pb2.Analysis(
        thresholds=[0.0, 0.25],
        type_map=True,
        active_bitmaps=True,
        contribution=analysis_pb2.Contribution(),
        prediction=analysis_pb2.Prediction(generate=True),
        variants=[analysis_pb2.Variant(name="off", interventions=[deactivate(analysis_pb2.NEURON_TYPE_NON_ACTIVATED)])],
    )

    async def analyse(live: Live) -> service_pb2.AnalyzeGroupResponse:
        return await live.stub.AnalyzeGroup(request(analysis=analysis))

    result = ask(lambda: load(bloom_bundle), analyse).result
    assert result.group_id == "FR"
    assert [row.label for row in result.rows] == list(PROMPTS)
    (decoder,) = result.components
    assert [threshold.threshold for threshold in decoder.thresholds] == [0.0, 0.25]
    for threshold in decoder.thresholds:
        assert sum(threshold.type_counts) == 3 * 96
        assert len(threshold.type_map) == 3 * 96 // 4
        assert [len(bitmap) for bitmap in threshold.active_bitmaps] == [3 * 96 // 8] * 3
        active = sum(byte.bit_count() for bitmap in threshold.active_bitmaps for byte in bitmap)
        assert active == sum(threshold.active_counts)
        assert math.isclose(sum(threshold.contribution.sums), 3 * 3, rel_tol=1e-5)
    assert [variant.name for variant in result.variants] == ["baseline", "off"]
    for variant in result.variants:
        assert all(prediction.HasField("exact") and not prediction.error for prediction in variant.predictions)
    assert result.provenance.model == NAME
    assert result.provenance.compute_time_ms > 0


@pytest.mark.parametrize(
    ("method", "wrong"),
    [
        ("GetModel", service_pb2.GetModelRequest(model="other")),
        ("Tokenize", service_pb2.TokenizeRequest(model="other")),
        ("AnalyzeGroup", request(model="other")),
    ],
)
def test_the_error_of_an_unknown_model_lists_the_served_ones(bloom_bundle: Path, method: str, wrong: object) -> None:
    answer = refused(lambda: load(bloom_bundle), lambda live: getattr(live.stub, method)(wrong))
    assert answer.code is grpc.StatusCode.NOT_FOUND
    assert answer.message == f"model 'other' is not served here: there is {NAME}"


def test_all_violations_of_a_request_are_reported_at_once(bloom_bundle: Path) -> None:
    wrong = request(
        group=group_pb2.Group(rows=[group_pb2.Row(label="en", text=""), group_pb2.Row(label="es", text="x" * 9999)])
    )
    wrong.analysis.thresholds.append(math.nan)
    answer = refused(lambda: load(bloom_bundle), lambda live: live.stub.AnalyzeGroup(wrong))
    assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
    assert answer.violations.keys() == {"group.rows[0].text", "analysis.thresholds[0]"}
    assert answer.message.startswith("group.rows[0].text: is empty")
    assert "(and 1 more)" in answer.message


def test_a_prompt_over_the_token_limit_is_refused(bloom_bundle: Path) -> None:
    def short() -> Watched:
        return load(bloom_bundle, Settings(Limits(tokens_per_row=20), threads=1))

    answer = refused(short, lambda live: live.stub.AnalyzeGroup(request(group=group(repeat=9))))
    assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
    assert answer.violations.keys() == {f"group.rows[{index}].text" for index in range(3)}
    assert all("expected at most 20" in description for description in answer.violations.values())


def test_an_unknown_field_and_an_unset_action_are_refused(bloom_bundle: Path) -> None:
    wrong = request()
    intervention = wrong.analysis.variants.add(name="newer").interventions.add()
    intervention.selection.types.types.append(analysis_pb2.NEURON_TYPE_SPECIFIC)
    intervention.MergeFromString(b"\x7a\x00")  # an action of number 15, from a newer contract
    answer = refused(lambda: load(bloom_bundle), lambda live: live.stub.AnalyzeGroup(wrong))
    assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
    path = "analysis.variants[0].interventions[0]"
    assert answer.violations.keys() == {f"{path}.15", f"{path}.action"}


def test_error_details_fit_into_the_trailing_metadata(bloom_bundle: Path) -> None:
    wrong = request(group=group_pb2.Group(rows=[group_pb2.Row(label="語" * 3000, text="a")] * 60))
    answer = refused(lambda: load(bloom_bundle), lambda live: live.stub.AnalyzeGroup(wrong))
    assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "group.rows[1].label" in answer.violations


def test_malformed_bytes_are_refused(bloom_bundle: Path) -> None:
    noise = random.Random(0)
    whole = request().SerializeToString()

    async def send(live: Live) -> list[grpc.StatusCode]:
        codes = set()
        for method in ("ListModels", "GetModel", "Tokenize", "AnalyzeGroup"):
            for length in (1, 3, 17, 300):
                codes.add(await live.bytes_to(method)(noise.randbytes(length)).code())
        for cut in range(1, len(whole)):
            codes.add(await live.bytes_to("AnalyzeGroup")(whole[:cut]).code())
        assert (await live.stub.AnalyzeGroup(request())).result.group_id == "FR"
        return codes

    assert ask(lambda: load(bloom_bundle), send) <= {
        grpc.StatusCode.OK,  # some cuts leave a smaller request
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
    }


def test_the_maximum_request_size_is_enforced(bloom_bundle: Path) -> None:
    def upload(size: int) -> bytes:
        return service_pb2.UploadNeuronSetRequest(model="other", neurons={"bits": bytes(size)}).SerializeToString()

    async def send(live: Live) -> list[grpc.StatusCode]:
        limit = (await live.stub.GetModel(service_pb2.GetModelRequest(model=NAME))).model.limits.request_bytes
        return [await live.bytes_to("UploadNeuronSet")(upload(size)).code() for size in (limit - 100, limit, 1)]

    assert ask(lambda: load(bloom_bundle), send) == [
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.NOT_FOUND,
    ]


def test_a_result_over_the_message_size_is_refused(bloom_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "LARGEST_RESULT_BYTES", 100)
    answer = refused(lambda: load(bloom_bundle), lambda live: live.stub.AnalyzeGroup(request()))
    assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "active_bitmaps" in answer.violations["analysis"]


def test_a_full_queue_gives_a_retry_delay(bloom_bundle: Path) -> None:
    async def four(live: Live) -> list[grpc.aio.AioRpcError]:
        many = [
            analysis_pb2.Variant(name=str(index), interventions=[deactivate(analysis_pb2.NEURON_TYPE_SPECIFIC)])
            for index in range(60)
        ]
        long = request(analysis=analysis_pb2.Analysis(prediction=analysis_pb2.Prediction(), variants=many))
        calls = [live.stub.AnalyzeGroup(long) for _ in range(4)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        return [outcome for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]

    errors = ask(lambda: load(bloom_bundle, Settings(queue_tokens=1, threads=1)), four)
    assert errors
    for error in map(said, errors):
        assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "the queue is full" in error.message
        assert error.retry_seconds is not None
        assert error.retry_seconds > 0


class Broken(Watched):
    async def before(self, group: Group) -> None:
        raise RuntimeError(f"cannot open /srv/secret for {group.id}")


class Infinite(Watched):
    async def before(self, group: Group) -> None:
        raise NotFinite("row 'en' has activations that are not finite")


class Closed(Watched):
    async def before(self, group: Group) -> None:
        raise ModelClosed("the model went down")


def test_a_server_error_reveals_only_the_request_id(bloom_bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    answer = refused(lambda: load(bloom_bundle, kind=Broken), lambda live: live.stub.AnalyzeGroup(request()))
    assert answer.code is grpc.StatusCode.INTERNAL
    assert "secret" not in answer.message
    assert answer.request_id in answer.message
    assert f"request {answer.request_id} failed" in caplog.text
    assert "RuntimeError: cannot open /srv/secret for FR" in caplog.text


@pytest.mark.parametrize(
    ("kind", "code"),
    [(Infinite, grpc.StatusCode.FAILED_PRECONDITION), (Closed, grpc.StatusCode.UNAVAILABLE)],
)
def test_errors_of_the_core_are_passed_on(bloom_bundle: Path, kind: type[Watched], code: grpc.StatusCode) -> None:
    answer = refused(lambda: load(bloom_bundle, kind=kind), lambda live: live.stub.AnalyzeGroup(request()))
    assert answer.code is code
    assert answer.message.startswith(("row 'en' has", "the model went"))


def test_a_deadline_cancels_the_work(bloom_bundle: Path) -> None:
    async def call_with_deadline(live: Live) -> tuple[grpc.StatusCode, int]:
        code = await live.stub.AnalyzeGroup(request(), timeout=0.3).code()
        await until(lambda: held.in_flight == 0)
        return code, held.cancelled

    held: Held

    def make() -> Held:
        nonlocal held
        held = load(bloom_bundle, kind=Held)
        return held

    assert ask(make, call_with_deadline) == (grpc.StatusCode.DEADLINE_EXCEEDED, 1)


def test_cancelling_a_call_cancels_the_work(bloom_bundle: Path) -> None:
    async def conversation() -> int:
        held = load(bloom_bundle, kind=Held)
        async with serving(held) as live:
            call = live.stub.AnalyzeGroup(request())
            sent = asyncio.ensure_future(call.code())
            await until(lambda: held.in_flight == 1)
            call.cancel()
            await until(lambda: held.in_flight == 0)
            await sent
            held.go.set()
            assert (await live.stub.AnalyzeGroup(request())).result.group_id == "FR"
        return held.cancelled

    assert asyncio.run(conversation()) == 1
