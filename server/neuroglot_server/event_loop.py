"""The event loop of the server: uvloop, which has a lower latency, if it is available."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

_Returned = TypeVar("_Returned")


def run_in_loop(work: Callable[[], Coroutine[Any, Any, _Returned]]) -> _Returned:
    """Run a coroutine function on a new event loop, as `asyncio.run` does."""
    with asyncio.Runner(loop_factory=_factory()) as runner:
        return runner.run(work())


def _factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        from uvloop import new_event_loop
    except ImportError:  # on Windows
        return None
    return new_event_loop
