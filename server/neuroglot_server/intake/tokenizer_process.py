"""Tokenizes in a separate process, see `tokenizer_worker`.

Jobs are small: many texts are sent to the process in pieces. Between pieces, tenants take turns and cancelled requests
end. A job that exceeds its time or memory ends the process; its request is refused, and the next job starts a new
process.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, NamedTuple

from neuroglot.errors import BundleError, NeuroglotError
from neuroglot_server.core import ModelClosed, RequestError
from neuroglot_server.intake.tokenizer_worker import LENGTH

_PIECE_BYTES = 2**14
"""Maximum size of a piece of several texts, which takes some tens of milliseconds."""

_SECONDS_OF_A_JOB = 5.0
"""A text of 64 KiB takes a tenth of a second."""
_MEMORY_BYTES = 3 * 2**30
"""Known tokenizers of 250,000 tokens need less than a third of it."""

_TEXT_BYTES = 64
"""Overhead that is counted for each text, in bytes."""

_CLOSED = "the model is shutting down: retry, or use another server"

_TOO_LONG = {-getattr(signal, name) for name in ("SIGPROF", "SIGKILL") if hasattr(signal, name)}


class CannotTokenize(RequestError):
    """The model's tokenizer exceeded its time or memory on a text, or failed."""

    def __init__(self, reason: str) -> None:
        """Create the error; the message has the reason, and what to do."""
        super().__init__(f"the model's tokenizer {reason} on a text of this request: send shorter or plainer texts")


class Tokens(NamedTuple):
    """The tokens of a text.

    Attributes:
        ids: token ids, only the first ones if there are more than the limit.
        length: total number of tokens.
        spelled: strings of the tokens in the vocabulary, if requested.
    """

    ids: tuple[int, ...]
    length: int
    spelled: tuple[str, ...] = ()


class WorkerEnded(NeuroglotError):
    """The process ended during a job; the message has the reason."""


class TokenizerProcess:
    """The tokenizer process. Used by one thread at a time.

    Attributes:
        file: file of the tokenizer.
    """

    def __init__(self, file: Path, job_seconds: float = _SECONDS_OF_A_JOB, memory_bytes: int = _MEMORY_BYTES) -> None:
        """Start the process; `loaded` waits until it has loaded the tokenizer.

        Args:
            file: file of the tokenizer.
            job_seconds: maximum CPU time of a job.
            memory_bytes: maximum address space of the process.
        """
        self.file = file
        self._limits = (str(job_seconds), str(memory_bytes))
        self._start()

    def _start(self) -> None:
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "RAYON_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        command = [
            sys.executable,
            "-P",
            "-m",
            "neuroglot_server.intake.tokenizer_worker",
            str(self.file),
            *self._limits,
        ]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        )
        self._end = weakref.finalize(self, _end, self._process)
        self._end.atexit = (
            False  # the worker ends with this process by itself; a model may still be loading at Python's exit
        )

    def loaded(self) -> Mapping[str, Any]:
        """Wait for the tokenizer, and return its `decoder` as JSON and the size of its `vocabulary`.

        Raises:
            BundleError: the file is not a tokenizer, or exceeds its time or memory.
        """
        loaded: dict[str, Any]
        try:
            loaded = self._answer()
        except WorkerEnded as error:
            loaded = {"error": f"it {error}"}
        if "error" in loaded:
            self.close()
            raise BundleError(
                f"{self.file} is not a tokenizer that can be served ({loaded['error']}): export the model again"
            )
        return loaded

    def ask(self, texts: Sequence[tuple[str, bool]], limit: int | None, *, spelled: bool) -> list[Tokens]:
        """Tokenize texts.

        Args:
            texts: the texts, each with whether special tokens are added.
            limit: maximum ids to return for each text; None for all.
            spelled: whether to return the strings of the tokens, too.

        Raises:
            WorkerEnded: the process ended; the next call starts another one.
        """
        if self._process.poll() is not None:
            self.close()
            self._start()
            try:
                self.loaded()
            except BundleError:
                raise WorkerEnded("cannot be loaded again") from None
        job = json.dumps({"texts": texts, "most": limit, "spelled": spelled}).encode()
        try:
            to_worker = _pipe(self._process.stdin)
            to_worker.write(LENGTH.pack(len(job)) + job)
            to_worker.flush()
        except BrokenPipeError:
            raise self._ended() from None
        answer = self._answer()
        spellings = answer["tokens"] if spelled else [()] * len(texts)
        return [
            Tokens(tuple(ids), length, tuple(tokens))
            for ids, length, tokens in zip(answer["ids"], answer["counts"], spellings, strict=True)
        ]

    def close(self) -> None:
        """End the process, even during a job."""
        self._end()

    def _answer(self) -> Any:
        from_worker = _pipe(self._process.stdout)
        length = from_worker.read(LENGTH.size)
        if len(length) < LENGTH.size:
            raise self._ended()
        content = from_worker.read(*LENGTH.unpack(length))
        return json.loads(content)

    def _ended(self) -> WorkerEnded:
        """Create the error of a process that ended."""
        code = self._process.wait()
        return WorkerEnded("took too long" if code in _TOO_LONG else "failed or took too much memory")


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and close its pipes."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        try:
            _pipe(pipe).close()
        except BrokenPipeError:  # a job was left in the buffer
            continue


