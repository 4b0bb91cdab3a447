"""The thread on which passes run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


class Worker:
    """One thread, for all components of a model: two passes at once would only fight for the same cores.

    Attributes:
        turn: held by whoever runs a batch. Turns are given in the order in which they were asked for, and a batch is
            chosen when its turn has come, so that it holds all that came while another ran.
    """

    def __init__(self) -> None:
        """Prepare a thread; it starts with the first pass."""
        self.turn = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")

    def submit(self, function: Callable[[], Result]) -> asyncio.Future[Result]:
        """Call a function on the thread."""
        return asyncio.get_running_loop().run_in_executor(self._thread, function)

    def close(self) -> None:
        """End the thread, when the pass that runs is done."""
        self._thread.shutdown()
