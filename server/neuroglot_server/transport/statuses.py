"""The one table of exceptions to gRPC statuses, and their details.

    InvalidRequest   INVALID_ARGUMENT     google.rpc.BadRequest: each field; in LoadModel also a damaged bundle, or one
                                          whose probe gives another result than the export recorded
    ModelNotFound    NOT_FOUND
    UploadNotFound   NOT_FOUND
    CannotTokenize   INVALID_ARGUMENT     without a field: the failing text is not known
    Unauthenticated  UNAUTHENTICATED
    PermissionDenied PERMISSION_DENIED
    QueueFull        RESOURCE_EXHAUSTED   google.rpc.RetryInfo: when to try again
    TooManyCalls     RESOURCE_EXHAUSTED   google.rpc.RetryInfo: when to try again
    TooManyRequests  RESOURCE_EXHAUSTED   google.rpc.RetryInfo: when to try again
    MemoryTooSmall   RESOURCE_EXHAUSTED   without RetryInfo: the same request fails again
    NotFinite        FAILED_PRECONDITION  without RetryInfo: fails again until the model is served in a wider dtype
    RequestTooSlow   ABORTED
    ReaderTooSlow    ABORTED
    LoadTooSlow      DEADLINE_EXCEEDED    the model is not served
    ModelClosed      UNAVAILABLE
    GoingDown        UNAVAILABLE
    anything else    INTERNAL             the log has the traceback under the request id

Every failure carries the request id, as a google.rpc.RequestInfo.
Apart from LoadTooSlow, DEADLINE_EXCEEDED and CANCELLED are set by gRPC itself: it cancels the method's task, and with
it the request in the core.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import grpc
from google.rpc.error_details_pb2 import BadRequest, RequestInfo, RetryInfo
from google.rpc.status_pb2 import Status

from neuroglot.errors import Violation
from neuroglot.v1 import result_pb2
from neuroglot_server.core import (
    InvalidRequest,
    LoadTooSlow,
    MemoryTooSmall,
    ModelClosed,
    ModelNotFound,
    NotFinite,
    QueueFull,
    RequestError,
    UploadNotFound,
)
from neuroglot_server.intake.tokenizer_process import CannotTokenize
from neuroglot_server.transport.auth import REQUEST_ID_KEY, PermissionDenied, Unauthenticated
from neuroglot_server.transport.concurrency import GoingDown, TooManyCalls
from neuroglot_server.transport.held_bytes import ReaderTooSlow
from neuroglot_server.transport.receiving import RequestTooSlow, TooManyRequests

_logger = logging.getLogger(__name__)
_Result = TypeVar("_Result")

STATUS_OF: dict[type[RequestError], grpc.StatusCode] = {
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    ModelNotFound: grpc.StatusCode.NOT_FOUND,
    CannotTokenize: grpc.StatusCode.INVALID_ARGUMENT,
    UploadNotFound: grpc.StatusCode.NOT_FOUND,
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    QueueFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    TooManyCalls: grpc.StatusCode.RESOURCE_EXHAUSTED,
    TooManyRequests: grpc.StatusCode.RESOURCE_EXHAUSTED,
    MemoryTooSmall: grpc.StatusCode.RESOURCE_EXHAUSTED,
    NotFinite: grpc.StatusCode.FAILED_PRECONDITION,
    RequestTooSlow: grpc.StatusCode.ABORTED,
    ReaderTooSlow: grpc.StatusCode.ABORTED,
    LoadTooSlow: grpc.StatusCode.DEADLINE_EXCEEDED,
    ModelClosed: grpc.StatusCode.UNAVAILABLE,
    GoingDown: grpc.StatusCode.UNAVAILABLE,
}

DETAILS_KEY = "grpc-status-details-bin"

# A client drops a status whose trailing metadata exceeds 8 KiB. It has the message twice, once with three characters
# per non-ASCII byte, and the details as base64.
_MAX_MESSAGE_BYTES = 512
_MAX_DETAILS_BYTES = 3072


@dataclass(frozen=True)
class Failure:
    """Why a request failed.

    Attributes:
        code: the gRPC status.
        message: one line.
        request_id: id of the request in the log.
        violations: the invalid fields.
        retry_after_seconds: when a retry is likely to succeed; None where waiting does not help.
        reason: label of the error in metrics: the exception's class, or `Internal`.
    """

    code: grpc.StatusCode
    message: str
    request_id: str
    violations: tuple[Violation, ...] = ()
    retry_after_seconds: float | None = None
    reason: str = "Internal"


def failure_of(error: Exception, request_id: str) -> Failure:
    """Convert an exception to a failure. An unexpected one is logged with its traceback under the request id."""
    if isinstance(error, RequestError):
        return Failure(
            STATUS_OF[type(error)],
            str(error),
            request_id,
            getattr(error, "violations", ()),
            getattr(error, "retry_after_seconds", None),
            type(error).__name__,
        )
    _logger.error("request %s failed", request_id, exc_info=error)
    message = f"internal server error, logged under {request_id}: report it to the server's operator"
    return Failure(grpc.StatusCode.INTERNAL, message, request_id)


async def attempt(work: Awaitable[_Result], request_id: str) -> _Result | Failure:
    """Return the result of `work`, or its failure. Cancellation passes through."""
    try:
        return await work
    except Exception as error:  # noqa: BLE001 - this is where every error becomes a status, and `failure_of` logs it
        return failure_of(error, request_id)


async def abort(context: grpc.aio.ServicerContext[Any, Any], failure: Failure) -> NoReturn:
    """End a call with the status and the details of a failure.

    Raises:
        CancelledError: the client has left.
    """
    try:
        await context.abort(
            failure.code,
            _cut(failure.message, _MAX_MESSAGE_BYTES),
            ((REQUEST_ID_KEY, failure.request_id), (DETAILS_KEY, _status(failure).SerializeToString())),
        )
    except grpc.aio.InternalError:  # gRPC would log a traceback for every client that leaves early
        raise asyncio.CancelledError from None


def group_error(failure: Failure) -> result_pb2.GroupError:
    """Convert the failure of one group of a stream to a message."""
    return result_pb2.GroupError(
        code=_number(failure.code),
        message=failure.message,
        violations=[
            result_pb2.FieldViolation(field=field, description=description) for field, description in failure.violations
        ],
        request_id=failure.request_id,
        retry_delay_ms=_retry_delay_ms(failure),
    )


def _status(failure: Failure) -> Status:
    """Convert a failure to the message that clients read under `DETAILS_KEY`."""
    status = Status(code=_number(failure.code), message=_cut(failure.message, _MAX_MESSAGE_BYTES))
    if failure.violations:
        status.details.add().Pack(_bad_request(failure.violations))
    delay = _retry_delay_ms(failure)
    if delay is not None:
        retry = RetryInfo()
        retry.retry_delay.FromMilliseconds(delay)
        status.details.add().Pack(retry)
    status.details.add().Pack(RequestInfo(request_id=failure.request_id))
    return status


def _retry_delay_ms(failure: Failure) -> int | None:
    """Return the delay before a retry in milliseconds; None where waiting does not help."""
    return None if failure.retry_after_seconds is None else round(failure.retry_after_seconds * 1000)


def _bad_request(violations: Sequence[Violation]) -> BadRequest:
    """Convert as many of the violations as fit into the details."""
    fitting = BadRequest()
    for field, description in violations:
        extended = BadRequest()
        extended.CopyFrom(fitting)
        extended.field_violations.add(
            field=_cut(field, _MAX_MESSAGE_BYTES), description=_cut(description, _MAX_MESSAGE_BYTES)
        )
        if extended.ByteSize() > _MAX_DETAILS_BYTES:
            break
        fitting = extended
    return fitting


def _number(code: grpc.StatusCode) -> int:
    """Return the number of a status, as in google.rpc.Code."""
    return int(code.value[0])


def _cut(text: str, max_bytes: int) -> str:
    """Truncate a text to at most `max_bytes` bytes of UTF-8."""
    encoded = text.encode()
    return text if len(encoded) <= max_bytes else encoded[: max_bytes - 3].decode(errors="ignore") + "..."
