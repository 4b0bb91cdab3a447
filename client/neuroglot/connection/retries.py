"""How long to go on asking when a server is away or full, and how long to wait in between."""

from __future__ import annotations

import math
import time
from random import SystemRandom

from neuroglot.errors import OverloadedError, ServerError, UnavailableError

_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 5.0
_LEAST_JITTER = 0.5
"""A pause is this share of what back-off gives, or more: many clients that a server lost do not come back as one."""
_MOST_BEYOND_ASKED = 0.1
"""What a server asks for is waited, and up to this share more."""

# Not Python's shared generator: a program that seeds it wants neither its numbers taken nor all its clients in step.
_uniform = SystemRandom().uniform


class Patience:
    """What one question may take: trouble is put up with for some seconds from its beginning to the next success."""

    def __init__(self, seconds: float, timeout: float | None) -> None:
        """Begin now.

        Args:
            seconds: how long to go on asking once trouble began; 0 for not at all.
            timeout: seconds that all of it may take, trouble or none; None for ever.
        """
        self._seconds = seconds
        self._end = math.inf if timeout is None else time.monotonic() + timeout
        self._trouble_since: float | None = None
        self._pauses = 0

    @property
    def time_left(self) -> float | None:
        """Seconds until the timeout, 0 once it is over; None for ever."""
        return None if math.isinf(self._end) else max(0.0, self._end - time.monotonic())

    def calm(self) -> None:
        """Note a success: the next trouble is a new one."""
        self._trouble_since, self._pauses = None, 0

    def pause_after(self, error: ServerError) -> float | None:
        """How many seconds to wait before asking again after an error that passes; None where the time for it is over.

        The pause is what the server asks for or, where it says nothing, twice as long each time; with jitter.
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
    """Whether the same question may be answered later: the server is away, or full and says for how long.

    A message that is too large for gRPC is RESOURCE_EXHAUSTED as well, and stays too large.
    """
    return isinstance(error, UnavailableError) or (
        isinstance(error, OverloadedError) and error.retry_after_seconds is not None
    )
