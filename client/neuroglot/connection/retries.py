"""Retry budget and back-off for a server that is unavailable or overloaded."""

from __future__ import annotations

import math
import time
from random import SystemRandom

from neuroglot.errors import OverloadedError, ServerError, UnavailableError

_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 5.0
_LEAST_JITTER = 0.5
"""Minimum share of the back-off that a pause takes: jitter keeps clients from reconnecting all at once."""
_MOST_BEYOND_ASKED = 0.1
"""Maximum jitter added to the delay that a server asks for, as a share of it."""

# Not Python's shared generator: a program that seeds it must get its own sequence, and clients must not synchronise.
_uniform = SystemRandom().uniform


class Patience:
    """Retry and timeout budget of one request. The retry time runs from the first failure to the next success."""

    def __init__(self, seconds: float, timeout: float | None) -> None:
        """Start the timeout now.

        Args:
            seconds: seconds for which to retry after the first failure; 0 disables retries.
            timeout: seconds for the whole request, including retries; None for no limit.
        """
        self._seconds = seconds
        self._end = math.inf if timeout is None else time.monotonic() + timeout
        self._trouble_since: float | None = None
        self._pauses = 0

    @property
    def time_left(self) -> float | None:
        """Seconds until the timeout, 0 once it has passed; None for no limit."""
        return None if math.isinf(self._end) else max(0.0, self._end - time.monotonic())

    def calm(self) -> None:
        """Record a success: the next failure starts a new retry time."""
        self._trouble_since, self._pauses = None, 0

    def pause_after(self, error: ServerError) -> float | None:
        """Return the seconds to wait before retrying after a transient error; None once the retry time is over.

        The pause is the delay that the server asks for, or else exponential back-off; both with jitter.
        """
        now = time.monotonic()
        if self._trouble_since is None:
            self._trouble_since = now
        left = min(self._trouble_since + self._seconds, self._end) - now
        if error.retry_after_seconds is not None:
            pause = error.retry_after_seconds * (1 + _uniform(0, _MOST_BEYOND_ASKED))
            return pause if pause < left else None
        if left <= 0:
            return None
        longest = min(math.ldexp(_FIRST_PAUSE_SECONDS, self._pauses), _LONGEST_PAUSE_SECONDS)
        self._pauses += 1
        return min(longest * _uniform(_LEAST_JITTER, 1), left)


def is_passing(error: ServerError) -> bool:
    """Return whether an error is transient: the server is unavailable, or is overloaded and gives a retry delay.

    RESOURCE_EXHAUSTED without a delay is not: gRPC uses it for messages above its size limit.
    """
    return isinstance(error, UnavailableError) or (
        isinstance(error, OverloadedError) and error.retry_after_seconds is not None
    )
