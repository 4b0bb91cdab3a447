"""What a caller is told when something goes wrong: the one table from exceptions to gRPC statuses.

    InvalidRequest   INVALID_ARGUMENT     google.rpc.BadRequest: each field; of LoadModel also a bundle that is damaged,
                                          or whose model gives another answer to its probe than the export recorded
    ModelNotFound    NOT_FOUND
    UploadNotFound   NOT_FOUND
    CannotTokenize   INVALID_ARGUMENT     without a field: it is not known which text it is
    Unauthenticated  UNAUTHENTICATED
    PermissionDenied PERMISSION_DENIED
    QueueFull        RESOURCE_EXHAUSTED   google.rpc.RetryInfo: when to try again
    TooManyCalls     RESOURCE_EXHAUSTED   google.rpc.RetryInfo: when to try again
    TooManyRequests  RESOURCE_EXHAUSTED   google.rpc.RetryInfo: when to try again
    MemoryTooSmall   RESOURCE_EXHAUSTED   without RetryInfo: the same request fails again
    NotFinite        FAILED_PRECONDITION  the same request fails again until the model is served in a wider dtype
    RequestTooSlow   ABORTED
    ReaderTooSlow    ABORTED
    LoadTooSlow      DEADLINE_EXCEEDED    nothing is served of it
    ModelClosed      UNAVAILABLE
    GoingDown        UNAVAILABLE
    anything else    INTERNAL             the log has the trace under the request's id

Every failure has the request's id beside it, as a google.rpc.RequestInfo.
Otherwise DEADLINE_EXCEEDED, and CANCELLED, are gRPC's own: it cancels the method's task, and with it what the core
does for it.
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
_Answer = TypeVar("_Answer")

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

# A client drops a status whose trailing metadata is longer than 8 KiB. The message is in it twice, once with three
# characters for each byte that is not ASCII; the details are in it as base64.
_LONGEST_MESSAGE_BYTES = 512
_LONGEST_DETAILS_BYTES = 3072


@dataclass(frozen=True)
class Failure:
    """Why there is no answer.

    Attributes:
        code: the gRPC status.
        message: one line.
        violations: the fields that were wrong.
        retry_after_seconds: when a try is likely to succeed; None where waiting does not help.
        request_id: the name of the request in the log.
        reason: the kind of error, for metrics: the exception's class, or `Internal`.
    """

    code: grpc.StatusCode
    message: str
    request_id: str
    violations: tuple[Violation, ...] = ()
    retry_after_seconds: float | None = None
    reason: str = "Internal"


def failure_of(error: Exception, request_id: str) -> Failure:
    """What to tell the caller. What nobody foresaw goes to the log, with its trace and the id that the caller has."""
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
    message = f"the server failed, and its log says why under {request_id}: report it to those who run the server"
    return Failure(grpc.StatusCode.INTERNAL, message, request_id)


async def attempt(work: Awaitable[_Answer], request_id: str) -> _Answer | Failure:
    """The answer, or why there is none. Cancellation passes through."""
    try:
        return await work
    except Exception as error:  # noqa: BLE001 - this is where every error becomes a status, and `failure_of` logs it
        return failure_of(error, request_id)


async def abort(context: grpc.aio.ServicerContext[Any, Any], failure: Failure) -> NoReturn:
    """End a call with a failure, its details beside it.

    Raises:
        CancelledError: the caller has left.
    """
    try:
        await context.abort(
            failure.code,
            _cut(failure.message, _LONGEST_MESSAGE_BYTES),
            ((REQUEST_ID_KEY, failure.request_id), (DETAILS_KEY, _status(failure).SerializeToString())),
        )
    except grpc.aio.InternalError:  # which gRPC would log with its trace, for every caller that leaves too early
        raise asyncio.CancelledError from None


def group_error(failure: Failure) -> result_pb2.GroupError:
    """The failure of one group of a stream, as a message."""
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
    """The failure as the message that clients look for under `DETAILS_KEY`."""
    status = Status(code=_number(failure.code), message=_cut(failure.message, _LONGEST_MESSAGE_BYTES))
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
    """How long to wait before the next try, in milliseconds; None where waiting does not help."""
    return None if failure.retry_after_seconds is None else round(failure.retry_after_seconds * 1000)


def _bad_request(violations: Sequence[Violation]) -> BadRequest:
    """As many of the violations as fit."""
    fitting = BadRequest()
    for field, description in violations:
        one_more = BadRequest()
        one_more.CopyFrom(fitting)
        one_more.field_violations.add(
            field=_cut(field, _LONGEST_MESSAGE_BYTES), description=_cut(description, _LONGEST_MESSAGE_BYTES)
        )
        if one_more.ByteSize() > _LONGEST_DETAILS_BYTES:
            break
        fitting = one_more
    return fitting


def _number(code: grpc.StatusCode) -> int:
    """The number of a status, as in google.rpc.Code."""
    return int(code.value[0])


def _cut(text: str, most_bytes: int) -> str:
    """The start of a text, at most so many bytes of it."""
    encoded = text.encode()
    return text if len(encoded) <= most_bytes else encoded[: most_bytes - 3].decode(errors="ignore") + "..."
