"""Runs a program in a process of its own and measures what it takes, with all processes that it starts."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any

import psutil

_INTERVAL_SECONDS = 0.05


@dataclass(frozen=True)
class Memory:
    """Of a process and those that it started, at one time.

    Attributes:
        resident: bytes in memory, with the pages of mapped files, which can be dropped at any time.
        anonymous: without those.
    """

    resident: int = 0
    anonymous: int = 0


@dataclass(frozen=True)
class Run:
    """What a program took.

    Attributes:
        seconds: from its start to its end.
        peak: the largest of each kind of memory.
        output: the lines of its standard output that are JSON objects, each with `at`, the seconds since the start.
    """

    seconds: float
    peak: Memory
    output: list[dict[str, Any]]


def run(arguments: Sequence[str], on_line: Callable[[dict[str, Any]], object] = lambda _line: None) -> Run:
    """Run a program of this Python and wait for it.

    Raises:
        CalledProcessError: it ended with another status than 0.
    """
    start = time.monotonic()
    output = []
    with subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        sampler = _Sampler(process.pid)
        sampler.start()
        try:
            for text in process.stdout:
                if text.startswith("{"):
                    line = {**json.loads(text), "at": time.monotonic() - start}
                    on_line(line)
                    output.append(line)
            process.wait()
        except BaseException:
            process.kill()
            raise
        finally:
            sampler.end()
    seconds = time.monotonic() - start
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, [sys.executable, *arguments])
    return Run(seconds, sampler.peak, output)


class _Sampler(Thread):
    """Looks at the memory of a process and its descendants every now and then."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.peak = Memory()
        self._pid = pid
        self._ended = Event()

    def run(self) -> None:
        while not self._ended.wait(_INTERVAL_SECONDS):
            now = _memory_of_tree(self._pid)
            self.peak = Memory(max(self.peak.resident, now.resident), max(self.peak.anonymous, now.anonymous))

    def end(self) -> None:
        self._ended.set()
        self.join()


def _memory_of_tree(pid: int) -> Memory:
    try:
        root = psutil.Process(pid)
        processes = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return Memory()
    found = [_memory_of(process.pid) for process in processes]
    return Memory(sum(one.resident for one in found), sum(one.anonymous for one in found))


def _memory_of(pid: int) -> Memory:
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return Memory()
    kilobytes = {
        name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in status.splitlines())
        if name in {"VmRSS", "RssAnon"}
    }  # fmt: skip
    return Memory(kilobytes.get("VmRSS", 0) * 1024, kilobytes.get("RssAnon", 0) * 1024)


def size_of(folder: Path) -> int:
    """Bytes of all files under a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
