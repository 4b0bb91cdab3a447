"""Notices passes that do not end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

_logger = logging.getLogger(__name__)


class Watchdog:
    """Says when a pass runs for too long, and when such a one has ended after all; all on the event loop.

    Attributes:
        hung: whether a pass runs for too long right now.
    """

    def __init__(self, seconds: float, changed: Callable[[bool], None]) -> None:
        """Watch passes.

        Args:
            seconds: how long a pass may run.
            changed: is called with True when one runs longer, and with False when it has ended.
        """
        self.hung = False
        self._seconds = seconds
        self._changed = changed

    def watch(self) -> Callable[[], None]:
        """Watch the pass that begins now; call what comes back when it has ended, once or more often."""
        timer = asyncio.get_running_loop().call_later(self._seconds, self._bark)

        def ended() -> None:
            timer.cancel()
            if self.hung:
                self.hung = False
                _logger.warning("the pass that had hung has ended")
                self._changed(False)

        return ended

    def _bark(self) -> None:
        _logger.error("a pass has been running for %g s: the model may hang", self._seconds)
        self.hung = True
        self._changed(True)


def unwatched(hung: bool) -> None:
    """Ignore hangs."""
