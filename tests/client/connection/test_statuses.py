"""Statuses of a real server become neuroglot's errors, with all that it said."""

from __future__ import annotations

import socket
import time

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

import neuroglot as ng

GROUP = ng.Group({"en": "Hello"})


def status(*details) -> tuple[tuple[str, bytes], ...]:
    message = status_pb2.Status()
    for detail in details:
        message.details.add().Pack(detail)
    return (("other-bin", b"\xff"), ("grpc-status-details-bin", message.SerializeToString()))


def analyze(serve, scripted, code: grpc.StatusCode, words: str, metadata=(), timeout: float | None = None) -> None:
    class Aborts(scripted):
        def analyze_group(self, request, context):
            context.set_trailing_metadata(metadata)
            context.abort(code, words)

    with ng.connect(serve(Aborts()), retry_seconds=0) as client:
        client.model().analyze(GROUP, timeout=timeout)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, ng.InvalidRequestError),
        (grpc.StatusCode.NOT_FOUND, ng.NotFoundError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, ng.OverloadedError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, ng.DeadlineError),
        (grpc.StatusCode.UNAVAILABLE, ng.UnavailableError),
        (grpc.StatusCode.FAILED_PRECONDITION, ng.ServerError),
        (grpc.StatusCode.INTERNAL, ng.ServerError),
    ],
)
def test_each_status_has_its_error(serve, scripted, code: grpc.StatusCode, kind: type[ng.ServerError]) -> None:
    with pytest.raises(ng.ServerError, match="said so") as raised:
        analyze(serve, scripted, code, "said so", status())
    assert type(raised.value) is kind
    assert raised.value.code == code.name
    assert raised.value.message == "said so", "the server's own words, as they are"


def test_fields_that_were_wrong(serve, scripted) -> None:
    bad_request = error_details_pb2.BadRequest(
        field_violations=[
            error_details_pb2.BadRequest.FieldViolation(field="group.rows[2].text", description="is empty"),
            error_details_pb2.BadRequest.FieldViolation(field="analysis.thresholds[0]", description="is NaN"),
        ]
    )
    with pytest.raises(ng.InvalidRequestError) as raised:
        analyze(serve, scripted, grpc.StatusCode.INVALID_ARGUMENT, "refused", status(bad_request))
    assert raised.value.violations == (
        ng.Violation("group.rows[2].text", "is empty"),
        ng.Violation("analysis.thresholds[0]", "is NaN"),
    )
    assert "group.rows[2].text: is empty" in str(raised.value)


def test_how_long_to_wait_and_what_to_ask_for(serve, scripted) -> None:
    details = status(
        error_details_pb2.RetryInfo(retry_delay=Duration(seconds=2, nanos=250_000_000)),
        error_details_pb2.RequestInfo(request_id="4f2a"),
        error_details_pb2.Help(),  # one of a kind that this client does not know
    )
    with pytest.raises(ng.OverloadedError, match=r"full\n  \(request 4f2a\)") as raised:
        analyze(serve, scripted, grpc.StatusCode.RESOURCE_EXHAUSTED, "full", details)
    assert raised.value.retry_after_seconds == 2.25
    assert raised.value.request_id == "4f2a"


def test_details_that_cannot_be_read_do_not_hide_the_error(serve, scripted) -> None:
    with pytest.raises(ng.InvalidRequestError, match="refused") as raised:
        analyze(
            serve, scripted, grpc.StatusCode.INVALID_ARGUMENT, "refused", (("grpc-status-details-bin", b"\xff\xff"),)
        )
    assert raised.value.violations == ()


def test_no_server(serve) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody answers, and nobody else can take it
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ng.UnavailableError, match=f"no answer from {address} .*`neuroglot serve BUNDLE --address"):
            ng.connect(address)


def test_a_server_that_does_not_speak(serve) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        started = time.monotonic()
        with pytest.raises((ng.DeadlineError, ng.UnavailableError), match=r"no answer from 127\.0\.0\.1"):
            ng.connect(f"127.0.0.1:{silent.getsockname()[1]}", timeout=0.3)
        assert time.monotonic() - started < 5


def test_a_deadline(serve, scripted) -> None:
    class Slow(scripted):
        def analyze_group(self, request, context):
            time.sleep(0.5)
            return super().analyze_group(request, context)

    address = serve(Slow())
    with ng.connect(address) as client, pytest.raises(ng.DeadlineError, match=f"no answer from {address} in the time"):
        client.model().analyze(GROUP, timeout=0.1)


def test_another_kind_of_server() -> None:
    from concurrent.futures import ThreadPoolExecutor

    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with pytest.raises(ng.ServerError, match="no neuroglot server, or an older one") as raised:
            ng.connect(f"127.0.0.1:{port}")
        assert raised.value.code == "UNIMPLEMENTED"
    finally:
        server.stop(grace=0).wait()
