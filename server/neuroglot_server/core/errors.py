"""Errors of requests.

RequestError
├── InvalidRequest    invalid fields of a request, each with its path and what is expected
├── ModelNotFound     the model is not served; names the served models
├── QueueFull         the queue or a quota is full; says when to retry
├── UploadNotFound    the tenant has not uploaded these neurons, or they were evicted
├── MemoryTooSmall    a row does not fit in memory, not even in a batch of its own
├── NotFinite         the baseline of a group has a NaN or an infinity, so its neurons have no types
├── LoadTooSlow       a bundle was not loaded within `load_seconds`
└── ModelClosed       the model was closed while the request waited, or is out of service
"""

from __future__ import annotations

from collections.abc import Sequence

from neuroglot.errors import NeuroglotError, Violation


class RequestError(Exception):
    """Base of the errors that are sent to the caller: the message is one line, without internals."""


class InvalidRequest(RequestError):
    """Invalid fields of a request.

    Attributes:
        violations: at least one, each with the field's path (`group.rows[2].text`) and what is expected.
    """

    def __init__(self, violations: Sequence[Violation]) -> None:
        """Create the error; the message has the first violation and the number of further ones."""
        self.violations = tuple(violations)
        first = self.violations[0]
        more = f" (and {len(self.violations) - 1} more)" if len(self.violations) > 1 else ""
        super().__init__(f"{first.field}: {first.description}{more}")


class ModelNotFound(RequestError):
    """The model is not served."""

    def __init__(self, name: str, served: Sequence[str]) -> None:
        """Create the error; the message lists the served models."""
        super().__init__(f"model {name!r} is not served here: there is {', '.join(served) or 'none'}")


class UploadNotFound(RequestError):
    """The named set of neurons was never uploaded, or was evicted."""

    def __init__(self, name: str) -> None:
        """Create the error; the message says what to do."""
        super().__init__(f"no uploaded neurons are named {name!r} here: upload them again, and retry")


class QueueFull(RequestError):
    """The queue, the share of a tenant or its quota is full.

    Attributes:
        retry_after_seconds: estimated time until a retry is admitted.
    """

    def __init__(self, message: str, retry_after_seconds: float) -> None:
        """Create the error with the time after which to retry."""
        self.retry_after_seconds = retry_after_seconds
        super().__init__(message)


class MemoryTooSmall(RequestError):
    """A row needs more memory than is available."""

    def __init__(self) -> None:
        """Create the error; the message says what to do."""
        super().__init__(
            "the server's memory is too small for a row of this request, even in a batch of its own: shorten it, or "
            "request less"
        )


class NotFinite(RequestError):
    """Activations or logits are NaN or infinite."""


class LoadTooSlow(RequestError, NeuroglotError):
    """A bundle was not loaded within `load_seconds`; it is not served."""

    def __init__(self, name: str, seconds: float, reason: str) -> None:
        """Create the error; the message says which step had not finished."""
        super().__init__(
            f"model {name!r} was not loaded within {seconds:g} s, for {reason}: try again later, or raise load_seconds"
        )


class ModelClosed(RequestError):
    """The model was closed while the request waited, or is out of service."""
