"""Questions are asked again where that is safe: when, for how long, and with which pauses."""

from __future__ import annotations

import threading
import time

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

import neuroglot as ng
from neuroglot.connection.retries import Patience
from neuroglot.v1 import service_pb2

GROUP = ng.Group({"en": "Hello"}, id="hello")
AWAY = ng.UnavailableError("UNAVAILABLE", "away")


def details(*messages) -> tuple[tuple[str, bytes], ...]:
    status = status_pb2.Status()
    for message in messages:
        status.details.add().Pack(message)
    return (("grpc-status-details-bin", status.SerializeToString()),)


def wait_at_least(seconds: float) -> tuple[tuple[str, bytes], ...]:
    return details(error_details_pb2.RetryInfo(retry_delay=Duration(nanos=int(seconds * 1e9))))


@pytest.fixture
def flaky(serve, scripted):
    """A server whose first answers to AnalyzeGroup are failures: gives the address and what was asked."""

    def start(*failures: tuple[grpc.StatusCode, tuple[tuple[str, bytes], ...]]):
        asked: list[dict[str, str]] = []

        class Flaky(scripted):
            def analyze_group(self, request, context):
                asked.append(dict(context.invocation_metadata()))
                if len(asked) <= len(failures):
                    code, metadata = failures[len(asked) - 1]
                    context.set_trailing_metadata(metadata)
                    context.abort(code, "not now")
                return super().analyze_group(request, context)

        return serve(Flaky()), asked

    return start


def test_a_server_that_is_away_is_asked_again(flaky) -> None:
    address, asked = flaky((grpc.StatusCode.UNAVAILABLE, ()), (grpc.StatusCode.UNAVAILABLE, details()))
    told: list[tuple[str, float]] = []
    with ng.connect(address, on_retry=lambda error, pause: told.append((error.code, pause))) as client:
        assert client.model().analyze(GROUP).group_id == "hello"
    assert len(asked) == 3
    assert [code for code, _ in told] == ["UNAVAILABLE", "UNAVAILABLE"]
    assert all(0.05 <= pause <= 0.2 for _, pause in told)


def test_a_server_that_is_full_says_how_long_to_wait(flaky) -> None:
    address, asked = flaky((grpc.StatusCode.RESOURCE_EXHAUSTED, wait_at_least(0.3)))
    with ng.connect(address) as client:
        started = time.monotonic()
        client.model().analyze(GROUP)
    assert 0.3 <= time.monotonic() - started < 2
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("code", "metadata"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, wait_at_least(0)),
        (grpc.StatusCode.NOT_FOUND, ()),
        (grpc.StatusCode.UNAUTHENTICATED, ()),
        (grpc.StatusCode.PERMISSION_DENIED, ()),
        (grpc.StatusCode.FAILED_PRECONDITION, ()),
        (grpc.StatusCode.INTERNAL, ()),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, details()),  # what gRPC says of a message that is too large
        (grpc.StatusCode.RESOURCE_EXHAUSTED, wait_at_least(0.9)),  # longer than retries go on
    ],
)
def test_what_does_not_pass_is_told_at_once(flaky, code, metadata) -> None:
    address, asked = flaky((code, metadata))
    with ng.connect(address, retry_seconds=0.8) as client:
        started = time.monotonic()
        with pytest.raises(ng.ServerError, match="not now"):
            client.model().analyze(GROUP)
    assert time.monotonic() - started < 0.7
    assert len(asked) == 1


def test_retries_can_be_switched_off(flaky) -> None:
    address, asked = flaky((grpc.StatusCode.UNAVAILABLE, ()))
    with ng.connect(address, retry_seconds=0) as client, pytest.raises(ng.UnavailableError):
        client.model().analyze(GROUP)
    assert len(asked) == 1


def test_retries_end_when_their_time_is_over(flaky) -> None:
    address, asked = flaky(*[(grpc.StatusCode.UNAVAILABLE, ())] * 99)
    with ng.connect(address, retry_seconds=0.6) as client:
        started = time.monotonic()
        with pytest.raises(ng.UnavailableError):
            client.model().analyze(GROUP)
    assert 0.5 < time.monotonic() - started < 3
    assert 3 <= len(asked) <= 8


