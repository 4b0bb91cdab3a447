"""Tokenizing in a process of its own: see `tokenizer_worker`.

Jobs are small: many texts are given to the process in pieces, between which tenants take turns and requests that were
cancelled end. A job that takes too much time or memory ends the process; its request is refused, and the next job has a
new one.
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
"""Bytes of texts that are given to the process at once, if it is more than one text: some tens of milliseconds."""

_SECONDS_OF_A_JOB = 5.0
"""A text of 64 KiB takes a tenth of a second."""
_MEMORY_BYTES = 3 * 2**30
"""The tokenizers of 250,000 tokens that there are take up less than a third of it."""

_TEXT_BYTES = 64
"""What a text counts for, however short it is."""

_CLOSED = "the model is going down: ask again, or another server"

_TOO_LONG = {-getattr(signal, name) for name in ("SIGPROF", "SIGKILL") if hasattr(signal, name)}


class CannotTokenize(RequestError):
    """Texts that the model's tokenizer did not bear."""

    def __init__(self, reason: str) -> None:
        """Say why, and what to do."""
        super().__init__(f"the model's tokenizer {reason} on a text of this request: send shorter or plainer texts")


class Tokens(NamedTuple):
    """The tokens of a text.

    Attributes:
        ids: token ids, the first ones where they are too many.
        length: how many there are in all.
        spelled: the tokens as the vocabulary spells them, where that was asked for.
    """

    ids: tuple[int, ...]
    length: int
    spelled: tuple[str, ...] = ()


class WorkerEnded(NeuroglotError):
    """The process ended in the middle of a job; the text says of what."""


