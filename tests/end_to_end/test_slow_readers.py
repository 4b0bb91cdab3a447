"""Clients that stop reading in the middle of a response: what the server holds for them, and how the call ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2

from neuroglot.v1 import analysis_pb2, group_pb2, service_pb2
from tests.end_to_end.processes import PROMPT, Process, process, raw, until, works

ROW = group_pb2.Row(label="en", text=PROMPT)
NARROW = {"http2__lookahead_bytes": 1024, "http2__bdp_probe": 0, "max_receive_message_length": 64 * 2**20}
"""Options of a channel that buffers only a kilobyte per call."""

QUEUE_BYTES = 128 * 2**20


@pytest.fixture(scope="module")
def server(bloom_bundle: Path) -> Iterator[Process]:
    """A server without caches, which reads a stream one group at a time once it holds a megabyte."""
    options = ("--cache-bytes", "0", "--queue-bytes", str(QUEUE_BYTES), "--transport-bytes", "1MiB")
    with process(bloom_bundle, *options) as running:
        yield running


def settled(measure: Callable[[], float]) -> float:
    """Wait until a number has not changed for half a second, and return it."""
    last, since = measure(), time.monotonic()
    while time.monotonic() - since < 0.5:
        time.sleep(0.05)
        if (now := measure()) != last:
            last, since = now, time.monotonic()
    return last


def test_generation_waits_for_its_reader(server: Process) -> None:
    request = service_pb2.GenerateRequest(model=server.bundle.name, row=ROW, max_tokens=300, past_newlines=True)
    with raw(server.address, **NARROW) as stub:
        before = server.number("neuroglot_batch_seconds_count")
        slow = stub.Generate(request)
        tokens = [next(slow)]
        ahead = settled(lambda: server.number("neuroglot_batch_seconds_count")) - before
        assert ahead < 200, "generation is a kilobyte ahead of its reader, not the whole text"
        assert server.depth() > 0, "it stays admitted"
        assert works(server)
        tokens += slow
        assert slow.code() is grpc.StatusCode.OK
        assert until(lambda: server.depth() == 0)
    with raw(server.address) as stub:
        quick = list(stub.Generate(request))
    assert len(quick) == 300
    assert [token.token_id for token in tokens] == [token.token_id for token in quick]
    assert "".join(token.text for token in tokens) == "".join(token.text for token in quick)


def test_captures_wait_for_their_readers_and_their_bytes_are_limited(server: Process) -> None:
    """Twelve concurrent captures of 15 MB per layer: those that fit `queue_bytes` are admitted, the others refused."""
    few = service_pb2.CaptureActivationsRequest(model=server.bundle.name, row=ROW)
    positions = np.arange(40_000) % 5
    many = service_pb2.CaptureActivationsRequest(model=server.bundle.name, row=ROW, positions=positions.tolist())
    with raw(server.address, **NARROW) as stub:
        expected = [values(layer) for layer in stub.CaptureActivations(few)]
        before = server.resident_bytes()
        slow = [stub.CaptureActivations(many) for _ in range(12)]
        grown = settled(lambda: round((server.resident_bytes() - before) / 2**22)) * 2**22
        admitted = [call for call in slow if call.is_active()]
        refused = [call for call in slow if not call.is_active()]
        assert admitted
        assert refused
        for call in refused:
            assert call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "the queue is full" in call.details()
            assert retry_seconds(call) > 0
        assert grown < 3 * QUEUE_BYTES, "admitted captures, and one layer of each again as a message"
        assert works(server)
        for call in admitted:
            assert_captured(list(call), expected, positions)
        assert until(lambda: server.depth() == 0)
        assert_captured(list(stub.CaptureActivations(many)), expected, positions)  # a retry is admitted


def test_a_call_whose_client_does_not_read_is_ended(bloom_bundle: Path) -> None:
    options = ("--cache-bytes", "0", "--queue-bytes", str(QUEUE_BYTES), "--reader-seconds", "1")
    few = service_pb2.CaptureActivationsRequest(model=bloom_bundle.name, row=ROW)
    positions = np.arange(40_000) % 5
    many = service_pb2.CaptureActivationsRequest(model=bloom_bundle.name, row=ROW, positions=positions.tolist())
    text = service_pb2.GenerateRequest(model=bloom_bundle.name, row=ROW, max_tokens=300, past_newlines=True)
    with process(bloom_bundle, *options) as server, raw(server.address, **NARROW) as stub:
        expected = [values(layer) for layer in stub.CaptureActivations(few)]
        slow = [*(stub.CaptureActivations(many) for _ in range(12)), stub.Generate(text)]
        assert until(lambda: server.depth() > 0)
        assert until(lambda: server.depth() == 0), "all of them are dropped from the queue"
        with raw(server.address, max_receive_message_length=64 * 2**20) as others:
            assert_captured(list(others.CaptureActivations(many)), expected, positions)
        stopped = [call for call in slow if call.is_active()]
        assert stopped
        for call in stopped:
            with pytest.raises(grpc.RpcError) as caught:
                list(call)
            assert caught.value.code() is grpc.StatusCode.ABORTED
            assert "the client read nothing of this response for 1 s" in caught.value.details()


def test_groups_wait_for_their_reader(server: Process) -> None:
    total = 80
    rows = [group_pb2.Row(label=str(n), text=PROMPT) for n in range(60)]
    analysis = analysis_pb2.Analysis(active_bitmaps=True, type_map=True, thresholds=[n / 100 for n in range(32)])

    def requests() -> Iterator[service_pb2.AnalyzeGroupsRequest]:
        for number in range(total):
            group = group_pb2.Group(id=str(number), rows=rows)
            yield service_pb2.AnalyzeGroupsRequest(model=server.bundle.name, group=group, analysis=analysis)

    with raw(server.address, **NARROW) as stub:
        before = server.number("neuroglot_tokens_total")
        slow = stub.AnalyzeGroups(requests())
        answers = [next(slow)]
        accepted = settled(lambda: server.number("neuroglot_tokens_total")) - before
        assert works(server)
        answers += slow
        assert slow.code() is grpc.StatusCode.OK
    assert accepted < (server.number("neuroglot_tokens_total") - before) / 2, "the sender gets backpressure"
    assert sorted(int(answer.group_id) for answer in answers) == list(range(total)), "none is lost or duplicated"
    first = answers[0].result.components
    assert all(answer.result.components == first for answer in answers), "all groups have the same prompts"
    assert until(lambda: server.depth() == 0)


def assert_captured(
    layers: Sequence[service_pb2.CaptureActivationsResponse], expected: Sequence[np.ndarray], positions: np.ndarray
) -> None:
    """Check that every layer is present once, with the values of each position."""
    assert [layer.layer for layer in layers] == [0, 1, 2]
    for layer, of_all in zip(layers, expected, strict=True):
        np.testing.assert_allclose(values(layer), of_all[positions], atol=1e-5)


def values(layer: service_pb2.CaptureActivationsResponse) -> np.ndarray:
    """`[positions, neurons]`."""
    return np.frombuffer(layer.values.data, "<f4").reshape(layer.values.shape)


def retry_seconds(call: grpc.RpcError) -> float:
    """The retry delay in seconds that the server returned."""
    trailing = dict(call.trailing_metadata())
    details = status_pb2.Status.FromString(trailing["grpc-status-details-bin"]).details
    (retry,) = (detail for detail in details if detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR))
    return error_details_pb2.RetryInfo.FromString(retry.value).retry_delay.ToMilliseconds() / 1000
