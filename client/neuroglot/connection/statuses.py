"""From gRPC statuses to neuroglot's errors: the one table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2

from neuroglot.errors import (
    DeadlineError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    ServerError,
    UnavailableError,
    Violation,
)
from neuroglot.v1 import result_pb2

if TYPE_CHECKING:
    import grpc

_ERRORS: dict[str, type[ServerError]] = {
    "INVALID_ARGUMENT": InvalidRequestError,
    "NOT_FOUND": NotFoundError,
    "RESOURCE_EXHAUSTED": OverloadedError,
    "DEADLINE_EXCEEDED": DeadlineError,
    "UNAVAILABLE": UnavailableError,
}
_DETAILS_KEY = "grpc-status-details-bin"

REQUEST_ID_KEY = "x-request-id"
"""Metadata key of the request id: sent by the client for the server's log, and returned with the id in use."""


def from_rpc_error(error: grpc.RpcError, address: str, request_id: str) -> ServerError:
    """Convert the gRPC error of a failed call, with the details of its status.

    Args:
        error: the error that gRPC raised.
        address: address of the server.
        request_id: the id that was sent with the call; the server may have used another one.
    """
    code, message = error.code().name, error.details() or ""
    status = _status(error)
    violations: list[Violation] = []
    retry_after_seconds = None
    if status is None and code == "UNAVAILABLE":
        request_id = ""  # no server received it
    for metadatum in error.trailing_metadata() or ():
        if metadatum.key == REQUEST_ID_KEY:
            request_id = str(metadatum.value)
    for detail in status.details if status else ():
        if detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad_request = error_details_pb2.BadRequest.FromString(detail.value)
            violations += [Violation(one.field, one.description) for one in bad_request.field_violations]
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            delay = error_details_pb2.RetryInfo.FromString(detail.value).retry_delay
            retry_after_seconds = delay.seconds + delay.nanos / 1e9
        elif detail.Is(error_details_pb2.RequestInfo.DESCRIPTOR):
            request_id = error_details_pb2.RequestInfo.FromString(detail.value).request_id
    # Without details the message is gRPC's own, which says neither where the call went nor what to do.
    explained = message if status else _explained(code, message, address)
    return _error(code, explained, violations, request_id, retry_after_seconds)


def from_group_error(error: result_pb2.GroupError) -> ServerError:
    """Convert the error of a failed group of a stream."""
    violations = [Violation(violation.field, violation.description) for violation in error.violations]
    retry_after_seconds = error.retry_delay_ms / 1e3 if error.HasField("retry_delay_ms") else None
    return _error(code_pb2.Code.Name(error.code), error.message, violations, error.request_id, retry_after_seconds)


def _error(
    code: str,
    message: str,
    violations: Sequence[Violation],
    request_id: str,
    retry_after_seconds: float | None,
) -> ServerError:
    return _ERRORS.get(code, ServerError)(code, message, violations, request_id, retry_after_seconds)


def _status(error: grpc.RpcError) -> status_pb2.Status | None:
    """Decode the status details in the trailing metadata; None if the error is gRPC's own."""
    for metadatum in error.trailing_metadata() or ():
        if metadatum.key == _DETAILS_KEY:
            try:
                return status_pb2.Status.FromString(metadatum.value)
            except DecodeError:
                return None
    return None


def _explained(code: str, message: str, address: str) -> str:
    if code == "UNAVAILABLE":
        return (
            f"no answer from {address} ({message}): is a server running there? "
            f"`neuroglot serve BUNDLE --address {address}` starts one"
        )
    if code == "DEADLINE_EXCEEDED":
        return f"no answer from {address} in the time given ({message}): give more time, or ask for less at once"
    if code == "UNIMPLEMENTED":
        return f"what answers at {address} is no neuroglot server, or an older one ({message})"
    return message
