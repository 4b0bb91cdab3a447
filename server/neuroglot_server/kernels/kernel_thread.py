"""The thread on which kernels run: in pieces, in turn between tenants and their requests, off the event loop."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from dataclasses import dataclass
from time import monotonic
from typing import Any, Generic, NamedTuple, TypeVar

from neuroglot_server.core import ModelClosed

_Result = TypeVar("_Result")

Pieces = Generator[None, None, _Result]
"""Work that is done piece by piece: it yields after each, and returns what comes out of all."""

_CLOSED = "the model went down before this request was computed: ask again"

_TURN_SECONDS = 0.002
"""How long a request goes on with its next pieces before another one has its turn."""


def completed(pieces: Pieces[_Result]) -> _Result:
    """All pieces at once, on the thread of the caller."""
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            result: _Result = end.value
            return result


class _Ended(NamedTuple):
    """What pieces returned or raised."""

    result: Any = None
    error: Exception | None = None


@dataclass(eq=False)
class _Job(Generic[_Result]):
    """Pieces of one request, and where their result goes."""

    pieces: Pieces[_Result]
    done: asyncio.Future[_Result]

    def turn(self) -> _Ended | None:
        """Go on for a turn, on the thread; None where there is more to do."""
        end = monotonic() + _TURN_SECONDS
        try:
            while True:
                next(self.pieces)
                if monotonic() >= end:
                    return None
        except StopIteration as returned:
            return _Ended(result=returned.value)
        except Exception as error:  # noqa: BLE001 - the request that waits for the result is told
            return _Ended(error=error)


class KernelThread:
    """One thread for the kernels of a model. All but the pieces themselves happens on one event loop."""

    def __init__(self) -> None:
        """Prepare a thread; it starts with the first pieces."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kernels")
        self._jobs: OrderedDict[str, deque[_Job[Any]]] = OrderedDict()
        self._serving: asyncio.Task[None] | None = None
        self._closed = False

    async def run(self, pieces: Pieces[_Result], tenant: str = "") -> _Result:
        """What pieces return. If the caller is cancelled, the piece that runs is the last one.

        Args:
            pieces: of one request.
            tenant: whose it is; tenants have their turns one after the other, and so have the requests of each.

        Raises:
            ModelClosed: the thread is closed.
        """
        if self._closed:
            raise ModelClosed(_CLOSED)
        job = _Job(pieces, asyncio.get_running_loop().create_future())
        self._jobs.setdefault(tenant, deque()).append(job)
        if self._serving is None:
            self._serving = asyncio.create_task(self._serve(), context=Context())  # not in the first request's trace
        result: _Result = await job.done
        return result

    def close(self) -> None:
        """Fail what waits, and let the piece that runs be the last one."""
        self._closed = True
        for jobs in self._jobs.values():
            for job in jobs:
                self._finish(job, _Ended(error=ModelClosed(_CLOSED)))
        self._jobs.clear()
        self._thread.shutdown(wait=False)

    async def _serve(self) -> None:
        """Give each job its turn until there are none."""
        loop = asyncio.get_running_loop()
        try:
            while self._jobs:
                tenant, jobs = self._jobs.popitem(last=False)
                job = jobs.popleft()
                if jobs:
                    self._jobs[tenant] = jobs
                if job.done.done():
                    job.pieces.close()
                    continue
                try:
                    ended = await loop.run_in_executor(self._thread, job.turn)
                except RuntimeError:  # Python is shutting down, and its threads take no more work
                    self._finish(job, _Ended(error=ModelClosed(_CLOSED)))
                    self.close()
                    return
                if ended is not None:
                    self._finish(job, ended)
                elif self._closed:
                    self._finish(job, _Ended(error=ModelClosed(_CLOSED)))
                else:
                    self._jobs.setdefault(tenant, deque()).append(job)
        finally:
            self._serving = None

    def _finish(self, job: _Job[Any], ended: _Ended) -> None:
        """Tell the request, unless it is gone."""
        if job.done.done():
            return
        if ended.error is not None:
            job.done.set_exception(ended.error)
        else:
            job.done.set_result(ended.result)
