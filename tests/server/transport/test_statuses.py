from __future__ import annotations

import logging

import grpc
import pytest
from google.rpc import code_pb2

from neuroglot.errors import Violation
from neuroglot_server import core
from neuroglot_server.transport.concurrency import TooManyCalls
from neuroglot_server.transport.statuses import STATUS_OF, failure_of, group_error


def test_every_error_of_the_core_has_a_status() -> None:
    assert set(core.RequestError.__subclasses__()) == set(STATUS_OF)


def test_the_statuses_are_those_of_the_contract() -> None:
    assert {error.__name__: code.name for error, code in STATUS_OF.items()} == {
        "InvalidRequest": "INVALID_ARGUMENT",
        "ModelNotFound": "NOT_FOUND",
        "CannotTokenize": "INVALID_ARGUMENT",
        "UploadNotFound": "NOT_FOUND",
        "Unauthenticated": "UNAUTHENTICATED",
        "PermissionDenied": "PERMISSION_DENIED",
        "QueueFull": "RESOURCE_EXHAUSTED",
        "TooManyCalls": "RESOURCE_EXHAUSTED",
        "TooManyRequests": "RESOURCE_EXHAUSTED",
        "MemoryTooSmall": "RESOURCE_EXHAUSTED",
        "NotFinite": "FAILED_PRECONDITION",
        "RequestTooSlow": "ABORTED",
        "ReaderTooSlow": "ABORTED",
        "LoadTooSlow": "DEADLINE_EXCEEDED",
        "ModelClosed": "UNAVAILABLE",
        "GoingDown": "UNAVAILABLE",
    }


def test_a_group_s_error_has_the_code_and_the_fields() -> None:
    error = core.InvalidRequest([Violation("group.rows[0].text", "is empty"), Violation("analysis", "is odd")])
    message = group_error(failure_of(error, "a7"))
    assert message.code == code_pb2.INVALID_ARGUMENT
    assert message.message == "group.rows[0].text: is empty (and 1 more)"
    assert [(violation.field, violation.description) for violation in message.violations] == list(error.violations)
    assert message.request_id == "a7"
    assert not message.HasField("retry_delay_ms"), "the same request would be refused again"


@pytest.mark.parametrize("error", [core.QueueFull("full", 1.2344), TooManyCalls(2)])
def test_a_group_s_error_has_a_retry_delay_where_waiting_helps(error: core.QueueFull | TooManyCalls) -> None:
    assert group_error(failure_of(error, "a7")).retry_delay_ms == round(1e3 * error.retry_after_seconds)


def test_an_unexpected_error_is_logged_and_not_sent_to_the_client(caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise KeyError("/etc/secret")
    except KeyError as error:
        failure = failure_of(error, "a7")
    assert failure.code is grpc.StatusCode.INTERNAL
    assert "secret" not in failure.message
    assert failure.request_id == "a7"
    assert "under a7" in failure.message
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert failure.request_id in record.getMessage()
    assert "Traceback" in caplog.text
    assert "/etc/secret" in caplog.text
    assert group_error(failure).request_id == failure.request_id
