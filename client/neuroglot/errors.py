"""Everything that neuroglot raises.

NeuroglotError
├── InvalidGroupError        an invalid group, found before it is sent                            (also ValueError)
├── InvalidSelectionError    an invalid neuron set, selection or intervention                     (also ValueError)
├── InvalidTargetError       `connect`: not an address or a bundle's folder, or bad credentials   (also ValueError)
├── NotInResultError         a part of a result that was not requested, or that cannot exist      (also LookupError)
├── BundleError              a folder that is not a bundle, a damaged one, or one of a newer format
├── AnalysisError            an invalid analysis: mixed languages, an unknown task                (also ValueError)
│   └── DataError            a task's data files are missing or invalid
├── RunError                 a run's folder is damaged, holds another run, or cannot be written
├── ModelChangedError        the server now serves another bundle under the model's name
├── InstallationError        a package that the command needs is missing
└── ServerError              an error from the server, with its status code and request id; any status but these:
    ├── InvalidRequestError  INVALID_ARGUMENT, with the invalid fields
    ├── NotFoundError        NOT_FOUND: the message lists what exists
    ├── OverloadedError      RESOURCE_EXHAUSTED: carries the time to wait
    ├── DeadlineError        DEADLINE_EXCEEDED
    └── UnavailableError     UNAVAILABLE: no server at the address, or one that is shutting down
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Self


class NeuroglotError(Exception):
    """Base class of all errors that neuroglot raises."""


class InvalidGroupError(NeuroglotError, ValueError):
    """A group is invalid: no server could analyse it."""


class InvalidSelectionError(NeuroglotError, ValueError):
    """A neuron set, a selection or an intervention is invalid, or sets of different models are combined."""


class InvalidTargetError(NeuroglotError, ValueError):
    """The target of `connect` is not an address or a bundle's folder, or its certificates or token are unusable."""


class NotInResultError(NeuroglotError, LookupError):
    """A part of a result was not requested, or cannot exist; the message names the argument that requests it."""


class BundleError(NeuroglotError):
    """A folder is not a bundle, is a damaged one, or is one of a newer format version."""


class AnalysisError(NeuroglotError, ValueError):
    """An analysis is invalid: an unknown task or language, or results that do not belong together."""


class DataError(AnalysisError):
    """A task's data files are missing or invalid; the message names files and lines."""


class RunError(NeuroglotError):
    """A run's folder is damaged, holds another run, or cannot be written."""


class ModelChangedError(NeuroglotError):
    """The server now serves another bundle under the model's name than when `Client.model` was called."""


class InstallationError(NeuroglotError):
    """A required package is missing, or two packages that exclude each other are installed."""


class Violation(NamedTuple):
    """An invalid field of a request.

    Attributes:
        field: the field's path, `group.rows[2].text`.
        description: what is wrong with the field, and what is allowed.
    """

    field: str
    description: str


class ServerError(NeuroglotError):
    """An error from the server, or about reaching it.

    Attributes:
        code: the gRPC status, `INVALID_ARGUMENT`.
        message: the server's message, one line.
        violations: the invalid fields, if any.
        request_id: the id of the request in the server's log; empty if no server received it.
        retry_after_seconds: seconds that the server asks to wait before a retry; None if it gives no delay.
    """

    def __init__(
        self,
        code: str,
        message: str,
        violations: Sequence[Violation] = (),
        request_id: str = "",
        retry_after_seconds: float | None = None,
    ) -> None:
        """Build the error's text from the message, the violations that it does not mention, and the request id."""
        self.code = code
        self.message = message
        self.violations = tuple(violations)
        self.request_id = request_id
        self.retry_after_seconds = retry_after_seconds
        unmentioned = [violation for violation in self.violations if violation.description not in message]
        lines = [message, *(f"  {violation.field}: {violation.description}" for violation in unmentioned)]
        if request_id:
            lines.append(f"  (request {request_id})")
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[type[Self], tuple[object, ...]]:
        """Pickle the error by its arguments, so that worker processes can raise it."""
        args = (self.code, self.message, self.violations, self.request_id, self.retry_after_seconds)
        return type(self), args


class InvalidRequestError(ServerError):
    """INVALID_ARGUMENT: the request is invalid; `violations` names the fields."""


class NotFoundError(ServerError):
    """NOT_FOUND: the message lists what exists."""


class OverloadedError(ServerError):
    """RESOURCE_EXHAUSTED: the server is overloaded; retry after `retry_after_seconds`."""


class DeadlineError(ServerError):
    """DEADLINE_EXCEEDED: no response within the caller's timeout, or within the time limit of a model load."""


class UnavailableError(ServerError):
    """UNAVAILABLE: no server answers at the address, or it is shutting down."""
