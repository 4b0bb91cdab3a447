"""Fuzzing: random requests built from the contract's descriptors, and valid ones with random changes.

The server answers each or refuses it as invalid, without an internal error, and keeps serving.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neuroglot.definitions.bundle import read_manifest
from neuroglot.v1 import analysis_pb2, group_pb2, service_pb2
from neuroglot_server.lifecycle import start_in_thread
from tests.checkpoints import RandomModel

SERVICE = service_pb2.DESCRIPTOR.services_by_name["NeuroglotService"]
REQUESTS = {method.name: GetMessageClass(method.input_type) for method in SERVICE.methods}
FAULTS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE}

_MAX_DEPTH = 6
_MAX_REPEATED = 3
_INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_WORDS = st.sampled_from(["en", "es", "decoder", "encoder", "baseline", "bloom", " ", "\n", "\x00", "́", "🙂", "../.."])
_TEXTS = st.one_of(st.just("The capital of France is"), _WORDS, st.text(max_size=20))


def values(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    """Values of a field, some of them plausible."""
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_MESSAGE:
        return messages(field.message_type, depth + 1)
    if kind in _INTEGERS:
        low, high = _INTEGERS[kind]
        return st.one_of(st.integers(0, 3), st.sampled_from([low, high]), st.integers(low, high))
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return st.one_of(st.sampled_from([value.number for value in field.enum_type.values]), st.integers(-1, 99))
    if kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return st.one_of(st.sampled_from([0.0, 1.0, -1.0, math.nan, math.inf, 3e38]), st.floats(width=32))
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    return st.binary(max_size=40) if field.type == FieldDescriptor.TYPE_BYTES else _TEXTS


@st.composite
def messages(draw: st.DrawFn, kind: Descriptor, depth: int = 0) -> Message:
    """A message of a type with some of its fields set."""
    message = GetMessageClass(kind)()
    for field in kind.fields:
        if (depth < _MAX_DEPTH or field.message_type is None) and draw(st.booleans()):
            put(draw, message, field, depth)
    return message


def put(draw: st.DrawFn, message: Message, field: FieldDescriptor, depth: int) -> None:
    """Set a field to a random value, or to several."""
    if field.is_repeated:
        items = draw(st.lists(values(field, depth), max_size=_MAX_REPEATED))
        message.ClearField(field.name)
        getattr(message, field.name).extend(items)
    elif field.message_type is not None:
        getattr(message, field.name).CopyFrom(draw(values(field, depth)))
    else:
        setattr(message, field.name, draw(values(field, depth)))


def submessages(message: Message) -> Iterator[Message]:
    """A message and all its submessages, at any depth."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for item in value if field.is_repeated else [value]:
                yield from submessages(item)


@st.composite
def mutated(draw: st.DrawFn, valid: Message) -> Message:
    """A valid request with some fields changed, at any depth."""
    message = type(valid)()
    message.CopyFrom(valid)
    for _ in range(draw(st.integers(1, 3))):
        part = draw(st.sampled_from(list(submessages(message))))
        if part.DESCRIPTOR.fields:
            put(draw, part, draw(st.sampled_from(list(part.DESCRIPTOR.fields))), depth=3)
    return message


