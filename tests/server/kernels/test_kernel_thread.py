"""Kernels run in pieces: requests have their turns, and what nobody waits for is not computed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from neuroglot.definitions.bundle import TOKENIZER
from neuroglot_server.core import ModelClosed
from neuroglot_server.kernels.kernel_thread import KernelThread, Pieces, completed
from tests.server.live import until


class Work:
    """Pieces that are longer than a turn, and note when each was done."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.closed: list[str] = []

    def pieces(self, name: str, count: int) -> Pieces[str]:
        try:
            for _ in range(count):
                time.sleep(0.006)
                self.done.append(name)
                yield
        except GeneratorExit:
            self.closed.append(name)
            raise
        return f"{name} on {threading.current_thread().name}"


def test_what_pieces_return_comes_back_from_the_thread() -> None:
    async def test() -> str:
        return await KernelThread().run(Work().pieces("a", 3))

    assert asyncio.run(test()) == "a on kernels_0"
    assert completed(Work().pieces("a", 3)) == "a on MainThread"


def test_tenants_and_their_requests_have_turns() -> None:
    async def test() -> list[str]:
        kernels, work = KernelThread(), Work()
        many = [kernels.run(work.pieces(f"a{place}", 6), "a") for place in range(3)]
        await asyncio.gather(*many, kernels.run(work.pieces("b", 6), "b"))
        return work.done

    done = asyncio.run(test())
    assert [name for name in done[:6] if name == "b"] == ["b"] * 3, "one tenant has three requests, the other one"
    first = [name for name in done if name != "b"][:6]
    assert sorted(first) == ["a0", "a0", "a1", "a1", "a2", "a2"]


def test_a_request_that_is_cancelled_ends_with_the_piece_that_runs() -> None:
    async def test() -> Work:
        kernels, work = KernelThread(), Work()
        running = asyncio.create_task(kernels.run(work.pieces("long", 10_000)))
        await until(lambda: len(work.done) > 2)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        done = len(work.done)
        await kernels.run(work.pieces("next", 3))
        assert work.done.count("long") <= done + 1
        return work

    assert asyncio.run(test()).closed == ["long"]


def test_an_error_is_raised_where_the_result_is_waited_for() -> None:
    def broken() -> Pieces[None]:
        yield
        raise ValueError("broken")

    async def test() -> None:
        kernels = KernelThread()
        with pytest.raises(ValueError, match="broken"):
            await kernels.run(broken())
        assert await kernels.run(Work().pieces("next", 1)) == "next on kernels_0"

    asyncio.run(test())


def test_requests_fail_when_the_thread_is_closed() -> None:
    async def test() -> None:
        kernels, work = KernelThread(), Work()
        requests = [asyncio.create_task(kernels.run(work.pieces(name, 1000))) for name in "ab"]
        await until(lambda: len(work.done) > 2)
        kernels.close()
        for request in requests:
            with pytest.raises(ModelClosed):
                await request
        with pytest.raises(ModelClosed):
            await kernels.run(work.pieces("late", 1))

    asyncio.run(test())


ENDING = """
import asyncio, sys, threading, time
from pathlib import Path
from neuroglot.definitions.bundle import TOKENIZER
from neuroglot_server.core import ModelClosed
from neuroglot_server.kernels.kernel_thread import KernelThread
from neuroglot_server.intake.tokenizer_process import TokenizerProcess, Tokenizing

def pieces():
    yield

async def told(asked):
    try:
        await asked
    except ModelClosed:
        return True

async def after_the_end():
    kernels, tokenizing = KernelThread(), Tokenizing(process)
    waiting = [kernels.run(pieces()), kernels.run(pieces()), tokenizing.encode([("a", False)])]
    waiting.append(tokenizing.encode([("b", False)]))
    print(await asyncio.wait_for(asyncio.gather(*map(told, waiting)), 5))
    process.close()

def work():
    threading.main_thread().join()
    time.sleep(0.2)  # until Python has told its executors to take no more work
    asyncio.run(after_the_end())

process = TokenizerProcess(Path(sys.argv[1]))
process.loaded()
threading.Thread(target=work).start()
"""


def test_what_is_asked_while_python_shuts_down_fails_at_once(bloom_bundle: Path) -> None:
    """A program that ends while a model answers its probe waited for ever for kernels that nothing would run."""
    ended = subprocess.run(
        [sys.executable, "-c", ENDING, str(bloom_bundle / TOKENIZER)], capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "[True, True, True, True]\n", "")
