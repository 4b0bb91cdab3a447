"""Everything that neuroglot raises.

NeuroglotError
├── InvalidGroupError        a group that no server could answer, found before it is sent         (also ValueError)
├── InvalidSelectionError    a neuron set, a selection or an intervention that makes no sense     (also ValueError)
├── InvalidTargetError       to connect to: no address, no bundle's folder, or unfit credentials  (also ValueError)
├── NotInResultError         a part of a result that was not asked for, or that cannot be         (also LookupError)
├── BundleError              a folder that is no bundle, or a damaged or a newer one
├── AnalysisError            an analysis that makes no sense: mixed languages, an unknown task    (also ValueError)
│   └── DataError            a task's files with something wrong in them, or no files at all
├── RunError                 a run's folder that is damaged, holds another run, or cannot be written
├── ModelChangedError        the server has another bundle under the model's name than when it was asked for
├── InstallationError        an extra that the command needs is missing
└── ServerError              what the server said, with its status code and request id; any status but these:
    ├── InvalidRequestError  INVALID_ARGUMENT, with the fields that were wrong
    ├── NotFoundError        NOT_FOUND: the message names what exists
    ├── OverloadedError      RESOURCE_EXHAUSTED: carries how long to wait
    ├── DeadlineError        DEADLINE_EXCEEDED
    └── UnavailableError     UNAVAILABLE: no server there, or one that is going down
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Self


class NeuroglotError(Exception):
    """Base of everything that neuroglot raises on purpose."""


class InvalidGroupError(NeuroglotError, ValueError):
    """A group that no server could answer."""


class InvalidSelectionError(NeuroglotError, ValueError):
    """A neuron set, a selection or an intervention that makes no sense, or sets that do not fit each other."""


class InvalidTargetError(NeuroglotError, ValueError):
    """What was given to connect to is no address and no bundle's folder, or its certificates or token do not do."""


class NotInResultError(NeuroglotError, LookupError):
    """A part of a result that was not asked for, or that cannot be; the message says which argument gives it."""


class BundleError(NeuroglotError):
    """A folder that is no bundle, a damaged one, or one of a newer format version."""


class AnalysisError(NeuroglotError, ValueError):
    """An analysis that makes no sense: an unknown task or language, or results that do not belong together."""


class DataError(AnalysisError):
    """A task's files are not there, or something is wrong in them; the message names files and lines."""


class RunError(NeuroglotError):
    """A run's folder that is damaged, holds another run, or cannot be written."""


class ModelChangedError(NeuroglotError):
    """The server has another bundle under the model's name than it had when the model was asked for."""


class InstallationError(NeuroglotError):
    """A package that the command needs is missing, or two that exclude each other are installed."""


class Violation(NamedTuple):
    """A field of a request that was wrong.

    Attributes:
        field: its path, `group.rows[2].text`.
        description: what is wrong with it and what is allowed.
    """

    field: str
    description: str


class ServerError(NeuroglotError):
    """What the server said.

    Attributes:
        code: the gRPC status, `INVALID_ARGUMENT`.
        message: the server's message, one line.
        violations: the fields that were wrong, if any.
        request_id: the id under which the server's log has more; empty where there is none.
        retry_after_seconds: how long the server asks to wait before the next try; None where it does not say.
    """

    def __init__(
        self,
        code: str,
        message: str,
        violations: Sequence[Violation] = (),
        request_id: str = "",
        retry_after_seconds: float | None = None,
    ) -> None:
        """Keep what the server said; the text of the error is its message and the fields it names."""
        self.code = code
        self.message = message
        self.violations = tuple(violations)
        self.request_id = request_id
        self.retry_after_seconds = retry_after_seconds
        unsaid = [violation for violation in self.violations if violation.description not in message]
        lines = [message, *(f"  {violation.field}: {violation.description}" for violation in unsaid)]
        if request_id:
            lines.append(f"  (request {request_id})")
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[type[Self], tuple[object, ...]]:
        """Let the error cross to another process, as everything that a worker raises does."""
        said = (self.code, self.message, self.violations, self.request_id, self.retry_after_seconds)
        return type(self), said


class InvalidRequestError(ServerError):
    """INVALID_ARGUMENT: `violations` names the fields."""


class NotFoundError(ServerError):
    """NOT_FOUND: the message names what exists."""


class OverloadedError(ServerError):
    """RESOURCE_EXHAUSTED: wait `retry_after_seconds` and try again."""


class DeadlineError(ServerError):
    """DEADLINE_EXCEEDED: the answer did not come in the time that the caller gave, or that a load may take."""


class UnavailableError(ServerError):
    """UNAVAILABLE: no server answers at the address, or it is going down."""
