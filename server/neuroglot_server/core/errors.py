"""What can go wrong with a request.

RequestError
├── InvalidRequest    fields of a request that are wrong, each with its path and what is allowed
├── ModelNotFound     a model that is not served; names those that are
├── QueueFull         too much is waiting; says how long to wait
├── UploadNotFound    neurons that the tenant has not uploaded, or too long ago
├── MemoryTooSmall    a row that the machine cannot run, not even alone
├── NotFinite         the baseline of a group has a NaN or an infinity: its neurons have no types
├── LoadTooSlow       a bundle that was not loaded in the time that a load may take
└── ModelClosed       the model went down while the request waited, or is out of service
"""

from __future__ import annotations

from collections.abc import Sequence

from neuroglot.errors import NeuroglotError, Violation


class RequestError(Exception):
    """Base of what is said to the caller: the text of each is one line, fit to be sent."""


class InvalidRequest(RequestError):
    """Fields of a request that are wrong.

    Attributes:
        violations: at least one, each with the field's path (`group.rows[2].text`) and what is allowed.
    """

    def __init__(self, violations: Sequence[Violation]) -> None:
        """Keep the violations; the text names the first, and how many more there are."""
        self.violations = tuple(violations)
        first = self.violations[0]
        more = f" (and {len(self.violations) - 1} more)" if len(self.violations) > 1 else ""
        super().__init__(f"{first.field}: {first.description}{more}")


class ModelNotFound(RequestError):
    """A model that is not served."""

    def __init__(self, name: str, served: Sequence[str]) -> None:
        """Name the models that are served."""
        super().__init__(f"model {name!r} is not served here: there is {', '.join(served) or 'none'}")


class UploadNotFound(RequestError):
    """Neurons that are not here: never uploaded, or dropped since."""

    def __init__(self, name: str) -> None:
        """Say what to do."""
        super().__init__(f"no uploaded neurons are named {name!r} here: upload them again, and ask again")


class QueueFull(RequestError):
    """Too much is waiting, of everybody's or of one tenant's.

    Attributes:
        retry_after_seconds: when a try is likely to find room.
    """

    def __init__(self, message: str, retry_after_seconds: float) -> None:
        """Keep how long to wait."""
        self.retry_after_seconds = retry_after_seconds
        super().__init__(message)


class MemoryTooSmall(RequestError):
    """A row takes more memory than there is."""

    def __init__(self) -> None:
        """Say what to do."""
        super().__init__(
            "the server's memory is too small for a row of this request, even alone: shorten it, or ask for less of it"
        )


class NotFinite(RequestError):
    """Activations or logits are NaN or infinite."""


class LoadTooSlow(RequestError, NeuroglotError):
    """A bundle was not loaded in the time that a load may take; it is not served."""

    def __init__(self, name: str, seconds: float, reason: str) -> None:
        """Say what was waited for."""
        super().__init__(
            f"model {name!r} was not loaded within {seconds:g} s, for {reason}: try again later, or raise load_seconds"
        )


class ModelClosed(RequestError):
    """The model went down while the request waited, or is out of service."""