class TokenizerProcess:
    """The process, as one thread at a time speaks to it.

    Attributes:
        file: the tokenizer's.
    """

    def __init__(self, file: Path, job_seconds: float = _SECONDS_OF_A_JOB, memory_bytes: int = _MEMORY_BYTES) -> None:
        """Start it; `loaded` waits until it has read the tokenizer.

        Args:
            file: the tokenizer's.
            job_seconds: how long a job may take, on a processor.
            memory_bytes: how much address space there is.
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
        self._end.atexit = False  # it ends with this process by itself; a model may still be loading at Python's end

    def loaded(self) -> Mapping[str, Any]:
        """What the process says of the tokenizer: `decoder`, as JSON, and the size of its `vocabulary`.

        Raises:
            BundleError: the file is no tokenizer, or one that is too much.
        """
        loaded: dict[str, Any]
        try:
            loaded = self._answer()
        except WorkerEnded as error:
            loaded = {"error": f"it {error}"}
        if "error" in loaded:
            self.close()
            raise BundleError(f"{self.file} is no tokenizer ({loaded['error']}): export the model again")
        return loaded

    def ask(self, texts: Sequence[tuple[str, bool]], most: int | None, *, spelled: bool) -> list[Tokens]:
        """Tokenize texts.

        Args:
            texts: each with whether special tokens are added.
            most: ids of each that are given at most; None for all.
            spelled: whether to give the tokens as the vocabulary spells them.

        Raises:
            WorkerEnded: the process did; the next call starts another.
        """
        if self._process.poll() is not None:
            self.close()
            self._start()
            try:
                self.loaded()
            except BundleError:
                raise WorkerEnded("cannot be loaded again") from None
        job = json.dumps({"texts": texts, "most": most, "spelled": spelled}).encode()
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
        """End the process, also in the middle of a job."""
        self._end()

    def _answer(self) -> Any:
        from_worker = _pipe(self._process.stdout)
        length = from_worker.read(LENGTH.size)
        if len(length) < LENGTH.size:
            raise self._ended()
        content = from_worker.read(*LENGTH.unpack(length))
        return json.loads(content)

    def _ended(self) -> WorkerEnded:
        """Why there is no answer."""
        code = self._process.wait()
        return WorkerEnded("took too long" if code in _TOO_LONG else "failed or took too much memory")


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and let go of its pipes."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        try:
            _pipe(pipe).close()
        except BrokenPipeError:  # of a job that it did not take
            continue


class Tokenizing:
    """The process, as requests speak to it: one job after the other, and a turn for each tenant."""

    def __init__(self, process: TokenizerProcess) -> None:
        """Take a process that has loaded its tokenizer."""
        self._process = process
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tokenizing")
        self._turns = Turns()
        self._closed = False
        self._callers = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def encode(
        self, texts: Sequence[tuple[str, bool]], tenant: str = "", most: int | None = None, *, spelled: bool = False
    ) -> list[Tokens]:
        """Tokenize texts, each with special tokens or without.

        Args:
            texts: each with whether special tokens are added.
            tenant: whose request it is.
            most: ids of each that are given at most; None for all.
            spelled: whether to give the tokens as the vocabulary spells them.

        Returns:
            The tokens of each text.

        Raises:
            CannotTokenize: a text takes too much time or memory.
            ModelClosed: the model went down meanwhile.
        """
        self._callers += 1
        self._idle.clear()
        try:
            found: list[Tokens] = []
            for piece in _pieces(texts):
                found += await self._encode(piece, tenant, most, spelled)
            return found
        finally:
            self._callers -= 1
            if not self._callers:
                self._idle.set()

    async def close(self) -> None:
        """End the process, and come back when all that waited for it have failed."""
        self._closed = True
        self._process.close()
        await self._idle.wait()
        self._thread.shutdown()

    async def _encode(
        self, piece: Sequence[tuple[str, bool]], tenant: str, most: int | None, spelled: bool
    ) -> list[Tokens]:
        await self._turns.wait(tenant)
        if self._closed:
            self._turns.leave()
            raise ModelClosed(_CLOSED)
        try:
            job = asyncio.get_running_loop().run_in_executor(self._thread, self._ask, piece, most, spelled)
        except RuntimeError:  # Python is shutting down, and its threads take no more work
            self._turns.leave()
            raise ModelClosed(_CLOSED) from None
        job.add_done_callback(self._done)
        try:
            return await asyncio.shield(job)  # a caller that is cancelled leaves its piece to end
        except CannotTokenize:
            if self._closed:
                raise ModelClosed(_CLOSED) from None
            raise

    def _ask(self, texts: Sequence[tuple[str, bool]], most: int | None, spelled: bool) -> list[Tokens]:
        try:
            return self._process.ask(texts, most, spelled=spelled)
        except WorkerEnded as error:
            raise CannotTokenize(str(error)) from None

    def _done(self, job: asyncio.Future[list[Tokens]]) -> None:
        if not job.cancelled():
            job.exception()  # which nobody asks for whose caller was cancelled
        self._turns.leave()


class Turns:
    """Lets one in after the other; of those that wait, tenants take turns, and each tenant's own are in order."""

    def __init__(self) -> None:
        """Nobody is in."""
        self._taken = False
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # the tenant whose turn is next is the first

    async def wait(self, tenant: str) -> None:
        """Come back when it is the caller's turn, which `leave` ends."""
        if not self._taken:
            self._taken = True
            return
        called = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(called)
        try:
            await called
        except asyncio.CancelledError:
            queue = self._waiting.get(tenant, deque())
            if called in queue:
                queue.remove(called)
                if not queue:
                    del self._waiting[tenant]
            elif not called.cancelled():  # it was called just when it left
                self.leave()
            raise

    def leave(self) -> None:
        """Call the next one."""
        if not self._waiting:
            self._taken = False
            return
        tenant, queue = next(iter(self._waiting.items()))
        del self._waiting[tenant]
        called = queue.popleft()
        if queue:
            self._waiting[tenant] = queue  # behind the others
        if called.cancelled():  # and it has not left yet
            self.leave()
        else:
            called.set_result(None)


def _pieces(texts: Sequence[tuple[str, bool]]) -> list[list[tuple[str, bool]]]:
    """Texts in their order, as many together as make a job."""
    pieces: list[list[tuple[str, bool]]] = []
    room = 0
    for text in texts:
        size = len(text[0]) + _TEXT_BYTES
        if not pieces or size > room:
            pieces.append([])
            room = _PIECE_BYTES
        pieces[-1].append(text)
        room -= size
    return pieces