def test_a_timeout_holds_over_all_tries(flaky) -> None:
    address, _ = flaky(*[(grpc.StatusCode.UNAVAILABLE, ())] * 99)
    with ng.connect(address) as client:
        started = time.monotonic()
        with pytest.raises((ng.UnavailableError, ng.DeadlineError)):
            client.model().analyze(GROUP, timeout=0.4)
    assert 0.2 < time.monotonic() - started < 3


def test_a_server_that_comes_back_is_found(serve, scripted) -> None:
    address = serve(scripted())
    with ng.connect(address, on_retry=lambda *_: None) as client:
        model = client.model()
        serve.stop(address)
        back = threading.Timer(0.5, serve, (scripted(), address))
        back.start()
        assert model.analyze(GROUP).group_id == "hello"
        back.join()


def test_loading_is_not_asked_twice(serve, scripted) -> None:
    asked: list[str] = []

    class Loads(scripted):
        def LoadModel(self, request, context):  # noqa: N802
            asked.append(request.bundle)
            if len(asked) > 1:
                return service_pb2.LoadModelResponse(model=self.model)
            return context.abort(grpc.StatusCode.UNAVAILABLE, "not now")

        def UnloadModel(self, request, context):  # noqa: N802
            asked.append(f"no {request.model}")
            return service_pb2.UnloadModelResponse()

    with ng.connect(serve(Loads())) as client:
        with pytest.raises(ng.UnavailableError):
            client.load("small")
        assert client.load("small", name="other").name == "small"
        client.unload("small")
    assert asked == ["small", "small", "no small"]


def test_closing_the_client_ends_a_pause(flaky) -> None:
    address, _ = flaky(
        (grpc.StatusCode.RESOURCE_EXHAUSTED, wait_at_least(0.99)), *[(grpc.StatusCode.UNAVAILABLE, ())] * 9
    )
    pausing = threading.Event()
    client = ng.connect(address, on_retry=lambda *_: pausing.set())
    model, raised = client.model(), []

    def ask() -> None:
        with pytest.raises(ng.OverloadedError) as error:
            model.analyze(GROUP)
        raised.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    assert pausing.wait(5)
    started = time.monotonic()
    client.close()
    asking.join(5)
    assert raised
    assert time.monotonic() - started < 0.8


def test_every_try_has_an_id_and_errors_show_the_last(flaky) -> None:
    address, asked = flaky((grpc.StatusCode.UNAVAILABLE, ()), (grpc.StatusCode.INTERNAL, details()))
    with ng.connect(address, on_retry=lambda *_: None) as client, pytest.raises(ng.ServerError) as raised:
        client.model().analyze(GROUP)
    first, last = (metadata["x-request-id"] for metadata in asked)
    assert first != last
    assert raised.value.request_id == last
    assert f"(request {last})" in str(raised.value)


def test_an_id_that_the_server_took_instead_is_shown(flaky) -> None:
    address, _ = flaky((grpc.StatusCode.INTERNAL, (*details(), ("x-request-id", "its-own"))))
    with ng.connect(address) as client, pytest.raises(ng.ServerError) as raised:
        client.model().analyze(GROUP)
    assert raised.value.request_id == "its-own"


def test_by_default_the_log_is_told(flaky, caplog: pytest.LogCaptureFixture) -> None:
    address, _ = flaky((grpc.StatusCode.UNAVAILABLE, details()))
    with ng.connect(address) as client:
        client.model().analyze(GROUP)
    (record,) = caplog.records
    assert record.getMessage() == "not now: asking again in 0.1 s"


def test_pauses_grow_and_do_not_come_in_step() -> None:
    def pauses() -> list[float]:
        patience = Patience(seconds=1e6, timeout=None)
        return [patience.pause_after(AWAY) for _ in range(12)]

    one, other = pauses(), pauses()
    for number, pause in enumerate(one):
        longest = min(0.1 * 2**number, 5.0)
        assert longest / 2 <= pause <= longest
    assert one != other


def test_trouble_that_is_over_is_forgotten() -> None:
    patience = Patience(seconds=0.2, timeout=None)
    assert patience.pause_after(AWAY) is not None
    time.sleep(0.25)
    assert patience.pause_after(AWAY) is None
    patience.calm()
    assert patience.pause_after(AWAY) <= 0.1