def valid_requests(bundle: Path) -> dict[str, Message]:
    """One valid request for each method that runs a bundle's model."""
    model, components = bundle.name, read_manifest(bundle).model.components
    first, decoder = components[0], components[-1]
    rows = [
        group_pb2.Row(label="en", text="The capital of France is", answers=["Paris"], choices=["Paris", "Rome"]),
        group_pb2.Row(label="es", text="La capital de Francia es", answers=["París"], distractor="Roma"),
    ]
    neurons = analysis_pb2.NeuronSet(
        component=decoder.name,
        layers=decoder.layers,
        neurons=decoder.neurons,
        bits=b"\x01" * (decoder.layers * -(-decoder.neurons // 8)),
    )
    by_type = analysis_pb2.Selection(types={"types": [analysis_pb2.NEURON_TYPE_SPECIFIC]})
    control = analysis_pb2.Control(of=by_type, kind=analysis_pb2.CONTROL_KIND_RANDOM_ACTIVE)
    explicit = analysis_pb2.Selection(neurons=neurons)
    interventions = [
        analysis_pb2.Intervention(selection=by_type, deactivate={}),
        analysis_pb2.Intervention(selection={"control": control}, scale={"factor": 2}),
        analysis_pb2.Intervention(selection=explicit, convert={"value": 1}, scope=analysis_pb2.SCOPE_ALL_TOKENS),
        analysis_pb2.Intervention(selection={"union": {"selections": [explicit, by_type]}}, add={"value": 0.5}),
    ]
    analysis = analysis_pb2.Analysis(
        thresholds=[0, 0.5],
        type_map=True,
        active_bitmaps=True,
        contribution={"top_fraction": 0.1},
        effective_score={"neurons": 2},
        dead=True,
        prediction={"generate": True, "max_tokens": 2},
        variants=[
            analysis_pb2.Variant(name=str(n), interventions=[intervention])
            for n, intervention in enumerate(interventions)
        ],
    )
    group = group_pb2.Group(id="one", rows=rows)
    return {
        "AnalyzeGroup": service_pb2.AnalyzeGroupRequest(model=model, group=group, analysis=analysis),
        "AnalyzeGroups": service_pb2.AnalyzeGroupsRequest(model=model, group=group, analysis=analysis),
        "Tokenize": service_pb2.TokenizeRequest(model=model, texts=["one", "two"]),
        "CaptureActivations": service_pb2.CaptureActivationsRequest(
            model=model,
            component=first.name,
            row=rows[0],
            layers=[0, first.layers - 1],
            neurons=[1, 5],
            positions=[0, -1],
        ),
        "Generate": service_pb2.GenerateRequest(
            model=model, row=rows[0], interventions=interventions[2:3], max_tokens=3
        ),
        "UploadNeuronSet": service_pb2.UploadNeuronSetRequest(model=model, neurons=neurons),
    }


@pytest.fixture(scope="module")
def bundles(random_model: Callable[[str], RandomModel]) -> list[Path]:
    """A causal model and an encoder-decoder."""
    return [random_model(family).bundle for family in ("bloom", "mt0")]


@pytest.fixture(scope="module")
def channel(bundles: list[Path]) -> Iterator[grpc.Channel]:
    with start_in_thread(bundles) as server, grpc.insecure_channel(server.target) as open_channel:
        yield open_channel


def status_of(channel: grpc.Channel, method: str, raw: bytes) -> grpc.StatusCode:
    """Send bytes to a method, and return the status."""
    described = SERVICE.methods_by_name[method]
    path = f"/{SERVICE.full_name}/{method}"
    try:
        if described.client_streaming:
            for answer in channel.stream_stream(path)(iter([raw]), timeout=20):
                code = service_pb2.AnalyzeGroupsResponse.FromString(answer).error.code
                if code:
                    return next(status for status in grpc.StatusCode if status.value[0] == code)
        elif described.server_streaming:
            list(channel.unary_stream(path)(raw, timeout=20))
        else:
            channel.unary_unary(path)(raw, timeout=20)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def still_serves(channel: grpc.Channel, bundles: list[Path]) -> bool:
    valid = [valid_requests(bundle)["AnalyzeGroup"].SerializeToString() for bundle in bundles]
    return all(status_of(channel, "AnalyzeGroup", raw) is grpc.StatusCode.OK for raw in valid)


@pytest.mark.parametrize("method", ["AnalyzeGroup", "AnalyzeGroups", "Tokenize", "CaptureActivations", "Generate"])
def test_valid_requests_succeed(channel: grpc.Channel, bundles: list[Path], method: str) -> None:
    for bundle in bundles:
        raw = valid_requests(bundle)[method].SerializeToString()
        assert status_of(channel, method, raw) is grpc.StatusCode.OK


@pytest.mark.parametrize("method", sorted(REQUESTS))
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
def test_random_requests_cause_no_server_error(
    channel: grpc.Channel, bundles: list[Path], method: str, data: st.DataObject
) -> None:
    request = data.draw(messages(REQUESTS[method].DESCRIPTOR))
    if "model" in request.DESCRIPTOR.fields_by_name and data.draw(st.booleans()):
        request.model = data.draw(st.sampled_from(bundles)).name
    if method != "UnloadModel":  # a valid one would remove the model
        assert status_of(channel, method, request.SerializeToString()) not in FAULTS
    assert still_serves(channel, bundles)


@settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
def test_mutated_requests_cause_no_server_error(
    channel: grpc.Channel, bundles: list[Path], data: st.DataObject
) -> None:
    requests = valid_requests(data.draw(st.sampled_from(bundles)))
    method = data.draw(st.sampled_from(sorted(requests)))
    request = data.draw(mutated(requests[method]))
    assert status_of(channel, method, request.SerializeToString()) not in FAULTS


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(method=st.sampled_from(sorted(REQUESTS)), raw=st.binary(max_size=60), cut=st.integers(1, 40))
def test_random_bytes_cause_no_server_error(
    channel: grpc.Channel, bundles: list[Path], method: str, raw: bytes, cut: int
) -> None:
    valid = valid_requests(bundles[cut % len(bundles)]).get(method)
    whole = b"" if valid is None else valid.SerializeToString()
    for content in (raw, whole[:-cut], whole + raw, struct.pack("<I", cut) + whole):
        assert status_of(channel, method, content) not in FAULTS
    assert still_serves(channel, bundles)
