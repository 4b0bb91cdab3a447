"""Captures, generated text and uploads over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from neuroglot.definitions.bundle import read_manifest
from neuroglot.v1 import analysis_pb2, group_pb2, service_pb2
from neuroglot_server.core import Capture, InvalidRequest, Row, Settings
from neuroglot_server.models.model import Model
from neuroglot_server.transport import responses
from tests.server.live import NAME, PROMPTS, Live, group, load, said, serving, until
from tests.server.serving import Recorder, served

ROW = group_pb2.Row(label="en", text=PROMPTS["en"])


def converse(model: Model, question: Any) -> Any:
    async def conversation() -> Any:
        async with serving(model) as live:
            return await question(live)

    return asyncio.run(conversation())


def test_captured_layers_agree_with_the_analysis(bloom_bundle: Path) -> None:
    async def ask(live: Live) -> tuple[list[service_pb2.CaptureActivationsResponse], list[int]]:
        request = service_pb2.CaptureActivationsRequest(model=NAME, row=ROW, layers=[0, 2], positions=[0, -1])
        captured = [answer async for answer in live.stub.CaptureActivations(request)]
        alone = service_pb2.AnalyzeGroupRequest(model=NAME, group=group_pb2.Group(id="a", rows=[ROW]))
        result = (await live.stub.AnalyzeGroup(alone)).result
        return captured, [result.components[0].thresholds[0].active_counts[layer] for layer in (0, 2)]

    captured, counts = converse(load(bloom_bundle), ask)
    assert [answer.layer for answer in captured] == [0, 2]
    assert [answer.HasField("provenance") for answer in captured] == [True, False]
    assert captured[0].provenance.bundle_identity == read_manifest(bloom_bundle).identity
    for answer, count in zip(captured, counts, strict=True):
        assert answer.values.shape == [2, 96]
        values = np.frombuffer(answer.values.data, "<f4").reshape(answer.values.shape)
        assert answer.positions[0] == 0
        assert np.count_nonzero(values[1] > 0) == count


@pytest.mark.parametrize("method", ["AnalyzeGroup", "CaptureActivations", "Generate"])
def test_the_size_of_a_request_counts_against_queue_bytes(method: str, bloom_bundle: Path) -> None:
    """A number of four bytes takes eight times as much once parsed: many large requests would exhaust memory."""
    model = Model.load(bloom_bundle, NAME, Settings(threads=1, queue_bytes=3 * 2**19))

    def request(answers: int) -> Any:
        row = group_pb2.Row(label="en", text=PROMPTS["en"], answers=["Paris" + "!" * 4000] * answers)
        if method == "AnalyzeGroup":
            return service_pb2.AnalyzeGroupRequest(model=NAME, group=group_pb2.Group(id="a", rows=[row]))
        if method == "Generate":
            return service_pb2.GenerateRequest(model=NAME, row=row, max_tokens=1)
        return service_pb2.CaptureActivationsRequest(model=NAME, row=row, layers=[0], positions=[0])

    async def ask(live: Live) -> grpc.aio.AioRpcError:
        async def call(answers: int) -> None:
            answer = getattr(live.stub, method)(request(answers))
            await (answer if method == "AnalyzeGroup" else answer.read())

        await call(10)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(60)
        return caught.value

    answer = said(converse(model, ask))
    assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "expected at most 1.5 MiB (queue_bytes)" in answer.message


def test_a_layer_over_the_message_size_is_refused_before_the_model_runs(bloom_bundle: Path) -> None:
    recorder = Recorder()
    rows_of_96 = 60 * 2**20 // (96 * 4 + 4)
    row = Row("en", PROMPTS["en"])

    async def ask() -> int:
        async with served(bloom_bundle, observer=recorder) as model:

            async def sizes(positions: int) -> list[int]:
                layers = model.capture(row, Capture(layers=(1,), positions=(-1,) * positions))
                return [responses.captured_layer(layer).ByteSize() async for layer in layers]

            with pytest.raises(InvalidRequest, match=r"make a layer of 60 MiB.*ask for fewer positions"):
                await sizes(rows_of_96 + 1)
            assert recorder.tokens == 0
            (size,) = await sizes(rows_of_96)
            return size

    assert 58 * 2**20 < asyncio.run(ask()) < 64 * 2**20


def test_streamed_tokens_are_those_of_the_analysis(bloom_bundle: Path) -> None:
    async def ask(live: Live) -> tuple[list[service_pb2.GenerateResponse], list[int]]:
        request = service_pb2.GenerateRequest(model=NAME, row=ROW, max_tokens=6)
        tokens = [answer async for answer in live.stub.Generate(request)]
        prediction = analysis_pb2.Prediction(generate=True, max_tokens=6)
        alone = service_pb2.AnalyzeGroupRequest(model=NAME, group=group_pb2.Group(id="a", rows=[ROW]))
        alone.analysis.prediction.CopyFrom(prediction)
        result = (await live.stub.AnalyzeGroup(alone)).result
        return tokens, list(result.variants[0].predictions[0].token_ids)

    tokens, expected = converse(load(bloom_bundle), ask)
    assert expected
    assert [token.token_id for token in tokens] == expected
    assert [token.HasField("provenance") for token in tokens] == [True] + [False] * (len(tokens) - 1)
    assert all(token.log_probability <= 0 for token in tokens)


def test_interventions_select_an_uploaded_set_by_name(bloom_bundle: Path) -> None:
    neurons = analysis_pb2.NeuronSet(layers=3, neurons=96, bits=b"\xff" * 36)

    async def ask(live: Live) -> tuple[int, grpc.StatusCode]:
        name = (await live.stub.UploadNeuronSet(service_pb2.UploadNeuronSetRequest(model=NAME, neurons=neurons))).name

        def deactivate(uploaded: str) -> service_pb2.AnalyzeGroupRequest:
            request = service_pb2.AnalyzeGroupRequest(model=NAME, group=group())
            request.analysis.prediction.SetInParent()
            intervention = request.analysis.variants.add(name="off").interventions.add()
            intervention.selection.uploaded = uploaded
            intervention.deactivate.SetInParent()
            return request

        result = (await live.stub.AnalyzeGroup(deactivate(name))).result
        lost = await live.stub.AnalyzeGroup(deactivate("never")).code()
        return result.variants[1].predictions[0].selected_neurons, lost

    assert converse(load(bloom_bundle), ask) == (3 * 96, grpc.StatusCode.NOT_FOUND)


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("CaptureActivations", service_pb2.CaptureActivationsRequest(model=NAME, row=ROW, layers=[7])),
        ("Generate", service_pb2.GenerateRequest(model=NAME)),
        ("UploadNeuronSet", service_pb2.UploadNeuronSetRequest(model=NAME)),
    ],
)
def test_invalid_requests_fail_before_the_first_response(bloom_bundle: Path, method: str, request_: Any) -> None:
    async def ask(live: Live) -> grpc.aio.AioRpcError:
        call = getattr(live.stub, method)(request_)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await (call.read() if hasattr(call, "read") else call)
        return caught.value

    answer = said(converse(load(bloom_bundle), ask))
    assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
    assert answer.violations


def test_a_client_that_leaves_cancels_the_work_at_once(bloom_bundle: Path) -> None:
    class Endless(Model):
        running = 0

        async def generate(self, *arguments: Any) -> AsyncIterator[Any]:
            self.running += 1
            try:
                async for token in super().generate(*arguments):
                    yield token
                    await asyncio.sleep(3600)
            finally:
                self.running -= 1

    model = load(bloom_bundle, kind=Endless)

    async def ask(live: Live) -> None:
        call = live.stub.Generate(service_pb2.GenerateRequest(model=NAME, row=ROW))
        await call.read()
        assert model.running == 1
        call.cancel()
        await until(lambda: model.running == 0, seconds=2)
        unloading = live.stub.UnloadModel(service_pb2.UnloadModelRequest(model=NAME))
        await asyncio.wait_for(unloading, 5)  # the call no longer uses the model

    converse(model, ask)
