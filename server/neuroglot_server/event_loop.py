"""The event loop on which a server runs: uvloop's, which wakes a task in less time, where there is one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

_Returned = TypeVar("_Returned")


def run_in_loop(work: Callable[[], Coroutine[Any, Any, _Returned]]) -> _Returned:
    """Run a coroutine on a loop of its own, as `asyncio.run` does."""
    with asyncio.Runner(loop_factory=_factory()) as runner:
        return runner.run(work())


def _factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        from uvloop import new_event_loop
    except ImportError:  # it does not run on Windows
        return None
    return new_event_loop
