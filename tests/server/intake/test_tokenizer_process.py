"""The tokenizer process: exceeding its limits ends this process only."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from neuroglot.definitions.bundle import TOKENIZER
from neuroglot.errors import BundleError
from neuroglot_server.core import ModelClosed
from neuroglot_server.intake.text import Text
from neuroglot_server.intake.tokenizer_process import CannotTokenize, TokenizerProcess, Tokenizing, Turns
from tests.server.live import until


def file_of(folder: Path, **parts: Any) -> Path:
    """A tokenizer of words, with the given parts."""
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "b": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    file = folder / TOKENIZER
    tokenizer.save(str(file))
    return file


def growing(of: str, times: int) -> normalizers.Normalizer:
    """A normalizer that replaces a letter by 16, `times` times in a row."""
    return normalizers.Sequence([normalizers.Replace(of, of * 16)] * times)


def slow(of: str) -> pre_tokenizers.PreTokenizer:
    """A pattern that backtracks over all ways to split a run of a letter."""
    return pre_tokenizers.Split(Regex(f"({of}|{of}{of})+y"), "isolated")


def tokenizing(file: Path, **limits: float) -> Tokenizing:
    process = TokenizerProcess(file, **limits)
    process.loaded()
    return Tokenizing(process)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"normalizer": growing("a", 3)}, "too much|too long|tokens of"),
        ({"pre_tokenizer": slow("a")}, "failed"),
        ({"decoder": decoders.Replace(Regex("a"), "b")}, "pattern"),
    ],
)
def test_a_tokenizer_that_explodes_is_not_served(tmp_path: Path, parts: dict[str, Any], said: str) -> None:
    with pytest.raises(BundleError, match=said):
        Text.load(file_of(tmp_path, **parts), encoder_decoder=False)


@pytest.mark.parametrize("content", ["", "{}", "[1]", "\x00"])
def test_a_file_that_is_not_a_tokenizer_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / TOKENIZER).write_text(content)
    with pytest.raises(BundleError, match=r"is not a tokenizer .*export the model again"):
        Text.load(tmp_path / TOKENIZER, encoder_decoder=False)


def test_a_tokenizer_of_more_tokens_than_the_model_has_is_not_served(tmp_path: Path) -> None:
    file = file_of(tmp_path)
    asyncio.run(Text.load(file, encoder_decoder=False, vocabulary_size=3).close())
    with pytest.raises(BundleError, match="tokens up to 2, and the model's vocabulary ends at 1"):
        Text.load(file, encoder_decoder=False, vocabulary_size=2)


@pytest.mark.parametrize(
    ("parts", "limits", "reason"),
    [
        ({"normalizer": growing("z", 6)}, {"memory_bytes": 2**29}, "too much memory"),
        ({"normalizer": normalizers.Sequence([normalizers.NFD()] * 300)}, {"job_seconds": 0.1}, "took too long"),
        ({"pre_tokenizer": slow("z")}, {}, "failed"),
    ],
)
def test_a_text_that_exceeds_the_limits_ends_the_process_and_the_next_text_is_tokenized(
    tmp_path: Path, parts: dict[str, Any], limits: dict[str, float], reason: str
) -> None:
    async def ask() -> None:
        texts = tokenizing(file_of(tmp_path, **parts), **limits)
        beside = asyncio.create_task(texts.encode([("b", True)], "other"))
        with pytest.raises(CannotTokenize, match=f"{reason}.*send shorter or plainer texts"):
            await texts.encode([("z" * 30_000, True)])
        for tokens in (await beside, await texts.encode([("b", True)])):
            assert tokens[0].ids == (2,)
        await texts.close()

    asyncio.run(ask())


def test_a_request_that_is_cancelled_ends_with_its_piece(tmp_path: Path) -> None:
    async def ask() -> None:
        texts = tokenizing(file_of(tmp_path, normalizer=normalizers.Sequence([normalizers.NFD()] * 20)))
        long = asyncio.create_task(texts.encode([("b " * 8000, True)] * 500))
        await asyncio.sleep(0.2)
        assert not long.done()
        long.cancel()
        start = time.monotonic()
        await texts.encode([("b", True)])
        assert long.cancelled()
        assert time.monotonic() - start < 2, "500 pieces take a minute"
        await texts.close()

    asyncio.run(ask())


def test_tenants_take_turns() -> None:
    async def run() -> list[str]:
        turns, order = Turns(), list[str]()
        await turns.wait("first")

        async def one(tenant: str) -> None:
            await turns.wait(tenant)
            order.append(tenant)
            turns.leave()

        tasks = [asyncio.create_task(one(tenant)) for tenant in ("ann", "ann", "ann", "bob", "cy", "bob")]
        await asyncio.sleep(0)
        tasks[1].cancel()
        turns.leave()
        await asyncio.wait(tasks)
        await turns.wait("last")  # the lock is free
        return order

    assert asyncio.run(run()) == ["ann", "bob", "cy", "ann", "bob"]


def test_pending_requests_fail_when_the_model_closes(tmp_path: Path) -> None:
    async def ask() -> list[object]:
        texts = tokenizing(file_of(tmp_path, normalizer=normalizers.Sequence([normalizers.NFD()] * 20)))
        waiting = [asyncio.create_task(texts.encode([("b " * 8000, True)] * 100)) for _ in range(3)]
        await asyncio.sleep(0.1)
        await texts.close()
        assert all(task.done() for task in waiting)
        return await asyncio.gather(*waiting, return_exceptions=True)

    assert [type(outcome) for outcome in asyncio.run(ask())] == [ModelClosed] * 3


_SERVER = """
import sys
from neuroglot_server.lifecycle import start_in_thread
with start_in_thread(sys.argv[1:]):
    print("up", flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes of a process in Linux's /proc")
@pytest.mark.parametrize("ending", [signal.SIGKILL, None])
def test_the_process_ends_with_its_server(bloom_bundle: Path, ending: signal.Signals | None) -> None:
    """However the server ends: killed, or by itself when its standard input is closed."""
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER, str(bloom_bundle)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"up\n"
        children = [
            int(child)
            for task in Path(f"/proc/{server.pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
        assert children
        if ending is not None:
            server.send_signal(ending)
    asyncio.run(until(lambda: not any(map(_runs, children))))


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