class Tokenizing:
    """Schedules the requests on a tokenizer process: one job at a time, with round robin among tenants."""

    def __init__(self, process: TokenizerProcess) -> None:
        """Use a process that has loaded its tokenizer."""
        self._process = process
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tokenizing")
        self._turns = Turns()
        self._closed = False
        self._callers = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def encode(
        self, texts: Sequence[tuple[str, bool]], tenant: str = "", limit: int | None = None, *, spelled: bool = False
    ) -> list[Tokens]:
        """Tokenize texts, each with special tokens or without.

        Args:
            texts: the texts, each with whether special tokens are added.
            tenant: name of the tenant.
            limit: maximum ids to return for each text; None for all.
            spelled: whether to return the strings of the tokens, too.

        Returns:
            The tokens of each text.

        Raises:
            CannotTokenize: the tokenizer exceeds its time or memory on a text.
            ModelClosed: the model was closed meanwhile.
        """
        self._callers += 1
        self._idle.clear()
        try:
            found: list[Tokens] = []
            for piece in _pieces(texts):
                found += await self._encode(piece, tenant, limit, spelled)
            return found
        finally:
            self._callers -= 1
            if not self._callers:
                self._idle.set()

    async def close(self) -> None:
        """End the process, and wait until all pending requests have failed."""
        self._closed = True
        self._process.close()
        await self._idle.wait()
        self._thread.shutdown()

    async def _encode(
        self, piece: Sequence[tuple[str, bool]], tenant: str, limit: int | None, spelled: bool
    ) -> list[Tokens]:
        await self._turns.wait(tenant)
        if self._closed:
            self._turns.leave()
            raise ModelClosed(_CLOSED)
        try:
            job = asyncio.get_running_loop().run_in_executor(self._thread, self._ask, piece, limit, spelled)
        except RuntimeError:  # Python is shutting down, and its threads take no more work
            self._turns.leave()
            raise ModelClosed(_CLOSED) from None
        job.add_done_callback(self._done)
        try:
            return await asyncio.shield(job)  # if the caller is cancelled, the running piece still ends
        except CannotTokenize:
            if self._closed:
                raise ModelClosed(_CLOSED) from None
            raise

    def _ask(self, texts: Sequence[tuple[str, bool]], limit: int | None, spelled: bool) -> list[Tokens]:
        try:
            return self._process.ask(texts, limit, spelled=spelled)
        except WorkerEnded as error:
            raise CannotTokenize(str(error)) from None

    def _done(self, job: asyncio.Future[list[Tokens]]) -> None:
        if not job.cancelled():
            job.exception()  # marks it as retrieved: a cancelled caller does not await it
        self._turns.leave()


class Turns:
    """A lock with round robin among tenants; the waiters of each tenant are served first in, first out."""

    def __init__(self) -> None:
        """Create a free lock."""
        self._taken = False
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # the first tenant is next

    async def wait(self, tenant: str) -> None:
        """Acquire the lock; `leave` releases it."""
        if not self._taken:
            self._taken = True
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            queue = self._waiting.get(tenant, deque())
            if turn in queue:
                queue.remove(turn)
                if not queue:
                    del self._waiting[tenant]
            elif not turn.cancelled():  # cancelled just after it got the lock
                self.leave()
            raise

    def leave(self) -> None:
        """Release the lock to the next waiter."""
        if not self._waiting:
            self._taken = False
            return
        tenant, queue = next(iter(self._waiting.items()))
        del self._waiting[tenant]
        turn = queue.popleft()
        if queue:
            self._waiting[tenant] = queue  # behind the others
        if turn.cancelled():  # cancelled, and its task has not run since
            self.leave()
        else:
            turn.set_result(None)


def _pieces(texts: Sequence[tuple[str, bool]]) -> list[list[tuple[str, bool]]]:
    """Split texts, in order, into pieces of at most `_PIECE_BYTES`, or of one text."""
    pieces: list[list[tuple[str, bool]]] = []
    free = 0
    for text in texts:
        size = len(text[0]) + _TEXT_BYTES
        if not pieces or size > free:
            pieces.append([])
            free = _PIECE_BYTES
        pieces[-1].append(text)
        free -= size
    return pieces
